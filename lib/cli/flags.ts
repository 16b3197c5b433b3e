import { parseArgs } from 'node:util';

/** Wrong use of the command line: one line on stderr, exit code 2. */
export class UsageError extends Error {}

export interface Flag {
  /** 'list': values separated by commas, the flag may be repeated. 'each': repeated, commas are part of a value. */
  type: 'boolean' | 'string' | 'number' | 'integer' | 'list' | 'each';
  help: string;
  /** What the help calls the value. */
  value?: string;
  short?: string;
  choices?: readonly string[];
  /** Values that are taken beside the choices. */
  unlisted?: RegExp;
  /** Bounds of a number, both included. */
  least?: number;
  most?: number;
}

export type Flags = Record<string, Flag>;

type FlagValue<F extends Flag> = F['type'] extends 'boolean'
  ? boolean
  : F['type'] extends 'number' | 'integer'
    ? number
    : F['type'] extends 'list' | 'each'
      ? string[]
      : string;

/** The flags that were given. */
export type Values<F extends Flags> = { [K in keyof F]?: FlagValue<F[K]> };

export interface Command<F extends Flags> {
  name: string;
  /** What follows the name in the usage line. */
  usage: string;
  summary: string;
  flags: F;
  /** Command lines, without the leading "at-moe ". */
  examples: readonly string[];
  /** Most positional arguments; default 0. */
  positionals?: number;
}

export interface Parsed<F extends Flags> {
  values: Values<F>;
  positionals: string[];
}

function parseNumber(name: string, text: string, integer: boolean): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value) || (integer && !Number.isSafeInteger(value))) {
    throw new UsageError(`--${name} takes ${integer ? 'an integer' : 'a number'}, not ${JSON.stringify(text)}`);
  }
  return value;
}

function checkBounds(name: string, value: number, { least = -Infinity, most = Infinity }: Flag): number {
  if (value < least) throw new UsageError(`--${name} is at least ${least}, not ${value}`);
  if (value > most) throw new UsageError(`--${name} is at most ${most}, not ${value}`);
  return value;
}

function flagValue(name: string, flag: Flag, given: string | boolean | string[]): unknown {
  if (flag.type === 'number' || flag.type === 'integer') {
    return checkBounds(name, parseNumber(name, given as string, flag.type === 'integer'), flag);
  }
  if (flag.type === 'list') return (given as string[]).flatMap((part) => part.split(',')).filter((part) => part !== '');
  if (flag.choices && !flag.choices.includes(given as string) && !flag.unlisted?.test(given as string)) {
    throw new UsageError(`--${name} is one of ${flag.choices.join(', ')}, not ${JSON.stringify(given)}`);
  }
  return given;
}

/** `--entropy -0.01` as `--entropy=-0.01`: parseArgs takes a value that starts with "-" for another flag. */
function joinNegativeNumbers(flags: Flags, argv: readonly string[]): string[] {
  const joined: string[] = [];
  const isNumeric = (arg: string | undefined) => ['number', 'integer'].includes(flags[arg?.slice(2) ?? '']?.type ?? '');
  for (const [i, arg] of argv.entries()) {
    if (arg === '--') return [...joined, ...argv.slice(i)];
    const last = joined.at(-1);
    if (last?.startsWith('--') && isNumeric(last) && /^-[\d.]/.test(arg)) joined[joined.length - 1] = `${last}=${arg}`;
    else joined.push(arg);
  }
  return joined;
}

/**
 * Reads a command's arguments. Undefined when help was asked for, which is printed then.
 * @throws UsageError
 */
export function parseCommand<F extends Flags>(command: Command<F>, argv: readonly string[]): Parsed<F> | undefined {
  const options = Object.fromEntries(
    Object.entries<Flag>(command.flags).map(([name, { type, short }]) => [
      name,
      {
        type: type === 'boolean' ? ('boolean' as const) : ('string' as const),
        ...(short && { short }),
        ...((type === 'list' || type === 'each') && { multiple: true }),
      },
    ]),
  );
  const { values, positionals } = parse(joinNegativeNumbers(command.flags, argv), {
    ...options,
    help: { type: 'boolean' as const, short: 'h' },
  });
  if (values.help) {
    process.stdout.write(commandHelp(command));
    return undefined;
  }
  const most = command.positionals ?? 0;
  if (positionals.length > most) throw new UsageError(`unexpected argument ${JSON.stringify(positionals[most])}`);
  const checked = Object.entries(values).map(([name, given]) => [
    name,
    flagValue(name, command.flags[name] as Flag, given),
  ]);
  return { values: Object.fromEntries(checked) as Values<F>, positionals };
}

