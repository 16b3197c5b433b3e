import { joinSignals } from './abort.js';
import { AtMoeError } from './errors.js';
import type { CheckedOptions } from './generation-options.js';
import type { Lifetime } from './lifetime.js';
import type { ModelCore } from './model-core.js';
import type { RoutingRequest } from './native-mixture-types.js';
import type { Usage as EngineUsage, GenerateRequest, Scheduling, SessionRequest } from './native-types.js';
import type { CompiledResponseFormat } from './response-format.js';
import type { RoutingNames } from './routing-controls.js';
import { buildTrace, type RoutingTrace, type TraceRecords } from './routing-trace.js';
import { type DoneEvent, type RunningTexts, Submission } from './submission.js';
import { Detokenizer } from './text/detokenizer.js';
import { StopMatcher } from './text/stop.js';

export interface Piece {
  /** New text, possibly '' while a character or a stop string is undecided. */
  text: string;
  /** Ids since the piece before. */
  tokens: number[];
  logProbs?: number[];
  /** Which of the n texts, from 0, when `n` was given. */
  index?: number;
}

export interface Usage {
  promptTokens: number;
  completionTokens: number;
  totalTokens: number;
  /** Tokens of the prompt whose keys were there, from an earlier turn or from the prefix cache. */
  cachedTokens: number;
}

/** One text for a prompt. */
export interface Choice {
  text: string;
  tokens: number[];
  /**
   * 'stop': an end-of-sequence token, a stop string or the end of a response format's value; 'length': maxTokens or the
   * end of the context.
   */
  finishReason: 'stop' | 'length';
  /** The stop string, when one ended the text. */
  stop?: string;
  /** The seed that gives this text again. */
  seed: number;
  /** Natural logarithms, one per token. */
  logProbs?: number[];
  routing?: RoutingTrace;
}

/** The first text, with the counts of the request. */
export interface GenerateResult extends Choice {
  /** `completionTokens` of all texts together. */
  usage: Usage;
  /** All texts, the first one with them, when `n` was given. */
  choices?: Choice[];
}

/** Where a request's routing comes from, and how to name its experts. */
export interface RequestRouting {
  request: RoutingRequest;
  /** Absent for the base model. */
  names?: RoutingNames;
  /** Routing of its own for each token; false also where weights are fixed. */
  perToken: boolean;
  /** Of the mixture: with 'token' the keys of one routing go on under another. */
  scope?: 'token' | 'sequence';
}

/** Tokens of a text that may be unread before the engine stops writing it; told to it in parts. */
const mostUnread = 64;
const readPart = 16;

/** Turns the events of a sequence into text. */
class Transcript {
  readonly tokens: number[] = [];
  readonly logProbs: number[] = [];
  readonly traces: (TraceRecords & { position: number })[] = [];
  text = '';
  stop: string | undefined;
  readonly #detokenizer: Detokenizer | undefined;
  readonly #matcher: StopMatcher;

  constructor(core: ModelCore, prompt: ArrayLike<number>, stop: string[]) {
    this.#detokenizer = core.tokenizer && new Detokenizer(core.tokenizer, { prompt });
    this.#matcher = new StopMatcher(stop);
  }

  take(token: number, logProb: number): string {
    this.tokens.push(token);
    this.logProbs.push(logProb);
    return this.#emit(this.#detokenizer?.push(token) ?? '');
  }

  flush(): string {
    const last = this.#emit(this.#detokenizer?.flush() ?? '');
    const held = this.stop === undefined ? this.#matcher.flush() : '';
    this.text += held;
    return last + held;
  }

  #emit(piece: string): string {
    const { text, stop } = this.#matcher.push(piece);
    this.stop ??= stop;
    this.text += text;
    return text;
  }
}

export interface SequenceRun {
  /** New ids for the engine. */
  ids: Int32Array;
  /** Ids before them, of which the text's start depends on the last few. */
  context: ArrayLike<number>;
  session?: SessionRequest;
  /** Ends with it; default: the model's. */
  life?: Lifetime;
  /** The pieces are read without a pause: tokens need not wait for their reader. */
  whole?: boolean;
  /** Called at the end with what the engine's context holds. */
  onEnd?: (usage: EngineUsage) => void;
  /** Called when the iterator was dropped in the middle and the engine is done with it; must not lead to the iterator. */
  onDropped?: () => void;
}

/** The requests of one call with these options; their format is compiled when they are posted. */
export function newSubmission(
  { engine, formats, life }: ModelCore,
  { responseFormat, signal }: CheckedOptions,
): Submission<CompiledResponseFormat> {
  if (!responseFormat) return new Submission(engine);
  return new Submission(engine, async () => {
    const end = joinSignals(signal, ...life.signals);
    try {
      return await formats.prepare(responseFormat, end.signal);
    } finally {
      end.release();
    }
  });
}

/**
 * Runs one request of a call, routed by what `route` gives when the call is posted, which the first read of any of its
 * iterators does; yields its text as it comes and returns the whole. Leaving the iterator early ends its sequences, and so
 * does dropping it, when it is collected. Errors: the signal's reason; AtMoeError of the engine.
 */
export function runSequence(
  core: ModelCore,
  run: SequenceRun,
  route: () => RequestRouting,
  options: CheckedOptions,
  submission = newSubmission(core, options),
): AsyncGenerator<Piece, GenerateResult> {
  const signals = [options.signal, ...(run.life ?? core.life).signals];
  const check = () => {
    for (const signal of signals) signal?.throwIfAborted();
  };
  let routing: RequestRouting | undefined;
  const texts = submission.add(options.n ?? 1, (format, waitedMs) => {
    check();
    routing = route();
    const grammar = format?.grammar && { grammar: core.formats.handleOf(format) };
    return { ...request(core, run, routing, options), ...grammar, ...schedule(options, waitedMs) };
  });
  const begin = async () => {
    check();
    await submission.post();
    texts.endWith(signals);
    return routing as RequestRouting;
  };
  const pieces = readPieces(core, run, options, { texts, begin, check });
  texts.watch(pieces, run.onDropped);
  return pieces;
}

