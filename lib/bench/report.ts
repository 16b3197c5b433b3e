import { formatBytes } from '../units.js';
import { type RouterCost, routerCost, routerCostText } from './router-cost.js';
import type { BenchOptions } from './setup.js';
import { percent, type Timing, timing } from './statistics.js';
import type { TrainMemory } from './train-memory.js';
import type { TrainedPart } from './train-step.js';

/** What was measured, and where. */
export interface Setting {
  shape: string;
  device: string;
  weights: string;
  /** If it was given. */
  expert_weights?: string;
  threads: number;
  experts: number;
  groups: number;
  rank: number;
}

/** Two variants, timed in turns, against what the machine does at best. */
export interface SpeedReport extends Setting {
  kind: 'decode' | 'prefill' | 'train';
  batch: number;
  context: number;
  steps: number;
  base_tokens_per_second: number;
  mixture_tokens_per_second: number;
  /** Time of a mixture step over that of a base step, of the medians. */
  overhead: number;
  /** The least that ratio can be, from bytes (decode) or multiply-adds (prefill, train). */
  floor: number;
  /** What the machine did at best in this run, per second: bytes read (decode), multiply-adds (prefill, train). */
  limit: number;
  limit_unit: 'bytes/s' | 'multiply-adds/s';
  /** What the base's median step needs per second, over the limit. */
  limit_fraction: number;
  /** The same of the base's best step. */
  limit_fraction_best: number;
  mixture_limit_fraction: number;
  /** Of one large product in this run, multiply-adds per second on the CPU; and the base's median step over it. */
  product?: number;
  product_fraction?: number;
  base_seconds: Timing;
  mixture_seconds: Timing;
  /** decode and prefill, with a router that keeps all experts. */
  router?: RouterCost;
  /** train, on a CPU. */
  memory?: Record<TrainedPart, TrainMemory>;
}

export interface Measured {
  kind: SpeedReport['kind'];
  device: string;
  tokensPerStep: number;
  /** Seconds of steps taken in turns. */
  base: readonly number[];
  mixture: readonly number[];
  /** Of the mixture with given weights, without its router. */
  fixed?: readonly number[];
  /** Of one step, in the unit of the limit. */
  baseWork: number;
  mixtureWork: number;
  limit: number;
  product?: number;
  memory?: Record<TrainedPart, TrainMemory>;
}

export function speedReport(options: BenchOptions, measured: Measured): SpeedReport {
  const { shape, weights, expertWeights, threads, experts, groups, rank, batch, context, steps } = options;
  const { kind, device, tokensPerStep, baseWork, mixtureWork, limit, product } = measured;
  const base = timing(measured.base);
  const mixture = timing(measured.mixture);
  return {
    kind,
    shape,
    device,
    weights,
    ...(expertWeights && { expert_weights: expertWeights }),
    threads,
    experts,
    groups,
    rank,
    batch,
    context,
    steps,
    base_tokens_per_second: tokensPerStep / base.median,
    mixture_tokens_per_second: tokensPerStep / mixture.median,
    overhead: mixture.median / base.median,
    floor: mixtureWork / baseWork,
    limit,
    limit_unit: kind === 'decode' ? 'bytes/s' : 'multiply-adds/s',
    limit_fraction: baseWork / base.median / limit,
    limit_fraction_best: baseWork / base.best / limit,
    mixture_limit_fraction: mixtureWork / mixture.median / limit,
    ...(product && { product, product_fraction: baseWork / base.median / product }),
    base_seconds: base,
    mixture_seconds: mixture,
    ...(measured.fixed && { router: routerCost(measured.mixture, measured.fixed) }),
    ...(measured.memory && { memory: measured.memory }),
  };
}

function timingText({ median, best, spread }: Timing): string {
  const ms = (seconds: number) => `${(seconds * 1000).toFixed(2)} ms`;
  return `${ms(median)} median, ${ms(best)} best, spread ${percent(spread)}`;
}

function memoryText({ expert, router }: Record<TrainedPart, TrainMemory>): string {
  const part = ({ peak_bytes, live_bytes, ratio }: TrainMemory) =>
    `peak ${formatBytes(peak_bytes)}, live ${formatBytes(live_bytes)}: ${ratio.toFixed(3)}`;
  return `memory     one expert ${part(expert)}; router ${part(router)}`;
}

/** The report as text. */
export function speedText(report: SpeedReport): string {
  const { kind, shape, weights, experts, groups, rank, batch, context, device, threads, overhead, floor } = report;
  const storage = report.expert_weights === undefined ? '' : ` in ${report.expert_weights}`;
  const [base, mixture] = kind === 'train' ? ['one expert', 'router'] : ['base', 'mixture'];
  const unit = kind === 'decode' ? 'GB/s read' : 'G multiply-adds/s';
  const rate = (tokens: number) => tokens.toFixed(tokens < 100 ? 2 : 0);
  return [
    `${kind} ${shape} ${weights}, ${experts} experts of rank ${rank}${storage} in ${groups} groups, batch ${batch}, context ${context}, ${device}, ${threads} threads`,
    `${base.padEnd(10)} ${rate(report.base_tokens_per_second)} tokens/s  (${timingText(report.base_seconds)})`,
    `${mixture.padEnd(10)} ${rate(report.mixture_tokens_per_second)} tokens/s  (${timingText(report.mixture_seconds)})`,
    `overhead   ${overhead.toFixed(3)}, floor ${floor.toFixed(3)}: ${(overhead / floor).toFixed(3)} of the floor`,
    `limit      ${(report.limit / 1e9).toFixed(2)} ${unit}; ${base} at ${percent(report.limit_fraction)} (best step ${percent(report.limit_fraction_best)}), ${mixture} at ${percent(report.mixture_limit_fraction)}`,
    ...(report.product && report.product_fraction
      ? [
          `product    ${(report.product / 1e9).toFixed(2)} ${unit} of a large one: ${percent(report.product / report.limit)} of the limit; ${base} at ${percent(report.product_fraction)} of it`,
        ]
      : []),
    ...(report.router ? [routerCostText(report.router)] : []),
    ...(report.memory ? [memoryText(report.memory)] : []),
    '',
  ].join('\n');
}
