/**
 * Nine language experts in three families over stories260K, a real 260K-parameter Llama: PEFT's experts are read and
 * checked against PEFT's own losses, experts are trained here from scratch, and a grouped router is trained over them.
 *
 *   npm run build && node dist/examples/lang-experts/main.js [--data DIR] [--epochs 12] [--router-epochs 3] [--seed 0]
 *
 * `--data` is a folder with models/stories260K, adapters/lang-experts and tasks/tatoeba.jsonl.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type ExampleRow, loadModel, type Mixture, type Model, type RoutingOptions } from '../../lib/index.js';
import { families, familyOf, type Language, languages, readSentences, type Sentence, toRow } from './data.js';

const { values: flags } = parseArgs({
  options: {
    data: { type: 'string', default: '../shared/data' },
    epochs: { type: 'string', default: '12' },
    'router-epochs': { type: 'string', default: '3' },
    seed: { type: 'string', default: '0' },
  },
});
const data = flags.data;
const seed = Number(flags.seed);

interface Reference {
  base: Record<Language, number>;
  expert_on_language: Record<Language, Record<Language, number>>;
}

type Evaluator = {
  evaluate(
    rows: Iterable<ExampleRow>,
    options: { lossOn: 'all'; appendEos: false },
  ): Promise<{ loss: number; tokens: number }>;
};

/** Bits per character of sentences, by total bits over total characters. */
async function bits(model: Evaluator, sentences: Sentence[], promptTokens = 1): Promise<number> {
  const rows = sentences.map((sentence) => toRow(sentence, promptTokens, false));
  const { loss, tokens } = await model.evaluate(rows, { lossOn: 'all', appendEos: false });
  const characters = sentences.reduce((sum, sentence) => sum + sentence.characters, 0);
  return (loss * tokens) / Math.LN2 / characters;
}

function byLanguage(sentences: Sentence[], language: Language): Sentence[] {
  return sentences.filter((sentence) => sentence.language === language);
}

function print(label: string, values: number[]): void {
  console.log(`${label.padEnd(26)} ${values.map((value) => value.toFixed(3).padStart(7)).join('')}`);
}

/** PEFT's nine adapters on nine languages, beside PEFT's own figures. */
async function checkMatrix(model: Model, test: Sentence[]): Promise<void> {
  const reference = JSON.parse(await readFile(join(data, 'adapters/lang-experts/results.json'), 'utf8')) as Reference;
  let worst = 0;
  console.log(`\nLosses of PEFT's experts, bits per character (rows: expert, columns: language)`);
  console.log(''.padEnd(27) + languages.map((language) => language.padStart(7)).join(''));
  const row = async (label: string, evaluator: Evaluator, expected: Record<Language, number>) => {
    const measured: number[] = [];
    for (const language of languages) {
      const value = await bits(evaluator, byLanguage(test, language));
      worst = Math.max(worst, Math.abs(value - expected[language]));
      measured.push(value);
    }
    print(label, measured);
  };
  await row('base', model, reference.base);
  for (const language of languages) {
    using adapter = await model.loadAdapter(join(data, 'adapters/lang-experts', language));
    await row(language, adapter, reference.expert_on_language[language]);
  }
  console.log(`largest difference from PEFT's figures: ${worst.toFixed(4)}`);
}

async function trainExperts(mixture: Mixture, train: Sentence[], test: Sentence[]): Promise<void> {
  const reference = JSON.parse(await readFile(join(data, 'adapters/lang-experts/results.json'), 'utf8')) as Reference;
  console.log(
    '\nExperts trained here from scratch (rank 8, alpha 16, all linears, AdamW 8e-3 linear, 32 sentences a step)',
  );
  for (const language of languages) {
    const rows = byLanguage(train, language).map((sentence) => toRow(sentence, 1, false));
    const start = performance.now();
    const options = {
      epochs: Number(flags.epochs),
      learningRate: 8e-3,
      batchExamples: 32,
      lossOn: 'all',
      appendEos: false,
      seed,
    } as const;
    for await (const _ of mixture.trainExpert(`${familyOf(language)}/${language}`, rows, options));
    const seconds = (performance.now() - start) / 1000;
    const own = await bits(alone(mixture, language), byLanguage(test, language));
    const peft = reference.expert_on_language[language][language];
    console.log(`  ${language}  ours ${own.toFixed(3)}  PEFT ${peft.toFixed(3)}  ${seconds.toFixed(1)} s`);
  }
}

