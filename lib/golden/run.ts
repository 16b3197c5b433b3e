import type { StorageType } from '../descriptors.js';
import { createEngine } from '../native.js';
import type { EngineOptions } from '../native-types.js';
import { readCase } from './case.js';
import { CaseChecks, type CheckResult } from './checks.js';
import { tolerancesOf } from './compare.js';

/**
 * The checks of one case folder, on an engine of its own; `weights`: of base and adapters, default as the base is stored.
 * Errors: those of reading the case and of the engine.
 */
export async function* runCase(
  dir: string,
  device: EngineOptions['device'],
  weights?: StorageType,
): AsyncGenerator<CheckResult> {
  const golden = await readCase(dir);
  const { descriptor } = golden.base;
  const engine = createEngine({ device });
  try {
    const info = await engine.loadModel(descriptor, { weights: weights ?? descriptor.config.storedType });
    yield* new CaseChecks(engine, golden, tolerancesOf(info.device, info.weights)).run();
  } finally {
    await engine.dispose();
  }
}
