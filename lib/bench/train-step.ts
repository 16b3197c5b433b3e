import { randomBits } from '../data/random.js';
import type { MicroBatch } from '../native-training-types.js';
import type { NativeEngine } from '../native-types.js';
import { type BenchOptions, expertOf, mixtureOf } from './setup.js';

/** What is trained: one expert alone, or the router over all experts. */
export type TrainedPart = 'expert' | 'router';

/** The first quarter of each sequence is its prompt; the rest is learnt. */
export function batchOf({ config, batch, context }: BenchOptions): { request: MicroBatch; labelled: number } {
  const rows = batch * context;
  const prompt = Math.max(1, Math.floor(context / 4));
  const ids = Int32Array.from({ length: rows }, (_, i) => randomBits(2, 0, i) % config.vocabSize);
  const labels = Int32Array.from({ length: rows }, (_, row) => {
    const position = row % context;
    return position >= prompt - 1 && position < context - 1 ? (ids[row + 1] as number) : -100;
  });
  const labelled = batch * (context - prompt);
  return {
    labelled,
    request: {
      ids,
      labels,
      offsets: Int32Array.from({ length: batch + 1 }, (_, b) => b * context),
      promptLengths: new Int32Array(batch).fill(prompt),
      stepLossWeight: labelled,
      stepTokens: rows,
    },
  };
}

/** Seconds of a step: gradients and update. */
export async function timeStep(
  engine: NativeEngine,
  trainer: number,
  batch: MicroBatch,
  signal?: AbortSignal,
): Promise<number> {
  const start = performance.now();
  await engine.microBatch(trainer, batch, { signal });
  await engine.finishStep(trainer, 1e-5);
  return (performance.now() - start) / 1000;
}

/** A trainer of it on a new mixture. */
export async function beginTrainer(engine: NativeEngine, part: TrainedPart, options: BenchOptions): Promise<number> {
  const { mixture } = await engine.createMixture(part === 'expert' ? expertOf(options) : mixtureOf(options));
  if (part === 'expert') return await engine.beginTraining(mixture, { target: 'adapter' });
  return await engine.beginTraining(mixture, { target: 'router', coefficients: { groupBalance: 0.01 } });
}
