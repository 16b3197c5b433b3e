import { randomBits } from '../data/random.js';
import type { MicroBatch } from '../native-training-types.js';
import type { NativeEngine } from '../native-types.js';
import { trainProducts } from './floors.js';
import { type SpeedReport, speedReport } from './report.js';
import { type BenchOptions, checkMemory, expertOf, mixtureOf, withRandomModel } from './setup.js';

/** The first quarter of each sequence is its prompt; the rest is learnt. */
function batchOf({ config, batch, context }: BenchOptions): { request: MicroBatch; labelled: number } {
  const rows = batch * context;
  const prompt = Math.max(1, Math.floor(context / 4));
  const ids = Int32Array.from({ length: rows }, (_, i) => randomBits(2, 0, i) % config.vocabSize);
  const labels = Int32Array.from({ length: rows }, (_, row) => {
    const position = row % context;
    return position >= prompt - 1 && position < context - 1 ? (ids[row + 1] as number) : -100;
  });
  const labelled = batch * (context - prompt);
  return {
    labelled,
    request: {
      ids,
      labels,
      offsets: Int32Array.from({ length: batch + 1 }, (_, b) => b * context),
      promptLengths: new Int32Array(batch).fill(prompt),
      stepLossWeight: labelled,
      stepTokens: rows,
    },
  };
}

async function timeStep(engine: NativeEngine, trainer: number, batch: MicroBatch, signal?: AbortSignal) {
  const start = performance.now();
  await engine.microBatch(trainer, batch, { signal });
  await engine.finishStep(trainer, 1e-5);
  return (performance.now() - start) / 1000;
}

/** Whole steps (gradients and update) of one expert alone and of the router over all experts, in turns. */
export async function benchTrain(options: BenchOptions): Promise<SpeedReport> {
  checkMemory(options, options.batch * options.context);
  return await withRandomModel(options, async (engine, { device }) => {
    const { steps, signal, config, batch, context } = options;
    const { request, labelled } = batchOf(options);
    const expert = await engine.createMixture(expertOf(options));
    const mixture = await engine.createMixture(mixtureOf(options));
    const expertTrainer = await engine.beginTraining(expert.mixture, { target: 'adapter' });
    const routerTrainer = await engine.beginTraining(mixture.mixture, {
      target: 'router',
      coefficients: { groupBalance: 0.01 },
    });
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
    });
  });
}
