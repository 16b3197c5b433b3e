import assert from 'node:assert/strict';
import type { MixtureHandle } from '../../lib/native-mixture-types.js';
import type { LoadOptions, NativeEngine } from '../../lib/native-types.js';
import { mixtureDescriptor, openEngine } from '../helpers/engine.js';

/** An engine for `body`, after which no page may be held. */
export async function withEngine(
  options: Partial<LoadOptions>,
  body: (engine: NativeEngine) => Promise<void>,
  device = 'cpu',
): Promise<void> {
  const engine = await openEngine(options, device);
  try {
    await body(engine);
    const { pagesUsed, running, queued, stalled } = await engine.stats();
    assert.deepEqual({ pagesUsed, running, queued, stalled }, { pagesUsed: 0, running: 0, queued: 0, stalled: 0 });
  } finally {
    await engine.dispose();
  }
}

export async function createMixture(engine: NativeEngine, scope: 'token' | 'sequence'): Promise<MixtureHandle> {
  return (await engine.createMixture(await mixtureDescriptor(scope))).mixture;
}

/** The emulated device is a thousand times slower: it gets a part of the work. */
export const emulated = (device: string) => device === 'emulated';

export const prompt = (length: number, seed: number) =>
  Int32Array.from({ length }, (_, i) => (i * 31 + seed * 17 + 3) % 90);
