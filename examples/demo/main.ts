/**
 * The demo: short answers made of three parts, each owned by one factor (function, domain, style). One expert is
 * trained per level of a factor, alone; routers learn on two thirds of the compounds and are tried on the others.
 * `npm run demo -- --help` shows the flags.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadModel, type Mixture, type Model, type TrainingProgress } from '../../lib/index.js';
import { type Success, success } from './evaluate.js';
import { readFlags } from './flags.js';
import { printControls, printRouting, ResultTable, StepLine } from './print.js';
import { type Variant, variants } from './recipe.js';
import { findRoot } from './root.js';
import { type Example, examplesOf, factors, levels, notice, unseenCompounds } from './task.js';
import { assemble, type Budget, trainExperts, trainRouter } from './train.js';

const flags = readFlags(process.argv.slice(2));
const { seed } = flags;
const budget: Budget = {
  expertSteps: flags.expertSteps,
  routerSteps: flags.routerSteps,
  generalSteps: flags.expertSteps,
  seed,
};
const test = examplesOf(unseenCompounds, flags.examples, 7_000 + seed);
const table = new ResultTable(flags.json);
const line = new StepLine(!flags.json);
const report = (label: string, progress: TrainingProgress) => line.show(label, progress);
const scratch = await mkdtemp(join(tmpdir(), 'at-moe-demo-'));
const started = performance.now();

/** The expert that does best on its own, by whole answers, then by parts. */
async function bestSingle(mixture: Mixture, examples: Example[]): Promise<{ name: string; result: Success }> {
  const score = ({ joint, factors: parts }: Success) =>
    joint * 10 + Object.values(parts).reduce((sum, part) => sum + part, 0);
  let best: { name: string; result: Success } | undefined;
  for (const factor of factors) {
    for (const level of levels[factor]) {
      const name = `${factor}/${level}`;
      const result = await success(mixture, examples, () => ({ only: name }));
      if (!best || score(result) > score(best.result)) best = { name, result };
    }
  }
  return best as { name: string; result: Success };
}

async function withoutRouter(model: Model): Promise<void> {
  using mixture = await assemble(model, scratch, { label: '', routing: { scope: 'sequence' } });
  table.add('base', await success(model, test));
  const { name, result } = await bestSingle(mixture, test);
  table.add(`best single expert (${name})`, result);
  const all = factors.flatMap((factor) => levels[factor].map((level) => `${factor}/${level}`));
  const uniform = Object.fromEntries(all.map((path) => [path, 1 / all.length]));
  table.add('uniform average of experts', await success(mixture, test, () => ({ experts: uniform })));
  const oracle = (weight: number) => (example: Example) => ({
    experts: Object.fromEntries(example.experts.map((path) => [path, weight])),
  });
  table.add('oracle: right experts, weight 1 each', await success(mixture, test, oracle(1)));
  table.add('oracle: right experts, weight 2/3 each', await success(mixture, test, oracle(2 / 3)));
}

async function withRouter(model: Model, variant: Variant): Promise<Mixture> {
  const mixture = await assemble(model, scratch, variant);
  await trainRouter(mixture, variant, budget, report);
  line.clear();
  table.add(variant.label, await success(mixture, test));
  return mixture;
}

const model = await loadModel(flags.model ?? join(findRoot(), 'examples/demo/base'));
try {
  line.say(`${notice}\n`);
  line.say(
    `Base: ${model.path.split('/').slice(-3).join('/')}, ${model.config.numLayers} layers of ${model.config.hiddenSize}, on ${model.device}`,
  );
  const count = factors.reduce((sum, factor) => sum + levels[factor].length, 0);
  line.say(`Training ${count} experts, one factor at a time, and a general adapter: ${budget.expertSteps} steps each`);
  await trainExperts(model, budget, scratch, report);
  line.clear();
  line.say(`\nAnswers to ${test.length} prompts of ${unseenCompounds.length} compounds that no router has seen`);
  table.head();
  await withoutRouter(model);
  let shown: Mixture | undefined;
  for (const variant of variants) {
    const mixture = await withRouter(model, variant);
    if (variant.shown) shown = mixture;
    else mixture.dispose();
  }
  if (shown && !flags.json) {
    const [first, second] = [
      test[0],
      test.find(({ experts }) => experts[0] !== test[0]?.experts[0] && experts[2] !== test[0]?.experts[2]),
    ];
    if (first && second) await printRouting(shown, first, second);
    if (first) await printControls(shown, first);
  }
  line.say(`\nDone in ${((performance.now() - started) / 1000).toFixed(0)} s`);
} finally {
  await model.dispose();
  await rm(scratch, { recursive: true, force: true });
}
