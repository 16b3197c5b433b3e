import type { BenchRequest } from '../native-bench-types.js';
import type { NativeEngine } from '../native-types.js';
import { decodeBytes } from './floors.js';
import { type SpeedReport, speedReport } from './report.js';
import { type BenchOptions, checkMemory, mixtureOf, withRandomModel } from './setup.js';

/** Steps come in rounds with a probe of the machine around each: a busy neighbour slows both. */
const rounds = 4;

export interface Rounds {
  base: number[];
  mixture: number[];
  /** The best of all probes. */
  readRate: number;
  fmaRate: number;
  productRate: number;
}

/** Steps of base and mixture in turns, inside the engine. */
export async function timeRounds(
  engine: NativeEngine,
  request: Omit<BenchRequest, 'steps' | 'interleave'>,
  steps: number,
  signal?: AbortSignal,
): Promise<Rounds> {
  const found: Rounds = { base: [], mixture: [], readRate: 0, fmaRate: 0, productRate: 0 };
  const probe = async () => {
    const { readRate, fmaRate, productRate } = await engine.probe();
    found.readRate = Math.max(found.readRate, readRate);
    found.fmaRate = Math.max(found.fmaRate, fmaRate);
    found.productRate = Math.max(found.productRate, productRate);
  };
  const perRound = Math.ceil(steps / rounds);
  await probe();
  while (found.base.length < steps) {
    const some = Math.min(perRound, steps - found.base.length);
    const { base, mixture } = await engine.bench({ ...request, steps: some, interleave: true }, { signal });
    found.base.push(...base);
    found.mixture.push(...mixture);
    await probe();
  }
  return found;
}

/** Tokens per second of decoding steps, against the bytes they must read. */
export async function benchDecode(options: BenchOptions): Promise<SpeedReport> {
  checkMemory(options);
  return await withRandomModel(options, async (engine, { device }) => {
    const { mixture } = await engine.createMixture(mixtureOf(options));
    const { kv, kvTokens } = await engine.memory();
    const { config, weights, batch, context, steps, signal } = options;
    const request = { kind: 'decode' as const, rows: batch, context, routing: { kind: 'mixture' as const, mixture } };
    const times = await timeRounds(engine, request, steps, signal);
    const kvBytes = kv / (2 * kvTokens * config.numLayers * config.numKvHeads * config.headDim);
    const { base, added } = decodeBytes(config, weights, options, options, kvBytes);
    return speedReport(options, {
      kind: 'decode',
      device,
      tokensPerStep: batch,
      base: times.base,
      mixture: times.mixture,
      baseWork: base,
      mixtureWork: base + added,
      limit: times.readRate,
    });
  });
}
