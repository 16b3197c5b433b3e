import { abortReason, joinSignals } from './abort.js';
import { AtMoeError } from './errors.js';
import {
  type Choice,
  drain,
  type GenerateResult,
  newSubmission,
  type Piece,
  type RequestRouting,
  runSequence,
} from './generation.js';
import { checkGenerateOptions, checkScoreOptions, type GenerateOptions, type Prompt } from './generation-options.js';
import { merge } from './merge.js';
import type { ModelCore } from './model-core.js';
import type { ScoreRequest } from './native-types.js';
import type { RoutingControls } from './routing-controls.js';
import type { RoutingTrace } from './routing-trace.js';
import { ChatSession, type SessionOptions } from './session.js';

export interface ScoreResult {
  /** Natural logarithm of the probability of each completion token. */
  logProbs: number[];
  tokens: number[];
  /** exp(-mean of logProbs). */
  perplexity: number;
}

export type ScoreOptions = Pick<GenerateOptions, 'routing' | 'signal' | 'priority' | 'timeoutMs'>;

interface ManyChoices {
  choices: Choice[];
}

/** A piece of one of several prompts. */
export interface IndexedPiece extends Piece {
  index: number;
}

function checkPrompts(prompts: unknown): void {
  if (!Array.isArray(prompts)) throw new TypeError('prompts must be an array of prompts');
}

/** What can write text: a base model, an adapter alone, a mixture. */
export abstract class TextGenerator {
  /** @internal */
  abstract get core(): ModelCore;
  /** Resolves a request's controls to what the engine takes. @internal */
  abstract requestRouting(controls: RoutingControls): RequestRouting;

  /**
   * Text as it is generated; the iterator's return value is the result as `complete` gives it. Wrong arguments throw at
   * the call.
   * @throws TypeError, RangeError; AtMoeError ERR_AT_MOE_EMPTY_PROMPT, ERR_AT_MOE_CONTEXT_LENGTH, ERR_AT_MOE_ROUTING,
   * ERR_AT_MOE_UNKNOWN_NAME. The iterator rejects with ERR_AT_MOE_QUEUE_FULL, ERR_AT_MOE_DEADLINE, the signal's reason, an
   * AtMoeError of the engine, or ERR_AT_MOE_SCHEMA for a schema that cannot be followed.
   */
  generate(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<Piece, GenerateResult> {
    const [pieces] = this.streams([prompt], options);
    return pieces as AsyncGenerator<Piece, GenerateResult>;
  }

  /**
   * The texts of each prompt, as generate() gives them, of one call: the queue takes all or none, when one of them is first
   * read. With `whole` they are read without a pause. Errors as generate(). @internal
   */
  streams(
    prompts: readonly Prompt[],
    options: GenerateOptions,
    whole = false,
  ): AsyncGenerator<Piece, GenerateResult>[] {
    const { core } = this;
    const checked = checkGenerateOptions(options, core.formats);
    if (checked.stop.length > 0 && !core.tokenizer)
      throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'stop needs text, and the model folder has no tokenizer.json');
    const route = () => this.requestRouting(checked.routing);
    const runs = prompts.map((prompt) => ({ ids: core.encode(prompt), context: [], whole }));
    route();
    const submission = newSubmission(core, checked);
    return runs.map((run) => runSequence(core, run, route, checked, submission));
  }

  /** The whole text at once, with `n` all texts as `choices`. Errors as generate(). */
  async complete(prompt: Prompt, options: GenerateOptions & { n: number }): Promise<GenerateResult & ManyChoices>;
  async complete(prompt: Prompt, options?: GenerateOptions): Promise<GenerateResult>;
  async complete(prompt: Prompt, options: GenerateOptions = {}): Promise<GenerateResult> {
    const [pieces] = this.streams([prompt], options, true);
    return await drain(pieces as AsyncGenerator<Piece, GenerateResult>);
  }

  /**
   * Several prompts in one batch; pieces come in the order they are generated. The queue takes all or none. Errors as
   * generate().
   */
  async *generateAll(
    prompts: readonly Prompt[],
    options: GenerateOptions = {},
  ): AsyncGenerator<IndexedPiece, GenerateResult[]> {
    checkPrompts(prompts);
    if ((options.n ?? 1) > 1) throw new RangeError('generateAll gives one text per prompt: n is 1');
    const streams = this.streams(prompts, options);
    const results: GenerateResult[] = [];
    for await (const { index, step } of merge(streams)) {
      if (step.done) results[index] = step.value;
      else yield { index, ...step.value };
    }
    return results;
  }

  /**
   * Several prompts in one batch, results in the order of the prompts. The queue takes all or none, and when one fails, all
   * end. Errors as generate().
   */
  async completeAll(prompts: readonly Prompt[], options: GenerateOptions = {}): Promise<GenerateResult[]> {
    checkPrompts(prompts);
    const { signal, abort, release } = joinSignals(options.signal);
    try {
      return await Promise.all(this.streams(prompts, { ...options, signal }, true).map(drain));
    } finally {
      release();
      abort();
    }
  }

  /**
   * How the prompt is routed, without generating. Errors as generate(); ERR_AT_MOE_UNSUPPORTED for a base model.
   */
  async explain(
    prompt: Prompt,
    options: { routing?: RoutingControls; signal?: AbortSignal } = {},
  ): Promise<RoutingTrace> {
    const { routing } = await this.complete(prompt, { ...options, maxTokens: 0, trace: true });
    if (!routing) throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'a base model routes nothing: explain a mixture');
    return routing;
  }

  /**
   * Log-probabilities of a completion after a prompt, which may be the ids of one start token. The completion is taken as
   * it is: no end token is added.
   * @throws as generate(); RangeError for an empty completion.
   */
  async score(
    prompt: Prompt,
    completion: string | readonly number[] | Int32Array,
    options: ScoreOptions = {},
  ): Promise<ScoreResult> {
    const checked = checkScoreOptions(options, this.core.formats);
    const { signal } = checked;
    const before = this.core.encode(prompt);
    const tokens = this.#completionIds(before, completion);
    if (tokens.length === 0) throw new RangeError('the completion to score is empty');
    const ids = this.core.encode(Int32Array.from([...before, ...tokens]));
    const request = this.requestRouting(checked.routing).request;
    const scoring = { ids, first: before.length, routing: request, ...checked.scheduling };
    const logProbs = Array.from(await this.#scores(scoring, signal));
    const mean = logProbs.reduce((sum, value) => sum + value, 0) / logProbs.length;
    return { logProbs, tokens, perplexity: Math.exp(-mean) };
  }

  async #scores(request: ScoreRequest, signal: AbortSignal | undefined): Promise<Float32Array> {
    try {
      const scores = await this.core.engine.score(request, signal ? { signal } : {});
      signal?.throwIfAborted();
      return scores;
    } catch (error) {
      throw abortReason(error, signal);
    }
  }

  #completionIds(before: Int32Array, completion: string | readonly number[] | Int32Array): number[] {
    if (typeof completion === 'string') return this.core.textTokenizer().encodeContinuation(completion, before);
    return Array.from(this.core.checkIds(completion, 'a completion to score is text or token ids'));
  }

  /** A conversation that keeps its keys and values between turns. */
  createSession(options: SessionOptions = {}): ChatSession {
    return new ChatSession(this, options);
  }
}
