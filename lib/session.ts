import { z } from 'zod';
import { checkArgument } from './arguments.js';
import { AtMoeError } from './errors.js';
import { drain, type GenerateResult, type Piece, runSequence } from './generation.js';
import { checkGenerateOptions, type GenerateOptions } from './generation-options.js';
import type { ChatMessage } from './text/chat-template.js';
import type { TextGenerator } from './text-generator.js';

export interface SessionOptions {
  /**
   * 'first-turn' (default): the first turn's routing holds for the conversation. 'every-turn': each turn is routed anew
   * by its own tokens; earlier keys stay as they are. Matters with sequence scope only.
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
  /** Ids whose keys the engine holds. */
  #context: number[] = [];
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
   * @throws as generate() of the model; AtMoeError ERR_AT_MOE_BUSY while another turn runs.
   */
  async *generate(text: string, options: GenerateOptions = {}): AsyncGenerator<Piece, GenerateResult> {
    if (this.#disposed) throw new AtMoeError('ERR_AT_MOE_DISPOSED', 'the session was disposed');
    if (this.#busy) throw new AtMoeError('ERR_AT_MOE_BUSY', 'the session is still at its last turn');
    if (typeof text !== 'string') throw new TypeError('a turn of a session is text');
    const checked = checkGenerateOptions(options);
    const { core } = this.#generator;
    const messages: ChatMessage[] = [...this.#messages, { role: 'user', content: text }];
    const wanted = core.chatTemplate ? Array.from(core.encode(messages)) : this.#append(text);
    let keep = 0;
    while (keep < wanted.length - 1 && this.#context[keep] === wanted[keep]) keep++;
    const ids = Int32Array.from(wanted.slice(keep));
    const first = this.#context.length === 0;
    this.#busy = true;
    const sent: number[] = [];
    let pieces: AsyncGenerator<Piece, GenerateResult> | undefined;
    try {
      const run = {
        ids,
        context: wanted.slice(0, keep),
        session: { id: this.#id, keep, reroute: this.#everyTurn && !first },
        onEnd: (usage: { contextTokens: number }) => {
          this.#context = [...wanted, ...sent].slice(0, usage.contextTokens);
        },
      };
      pieces = runSequence(core, run, this.#generator.requestRouting(checked.routing), checked);
      for (;;) {
        const step = await pieces.next();
        if (step.done) {
          this.#messages = [...messages, { role: 'assistant', content: step.value.text }];
          return step.value;
        }
        sent.push(...step.value.tokens);
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
    return await drain(this.generate(text, options));
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
    if (this.#context.length === 0) return tokenizer.encode(text);
    return [...this.#context, ...tokenizer.encodeContinuation(text, this.#context)];
  }
}