/** One expert of the mixture as an evaluator. */
function alone(mixture: Mixture, language: Language): Evaluator {
  return fixed(mixture, { only: `${familyOf(language)}/${language}` });
}

function fixed(mixture: Mixture, routing: Parameters<Mixture['requestRouting']>[0]): Evaluator {
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

const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

async function perLanguage(evaluator: Evaluator, test: Sentence[], promptTokens = 1): Promise<number[]> {
  const values: number[] = [];
  for (const language of languages) values.push(await bits(evaluator, byLanguage(test, language), promptTokens));
  return values;
}

async function compareRouters(
  model: Model,
  directories: (language: Language) => { adapter: string },
  train: Sentence[],
  test: Sentence[],
): Promise<void> {
  const groups = Object.fromEntries(
    Object.entries(families).map(([family, own]) => [
      family,
      Object.fromEntries(own.map((language) => [language, directories(language)])),
    ]),
  );
  console.log('\nAll nine languages together, bits per character (mean and per language)');
  const report = (label: string, values: number[]) =>
    print(`${label.padEnd(19)}${mean(values).toFixed(3).padStart(7)}`, values);
  report('base', await perLanguage(model, test));
  {
    using mixture = await model.createMixture({ groups, routing: { scope: 'token' } });
    const uniform = Object.fromEntries(languages.map((language) => [language, 1 / 9]));
    report('uniform average', await perLanguage(fixed(mixture, { experts: uniform }), test));
    const right: number[] = [];
    for (const language of languages) right.push(await bits(alone(mixture, language), byLanguage(test, language)));
    report('right expert', right);
  }
  const variants: { label: string; routing: Partial<RoutingOptions>; promptTokens: number; supervision: number }[] = [
    { label: 'token', routing: { scope: 'token' }, promptTokens: 1, supervision: 0 },
    { label: 'token, labelled', routing: { scope: 'token' }, promptTokens: 1, supervision: 0.3 },
    { label: 'first 16', routing: { scope: 'sequence' }, promptTokens: 16, supervision: 0 },
    { label: 'first 16, labelled', routing: { scope: 'sequence' }, promptTokens: 16, supervision: 0.3 },
  ];
  for (const { label, routing, promptTokens, supervision } of variants) {
    using mixture = await model.createMixture({ groups, routing });
    const rows = train.map((sentence) => toRow(sentence, promptTokens, supervision > 0));
    const start = performance.now();
    for await (const _ of mixture.trainRouter(rows, {
      epochs: Number(flags['router-epochs']),
      learningRate: 1e-2,
      batchExamples: 32,
      lossOn: 'all',
      appendEos: false,
      seed,
      balance: { supervision },
    }));
    report(label, await perLanguage(mixture, test, promptTokens));
    console.log(`    (router trained in ${((performance.now() - start) / 1000).toFixed(1)} s)`);
  }
}

const model = await loadModel(join(data, 'models/stories260K'));
const sentences = await readSentences(data, model);
const train = sentences.filter(({ split }) => split === 'train');
const test = sentences.filter(({ split }) => split === 'test');
await checkMatrix(model, test);
{
  const groups = Object.fromEntries(
    Object.entries(families).map(([family, own]) => [
      family,
      Object.fromEntries(own.map((language) => [language, { rank: 8, alpha: 16 }])),
    ]),
  );
  using mixture = await model.createMixture({ groups, seed });
  await trainExperts(mixture, train, test);
}
await compareRouters(model, (language) => ({ adapter: join(data, 'adapters/lang-experts', language) }), train, test);
await model.dispose();
