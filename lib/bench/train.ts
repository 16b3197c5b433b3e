import { trainProducts } from './floors.js';
import { type SpeedReport, speedReport } from './report.js';
import { type BenchOptions, checkMemory, withRandomModel } from './setup.js';
import { trainMemory } from './train-memory.js';
import { batchOf, beginTrainer, timeStep } from './train-step.js';

/** Whole steps (gradients and update) of one expert alone and of the router over all experts, in turns. */
export async function benchTrain(options: BenchOptions): Promise<SpeedReport> {
  checkMemory(options, options.batch * options.context);
  const memory = await trainMemory(options);
  return await withRandomModel(options, async (engine, { device }) => {
    const { steps, signal, config, batch, context } = options;
    const { request, labelled } = batchOf(options);
    const expertTrainer = await beginTrainer(engine, 'expert', options);
    const routerTrainer = await beginTrainer(engine, 'router', options);
    const times: [number[], number[]] = [[], []];
    let [limit, product] = [0, 0];
    const turn = async (keep: boolean) => {
      const { fmaRate, productRate } = await engine.probe();
      limit = Math.max(limit, fmaRate);
      product = Math.max(product, productRate);
      for (const [i, trainer] of [expertTrainer, routerTrainer].entries()) {
        const seconds = await timeStep(engine, trainer, request, signal);
        if (keep) times[i]?.push(seconds);
      }
    };
    await turn(false);
    for (let step = 0; step < steps; step++) await turn(true);
    const products = trainProducts(config, options, options, labelled);
    return speedReport(options, {
      kind: 'train',
      device,
      tokensPerStep: batch * context,
      base: times[0],
      mixture: times[1],
      baseWork: products.expert,
      mixtureWork: products.router,
      limit,
      product,
      ...(memory && { memory }),
    });
  });
}