type ParseOptions = NonNullable<NonNullable<Parameters<typeof parseArgs>[0]>['options']>;
type RawValues = Record<string, string | boolean | string[]>;

function parse(argv: readonly string[], options: ParseOptions): { values: RawValues; positionals: string[] } {
  try {
    return parseArgs({ args: [...argv], options, allowPositionals: true }) as {
      values: RawValues;
      positionals: string[];
    };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (!code?.startsWith('ERR_PARSE_ARGS_')) throw error;
    throw new UsageError((message.split(/\.?\n|\. /)[0] as string).replace(/^[A-Z](?=[a-z])/, (c) => c.toLowerCase()));
  }
}

const typeWords = { boolean: '', string: 'TEXT', number: 'X', integer: 'N', list: 'A,B', each: 'TEXT' };

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** The text of `--help`. */
export function commandHelp<F extends Flags>(command: Command<F>): string {
  const rows = Object.entries<Flag>({ ...command.flags, help: { type: 'boolean', short: 'h', help: 'this text' } });
  const described = rows.map(([name, { type, value, short, choices, help }]) => {
    const word = value ?? (choices ? choices.join('|') : typeWords[type]);
    return { left: `${short ? `-${short}, ` : ''}--${name}${word && ` ${word}`}`, help };
  });
  const column = Math.min(34, Math.max(...described.map(({ left }) => left.length)));
  const flagLines = described.flatMap(({ left, help }) => {
    const [first = '', ...rest] = wrap(help, 100 - column);
    const opening =
      left.length > column ? [`  ${left}`, `  ${''.padEnd(column)}  ${first}`] : [`  ${left.padEnd(column)}  ${first}`];
    return [...opening, ...rest.map((line) => `  ${''.padEnd(column)}  ${line}`)];
  });
  return [
    `usage: at-moe ${command.name}${command.usage && ` ${command.usage}`}`,
    '',
    ...wrap(command.summary, 100),
    '',
    'flags:',
    ...flagLines,
    '',
    'examples:',
    ...command.examples.map((example) => `  ${example.includes('at-moe ') ? '' : 'at-moe '}${example}`),
    '',
  ].join('\n');
}

/** "a=1,b=0.5" as numbers by name. @throws UsageError */
export function parsePairs(name: string, parts: readonly string[] | undefined): Record<string, number> | undefined {
  return (
    parts &&
    Object.fromEntries(
      parts.map((part) => {
        const at = part.lastIndexOf('=');
        if (at < 1) throw new UsageError(`--${name} takes name=number, not ${JSON.stringify(part)}`);
        return [part.slice(0, at), parseNumber(name, part.slice(at + 1), false)];
      }),
    )
  );
}

/** "scope=sequence,group_top_k=2" with values of JSON where they are JSON, else text. @throws UsageError */
export function parseSettings(name: string, parts: readonly string[] | undefined): Record<string, unknown> | undefined {
  const value = (text: string): unknown => {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  };
  return (
    parts &&
    Object.fromEntries(
      parts.map((part) => {
        const at = part.indexOf('=');
        if (at < 1) throw new UsageError(`--${name} takes key=value, not ${JSON.stringify(part)}`);
        return [part.slice(0, at), value(part.slice(at + 1))];
      }),
    )
  );
}

/** Token ids. @throws UsageError */
export function parseIds(name: string, parts: readonly string[]): number[] {
  return parts.map((part) => parseNumber(name, part, true));
}

/** A flag that must be there. @throws UsageError */
export function required<T>(name: string, value: T | undefined): T {
  if (value === undefined) throw new UsageError(`--${name} is missing`);
  return value;
}
