// What the comparisons with peers share: each measurement is a process of its own, and those of both sides take turns.
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { SpeedReport } from '../../lib/bench/report.js';

const cli = join(import.meta.dirname, '..', '..', 'lib', 'cli', 'main.js');

/** The JSON in the last line that a process prints. */
export async function measurement<T>(command: string, args: readonly string[]): Promise<T> {
  const { stdout } = await promisify(execFile)(command, args);
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as T;
}

/** `at-moe bench KIND`. */
export async function ownReport(
  kind: SpeedReport['kind'],
  flags: Record<string, string | number>,
): Promise<SpeedReport> {
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
  return await measurement<SpeedReport>(process.execPath, [cli, 'bench', kind, ...args, '--json']);
}

/** Tokens per second of both, the best of the rounds, and own over peer. */
export interface Comparison {
  own: number;
  peer: number;
  ratio: number;
}

/** Keeps the best rates of both sides by what was measured. */
export class Comparisons {
  readonly #best = new Map<string, Record<'own' | 'peer', number>>();

  note(what: string, side: 'own' | 'peer', rate: number): void {
    const best = this.#best.get(what) ?? { own: 0, peer: 0 };
    best[side] = Math.max(best[side], rate);
    this.#best.set(what, best);
  }

  of(what: string): Comparison {
    const { own, peer } = this.#best.get(what) ?? { own: 0, peer: 0 };
    return { own, peer, ratio: own / peer };
  }
}

/** The numbers among the values of flags. @throws TypeError for one that is no positive integer. */
export function counts<K extends string>(values: Record<string, unknown>, names: readonly K[]): Record<K, number> {
  return Object.fromEntries(
    names.map((name) => {
      const value = Number(values[name]);
      if (!Number.isSafeInteger(value) || value < 1) throw new TypeError(`--${name} is a positive integer`);
      return [name, value];
    }),
  ) as Record<K, number>;
}
