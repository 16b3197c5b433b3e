import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExampleRow, Model } from '../../lib/index.js';

/** Three language families, each a group of experts. */
export const families = {
  germanic: ['deu', 'nld', 'swe'],
  romance: ['fra', 'spa', 'ita'],
  slavic: ['pol', 'ces', 'hrv'],
} as const;

export const languages = Object.values(families).flat();
export type Language = (typeof languages)[number];
export type Split = 'train' | 'valid' | 'test';

const maxTokens = 64;

/** One sentence: BOS, its tokens, EOS. */
export interface Sentence {
  language: Language;
  split: Split;
  ids: number[];
  /** Characters, the end of the sentence counted as one. */
  characters: number;
}

interface TaskRow {
  task: string;
  split: Split;
  completion: string;
}

/** The sentences of tatoeba.jsonl in the nine languages, of at most 64 tokens. */
export async function readSentences(data: string, model: Model): Promise<Sentence[]> {
  const { tokenizer } = model;
  if (!tokenizer || tokenizer.eosId === undefined) throw new Error('the model needs a tokenizer with an end token');
  const sentences: Sentence[] = [];
  for (const line of (await readFile(join(data, 'tasks/tatoeba.jsonl'), 'utf8')).split('\n')) {
    if (line === '') continue;
    const { task, split, completion } = JSON.parse(line) as TaskRow;
    const language = languages.find((known) => known === task);
    if (!language) continue;
    const ids = tokenizer.encode(completion);
    ids.push(tokenizer.eosId);
    if (ids.length > maxTokens) continue;
    sentences.push({ language, split, ids, characters: completion.length + 1 });
  }
  return sentences;
}

export function familyOf(language: Language): string {
  return Object.entries(families).find(([, own]) => (own as readonly string[]).includes(language))?.[0] ?? '';
}

/** A training row: the first `promptTokens` tokens are the router's instruction, the loss is taken on all tokens. */
export function toRow({ ids, language }: Sentence, promptTokens: number, labelled: boolean): ExampleRow {
  const cut = Math.min(promptTokens, ids.length - 1);
  const labels = labelled ? { experts: [`${familyOf(language)}/${language}`] } : {};
  return { prompt: ids.slice(0, cut), completion: ids.slice(cut), ...labels };
}

/**
 * The rows of all epochs in the order they are learnt, for `shuffle: false` and `batchExamples: size`: every batch holds
 * sentences of about one length, and the batches of an epoch come in a random order. The last batch of an epoch, the
 * longest sentences, is filled up from the one before it.
 */
export function batchesByLength(sentences: Sentence[], epochs: number, size: number, seed: number): ExampleRow[] {
  const random = randomNumbers(seed);
  return Array.from({ length: epochs }, () => {
    const sorted = shuffled(sentences, random).sort((a, b) => a.ids.length - b.ids.length);
    const starts = Array.from({ length: Math.ceil(sorted.length / size) }, (_, i) => i * size);
    return shuffled(starts, random).flatMap((start) =>
      sorted.slice(Math.min(start, sorted.length - size)).slice(0, size),
    );
  })
    .flat()
    .map((sentence) => toRow(sentence, 1, false));
}

function shuffled<T>(values: readonly T[], random: () => number): T[] {
  return values
    .map((value) => ({ value, key: random() }))
    .sort((a, b) => a.key - b.key)
    .map(({ value }) => value);
}

/** Mulberry32: uniform numbers in [0, 1). */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}
