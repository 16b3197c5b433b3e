import { z } from 'zod';
import { checkArgument } from './arguments.js';
import { chatMessage } from './data/rows.js';
import type { ModelDescriptor } from './descriptors.js';
import { AtMoeError } from './errors.js';
import type { Prompt } from './generation-options.js';
import { Lifetime } from './lifetime.js';
import type { MixtureHandle } from './native-mixture-types.js';
import type { TrainTarget } from './native-training-types.js';
import type { ModelInfo, NativeEngine } from './native-types.js';
import { ResponseFormats } from './response-format.js';
import { type ChatMessage, ChatTemplate } from './text/chat-template.js';
import type { Tokenizer } from './text/tokenizer.js';
import type { TrainingContext } from './training/context.js';

const messagesSchema = z.array(chatMessage);

/** What a model, its mixtures and its sessions share. */
export class ModelCore {
  readonly engine: NativeEngine;
  readonly info: ModelInfo;
  readonly path: string;
  readonly sha256: string;
  readonly descriptor: ModelDescriptor;
  /** Version of each file of weights when it was loaded. */
  readonly files: Readonly<Record<string, string>>;
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
  readonly formats: ResponseFormats;
  readonly life = new Lifetime('the model');
  #disposed: Promise<void> | undefined;
  #sessions = 0;

  constructor(
    engine: NativeEngine,
    info: ModelInfo,
    base: { path: string; sha256: string; descriptor: ModelDescriptor; files?: Record<string, string> },
    tokenizer: Tokenizer | undefined,
  ) {
    this.engine = engine;
    this.info = info;
    this.path = base.path;
    this.sha256 = base.sha256;
    this.descriptor = base.descriptor;
    this.files = base.files ?? {};
    this.tokenizer = tokenizer;
    this.formats = new ResponseFormats(engine, tokenizer, base.descriptor.config.vocabSize);
    this.chatTemplate = tokenizer?.chatTemplate === undefined ? undefined : ChatTemplate.of(tokenizer);
  }

  /** @throws AtMoeError ERR_AT_MOE_DISPOSED after dispose(). */
  check(): void {
    this.life.check();
  }

  dispose(): Promise<void> {
    this.life.end();
    this.#disposed ??= this.engine.dispose();
    return this.#disposed;
  }

  /** What training and evaluation need; `structure`: of what is trained, which a resumed checkpoint must share. */
  trainingContext(target: TrainTarget, mixture: MixtureHandle | null, structure: unknown = null): TrainingContext {
    const { engine, tokenizer, chatTemplate, info, sha256 } = this;
    return {
      engine,
      mixture,
      target,
      contextLength: info.contextLength,
      vocabSize: this.descriptor.config.vocabSize,
      fingerprint: JSON.stringify([sha256, structure]),
      life: this.life,
      ...(tokenizer && { tokenizer }),
      ...(chatTemplate && { chatTemplate }),
    };
  }

  newSessionId(): number {
    return ++this.#sessions;
  }

  /**
   * Token ids of a prompt.
   * @throws TypeError, RangeError for ids outside the vocabulary; AtMoeError ERR_AT_MOE_EMPTY_PROMPT,
   * ERR_AT_MOE_CONTEXT_LENGTH, ERR_AT_MOE_UNSUPPORTED for text without a tokenizer or messages without a template.
   */
  encode(prompt: Prompt): Int32Array {
    const ids = Int32Array.from(this.#ids(prompt));
    if (ids.length === 0 || prompt === '') throw new AtMoeError('ERR_AT_MOE_EMPTY_PROMPT', 'the prompt is empty');
    if (ids.length > this.info.contextLength) {
      throw new AtMoeError(
        'ERR_AT_MOE_CONTEXT_LENGTH',
        `the prompt has ${ids.length} tokens, the context holds ${this.info.contextLength}`,
      );
    }
    return ids;
  }

  #ids(prompt: Prompt): ArrayLike<number> & Iterable<number> {
    if (typeof prompt === 'string') return this.#encodeText(prompt, true);
    if (isChat(prompt)) return this.#encodeText(this.render(prompt, true), false);
    return this.checkIds(prompt, 'a prompt is text, token ids or chat messages');
  }

  /** @throws TypeError with the message `otherwise` for what is no list; RangeError for ids outside the vocabulary. */
  checkIds(ids: unknown, otherwise: string): readonly number[] | Int32Array {
    if (!Array.isArray(ids) && !(ids instanceof Int32Array)) throw new TypeError(otherwise);
    const { vocabSize } = this.descriptor.config;
    for (const id of ids) {
      if (!Number.isInteger(id) || id < 0 || id >= vocabSize)
        throw new RangeError(`token id ${id} is outside the vocabulary of ${vocabSize}`);
    }
    return ids;
  }

  /** Megabytes are refused before they are tokenized, which would hold up the event loop for seconds. */
  #encodeText(text: string, addSpecialTokens: boolean): number[] {
    const tokenizer = this.textTokenizer();
    const { contextLength } = this.info;
    if (text.length > 4 * contextLength * tokenizer.longestToken) {
      const message = `the prompt has ${text.length} characters, the context holds ${contextLength} tokens`;
      throw new AtMoeError('ERR_AT_MOE_CONTEXT_LENGTH', message);
    }
    return tokenizer.encode(text, { addSpecialTokens });
  }

  /** Text of a conversation, by the model's chat template. @throws TypeError; AtMoeError ERR_AT_MOE_UNSUPPORTED. */
  render(messages: readonly ChatMessage[], addGenerationPrompt: boolean): string {
    if (!this.chatTemplate)
      throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'the model has no chat template: give the prompt as text');
    checkArgument('messages', messagesSchema, messages);
    return this.chatTemplate.render(messages, { addGenerationPrompt });
  }

  textTokenizer(): Tokenizer {
    if (this.tokenizer) return this.tokenizer;
    throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'the model folder has no tokenizer.json: give prompts as token ids');
  }

  /** Ids that end a generation. */
  get stopTokens(): Int32Array {
    return Int32Array.from(this.tokenizer?.eosIds ?? []);
  }
}

export function isChat(prompt: Prompt): prompt is readonly ChatMessage[] {
  return Array.isArray(prompt) && prompt.length > 0 && typeof prompt[0] === 'object';
}
