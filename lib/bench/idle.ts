import { type BenchOptions, checkMemory, mixtureOf, withRandomModel } from './setup.js';
import { percentile } from './statistics.js';

export interface IdleReport {
  kind: 'idle';
  shape: string;
  device: string;
  weights: string;
  threads: number;
  mixtures: number;
  batch: number;
  context: number;
  /** Of each variant. */
  steps: number;
  /** Seconds of a decode step of the base, without mixtures and with them loaded: 10th percentile and median. */
  bare: { p10: number; median: number };
  loaded: { p10: number; median: number };
}

const rounds = 10;
const mixtures = 8;

/** What mixtures that are loaded cost requests that do not use them: decode steps of the base, in turns. */
export async function benchIdle(options: BenchOptions): Promise<IdleReport> {
  const { shape, weights, threads, batch, context, steps, signal } = options;
  checkMemory({ ...options, experts: mixtures * options.experts });
  return await withRandomModel(options, async (engine, { device }) => {
    const descriptor = mixtureOf(options);
    const request = {
      kind: 'decode',
      rows: batch,
      context,
      steps,
      routings: [{ kind: 'base' }],
      interleave: false,
    } as const;
    const measure = async () => (await engine.bench(request, { signal })).seconds[0] as Float64Array;
    const bare: number[] = [];
    const loaded: number[] = [];
    for (let round = 0; round < rounds; round++) {
      bare.push(...(await measure()));
      const handles: number[] = [];
      for (let i = 0; i < mixtures; i++) handles.push((await engine.createMixture(descriptor)).mixture);
      loaded.push(...(await measure()));
      for (const handle of handles) engine.releaseMixture(handle);
    }
    const of = (seconds: number[]) => {
      seconds.sort((a, b) => a - b);
      return { p10: percentile(seconds, 0.1), median: percentile(seconds, 0.5) };
    };
    const setting = { shape, device, weights, threads, mixtures, batch, context, steps: rounds * steps };
    return { kind: 'idle', ...setting, bare: of(bare), loaded: of(loaded) };
  });
}

export function idleText(report: IdleReport): string {
  const { shape, weights, device, threads, batch, bare, loaded } = report;
  const us = (seconds: number) => `${(seconds * 1e6).toFixed(2)} µs`;
  const row = (name: string, { p10, median }: IdleReport['bare']) => `${name}  p10 ${us(p10)}  median ${us(median)}`;
  return [
    `idle ${shape} ${weights}, ${device}, ${threads} threads: a decode step of the base, batch ${batch}`,
    row('no mixture ', bare),
    row(`${report.mixtures} mixtures `, loaded),
    `ratio        p10 ${(loaded.p10 / bare.p10).toFixed(4)}  median ${(loaded.median / bare.median).toFixed(4)}`,
    '',
  ].join('\n');
}
