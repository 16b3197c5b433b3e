import type { GenerationRequest, RequestLimits } from './requests.js';

/** A token with the logarithm of its probability. */
export interface ScoredToken {
  text: string;
  logProb: number;
  /** Characters of the tokens of its text before it. */
  offset: number;
}

/** Text, with its tokens where log-probabilities were asked for. */
export interface TextPart {
  text: string;
  scored?: ScoredToken[];
}

/** What differs between the routes that write text: how a body is read, and how answers are worded. */
export interface Dialect {
  idPrefix: string;
  /** `object` of an answer, and of a chunk of a stream. */
  object: string;
  chunkObject: string;
  parse(body: unknown, limits: RequestLimits): GenerationRequest;
  /** A whole text. */
  whole(part: TextPart): object;
  /** A part of a text; `first`: nothing of this text was sent before. */
  part(part: TextPart, first: boolean): object;
}
