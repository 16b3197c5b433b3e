import { median, medianInterval, percent, type Timing, timing } from './statistics.js';

/** What a mixture's router costs: its step beside one with given weights, which has the same products and no router. */
export interface RouterCost {
  /** (mixture − fixed) / mixture, of the median steps. */
  share: number;
  /** The median of the differences of steps of one turn, over the mixture's median step: what slows both goes out. */
  paired_share: number;
  /** Of `paired_share`: 95 times in 100 such an interval holds the true median. */
  paired_interval: [number, number];
  fixed_seconds: Timing;
}

/** Seconds of steps; those of one turn have the same index. */
export function routerCost(mixture: readonly number[], fixed: readonly number[]): RouterCost {
  const fixedTiming = timing(fixed);
  const whole = median(mixture);
  const differences = mixture.map((seconds, turn) => (seconds - (fixed[turn] as number)) / whole);
  return {
    share: (whole - fixedTiming.median) / whole,
    paired_share: median(differences),
    paired_interval: medianInterval(differences),
    fixed_seconds: fixedTiming,
  };
}

export function routerCostText({ share, paired_share, paired_interval: [low, high] }: RouterCost): string {
  const interval = `${(low * 100).toFixed(2)} to ${percent(high, 2)}`;
  const paired = `${percent(paired_share, 2)} (95 %: ${interval})`;
  return `router     ${percent(share, 2)} of a mixture step; by pairs of steps ${paired}`;
}
