import { prefillProducts } from './floors.js';
import { type SpeedReport, speedReport } from './report.js';
import { timeRounds } from './rounds.js';
import { type BenchOptions, checkMemory, mixtureOf, withRandomModel } from './setup.js';

/** Tokens per second of whole prompts, against the multiply-adds they need. */
export async function benchPrefill(options: BenchOptions): Promise<SpeedReport> {
  checkMemory(options);
  return await withRandomModel(options, async (engine, { device }) => {
    const { mixture } = await engine.createMixture(mixtureOf(options));
    const { config, batch, context } = options;
    const times = await timeRounds(engine, 'prefill', mixture, options);
    const { base, added } = prefillProducts(config, options, options);
    return speedReport(options, {
      kind: 'prefill',
      device,
      tokensPerStep: batch * context,
      base: times.base,
      mixture: times.mixture,
      fixed: times.fixed,
      baseWork: base,
      mixtureWork: base + added,
      limit: times.fmaRate,
      product: times.productRate,
    });
  });
}
