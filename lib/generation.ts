import { AtMoeError } from './errors.js';
import type { CheckedOptions } from './generation-options.js';
import type { ModelCore } from './model-core.js';
import type { Usage as EngineUsage, RoutingRequest, SequenceEvent, SessionRequest } from './native-types.js';
import type { RoutingNames } from './routing-controls.js';
import { buildTrace, type RoutingTrace, type TraceRecords } from './routing-trace.js';
import { Detokenizer } from './text/detokenizer.js';
import { StopMatcher } from './text/stop.js';

export interface Piece {
  /** New text, possibly '' while a character or a stop string is undecided. */
  text: string;
  /** Ids since the piece before. */
  tokens: number[];
  logProbs?: number[];
}

export interface Usage {
  promptTokens: number;
  completionTokens: number;
  totalTokens: number;
  /** Tokens whose keys were still there from an earlier turn. */
  cachedTokens: number;
}

export interface GenerateResult {
  text: string;
  tokens: number[];
  /** 'stop': an end-of-sequence token, a stop string or the end of a response format's value; 'length': maxTokens or the end of the context. */
  finishReason: 'stop' | 'length';
  /** The stop string, when one ended the text. */
  stop?: string;
  usage: Usage;
  /** The seed that gives this text again. */
  seed: number;
  /** Natural logarithms, one per token. */
  logProbs?: number[];
  routing?: RoutingTrace;
}

/** Where a request's routing comes from, and how to name its experts. */
export interface RequestRouting {
  request: RoutingRequest;
  /** Absent for the base model. */
  names?: RoutingNames;
  perToken: boolean;
}

/** The events of one sequence, in order; a reader waits for the next one. */
class EventQueue {
  readonly #events: SequenceEvent[] = [];
  #wake: (() => void) | undefined;

  push(event: SequenceEvent): void {
    this.#events.push(event);
    this.#wake?.();
  }

  async next(): Promise<SequenceEvent> {
    while (this.#events.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    return this.#events.shift() as SequenceEvent;
  }
}

/** Turns the events of a sequence into text. */
class Transcript {
  readonly tokens: number[] = [];
  readonly logProbs: number[] = [];
  readonly traces: TraceRecords[] = [];
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
  /** Called at the end with what the engine's context holds. */
  onEnd?: (usage: EngineUsage) => void;
}

/**
 * Runs one sequence; yields its text as it comes and returns the whole.
 * Leaving the iterator early ends the sequence. Errors: the signal's reason; AtMoeError of the engine.
 */
export async function* runSequence(
  core: ModelCore,
  run: SequenceRun,
  routing: RequestRouting,
  options: CheckedOptions,
): AsyncGenerator<Piece, GenerateResult> {
  core.check();
  options.signal?.throwIfAborted();
  const { responseFormat } = options;
  if (responseFormat) {
    await core.formats.prepare();
    core.check();
    options.signal?.throwIfAborted();
  }
  const queue = new EventQueue();
  const transcript = new Transcript(core, [...Array.from(run.context), ...run.ids], options.stop);
  const sequence = core.engine.generate(
    {
      ids: run.ids,
      maxTokens: options.maxTokens,
      stopTokens: options.ignoreEos ? new Int32Array(0) : core.stopTokens,
      sampling: options.sampling,
      ...(responseFormat && { grammar: core.formats.handleOf(responseFormat) }),
      routing: routing.request,
      trace: options.trace,
      logProbs: options.logProbs,
      ...(run.session && { session: run.session }),
    },
    (event) => queue.push(event),
  );
  const cancel = () => core.engine.cancel(sequence);
  options.signal?.addEventListener('abort', cancel, { once: true });
  let done: (SequenceEvent & { type: 'done' }) | undefined;
  try {
    while (!done) {
      const event = await queue.next();
      if (event.type === 'done') done = event;
      // What the engine made before the abort is not wanted any more.
      options.signal?.throwIfAborted();
      core.check();
      if (event.type === 'trace') transcript.traces.push(event);
      else if (event.type === 'token' && transcript.stop === undefined) {
        const text = transcript.take(event.token, event.logProb);
        if (transcript.stop !== undefined) cancel();
        yield { text, tokens: [event.token], ...(options.logProbs && { logProbs: [event.logProb] }) };
      }
    }
  } finally {
    options.signal?.removeEventListener('abort', cancel);
    cancel();
    while (!done) {
      const event = await queue.next();
      if (event.type === 'done') done = event;
    }
    run.onEnd?.(done.usage);
  }
  if (done.reason === 'error') throw new AtMoeError(done.code, done.message);
  if (done.reason === 'cancelled' && transcript.stop === undefined) {
    options.signal?.throwIfAborted();
    throw new AtMoeError('ERR_AT_MOE_ABORTED', 'the request was cancelled');
  }
  const rest = transcript.flush();
  if (rest) yield { text: rest, tokens: [] };
  return result(core, run, routing, options, transcript, done);
}

function result(
  core: ModelCore,
  run: SequenceRun,
  routing: RequestRouting,
  options: CheckedOptions,
  transcript: Transcript,
  done: SequenceEvent & { type: 'done' },
): GenerateResult {
  const { tokens } = transcript;
  const { promptTokens, cachedTokens } = done.usage;
  const outcome: GenerateResult = {
    text: transcript.text,
    tokens,
    finishReason: done.reason === 'length' && transcript.stop === undefined ? 'length' : 'stop',
    ...(transcript.stop !== undefined && { stop: transcript.stop }),
    usage: { promptTokens, completionTokens: tokens.length, totalTokens: promptTokens + tokens.length, cachedTokens },
    seed: options.sampling.seed,
    ...(options.logProbs && { logProbs: transcript.logProbs }),
  };
  if (options.trace && routing.names) {
    const { tokenizer } = core;
    const text = tokenizer && ((id: number) => tokenizer.decode([id], { skipSpecialTokens: false }));
    outcome.routing = buildTrace(routing.names, transcript.traces, routing.perToken, [...run.ids, ...tokens], text);
  }
  return outcome;
}

/** Runs an iterator of pieces to its end. */
export async function drain(pieces: AsyncGenerator<Piece, GenerateResult>): Promise<GenerateResult> {
  for (;;) {
    const step = await pieces.next();
    if (step.done) return step.value;
  }
}
