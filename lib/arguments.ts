import { z } from 'zod';
import { formatIssues } from './formats/json.js';

/** A caller's argument with its defaults; `what` names it in the error. Errors: TypeError; RangeError for numbers out of range. */
export function checkArgument<T extends z.ZodType>(what: string, schema: T, value: unknown): z.infer<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const range = result.error.issues.every(({ code }) => code === 'too_small' || code === 'too_big');
  throw new (range ? RangeError : TypeError)(`${what}: ${formatIssues(result.error)}`);
}

const seedSchema = z.int().min(0);

/** Errors: TypeError, RangeError for what is no non-negative safe integer. */
export function checkSeed(seed: unknown): void {
  checkArgument('seed', seedSchema, seed);
}

/** Error: TypeError with this message for what can be no folder's path. */
export function checkFolder(dir: unknown, message: string): void {
  if (typeof dir !== 'string' || dir === '') throw new TypeError(message);
}
