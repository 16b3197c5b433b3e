import { trainLiveBytes } from './floors.js';
import { measureInChild } from './measure-child.js';
import type { BenchOptions } from './setup.js';
import type { TrainedPart } from './train-step.js';

/** Of a process that trains. */
export interface ResidentBytes {
  device: string;
  /** Before the model was loaded. */
  baseline_bytes: number;
  /** Most that was ever resident. */
  peak_bytes: number;
}

/** Peak memory of training, against what must be live at once (`trainLiveBytes`). */
export interface TrainMemory {
  /** Resident at most, above what was resident before the model was loaded. */
  peak_bytes: number;
  live_bytes: number;
  /** Peak over live. */
  ratio: number;
}

/** Two steps of each part in processes of their own; nothing where the memory is a GPU's. */
export async function trainMemory(options: BenchOptions): Promise<Record<TrainedPart, TrainMemory> | undefined> {
  const { signal, ...rest } = options;
  const live = trainLiveBytes(options.config, options.weights, options, options);
  const measure = async (part: TrainedPart): Promise<TrainMemory | undefined> => {
    const args = [JSON.stringify(rest), part];
    const { device, baseline_bytes, peak_bytes } = await measureInChild<ResidentBytes>('train-child.js', args, signal);
    if (device !== 'cpu') return undefined;
    const peak = peak_bytes - baseline_bytes;
    return { peak_bytes: peak, live_bytes: live[part], ratio: peak / live[part] };
  };
  const expert = await measure('expert');
  const router = expert && (await measure('router'));
  return router && { expert, router };
}
