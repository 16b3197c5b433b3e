import { setImmediate } from 'node:timers/promises';
import { AtMoeError } from '../errors.js';
import type { ChatTemplate } from '../text/chat-template.js';
import type { Tokenizer } from '../text/tokenizer.js';
import { type GroupNames, type LabelIndices, LabelResolver } from './labels.js';
import {
  type ChatRow,
  type ExampleSource,
  type PromptRow,
  readRows,
  type SourcedRow,
  type WeightSpan,
} from './rows.js';
import { tokenWeights, unitWeights } from './spans.js';

export interface TokenizeOptions {
  /** Needed for rows of text; rows of ids do without. */
  tokenizer?: Tokenizer;
  /** Needed for rows of messages. */
  chatTemplate?: ChatTemplate;
  /** The mixture's groups: labels become indices. Without them labels mean nothing and are passed over. */
  groups?: readonly GroupNames[];
  /** Ids of rows of ids must be below it. */
  vocabSize?: number;
  /** Tokens that are learnt: of the completion (default), or of the prompt as well, there at weight 1. */
  lossOn?: 'completion' | 'all';
  /**
   * Append EOS to completions (default true). A chat turn gets it only where the template wrote no end-of-generation
   * token. EOS weighs what the last character of the completion weighs.
   */
  appendEos?: boolean;
  /** Longest example in tokens, EOS included; default no limit. */
  maxLength?: number;
  /** A longer example is an error (default), loses its end, or is left out. */
  tooLong?: 'error' | 'truncate' | 'skip';
  /** Called for every example left out by `tooLong: 'skip'`. */
  onSkip?: (source: string, length: number) => void;
  signal?: AbortSignal;
}

/** One training example of T tokens. */
export interface TokenizedExample extends LabelIndices {
  /** [T] prompt and completion. */
  ids: Int32Array;
  /** Number of prompt tokens P, at least 1 and less than T: the instruction tokens of a router of sequence scope. */
  promptLength: number;
  /** [T] loss weight of the prediction of ids[t]; 0 on the prompt (unless lossOn 'all') and always at t = 0. */
  tokenWeights: Float32Array;
  /** [T] 1 where ids[t] is a completion token of weight 0: the positions of the base KL term. */
  zeroWeight: Uint8Array;
  /** "file:line" or "row n", with the turn of a conversation that gives several examples. */
  source: string;
}

interface Parts {
  prompt: number[];
  completion: number[];
  /** [completion.length] */
  weights: Float32Array;
  source: string;
}

/**
 * The tokenized examples of a source, in order; gives the event loop a turn every few milliseconds.
 * @throws AtMoeError ERR_AT_MOE_BAD_DATA naming file and line; ERR_AT_MOE_EMPTY_PROMPT for an empty prompt without BOS;
 * ERR_AT_MOE_CONTEXT_LENGTH for an example that is too long; ERR_AT_MOE_UNSUPPORTED for text without a tokenizer or
 * messages without a template; ERR_AT_MOE_ABORTED.
 */
export async function* tokenizeExamples(
  source: ExampleSource,
  options: TokenizeOptions,
): AsyncGenerator<TokenizedExample> {
  const { maxLength } = options;
  if (maxLength !== undefined && !(Number.isInteger(maxLength) && maxLength >= 2)) {
    throw new RangeError('maxLength must be an integer of at least 2');
  }
  const resolver = options.groups && new LabelResolver(options.groups);
  let pause = performance.now() + 8;
  for await (const sourced of readRows(source)) {
    if (options.signal?.aborted) {
      throw new AtMoeError('ERR_AT_MOE_ABORTED', 'reading examples was aborted', { cause: options.signal.reason });
    }
    yield* tokenizeRow(sourced, options, resolver);
    if (performance.now() > pause) {
      await setImmediate();
      pause = performance.now() + 8;
    }
  }
}

/** The examples of one checked row: one, or one per assistant turn. Errors as tokenizeExamples. */
export function tokenizeRow(
  { row, source }: SourcedRow,
  options: TokenizeOptions,
  resolver?: LabelResolver,
): TokenizedExample[] {
  const labels = resolver?.resolve(row, source) ?? {};
  const parts = 'messages' in row ? chatParts(row, source, options) : [promptParts(row, source, options)];
  return parts.flatMap((part) => assemble(part, labels, options) ?? []);
}

