import type { Dialect, TextPart } from './dialect.js';
import { parseCompletion } from './requests.js';

function logProbs({ scored }: TextPart): object | null {
  if (!scored) return null;
  return {
    tokens: scored.map(({ text }) => text),
    token_logprobs: scored.map(({ logProb }) => logProb),
    top_logprobs: null,
    text_offset: scored.map(({ offset }) => offset),
  };
}

/** POST /v1/completions */
export const completions: Dialect = {
  idPrefix: 'cmpl-',
  object: 'text_completion',
  chunkObject: 'text_completion',
  parse: parseCompletion,
  whole: (part) => ({ text: part.text, logprobs: logProbs(part) }),
  part: (part) => ({ text: part.text, logprobs: logProbs(part) }),
};
