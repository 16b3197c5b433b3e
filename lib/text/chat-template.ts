import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';
import { AtMoeError } from '../errors.js';
import { strftime } from './strftime.js';
import type { Tokenizer } from './tokenizer.js';

export interface ChatMessage {
  role: string;
  content: string | readonly unknown[];
  [key: string]: unknown;
}

export interface RenderOptions {
  /** End with what the template writes before an answer; default false. */
  addGenerationPrompt?: boolean;
  /** Tool definitions (JSON schema); not defined in the template when left out. */
  tools?: readonly unknown[];
  /** Which of several named templates; without it "tool_use" when there are tools, else "default". */
  template?: string;
  /** The time that strftime_now sees; default the present. */
  now?: Date;
  /** Further template variables, such as enable_thinking. */
  variables?: Readonly<Record<string, unknown>>;
}

/** One assistant turn as a training example. */
export interface PromptAndCompletion {
  prompt: string;
  completion: string;
  /** Index in `messages` of the assistant turn. */
  turn: number;
}

type Program = ReturnType<typeof parse>;

/** Renders messages with a chat template in the way `transformers` does. */
export class ChatTemplate {
  readonly #sources: Readonly<Record<string, string>>;
  readonly #programs = new Map<string, Program>();
  readonly #specialTokens: Readonly<Record<string, string>>;

  /** `source`: one template or several by name. `specialTokens`: bos_token, eos_token … as template variables. */
  constructor(source: string | Readonly<Record<string, string>>, specialTokens: Readonly<Record<string, string>> = {}) {
    this.#sources = typeof source === 'string' ? { default: source } : source;
    this.#specialTokens = specialTokens;
  }

  /** @throws AtMoeError ERR_AT_MOE_UNSUPPORTED when the tokenizer has no chat template. */
  static of(tokenizer: Tokenizer): ChatTemplate {
    if (tokenizer.chatTemplate === undefined) {
      throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', 'the tokenizer has no chat template: give a prompt as text');
    }
    return new ChatTemplate(tokenizer.chatTemplate, tokenizer.specialTokens);
  }

  get names(): string[] {
    return Object.keys(this.#sources);
  }

  /**
   * The text of a conversation. It holds BOS where the template writes it: encode it with addSpecialTokens false.
   * @throws AtMoeError ERR_AT_MOE_BAD_DATA when the template refuses the messages (its own words), ERR_AT_MOE_BAD_FILE
   * when it is no valid template, ERR_AT_MOE_UNKNOWN_NAME when there is no such template.
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    const program = this.#program(this.#choose(options));
    const environment = new Environment();
    const { tools, variables, addGenerationPrompt = false, now = new Date() } = options;
    const values = {
      ...globals(now),
      ...this.#specialTokens,
      ...variables,
      ...(tools && { tools }),
      messages,
      add_generation_prompt: addGenerationPrompt,
    };
    for (const [name, value] of Object.entries(values)) environment.set(name, value);
    try {
      return (new Interpreter(environment).run(program) as { value: string }).value;
    } catch (error) {
      throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `chat template: ${(error as Error).message}`, { cause: error });
    }
  }

  /**
   * One example per assistant turn: the prompt is the conversation before it with the generation prompt, the completion
   * what the template adds for the turn, its end marker included. Later turns are in neither.
   * @throws AtMoeError ERR_AT_MOE_BAD_DATA when there is no assistant turn, or the template rewrites earlier text for a
   * later turn.
   */
  renderPromptAndCompletion(messages: readonly ChatMessage[], options: RenderOptions = {}): PromptAndCompletion[] {
    const fixed = { ...options, now: options.now ?? new Date() };
    const examples: PromptAndCompletion[] = [];
    for (const [turn, message] of messages.entries()) {
      if (message.role !== 'assistant') continue;
      const prompt = this.render(messages.slice(0, turn), { ...fixed, addGenerationPrompt: true });
      const whole = this.render(messages.slice(0, turn + 1), { ...fixed, addGenerationPrompt: false });
      if (!whole.startsWith(prompt)) {
        throw new AtMoeError(
          'ERR_AT_MOE_BAD_DATA',
          `the chat template does not extend its prompt with message ${turn}: give it as prompt and completion instead`,
        );
      }
      examples.push({ prompt, completion: whole.slice(prompt.length), turn });
    }
    if (examples.length === 0)
      throw new AtMoeError('ERR_AT_MOE_BAD_DATA', 'messages hold no assistant turn to learn from');
    return examples;
  }

  #choose({ template, tools }: RenderOptions): string {
    const name = template ?? (tools && 'tool_use' in this.#sources ? 'tool_use' : 'default');
    if (Object.hasOwn(this.#sources, name)) return name;
    throw new AtMoeError('ERR_AT_MOE_UNKNOWN_NAME', `no chat template "${name}"; there are: ${this.names.join(', ')}`);
  }

  #program(name: string): Program {
    let program = this.#programs.get(name);
    if (!program) {
      try {
        program = parse(tokenize(this.#sources[name] as string, { lstrip_blocks: true, trim_blocks: true }));
      } catch (error) {
        throw new AtMoeError('ERR_AT_MOE_BAD_FILE', `chat template "${name}": ${(error as Error).message}`, {
          cause: error,
        });
      }
      this.#programs.set(name, program);
    }
    return program;
  }
}

function globals(now: Date): Record<string, unknown> {
  return {
    true: true,
    false: false,
    none: null,
    True: true,
    False: false,
    None: null,
    range,
    strftime_now: (format: string) => strftime(now, format),
    raise_exception: (message: string) => {
      throw new Error(message);
    },
  };
}

/** Python's range. */
function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  if (step === 0) throw new Error('range() step must not be zero');
  const length = Math.max(0, Math.ceil((stop - start) / step));
  return Array.from({ length }, (_, i) => start + i * step);
}