function promptParts(row: PromptRow, source: string, options: TokenizeOptions): Parts {
  if (row.completion.length === 0) throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: the completion is empty`);
  const weights = unitWeights(row.weight ?? [], row.completion.length, source);
  if (typeof row.prompt !== 'string') {
    const { vocabSize = Number.POSITIVE_INFINITY } = options;
    const beyond = [...row.prompt, ...(row.completion as number[])].find((id) => id >= vocabSize);
    if (beyond !== undefined) {
      const message = `${source}: token id ${beyond} is outside the vocabulary of ${vocabSize}`;
      throw new AtMoeError('ERR_AT_MOE_BAD_DATA', message);
    }
    return { prompt: row.prompt, completion: row.completion as number[], weights, source };
  }
  const tokenizer = tokenizerOf(options, source);
  const prompt = tokenizer.encode(row.prompt);
  const part = encodeCompletion(tokenizer, prompt, row.completion as string, row.weight && weights, source);
  return options.appendEos === false ? part : withEos(tokenizer, part);
}

function chatParts(row: ChatRow, source: string, options: TokenizeOptions): Parts[] {
  const tokenizer = tokenizerOf(options, source);
  const { chatTemplate, appendEos = true } = options;
  if (!chatTemplate) throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', `${source}: messages need a chat template`);
  let turns: ReturnType<ChatTemplate['renderPromptAndCompletion']>;
  try {
    turns = chatTemplate.renderPromptAndCompletion(row.messages, { tools: row.tools });
  } catch (error) {
    if (!(error instanceof AtMoeError)) throw error;
    throw new AtMoeError(error.code, `${source}: ${error.message}`, { cause: error });
  }
  if (row.weight && turns.length > 1) {
    throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: weight spans need exactly one assistant turn`);
  }
  return turns.map(({ prompt: text, completion, turn }) => {
    const where = turns.length === 1 ? source : `${source} (message ${turn})`;
    const weights = row.weight && answerWeights(row.weight, row.messages[turn]?.content, completion, source);
    const prompt = tokenizer.encode(text, { addSpecialTokens: false });
    const part = encodeCompletion(tokenizer, prompt, completion, weights, where);
    const ends = part.completion.some((id) => tokenizer.eosIds.includes(id));
    return appendEos && !ends ? withEos(tokenizer, part) : part;
  });
}

/** Weights of a rendered turn from spans that count within the assistant's own text. */
function answerWeights(spans: readonly WeightSpan[], content: unknown, rendered: string, source: string): Float32Array {
  const start = typeof content === 'string' ? rendered.indexOf(content) : -1;
  if (typeof content !== 'string' || start < 0) {
    const reason = 'the chat template changes the answer, so its weight spans have no place';
    throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: ${reason}`);
  }
  const weights = new Float32Array(rendered.length).fill(1);
  weights.set(unitWeights(spans, content.length, source), start);
  return weights;
}

function encodeCompletion(
  tokenizer: Tokenizer,
  prompt: number[],
  text: string,
  weights: Float32Array | undefined,
  source: string,
): Parts {
  const completion = tokenizer.encodeContinuation(text, prompt);
  const each = weights
    ? tokenWeights(tokenizer, prompt, completion, text, weights)
    : new Float32Array(completion.length).fill(1);
  return { prompt, completion, weights: each, source };
}

function withEos(tokenizer: Tokenizer, part: Parts): Parts {
  if (tokenizer.eosId === undefined) {
    const hint = 'the tokenizer has no end-of-sequence token: set appendEos to false';
    throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', `${part.source}: ${hint}`);
  }
  const weights = new Float32Array(part.weights.length + 1);
  weights.set(part.weights);
  weights[part.weights.length] = part.weights.at(-1) ?? 1;
  return { ...part, completion: [...part.completion, tokenizer.eosId], weights };
}

function assemble(part: Parts, labels: LabelIndices, options: TokenizeOptions): TokenizedExample | undefined {
  const { prompt, completion, weights, source } = part;
  const { maxLength = Number.POSITIVE_INFINITY, tooLong = 'error', lossOn = 'completion' } = options;
  if (prompt.length === 0) {
    throw new AtMoeError('ERR_AT_MOE_EMPTY_PROMPT', `${source}: the prompt is empty and the tokenizer adds no BOS`);
  }
  if (completion.length === 0) {
    throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: the completion has no tokens in this vocabulary`);
  }
  let length = prompt.length + completion.length;
  if (length > maxLength) {
    if (tooLong === 'skip') {
      options.onSkip?.(source, length);
      return undefined;
    }
    if (tooLong === 'error' || prompt.length >= maxLength) {
      const detail = tooLong === 'error' ? '' : `, its prompt alone ${prompt.length}`;
      const message = `${source}: the example has ${length} tokens${detail}; the limit is ${maxLength}`;
      throw new AtMoeError('ERR_AT_MOE_CONTEXT_LENGTH', message);
    }
    length = maxLength;
  }
  const ids = Int32Array.from([...prompt, ...completion].slice(0, length));
  const tokenWeights = new Float32Array(length);
  if (lossOn === 'all') tokenWeights.fill(1, 1, prompt.length);
  tokenWeights.set(weights.subarray(0, length - prompt.length), prompt.length);
  const zeroWeight = Uint8Array.from(tokenWeights, (weight, t) => (t >= prompt.length && weight === 0 ? 1 : 0));
  return { ids, promptLength: prompt.length, tokenWeights, zeroWeight, source, ...labels };
}

function tokenizerOf({ tokenizer }: TokenizeOptions, source: string): Tokenizer {
  if (tokenizer) return tokenizer;
  throw new AtMoeError(
    'ERR_AT_MOE_UNSUPPORTED',
    `${source}: the model has no tokenizer: give prompt and completion as ids`,
  );
}
