/**
 * Loads a model in turns with copies of its files into fresh memory, and says what both took:
 * node load-child.js DIR STORAGE THREADS DEVICE ROUNDS [PACKED]. A process of its own, for its peak.
 */
import type { WeightFormat } from '../descriptors.js';
import { modelDescriptor } from '../formats/model-folder.js';
import { storedBytes } from '../formats/q8.js';
import { createEngine } from '../native.js';
import type { FileCopy } from '../native-bench-types.js';
import type { EngineOptions } from '../native-types.js';
import { openPackedCache } from '../packed-cache.js';
import { peakResident } from './resident.js';

/** One load, and the copy after it. */
export interface LoadRound {
  seconds: number;
  /** Of the whole process meanwhile. */
  processor_seconds: number;
  copy: FileCopy;
}

export interface LoadMeasurement {
  device: string;
  checkpoint_bytes: number;
  packed_bytes: number;
  /** Of them, mapped from a file of packed weights. */
  mapped_bytes: number;
  /** Writing that file. */
  save_seconds: number;
  /** Resident before loading. */
  baseline_bytes: number;
  /** Most that was ever resident, until the first model was ready. */
  peak_bytes: number;
  rounds: LoadRound[];
}

const [dir = '', weights = 'f32', threads = '0', device = 'auto', rounds = '1', packed] = process.argv.slice(2);
const { descriptor } = await modelDescriptor(dir);
const engineOptions = {
  device: device as EngineOptions['device'],
  ...(threads !== '0' && { threads: Number(threads) }),
};
const place = { path: dir, descriptor, weights: weights as WeightFormat, device: engineOptions.device };
const files = [...new Set(descriptor.tensors.flatMap(({ file }) => file ?? []))];

async function copyFiles(): Promise<FileCopy> {
  const engine = createEngine(engineOptions);
  const copy = await engine.copyFiles(files);
  await engine.dispose();
  return copy;
}

async function load() {
  const engine = createEngine(engineOptions);
  const baseline = process.memoryUsage.rss();
  const processor = process.cpuUsage();
  const start = performance.now();
  const cache = packed === undefined ? undefined : await openPackedCache(packed, place);
  const { device } = await engine.loadModel(descriptor, {
    ...(cache?.found && { packed: cache.found }),
    weights: weights as WeightFormat,
    maxBatch: 1,
    contextLength: 16,
    kvTokens: 16,
  });
  const seconds = (performance.now() - start) / 1000;
  const { user, system } = process.cpuUsage(processor);
  const peak = peakResident();
  const { model, mapped } = await engine.memory();
  const saving = performance.now();
  await cache?.save(engine);
  const saveSeconds = (performance.now() - saving) / 1000;
  await engine.dispose();
  return { device, seconds, processorSeconds: (user + system) / 1e6, baseline, peak, model, mapped, saveSeconds };
}

let found: LoadMeasurement | undefined;
for (let round = 0; round < Number(rounds); round++) {
  const one = await load();
  found ??= {
    device: one.device,
    checkpoint_bytes: descriptor.tensors.reduce((sum, { shape, dtype }) => sum + storedBytes(dtype, shape), 0),
    packed_bytes: one.model,
    mapped_bytes: one.mapped,
    save_seconds: one.saveSeconds,
    baseline_bytes: one.baseline,
    peak_bytes: one.peak,
    rounds: [],
  };
  found.rounds.push({ seconds: one.seconds, processor_seconds: one.processorSeconds, copy: await copyFiles() });
}
process.stdout.write(JSON.stringify(found));
