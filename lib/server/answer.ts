import { randomUUID } from 'node:crypto';
import type { Choice, Piece, Usage } from '../generation.js';
import type { Tokenizer } from '../text/tokenizer.js';
import type { Dialect, ScoredToken, TextPart } from './dialect.js';
import type { GenerationRequest } from './requests.js';
import type { TextStep } from './text-step.js';

/** The texts of a request as they come; returns its counts. */
export type TextSteps = AsyncGenerator<TextStep, Usage>;

export interface Answered {
  body: object;
  usage: Usage;
}

function usageBody({ promptTokens, completionTokens, totalTokens, cachedTokens }: Usage): object {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: totalTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

function headOf({ idPrefix }: Dialect, object: string, model: string): object {
  return { id: idPrefix + randomUUID().replaceAll('-', ''), object, created: Math.floor(Date.now() / 1000), model };
}

/** The text of a token inside a text: alone it would lose the space that SentencePiece puts before a word. */
function tokenText(tokenizer: Tokenizer | undefined, id: number): string {
  if (!tokenizer) return `token_id:${id}`;
  const decode = (ids: number[]) => tokenizer.decode(ids, { skipSpecialTokens: false });
  return decode([id, id]).slice(decode([id]).length);
}

/** Makes parts of the pieces of one text. */
class Parts {
  readonly #tokenizer: Tokenizer | undefined;
  #offset = 0;
  isFirst = true;

  constructor(tokenizer: Tokenizer | undefined) {
    this.#tokenizer = tokenizer;
  }

  take({ text, tokens, logProbs }: Pick<Piece, 'text' | 'tokens' | 'logProbs'>): TextPart {
    if (!logProbs) return { text };
    const scored = tokens.map((id, i): ScoredToken => {
      const token = tokenText(this.#tokenizer, id);
      const offset = this.#offset;
      this.#offset += token.length;
      return { text: token, logProb: logProbs[i] as number, offset };
    });
    return { text, scored };
  }
}

/** What an ended text has beside its words: `finish_reason`, and extensions. */
function ending({ finishReason, seed, routing }: Choice, { options }: GenerationRequest): object {
  return { finish_reason: finishReason, seed, ...(options.trace && routing && { routing }) };
}

/** The whole answer at once. Errors: those of the steps. */
export async function wholeAnswer(
  dialect: Dialect,
  request: GenerationRequest,
  steps: TextSteps,
  tokenizer: Tokenizer | undefined,
): Promise<Answered> {
  const choices: object[] = [];
  for (;;) {
    const step = await steps.next();
    if (step.done) {
      const head = headOf(dialect, dialect.object, request.model);
      return { body: { ...head, choices, usage: usageBody(step.value) }, usage: step.value };
    }
    if (!('text' in step.value)) continue;
    const { index, text } = step.value;
    choices[index] = {
      index,
      ...dialect.whole(new Parts(tokenizer).take(text)),
      ...ending(text, request),
      ...(request.tokenIds && { token_ids: text.tokens }),
    };
  }
}

/** The chunks of a streamed answer; returns the counts. Errors: those of the steps. */
export async function* chunks(
  dialect: Dialect,
  request: GenerationRequest,
  steps: TextSteps,
  tokenizer: Tokenizer | undefined,
): AsyncGenerator<object, Usage> {
  const head = headOf(dialect, dialect.chunkObject, request.model);
  const noUsage = request.includeUsage ? { usage: null } : {};
  const chunk = (choice: object) => ({ ...head, choices: [choice], ...noUsage });
  const texts = new Map<number, Parts>();
  const partsOf = (index: number) => {
    const parts = texts.get(index) ?? new Parts(tokenizer);
    texts.set(index, parts);
    return parts;
  };
  try {
    for (;;) {
      const step = await steps.next();
      if (step.done) {
        if (request.includeUsage) yield { ...head, choices: [], usage: usageBody(step.value) };
        return step.value;
      }
      const { index } = step.value;
      const parts = partsOf(index);
      const piece = 'piece' in step.value ? step.value.piece : { text: '', tokens: [] };
      const isEnd = 'text' in step.value;
      const isNews = piece.text !== '' || piece.logProbs || (request.tokenIds && piece.tokens.length > 0);
      if (!isEnd && !isNews) continue;
      const words = dialect.part(parts.take(piece), parts.isFirst);
      parts.isFirst = false;
      const end = 'text' in step.value ? ending(step.value.text, request) : { finish_reason: null };
      const ids = request.tokenIds ? { token_ids: piece.tokens } : {};
      yield chunk({ index, ...words, ...end, ...ids });
    }
  } finally {
    await steps.return(undefined as never);
  }
}
