/** Of the seconds of single steps. */
export interface Timing {
  median: number;
  best: number;
  /** (90th percentile − 10th percentile) / median. */
  spread: number;
}

const ascending = (values: Iterable<number>) => [...values].sort((a, b) => a - b);

/** The value below which a part of the sorted values lies, by nearest rank. */
export function percentile(sorted: readonly number[], part: number): number {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(part * sorted.length) - 1))] as number;
}

export const median = (values: Iterable<number>): number => percentile(ascending(values), 0.5);

/**
 * Where the median of what the values are drawn from lies in 95 of 100 such samples, whatever its distribution: the
 * order statistics 0.98 √n ranks below and above the middle (the normal approximation of the binomial).
 */
export function medianInterval(values: Iterable<number>): [number, number] {
  const sorted = ascending(values);
  const low = Math.max(0, Math.round((sorted.length - 1.96 * Math.sqrt(sorted.length)) / 2) - 1);
  return [sorted[low] as number, sorted[sorted.length - 1 - low] as number];
}

export function timing(seconds: Iterable<number>): Timing {
  const sorted = ascending(seconds);
  const middle = percentile(sorted, 0.5);
  return {
    median: middle,
    best: sorted[0] as number,
    spread: (percentile(sorted, 0.9) - percentile(sorted, 0.1)) / middle,
  };
}

export const percent = (fraction: number, digits = 1): string => `${(fraction * 100).toFixed(digits)} %`;
