/** The demo's training: experts one factor at a time, the general adapter, the router of a variant. */
import type { Mixture, Model, TrainingProgress } from '../../lib/index.js';
import {
  batchExamples,
  expertRow,
  expertTraining,
  generalTraining,
  groups,
  lora,
  routerRow,
  routerTraining,
  type Variant,
} from './recipe.js';
import { expertExamples, factors, levels, routerExamples } from './task.js';

export interface Budget {
  expertSteps: number;
  routerSteps: number;
  generalSteps: number;
  seed: number;
}

export type Report = (label: string, progress: TrainingProgress) => void;

async function run(label: string, steps: AsyncGenerator<TrainingProgress>, report: Report): Promise<void> {
  for await (const progress of steps) report(label, progress);
}

/** Every expert alone, then saved as an adapter below `dir`, from where each variant's mixture takes it. */
export async function trainExperts(model: Model, budget: Budget, dir: string, report: Report): Promise<void> {
  using mixture = await model.createMixture({
    groups,
    general: lora,
    routing: { scope: 'sequence' },
    seed: budget.seed,
  });
  for (const factor of factors) {
    for (const level of levels[factor]) {
      const examples = expertExamples(factor, level, budget.expertSteps * batchExamples, budget.seed);
      const rows = examples.map((example) => expertRow(example, factor));
      await run(
        `${factor}/${level}`,
        mixture.trainExpert(`${factor}/${level}`, rows, expertTraining(budget.expertSteps, budget.seed)),
        report,
      );
    }
  }
  const whole = routerExamples(budget.generalSteps * batchExamples, budget.seed + 1).map(({ prompt, completion }) => ({
    prompt,
    completion,
  }));
  await run('general adapter', mixture.trainGeneral(whole, generalTraining(budget.generalSteps, budget.seed)), report);
  await mixture.save(dir);
}

/** A mixture of the saved experts with a router that weighs all alike. */
export async function assemble(model: Model, dir: string, variant: Variant): Promise<Mixture> {
  const folder = (factor: string, level: string) => ({ adapter: `${dir}/experts/${factor}/${level}` });
  const grouped = Object.fromEntries(
    factors.map((factor) => [
      factor,
      Object.fromEntries(levels[factor].map((level) => [level, folder(factor, level)])),
    ]),
  );
  const flat = { experts: Object.assign({}, ...Object.values(grouped)) as Record<string, { adapter: string }> };
  return await model.createMixture({
    groups: variant.flat ? flat : grouped,
    ...(variant.general && { general: { adapter: `${dir}/general` } }),
    routing: variant.routing,
  });
}

export async function trainRouter(mixture: Mixture, variant: Variant, budget: Budget, report: Report): Promise<void> {
  const examples = routerExamples(budget.routerSteps * batchExamples, budget.seed);
  const rows = examples.map((example) => routerRow(example, variant.flat === true));
  await run(variant.label, mixture.trainRouter(rows, routerTraining(budget.routerSteps, budget.seed)), report);
}
