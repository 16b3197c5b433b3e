import type { Choice, Piece } from '../generation.js';

/** A piece of one of a request's texts, or the end of one. */
export type TextStep = { index: number; piece: Piece } | { index: number; text: Choice };
