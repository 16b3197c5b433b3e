import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { checkArgument } from './arguments.js';
import { AtMoeError } from './errors.js';
import { drain, type GenerateResult, type Piece, type RequestRouting, runSequence } from './generation.js';
import { checkGenerateOptions, type GenerateOptions } from './generation-options.js';
import { Lifetime } from './lifetime.js';
import type { ModelCore } from './model-core.js';
import type { RoutingControls } from './routing-controls.js';
import type { ChatMessage } from './text/chat-template.js';
import type { TextGenerator } from './text-generator.js';

export interface SessionOptions {
  /**
   * 'first-turn' (default): the first turn's routing, with its controls, holds for the conversation; later turns give the
   * same controls or none. 'every-turn': each turn is routed anew by its own tokens and controls; earlier keys stay as they
   * are. Matters with sequence scope only: with token scope every turn has its own controls.
   */
  routing?: 'first-turn' | 'every-turn';
  /** Put before the first message. */
  system?: string;
}

const schema = z.strictObject({
  routing: z.enum(['first-turn', 'every-turn']).default('first-turn'),
  system: z.string().optional(),
});

/**
 * A conversation. Keys and values of earlier turns stay in the cache: a turn computes its new tokens only. With a chat
 * template turns are messages; without one they are plain text, one after the other.
 */
export class ChatSession {
  readonly #generator: TextGenerator;
  readonly #core: ModelCore;
  readonly #life: Lifetime;
  readonly #id: number;
  readonly #everyTurn: boolean;
  #messages: ChatMessage[] = [];
  /** Ids of the turns so far, without a chat template. */
  #history: number[] = [];
  /** Ids whose keys the engine holds, of finished turns alone. */
  #context: number[] = [];
  /** The controls of the first finished turn, where they hold for the conversation. */
  #controls: RoutingControls | undefined;
  /** How the first turn's experts are named in traces. */
  #traced: Pick<RequestRouting, 'names' | 'perToken'> | undefined;
  /** What runs now, an object of its own for each turn. */
  #turn: object | undefined;

  /** @internal */
  constructor(generator: TextGenerator, options: SessionOptions) {
    const { routing, system } = checkArgument('createSession', schema, options);
    const { core } = generator;
    this.#generator = generator;
    this.#core = core;
    this.#life = new Lifetime('the session', core.life);
    this.#id = core.newSessionId();
    this.#everyTurn = routing === 'every-turn';
    if (system !== undefined && !core.chatTemplate) {
      throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'a system message needs a model with a chat template');
    }
    if (system !== undefined) this.#messages.push({ role: 'system', content: system });
  }

  /** The conversation so far. */
  get messages(): readonly ChatMessage[] {
    return this.#messages;
  }

  /** Tokens in the cache. */
  get contextTokens(): number {
    return this.#context.length;
  }

  /**
   * One turn, as it is generated. A turn that fails, is left early or is dropped is not part of the conversation.
   * @throws as generate() of the model; AtMoeError ERR_AT_MOE_BUSY while another turn runs; ERR_AT_MOE_ROUTING for other
   * controls than the first turn's where its routing holds; ERR_AT_MOE_DISPOSED when dispose() ends the turn.
   */
  generate(text: string, options: GenerateOptions = {}): AsyncGenerator<Piece, GenerateResult> {
    return this.#run(text, options, false);
  }

  async *#run(text: string, options: GenerateOptions, whole: boolean): AsyncGenerator<Piece, GenerateResult> {
    if (typeof text !== 'string') throw new TypeError('a turn of a session is text');
    this.#life.check();
    if (this.#turn) throw new AtMoeError('ERR_AT_MOE_BUSY', 'the session is still at its last turn');
    if (text === '') throw new AtMoeError('ERR_AT_MOE_EMPTY_PROMPT', 'the turn is empty');
    const { core } = this.#generator;
    const checked = checkGenerateOptions(options, core.formats);
    if (checked.n !== undefined) throw new TypeError('a session goes on in one way: n cannot be given');
    const controls = this.#controlsOf(checked.routing);
    const now = this.#generator.requestRouting(controls);
    const reroute = this.#everyTurn || now.scope === 'token';
    // Where the first turn's routing holds, so do the names of the experts it was made for.
    const routing = reroute ? now : { ...now, ...this.#traced };
    const messages: ChatMessage[] = [...this.#messages, { role: 'user', content: text }];
    const wanted = core.chatTemplate ? Array.from(core.encode(messages)) : this.#append(text);
    let keep = 0;
    while (keep < wanted.length - 1 && this.#context[keep] === wanted[keep]) keep++;
    const turn = {};
    this.#turn = turn;
    // Keys behind those kept are gone with the first step, and those of a turn that fails are of no use.
    this.#context = wanted.slice(0, keep);
    let contextTokens = 0;
    const done = () => {
      if (this.#turn === turn) this.#turn = undefined;
    };
    let pieces: AsyncGenerator<Piece, GenerateResult> | undefined;
    try {
      const run = {
        ids: Int32Array.from(wanted.slice(keep)),
        context: this.#context,
        whole,
        life: this.#life,
        session: { id: this.#id, keep, reroute },
        onEnd: (usage: { contextTokens: number }) => {
          contextTokens = usage.contextTokens;
        },
        onDropped: done,
      };
      pieces = runSequence(core, run, () => routing, checked);
      for (;;) {
        const step = await pieces.next();
        if (step.done) {
          this.#context = [...wanted, ...step.value.tokens].slice(0, contextTokens);
          if (!reroute) {
            this.#controls ??= controls;
            this.#traced ??= { names: routing.names, perToken: routing.perToken };
          }
          this.#messages = [...messages, { role: 'assistant', content: step.value.text }];
          this.#history = [...wanted, ...this.#answerIds(wanted, step.value)];
          return step.value;
        }
        yield step.value;
      }
    } finally {
      // A turn left early still runs in the engine until its iterator ends.
      await pieces?.return(undefined as never);
      done();
    }
  }

  /** One turn as a whole. Errors as generate(). */
  async complete(text: string, options: GenerateOptions = {}): Promise<GenerateResult> {
    return await drain(this.#run(text, options, true));
  }

  /** Ends the turn that runs, if any, and frees the cache. May be called again. */
  dispose(): void {
    if (this.#life.end()) this.#core.engine.releaseSession(this.#id);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** A turn's controls: none given, those of the first turn where they hold. @throws AtMoeError ERR_AT_MOE_ROUTING. */
  #controlsOf(routing: RoutingControls): RoutingControls {
    // A copy without what is undefined.
    const given = JSON.parse(JSON.stringify(routing)) as RoutingControls;
    const held = this.#controls;
    if (!held || isDeepStrictEqual(given, held)) return given;
    if (Object.keys(given).length === 0) return held;
    throw new AtMoeError(
      'ERR_AT_MOE_ROUTING',
      'the first turn\'s controls hold for this session: give these, or none; an "every-turn" session takes others',
    );
  }

  #append(text: string): number[] {
    const tokenizer = this.#core.textTokenizer();
    if (this.#history.length === 0) return tokenizer.encode(text);
    return [...this.#history, ...tokenizer.encodeContinuation(text, this.#history)];
  }

  /** The ids of an answer, without those of a stop string that ended it. */
  #answerIds(before: number[], { text, tokens, stop }: GenerateResult): number[] {
    const { tokenizer } = this.#core;
    return stop === undefined || !tokenizer ? tokens : tokenizer.encodeContinuation(text, before);
  }
}
