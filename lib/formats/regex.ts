import { runInNewContext } from 'node:vm';

const limitMs = 1000;

/**
 * `RegExp.exec` of one pattern on many strings, under a time limit, since a pattern from a file may backtrack without end.
 * Python's dialect is read where the two agree; what JavaScript cannot read (`(?i)`, `(?P<name>`, `\Z`) throws a SyntaxError.
 */
export function execAll(pattern: string, subjects: string[]): (string[] | null)[] {
  const regex = new RegExp(pattern, 'u');
  const script = 'JSON.stringify(JSON.parse(subjects).map((text) => new RegExp(source, "u").exec(text)))';
  const scope = { source: regex.source, subjects: JSON.stringify(subjects) };
  return JSON.parse(runInNewContext(script, scope, { timeout: limitMs }) as string) as (string[] | null)[];
}
