/**
 * Trains the demo's base model from nothing but the demo's own generated text, reproducibly by a seed, and puts it into
 * examples/demo/base beside its tokenizer.
 *
 *   node dist/scripts/demo-base.js [--steps 900] [--seed 0] [--output examples/demo/base]
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { baseCorpus } from '../examples/demo/corpus.js';
import { initializeModel, loadModel } from '../lib/index.js';

const { values: flags } = parseArgs({
  options: {
    steps: { type: 'string', default: '900' },
    seed: { type: 'string', default: '0' },
    output: { type: 'string', default: 'examples/demo/base' },
  },
});
const names = ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json'];
const base = 'examples/demo/base';
const scratch = await mkdtemp(join(tmpdir(), 'at-moe-demo-'));
const start = join(scratch, 'start');
const seed = Number(flags.seed);
const files = Object.fromEntries(
  await Promise.all(names.map(async (name) => [name, await readFile(join(base, name))])),
);
const config = JSON.parse(await readFile(join(base, 'config.json'), 'utf8')) as Record<string, unknown>;
await initializeModel(start, config, { seed, files });

const model = await loadModel(start, { trainable: true });
const steps = Number(flags.steps);
const examplesPerStep = 32;
for await (const step of model.train(baseCorpus(steps * examplesPerStep, seed), {
  steps,
  learningRate: 3e-3,
  schedule: 'cosine',
  warmupSteps: 40,
  weightDecay: 0.05,
  beta2: 0.95,
  batchExamples: examplesPerStep,
  lossOn: 'all',
  shuffle: false,
  seed,
  saveTo: flags.output,
})) {
  if (step.step % 25 === 0 || step.step === steps) {
    const { loss, tokensPerSecond, etaSeconds } = step;
    console.log(
      `step ${step.step}/${steps}  loss ${loss.toFixed(3)}  ${tokensPerSecond.toFixed(0)} tokens/s  ${etaSeconds?.toFixed(0)} s to go`,
    );
  }
}
await model.dispose();
await rm(scratch, { recursive: true });
