import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Model } from '../../lib/index.js';
import { batchesByLength, families, familyOf, type Language, languages, type Sentence } from './data.js';
import {
  byLanguage,
  controlled,
  type Evaluator,
  perCharacter,
  print,
  printHeader,
  score,
  scoreLanguages,
} from './measure.js';

export interface Reference {
  base: Record<Language, number>;
  expert_on_language: Record<Language, Record<Language, number>>;
}

export async function readReference(adapters: string): Promise<Reference> {
  return JSON.parse(await readFile(join(adapters, 'results.json'), 'utf8')) as Reference;
}

/** PEFT's nine adapters on nine languages, beside PEFT's own figures. */
export async function checkMatrix(
  model: Model,
  adapters: string,
  reference: Reference,
  test: Sentence[],
): Promise<void> {
  let worst = 0;
  console.log("\nPEFT's experts, bits per character (rows: expert, columns: language)");
  printHeader([]);
  const row = async (label: string, evaluator: Evaluator, expected: Record<Language, number>) => {
    const measured = (await scoreLanguages(evaluator, test)).map(perCharacter);
    for (const [i, language] of languages.entries()) {
      worst = Math.max(worst, Math.abs((measured[i] as number) - expected[language]));
    }
    print(label, measured);
  };
  await row('base', model, reference.base);
  for (const language of languages) {
    using adapter = await model.loadAdapter(join(adapters, language));
    await row(language, adapter, reference.expert_on_language[language]);
  }
  console.log(`largest difference from PEFT's figures: ${worst.toFixed(4)}`);
}

const batchExamples = 32;

/** Trains nine experts from scratch for every seed, each scored on its own language. */
export async function trainExperts(
  model: Model,
  reference: Reference,
  train: Sentence[],
  test: Sentence[],
  { epochs, seeds }: { epochs: number; seeds: number },
): Promise<void> {
  console.log('\nExperts trained here from scratch, bits per character of their own language');
  printHeader([]);
  print(
    'PEFT',
    languages.map((language) => reference.expert_on_language[language][language]),
  );
  const all: number[][] = [];
  for (let seed = 0; seed < seeds; seed++) {
    all.push(await trainNine(model, train, test, epochs, seed));
    print(`here, seed ${seed}`, all.at(-1) as number[]);
  }
  const columns = languages.map((_, i) => all.map((values) => values[i] as number));
  print('here, mean', columns.map(mean));
  if (seeds > 1) print('here, standard deviation', columns.map(deviation));
}

async function trainNine(
  model: Model,
  train: Sentence[],
  test: Sentence[],
  epochs: number,
  seed: number,
): Promise<number[]> {
  const groups = Object.fromEntries(
    Object.entries(families).map(([family, own]) => [
      family,
      Object.fromEntries(own.map((language) => [language, { rank: 8, alpha: 16 }])),
    ]),
  );
  using mixture = await model.createMixture({ groups, seed });
  const values: number[] = [];
  for (const [index, language] of languages.entries()) {
    const name = `${familyOf(language)}/${language}`;
    const rows = batchesByLength(byLanguage(train, language), epochs, batchExamples, seed * languages.length + index);
    for await (const _ of mixture.trainExpert(name, rows, {
      learningRate: 8e-3,
      warmupRatio: 0.1,
      weightDecay: 0.01,
      maxGradNorm: 0,
      batchExamples,
      shuffle: false,
      lossOn: 'all',
      appendEos: false,
    }));
    values.push(perCharacter(await score(controlled(mixture, { only: name }), byLanguage(test, language))));
  }
  return values;
}

const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

function deviation(values: number[]): number {
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1));
}
