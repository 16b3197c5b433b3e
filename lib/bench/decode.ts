import { decodeBytes } from './floors.js';
import { type SpeedReport, speedReport } from './report.js';
import { timeRounds } from './rounds.js';
import { type BenchOptions, checkMemory, mixtureOf, withRandomModel } from './setup.js';

/** Tokens per second of decoding steps, against the bytes they must read. */
export async function benchDecode(options: BenchOptions): Promise<SpeedReport> {
  checkMemory(options);
  return await withRandomModel(options, async (engine, { device }) => {
    const { mixture } = await engine.createMixture(mixtureOf(options));
    const { kv, kvTokens } = await engine.memory();
    const { config, weights, batch } = options;
    const { readRate, ...times } = await timeRounds(engine, 'decode', mixture, options);
    const kvBytes = kv / (2 * kvTokens * config.numLayers * config.numKvHeads * config.headDim);
    const { base, added } = decodeBytes(config, weights, options, options, kvBytes);
    return speedReport(options, {
      kind: 'decode',
      device,
      tokensPerStep: batch,
      base: times.base,
      mixture: times.mixture,
      fixed: times.fixed,
      baseWork: base,
      mixtureWork: base + added,
      limit: readRate,
    });
  });
}
