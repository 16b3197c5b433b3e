import { z } from 'zod';
import { checkArgument } from './arguments.js';
import { AtMoeError } from './errors.js';
import { drain, type GenerateResult, type Piece, runSequence } from './generation.js';
import { checkGenerateOptions, type GenerateOptions } from './generation-options.js';
import type { ChatMessage } from './text/chat-template.js';
import type { TextGenerator } from './text-generator.js';

export interface SessionOptions {
  /**
   * 'first-turn' (default): the first turn's routing, with its controls, holds for the conversation. 'every-turn': each
   * turn is routed anew by its own tokens and controls; earlier keys stay as they are. Matters with sequence scope only:
   * with token scope every turn has its own controls.
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
  readonly #id: number;
  readonly #everyTurn: boolean;
  #messages: ChatMessage[] = [];
  /** Ids of the turns so far, without a chat template. */
  #history: number[] = [];
  /** Ids whose keys the engine holds, of finished turns alone. */
  #context: number[] = [];
  /** What routes the conversation: of the first finished turn. */
  #routing: string | undefined;
  #busy = false;
  #disposed = false;

  /** @internal */
  constructor(generator: TextGenerator, options: SessionOptions) {
    const { routing, system } = checkArgument('createSession', schema, options);
    this.#generator = generator;
    this.#id = generator.core.newSessionId();
    this.#everyTurn = routing === 'every-turn';
    if (system !== undefined && !generator.core.chatTemplate) {
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
   * One turn, as it is generated. A turn that fails or is left early is not part of the conversation.
   * @throws as generate() of the model; AtMoeError ERR_AT_MOE_BUSY while another turn runs; ERR_AT_MOE_ROUTING for other
   * controls than the first turn's where its routing holds.
   */
  generate(text: string, options: GenerateOptions = {}): AsyncGenerator<Piece, GenerateResult> {
    return this.#turn(text, options, false);
  }

  async *#turn(text: string, options: GenerateOptions, whole: boolean): AsyncGenerator<Piece, GenerateResult> {
    if (typeof text !== 'string') throw new TypeError('a turn of a session is text');
    if (this.#disposed) throw new AtMoeError('ERR_AT_MOE_DISPOSED', 'the session was disposed');
    if (this.#busy) throw new AtMoeError('ERR_AT_MOE_BUSY', 'the session is still at its last turn');
    if (text === '') throw new AtMoeError('ERR_AT_MOE_EMPTY_PROMPT', 'the turn is empty');
    const { core } = this.#generator;
    const checked = checkGenerateOptions(options, core.formats);
    if (checked.n !== undefined) throw new TypeError('a session goes on in one way: n cannot be given');
    const routing = this.#generator.requestRouting(checked.routing);
    const reroute = this.#everyTurn || routing.perToken;
    const controls = JSON.stringify(checked.routing);
    if (!reroute && this.#routing !== undefined && controls !== this.#routing) {
      const message =
        'the routing of the first turn holds for this session: an "every-turn" session takes other controls';
      throw new AtMoeError('ERR_AT_MOE_ROUTING', message);
    }
    const messages: ChatMessage[] = [...this.#messages, { role: 'user', content: text }];
    const wanted = core.chatTemplate ? Array.from(core.encode(messages)) : this.#append(text);
    let keep = 0;
    while (keep < wanted.length - 1 && this.#context[keep] === wanted[keep]) keep++;
    this.#busy = true;
    // Keys behind those kept are gone with the first step, and those of a turn that fails are of no use.
    this.#context = wanted.slice(0, keep);
    let contextTokens = 0;
    let pieces: AsyncGenerator<Piece, GenerateResult> | undefined;
    try {
      const run = {
        ids: Int32Array.from(wanted.slice(keep)),
        context: this.#context,
        whole,
        session: { id: this.#id, keep, reroute },
        onEnd: (usage: { contextTokens: number }) => {
          contextTokens = usage.contextTokens;
        },
      };
      pieces = runSequence(core, run, () => routing, checked);
      for (;;) {
        const step = await pieces.next();
        if (step.done) {
          this.#context = [...wanted, ...step.value.tokens].slice(0, contextTokens);
          this.#routing ??= controls;
          this.#messages = [...messages, { role: 'assistant', content: step.value.text }];
          this.#history = [...wanted, ...this.#answerIds(wanted, step.value)];
          return step.value;
        }
        yield step.value;
      }
    } finally {
      // A turn left early still runs in the engine until its iterator ends.
      await pieces?.return(undefined as never);
      this.#busy = false;
    }
  }

  /** One turn as a whole. Errors as generate(). */
  async complete(text: string, options: GenerateOptions = {}): Promise<GenerateResult> {
    return await drain(this.#turn(text, options, true));
  }

  /** Frees the cache. May be called again. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#generator.core.engine.releaseSession(this.#id);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #append(text: string): number[] {
    const tokenizer = this.#generator.core.textTokenizer();
    if (this.#history.length === 0) return tokenizer.encode(text);
    return [...this.#history, ...tokenizer.encodeContinuation(text, this.#history)];
  }

  /** The ids of an answer, without those of a stop string that ended it. */
  #answerIds(before: number[], { text, tokens, stop }: GenerateResult): number[] {
    const { tokenizer } = this.#generator.core;
    return stop === undefined || !tokenizer ? tokens : tokenizer.encodeContinuation(text, before);
  }
}