interface Reading {
  texts: RunningTexts;
  /** Posts the call; its routing. */
  begin(): Promise<RequestRouting>;
  /** Throws when the request is to end. */
  check(): void;
}

async function* readPieces(
  core: ModelCore,
  run: SequenceRun,
  options: CheckedOptions,
  { texts, begin, check }: Reading,
): AsyncGenerator<Piece, GenerateResult> {
  const before = [...Array.from(run.context), ...run.ids];
  const choices = Array.from({ length: texts.count }, () => new Transcript(core, before, options.stop));
  const mark = (index: number) => (options.n === undefined ? {} : { index });
  try {
    const routing = await begin();
    for (let next = await texts.next(); next; next = await texts.next()) {
      const { index, event } = next;
      const choice = choices[index] as Transcript;
      // What the engine made before the abort is not wanted any more.
      check();
      if (event.type === 'done') checkEnd(event, choice);
      else if (event.type === 'trace') choice.traces.push(event);
      else if (choice.stop === undefined) {
        const text = choice.take(event.token, event.logProb);
        if (!run.whole && choice.tokens.length % readPart === 0) texts.read(index, readPart);
        if (choice.stop !== undefined) texts.cancel(index);
        yield { text, tokens: [event.token], ...(options.logProbs && { logProbs: [event.logProb] }), ...mark(index) };
      }
    }
    for (const [index, choice] of choices.entries()) {
      const rest = choice.flush();
      if (rest) yield { text: rest, tokens: [], ...mark(index) };
    }
    return result(core, run, routing, options, choices, texts.ends);
  } finally {
    await texts.end();
    const [end] = texts.ends;
    if (end) run.onEnd?.(end.usage);
  }
}

function request(core: ModelCore, run: SequenceRun, routing: RequestRouting, options: CheckedOptions): GenerateRequest {
  return {
    ids: run.ids,
    maxTokens: options.maxTokens,
    stopTokens: options.ignoreEos ? new Int32Array(0) : core.stopTokens,
    sampling: options.sampling,
    routing: routing.request,
    trace: options.trace,
    logProbs: options.logProbs,
    ...(options.n !== undefined && { n: options.n }),
    ...(!run.whole && { maxUnread: mostUnread }),
    ...(run.session && { session: run.session }),
  };
}

/** What is left of the deadline counts from now. */
function schedule({ scheduling }: CheckedOptions, waitedMs: number): Scheduling {
  const { timeoutMs } = scheduling;
  return timeoutMs === undefined ? scheduling : { ...scheduling, timeoutMs: Math.max(timeoutMs - waitedMs, 1e-3) };
}

function checkEnd(end: DoneEvent, { stop }: Transcript): void {
  if (end.reason === 'error') throw new AtMoeError(end.code, end.message);
  if (end.reason === 'cancelled' && stop === undefined)
    throw new AtMoeError('ERR_AT_MOE_ABORTED', 'the request was cancelled');
}

function result(
  core: ModelCore,
  run: SequenceRun,
  routing: RequestRouting,
  options: CheckedOptions,
  transcripts: Transcript[],
  ends: DoneEvent[],
): GenerateResult {
  const { promptTokens, cachedTokens } = (ends[0] as DoneEvent).usage;
  const completionTokens = transcripts.reduce((sum, { tokens }) => sum + tokens.length, 0);
  // The engine tells the routing of the prompt once, to the first sequence.
  const before = run.context.length + run.ids.length;
  const shared = transcripts[0]?.traces.filter(({ position }) => position < before) ?? [];
  const choices = transcripts.map((transcript, index) => {
    // The last token goes through no layer; rows of tokens behind a stop string are not of this text.
    const end = before + Math.max(transcript.tokens.length - 1, 0);
    const own = transcript.traces.filter(({ position }) => position < end);
    const traces = index === 0 ? own : [...shared, ...own];
    return choiceOf(core, run, routing, options, { transcript, traces, end: ends[index] as DoneEvent, index });
  });
  return {
    ...(choices[0] as Choice),
    usage: { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens, cachedTokens },
    ...(options.n !== undefined && { choices }),
  };
}

function choiceOf(
  core: ModelCore,
  run: SequenceRun,
  routing: RequestRouting,
  options: CheckedOptions,
  { transcript, traces, end, index }: { transcript: Transcript; traces: TraceRecords[]; end: DoneEvent; index: number },
): Choice {
  const { text, tokens, stop } = transcript;
  const choice: Choice = {
    text,
    tokens,
    finishReason: end.reason === 'length' && stop === undefined ? 'length' : 'stop',
    ...(stop !== undefined && { stop }),
    seed: options.sampling.seed + index,
    ...(options.logProbs && { logProbs: transcript.logProbs }),
  };
  if (options.trace && routing.names) {
    const { tokenizer } = core;
    const decode = tokenizer && ((id: number) => tokenizer.decode([id], { skipSpecialTokens: false }));
    choice.routing = buildTrace(routing.names, traces, routing.perToken, [...run.ids, ...tokens], decode);
  }
  return choice;
}

/** Runs an iterator of pieces to its end. */
export async function drain(pieces: AsyncGenerator<Piece, GenerateResult>): Promise<GenerateResult> {
  for (;;) {
    const step = await pieces.next();
    if (step.done) return step.value;
  }
}
