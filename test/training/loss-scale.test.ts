import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { readCase } from '../../lib/golden/case.js';
import { mixtureDescriptor } from '../../lib/mixture-data.js';
import { createEngine } from '../../lib/native.js';
import type { MicroBatch } from '../../lib/native-training-types.js';
import type { EngineOptions } from '../../lib/native-types.js';
import { golden } from '../formats/support.js';
import { devices } from '../helpers/devices.js';
import { microBatch } from '../helpers/engine.js';

const coefficients = { groupBalance: 0.02, expertBalance: 0.01, zLoss: 0.001 };

/** Joint training of a golden case's mixture: what a step of these micro-batches gives, each time from the start. */
async function startTraining(t: TestContext, device: string, weights: 'f32' | 'bf16' | 'f16') {
  const found = await readCase(join(golden, 'llama-token-dense'));
  const engine = createEngine({ device: device as EngineOptions['device'], threads: 1 });
  t.after(() => engine.dispose());
  await engine.loadModel(found.base.descriptor, { weights, maxBatch: 1, contextLength: 32 });
  const { mixture } = await engine.createMixture(mixtureDescriptor(found.mixture));
  return async (batches: MicroBatch[]) => {
    const trainer = await engine.beginTraining(mixture, { target: 'joint', coefficients });
    for (const batch of batches) await engine.microBatch(trainer, batch);
    const gradients = await engine.gradients(trainer);
    const norm = engine.finishStep(trainer, 0);
    await norm.catch(() => undefined);
    await engine.endTraining(trainer);
    return { gradients, norm };
  };
}

for (const device of devices) {
  for (const weights of device === 'cpu' ? (['f32'] as const) : (['f32', 'bf16', 'f16'] as const)) {
    test(`2^20 times the tokens give 2^20 times smaller gradients, bit for bit [${device}/${weights}]`, async (t) => {
      const run = await startTraining(t, device, weights);
      const batch = microBatch(2, 12);
      const factor = 2 ** 20;
      const small = await run([batch, batch]);
      const { stepLossWeight, stepTokens } = batch;
      const share = { ...batch, stepLossWeight: stepLossWeight * factor, stepTokens: stepTokens * factor };
      const large = await run([share, share]);
      assert.equal((await large.norm) * factor, await small.norm);
      for (const [i, { name, values }] of small.gradients.entries()) {
        const scaled = large.gradients[i]?.values.map((value) => value * factor);
        assert.deepEqual(scaled, values, name);
        assert.ok(values.some((value) => value !== 0) || /lora_B/.test(name), `${name} is zero`);
      }
    });
  }
  if (device === 'cpu') continue;
  test(`a gradient that f16 does not hold is rejected [${device}]`, async (t) => {
    const run = await startTraining(t, device, 'f16');
    const batch = microBatch(1, 12);
    const heavy = { ...batch, lossWeights: Float32Array.from(batch.labels, () => 1e9) };
    const { norm } = await run([batch, heavy]);
    await assert.rejects(norm, { code: 'ERR_AT_MOE_NOT_FINITE' });
  });
}
