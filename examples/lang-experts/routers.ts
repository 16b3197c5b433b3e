import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Model, RoutingOptions } from '../../lib/index.js';
import { families, familyOf, languages, type Sentence, toRow } from './data.js';
import { controlled, perCharacter, pooled, print, printHeader, type Score, scoreLanguages } from './measure.js';
import { writePeftLinear } from './peft-linear.js';

/** The sentences by their use: settings are chosen on `valid`, `test` is only reported. */
export interface Splits {
  train: Sentence[];
  valid: Sentence[];
  test: Sentence[];
}

interface Variant {
  label: string;
  routing: Partial<RoutingOptions>;
  promptTokens: number;
  supervision: number;
  learningRate: number;
}

const variants: Variant[] = [
  { label: 'token, labels', routing: { scope: 'token' }, promptTokens: 1, supervision: 1, learningRate: 0.05 },
  { label: 'first 16', routing: { scope: 'sequence' }, promptTokens: 16, supervision: 0, learningRate: 0.01 },
  { label: 'first 16, labels', routing: { scope: 'sequence' }, promptTokens: 16, supervision: 1, learningRate: 0.05 },
];

/** Ways to use PEFT's nine experts together, from no router to the right expert. */
export async function compareRouters(
  model: Model,
  adapters: string,
  { train, valid, test }: Splits,
  training: { epochs: number; seed: number },
): Promise<void> {
  const folders = languages.map((language) => join(adapters, language));
  const groups = Object.fromEntries(
    Object.entries(families).map(([family, own]) => [
      family,
      Object.fromEntries(own.map((language) => [language, { adapter: join(adapters, language) }])),
    ]),
  );
  console.log(
    '\nAll nine languages, bits per character (pooled on the validation and the test split; test by language)',
  );
  printHeader(['valid', 'test']);
  const report = async (label: string, measure: (sentences: Sentence[]) => Promise<Score[]>) => {
    const scores = await measure(test);
    print(label, [pooled(await measure(valid)), pooled(scores), ...scores.map(perCharacter)]);
  };
  await report('base', (sentences) => scoreLanguages(model, sentences));
  {
    using average = await linearAverage(model, folders);
    await report('average of the factors', (sentences) => scoreLanguages(average, sentences));
    using mixture = await model.createMixture({ groups, routing: { scope: 'token' } });
    await report('average of the products', (sentences) => scoreLanguages(mixture, sentences));
    await report('right expert', (sentences) =>
      scoreLanguages((language) => controlled(mixture, { only: `${familyOf(language)}/${language}` }), sentences),
    );
  }
  for (const { label, routing, promptTokens, supervision, learningRate } of variants) {
    using mixture = await model.createMixture({ groups, routing });
    const rows = train.map((sentence) => toRow(sentence, promptTokens, supervision > 0));
    const start = performance.now();
    for await (const _ of mixture.trainRouter(rows, {
      ...training,
      learningRate,
      batchExamples: 32,
      lossOn: 'all',
      appendEos: false,
      balance: { supervision },
    }));
    const seconds = (performance.now() - start) / 1000;
    await report(label, (sentences) => scoreLanguages(mixture, sentences, promptTokens));
    console.log(`    (router trained in ${seconds.toFixed(0)} s)`);
  }
}

async function linearAverage(model: Model, folders: string[]) {
  const folder = await mkdtemp(join(tmpdir(), 'lang-experts-'));
  try {
    await writePeftLinear(folders, folder);
    return await model.loadAdapter(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}
