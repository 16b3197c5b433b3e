import type { Dialect, TextPart } from './dialect.js';
import { parseChat } from './requests.js';

function logProbs({ scored }: TextPart): object | null {
  if (!scored) return null;
  const content = scored.map(({ text, logProb }) => ({
    token: text,
    logprob: logProb,
    bytes: bytesOf(text),
    top_logprobs: [],
  }));
  return { content, refusal: null };
}

/** Null for a token that is a part of a character. */
function bytesOf(text: string): number[] | null {
  return text.includes('\uFFFD') ? null : [...Buffer.from(text)];
}

/** POST /v1/chat/completions */
export const chat: Dialect = {
  idPrefix: 'chatcmpl-',
  object: 'chat.completion',
  chunkObject: 'chat.completion.chunk',
  parse: parseChat,
  whole: (part) => ({
    message: { role: 'assistant', content: part.text, refusal: null },
    logprobs: logProbs(part),
  }),
  part: (part, first) => ({
    delta: { ...(first && { role: 'assistant' }), content: part.text },
    logprobs: logProbs(part),
  }),
};
