import type { BenchRequest } from '../native-bench-types.js';
import type { MixtureHandle, RoutingRequest } from '../native-mixture-types.js';
import type { NativeEngine } from '../native-types.js';
import type { Measured } from './report.js';
import type { BenchOptions } from './setup.js';

/** Steps come in rounds with a probe of the machine around each: a busy neighbour slows both. */
const rounds = 4;

/** Seconds of steps taken in turns: of the base, of the mixture, and of the mixture with weights that are given. */
export interface Rounds extends Pick<Measured, 'base' | 'mixture' | 'fixed'> {
  /** The best of all probes. */
  readRate: number;
  fmaRate: number;
  productRate: number;
}

/**
 * Given weights make the same products as a router that keeps all experts, without the router. One that selects leaves
 * each row other experts, which given weights do not, so that it has no such step.
 */
function variants(mixture: MixtureHandle, { experts, expertTopK = 0 }: BenchOptions): RoutingRequest[] {
  const weights = new Float32Array(experts).fill(1 / experts);
  const fixed = { kind: 'fixed', mixture, weights, alone: false } as const;
  return [{ kind: 'base' }, { kind: 'mixture', mixture }, ...(expertTopK === 0 ? [fixed] : [])];
}

/** Steps of base and mixture in turns, inside the engine. */
export async function timeRounds(
  engine: NativeEngine,
  kind: BenchRequest['kind'],
  mixture: MixtureHandle,
  options: BenchOptions,
): Promise<Rounds> {
  const { batch, context, steps, signal } = options;
  const routings = variants(mixture, options);
  const seconds: number[][] = routings.map(() => []);
  const best = { readRate: 0, fmaRate: 0, productRate: 0 };
  const probe = async () => {
    const { readRate, fmaRate, productRate } = await engine.probe();
    best.readRate = Math.max(best.readRate, readRate);
    best.fmaRate = Math.max(best.fmaRate, fmaRate);
    best.productRate = Math.max(best.productRate, productRate);
  };
  const perRound = Math.ceil(steps / rounds);
  await probe();
  for (let done = 0; done < steps; done += perRound) {
    const some = Math.min(perRound, steps - done);
    const request = { kind, rows: batch, context, steps: some, routings, interleave: true };
    const found = await engine.bench(request, { signal });
    for (const [i, times] of found.seconds.entries()) seconds[i]?.push(...times);
    await probe();
  }
  const [base, routed, fixed] = seconds as [number[], number[], number[]?];
  return { base, mixture: routed, fixed, ...best };
}
