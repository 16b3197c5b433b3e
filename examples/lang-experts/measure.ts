import type { ExampleRow, Mixture, RoutingControls } from '../../lib/index.js';
import { type Language, languages, type Sentence, toRow } from './data.js';

/** A model, an adapter or a mixture, or something that scores as they do. */
export interface Evaluator {
  evaluate(
    rows: Iterable<ExampleRow>,
    options: { lossOn: 'all'; appendEos: false },
  ): Promise<{ loss: number; tokens: number }>;
}

/** The information of some text and how long it is. */
export interface Score {
  bits: number;
  characters: number;
}

export async function score(evaluator: Evaluator, sentences: Sentence[], promptTokens = 1): Promise<Score> {
  const rows = sentences.map((sentence) => toRow(sentence, promptTokens, false));
  const { loss, tokens } = await evaluator.evaluate(rows, { lossOn: 'all', appendEos: false });
  const characters = sentences.reduce((sum, sentence) => sum + sentence.characters, 0);
  return { bits: (loss * tokens) / Math.LN2, characters };
}

export const perCharacter = ({ bits, characters }: Score) => bits / characters;

/** All bits over all characters, so that a language counts by its length. */
export function pooled(scores: Score[]): number {
  const bits = scores.reduce((sum, own) => sum + own.bits, 0);
  return bits / scores.reduce((sum, own) => sum + own.characters, 0);
}

export async function scoreLanguages(
  evaluator: Evaluator | ((language: Language) => Evaluator),
  sentences: Sentence[],
  promptTokens = 1,
): Promise<Score[]> {
  const scores: Score[] = [];
  for (const language of languages) {
    const one = typeof evaluator === 'function' ? evaluator(language) : evaluator;
    scores.push(await score(one, byLanguage(sentences, language), promptTokens));
  }
  return scores;
}

export function byLanguage(sentences: Sentence[], language: Language): Sentence[] {
  return sentences.filter((sentence) => sentence.language === language);
}

/** The mixture under controls that hold for all sentences. */
export function controlled(mixture: Mixture, routing: RoutingControls): Evaluator {
  return {
    async evaluate(rows) {
      let nats = 0;
      let tokens = 0;
      await Promise.all(
        [...rows].map(async (row) => {
          const { prompt, completion } = row as { prompt: number[]; completion: number[] };
          const { logProbs } = await mixture.score(prompt, completion, { routing });
          for (const value of logProbs) nats -= value;
          tokens += logProbs.length;
        }),
      );
      return { loss: nats / tokens, tokens };
    },
  };
}

export function print(label: string, values: number[]): void {
  console.log(`${label.padEnd(28)}${values.map((value) => value.toFixed(3).padStart(7)).join('')}`);
}

export function printHeader(before: string[]): void {
  console.log(''.padEnd(28) + [...before, ...languages].map((name) => name.padStart(7)).join(''));
}
