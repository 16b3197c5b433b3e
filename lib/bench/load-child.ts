/** Loads a model and says what it took: node load-child.js DIR STORAGE THREADS DEVICE [PACKED]. A process of its own, for its peak. */
import { readFileSync } from 'node:fs';
import type { WeightFormat } from '../descriptors.js';
import { modelDescriptor } from '../formats/model-folder.js';
import { storedBytes } from '../formats/q8.js';
import { createEngine } from '../native.js';
import type { EngineOptions } from '../native-types.js';
import { openPackedCache } from '../packed-cache.js';

export interface LoadMeasurement {
  device: string;
  seconds: number;
  checkpoint_bytes: number;
  packed_bytes: number;
  /** Of them, mapped from a file of packed weights. */
  mapped_bytes: number;
  /** Writing that file. */
  save_seconds: number;
  /** Resident before loading. */
  baseline_bytes: number;
  /** Most that was ever resident, until the model was ready. */
  peak_bytes: number;
  /** Bytes of the checkpoint's files per second when all threads copy them into fresh memory, right after the load. */
  copy_rate: number;
}

/** Linux counts a parent's peak into maxRSS, not into VmHWM. */
function peakResident(): number {
  try {
    const [, kib] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    if (kib !== undefined) return Number(kib) * 1024;
  } catch {
    // No Linux.
  }
  return process.resourceUsage().maxRSS * 1024;
}

const [dir = '', weights = 'f32', threads = '0', device = 'auto', packed] = process.argv.slice(2);
const { descriptor } = await modelDescriptor(dir);
const engineOptions = {
  device: device as EngineOptions['device'],
  ...(threads !== '0' && { threads: Number(threads) }),
};
const engine = createEngine(engineOptions);
const baseline = process.memoryUsage.rss();
const start = performance.now();
const place = { path: dir, descriptor, weights: weights as WeightFormat, device: engineOptions.device };
const cache = packed === undefined ? undefined : await openPackedCache(packed, place);
const options = {
  ...(cache?.found && { packed: cache.found }),
  weights: weights as WeightFormat,
  maxBatch: 1,
  contextLength: 16,
  kvTokens: 16,
};
const info = await engine.loadModel(descriptor, options);
const seconds = (performance.now() - start) / 1000;
const peak = peakResident();
const { model, mapped } = await engine.memory();
const saving = performance.now();
await cache?.save(engine);
const saveSeconds = (performance.now() - saving) / 1000;
await engine.dispose();
const files = new Set(descriptor.tensors.flatMap(({ file }) => file ?? []));
const probe = createEngine(engineOptions);
const { copyRate } = await probe.probe([...files]);
await probe.dispose();
const found: LoadMeasurement = {
  device: info.device,
  seconds,
  checkpoint_bytes: descriptor.tensors.reduce((sum, { shape, dtype }) => sum + storedBytes(dtype, shape), 0),
  packed_bytes: model,
  mapped_bytes: mapped,
  save_seconds: saveSeconds,
  baseline_bytes: baseline,
  peak_bytes: peak,
  copy_rate: copyRate,
};
process.stdout.write(JSON.stringify(found));
