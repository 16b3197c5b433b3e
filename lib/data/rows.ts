import { z } from 'zod';
import { AtMoeError } from '../errors.js';
import type { ChatMessage } from '../text/chat-template.js';
import { readJsonl } from './jsonl.js';

const tokenIds = z.array(
  z
    .int()
    .min(0)
    .max(2 ** 31 - 1),
);

const span = z
  .strictObject({ start: z.int().min(0), end: z.int().min(0), weight: z.number().min(0) })
  .refine(({ start, end }) => end > start, 'end must be greater than start');

const common = {
  groups: z.array(z.string()).optional(),
  experts: z.array(z.string()).optional(),
  weight: z.array(span).optional(),
};

const textRow = z.object({ prompt: z.string(), completion: z.string(), ...common });
const idsRow = z.object({ prompt: tokenIds, completion: tokenIds, ...common });
export const chatMessage = z.looseObject({ role: z.string(), content: z.union([z.string(), z.array(z.unknown())]) });
const chatRow = z.object({ messages: z.array(chatMessage).min(1), tools: z.array(z.unknown()).optional(), ...common });

/** Loss weight of completion[start, end): UTF-16 units of a text completion, tokens of one given as ids. */
export interface WeightSpan {
  start: number;
  end: number;
  weight: number;
}

interface CommonFields {
  /** Names of the groups this example belongs to, for `supervision`. */
  groups?: string[];
  /** Names of its experts: "function/triage", or "triage" where that is unambiguous. */
  experts?: string[];
  /** Loss weights of parts of the completion; the rest weighs 1. Spans must not overlap. */
  weight?: WeightSpan[];
}

/**
 * A prompt and the completion to learn, both as text or both as token ids (taken as they are, without BOS or EOS
 * added).
 */
export type PromptRow = CommonFields &
  ({ prompt: string; completion: string } | { prompt: number[]; completion: number[] });

/** A conversation: every assistant turn becomes one example. */
export type ChatRow = CommonFields & { messages: ChatMessage[]; tools?: unknown[] };

/** One row of training data; further fields are ignored. */
export type ExampleRow = PromptRow | ChatRow;

/** A JSONL file, or rows from anywhere. */
export type ExampleSource = string | Iterable<ExampleRow> | AsyncIterable<ExampleRow>;

export interface SourcedRow {
  row: ExampleRow;
  /** "file:line", or "row n" counted from 1 for rows that are not from a file. */
  source: string;
}

/**
 * Checks one row.
 * @throws AtMoeError ERR_AT_MOE_BAD_DATA that names `source` and the field.
 */
export function parseRow(value: unknown, source: string): ExampleRow {
  const bad = (message: string, cause?: unknown): never => {
    throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: ${message}`, { cause });
  };
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return bad('a row must be a JSON object');
  if ('messages' in value === ('prompt' in value || 'completion' in value)) {
    bad('a row needs either "prompt" and "completion" or "messages"');
  }
  const schema = 'messages' in value ? chatRow : Array.isArray((value as PromptRow).prompt) ? idsRow : textRow;
  const result = schema.safeParse(value);
  if (!result.success) {
    const [issue] = result.error.issues;
    return bad(`${issue?.path.join('.') || 'row'}: ${issue?.message}`, result.error);
  }
  return result.data as ExampleRow;
}

/**
 * The checked rows of a source, in order.
 * @throws TypeError if the source is neither a path nor iterable; AtMoeError ERR_AT_MOE_BAD_DATA, ERR_AT_MOE_NOT_FOUND,
 * ERR_AT_MOE_IO.
 */
export async function* readRows(source: ExampleSource): AsyncGenerator<SourcedRow> {
  if (typeof source === 'string') {
    for await (const { line, value } of readJsonl(source)) {
      const where = `${source}:${line}`;
      yield { row: parseRow(value, where), source: where };
    }
    return;
  }
  if (typeof source !== 'object' || source === null || !(Symbol.iterator in source || Symbol.asyncIterator in source)) {
    throw new TypeError('examples must be the path of a JSONL file or an iterable of rows');
  }
  let index = 0;
  for await (const value of source) {
    const where = `row ${++index}`;
    yield { row: parseRow(value, where), source: where };
  }
}
