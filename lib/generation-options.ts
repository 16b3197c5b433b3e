import { z } from 'zod';
import { checkArgument } from './arguments.js';
import type { SamplingOptions, Scheduling } from './native-types.js';
import type { AskedFormat, CompiledResponseFormat, ResponseFormat, ResponseFormats } from './response-format.js';
import { checkControls, type RoutingControls } from './routing-controls.js';
import type { ChatMessage } from './text/chat-template.js';

/** Text, token ids, or the messages of a chat. */
export type Prompt = string | Int32Array | readonly number[] | readonly ChatMessage[];

export interface GenerateOptions {
  /** New tokens at most; default 256, bounded by the context. */
  maxTokens?: number;
  /** 0 (default) = greedy. */
  temperature?: number;
  /** Keep the k likeliest tokens; 0 (default) = all. */
  topK?: number;
  /** Keep the likeliest tokens whose mass reaches p; 1 (default) = all. */
  topP?: number;
  /** Keep tokens at least this fraction as likely as the likeliest; 0 (default) = all. */
  minP?: number;
  /** Divides the positive scores of tokens already seen (multiplies negative ones), 0.001 to 1000; 1 (default) = off. */
  repetitionPenalty?: number;
  /** The same seed gives the same text. Default: drawn at random, and returned. */
  seed?: number;
  /** Strings that end the text; they are not part of it. */
  stop?: string | string[];
  /** Go on after an end-of-sequence token. */
  ignoreEos?: boolean;
  /**
   * Holds the text to JSON, from its first token to the end of the value, where it stops; maxTokens may cut it short
   * (finishReason 'length'). Log-probabilities stay those of all tokens.
   */
  responseFormat?: ResponseFormat | CompiledResponseFormat;
  /** Controls of the mixture's routing. */
  routing?: RoutingControls;
  /** Return the routing of every layer. */
  trace?: boolean;
  /** Return the log-probability of every token. */
  logProbs?: boolean;
  signal?: AbortSignal;
  /** Requests of higher priority are served first, equal ones in the order of the calls; an integer, default 0. */
  priority?: number;
  /**
   * Milliseconds after which the request ends with ERR_AT_MOE_DEADLINE, from the call of complete() or the first read of
   * generate(); default: none.
   */
  timeoutMs?: number;
  /** Texts for the one prompt, default 1: the i-th (from 0) is that of a request with the seed + i. */
  n?: number;
}

const schema = z.strictObject({
  maxTokens: z.int().min(0).default(256),
  temperature: z.number().min(0).default(0),
  topK: z.int().min(0).default(0),
  topP: z.number().gt(0).max(1).default(1),
  minP: z.number().min(0).max(1).default(0),
  repetitionPenalty: z.number().min(1e-3).max(1e3).default(1),
  seed: z.int().min(0).optional(),
  stop: z.union([z.string(), z.array(z.string())]).default([]),
  ignoreEos: z.boolean().default(false),
  responseFormat: z.custom<ResponseFormat | CompiledResponseFormat>().optional(),
  routing: z.custom<RoutingControls>((value) => typeof value === 'object' && value !== null).optional(),
  trace: z.boolean().default(false),
  logProbs: z.boolean().default(false),
  signal: z.instanceof(AbortSignal).optional(),
  priority: z.int().min(-1e9).max(1e9).default(0),
  timeoutMs: z.number().positive().max(1e12).optional(),
  n: z.int().min(1).max(1024).optional(),
});

export interface CheckedOptions {
  maxTokens: number;
  sampling: SamplingOptions & { seed: number };
  stop: string[];
  ignoreEos: boolean;
  /** Absent for free text. */
  responseFormat: AskedFormat | undefined;
  routing: RoutingControls;
  trace: boolean;
  logProbs: boolean;
  signal: AbortSignal | undefined;
  scheduling: Scheduling;
  /** Absent when one text was asked for without a number. */
  n: number | undefined;
}

/** Fills in the defaults. Errors: TypeError, RangeError; those of `formats.check` for the response format. */
export function checkGenerateOptions(options: GenerateOptions, formats: ResponseFormats): CheckedOptions {
  const checked = checkArgument('generate', schema, options);
  const { temperature, topK, topP, minP, repetitionPenalty, stop, routing = {}, ...rest } = checked;
  checkControls(routing);
  const seed = rest.seed ?? Math.floor(Math.random() * 2 ** 48);
  return {
    maxTokens: rest.maxTokens,
    sampling: { temperature, topK, topP, minP, repetitionPenalty, seed },
    stop: typeof stop === 'string' ? [stop] : stop,
    ignoreEos: rest.ignoreEos,
    responseFormat: rest.responseFormat === undefined ? undefined : formats.check(rest.responseFormat),
    routing,
    trace: rest.trace,
    logProbs: rest.logProbs,
    signal: rest.signal,
    scheduling: { priority: rest.priority, ...(rest.timeoutMs !== undefined && { timeoutMs: rest.timeoutMs }) },
    n: rest.n,
  };
}

const scoreSchema = schema.pick({ routing: true, signal: true, priority: true, timeoutMs: true });

/** The options of scoring among them. Errors: TypeError, RangeError. */
export function checkScoreOptions(options: GenerateOptions, formats: ResponseFormats): CheckedOptions {
  return checkGenerateOptions(checkArgument('score', scoreSchema, options) as GenerateOptions, formats);
}
