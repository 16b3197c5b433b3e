/** Trains a part for two steps, and says what was resident: node train-child.js OPTIONS PART. A process of its own, for its peak. */
import { peakResident } from './resident.js';
import { type BenchOptions, withRandomModel } from './setup.js';
import type { ResidentBytes } from './train-memory.js';
import { batchOf, beginTrainer, type TrainedPart, timeStep } from './train-step.js';

const [text = '{}', part = 'expert'] = process.argv.slice(2);
const options = JSON.parse(text) as BenchOptions;
const { request } = batchOf(options);
const baseline = process.memoryUsage.rss();
await withRandomModel(options, async (engine, { device }) => {
  const trainer = await beginTrainer(engine, part as TrainedPart, options);
  for (let step = 0; step < 2; step++) await timeStep(engine, trainer, request);
  const found: ResidentBytes = { device, baseline_bytes: baseline, peak_bytes: peakResident() };
  process.stdout.write(JSON.stringify(found));
});
