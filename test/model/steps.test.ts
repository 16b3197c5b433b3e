import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { DeviceWork } from '../../lib/native-bench-types.js';
import type { RoutingControls } from '../../lib/routing-controls.js';
import { devices } from '../helpers/devices.js';
import { setVariable } from '../helpers/environment.js';
import { bits, exact, expertDir, type LoadedCase, loadCase } from './support.js';

const gpus = devices.filter((device) => device !== 'cpu'); // a CPU works inside the calls: nothing is sent
const layersOf = ({ model }: LoadedCase) => model.core.descriptor.config.numLayers;

interface Steps {
  steps?: number;
  context?: number;
  /** null: the base alone. */
  controls?: RoutingControls | null;
}

/** What decode steps of the base, and in turns with them of a mixture, send to the device. Each had one before. */
async function workOf(
  { model, mixture }: Pick<LoadedCase, 'model' | 'mixture'>,
  rows: number,
  { steps = 1, context = 5, controls = {} }: Steps = {},
): Promise<DeviceWork> {
  const base = { kind: 'base' as const };
  const routings = controls ? [base, mixture.requestRouting(controls).request] : [base];
  const { work } = await model.core.engine.bench({ kind: 'decode', rows, context, steps, routings, interleave: true });
  return work;
}

for (const device of gpus) {
  describe(`decode steps on ${device}`, () => {
    for (const name of ['llama-token-dense', 'qwen2-token-topk', 'qwen3-headdim', 'atmoe-paper-general']) {
      it(`${name}: one upload, one graph of 2 launches a layer, one download`, async (t) => {
        const loaded = await loadCase(t, name, device);
        for (const rows of [1, 3, 20]) {
          const { launches, graphs, uploads, downloads } = await workOf(loaded, rows, { steps: 2 });
          assert.deepEqual({ graphs, uploads, downloads }, { graphs: 4, uploads: 4, downloads: 4 }, `${rows} rows`);
          const last = 2; // the head, the sampling
          assert.equal(launches, 4 * (2 * layersOf(loaded) + last), `launches for ${rows} rows`);
        }
      });
    }

    it('one graph serves all mixtures, routings and numbers of rows of a bucket', async (t) => {
      const loaded = await loadCase(t, 'qwen2-token-topk', device);
      const [group] = loaded.golden.mixture.groups;
      const expert = group?.experts[0]?.name as string;
      const path = `${group?.name}/${expert}`;
      const adapter = expertDir('qwen2-token-topk', path);
      const mixture = await loaded.model.createMixture({ groups: { a: { x: { adapter } }, b: { y: { adapter } } } });
      // The graph of steps that look alike is captured at the second one.
      const captures = async (...args: Parameters<typeof workOf>) => (await workOf(...args)).captures;
      assert.equal(await captures(loaded, 6, { controls: null }), 1, 'the base alone');
      assert.equal(await captures(loaded, 8, { controls: null }), 0, 'more rows');
      assert.equal(await captures(loaded, 5, { controls: null, context: 9 }), 0, 'fewer rows, longer sequences');
      assert.equal(await captures(loaded, 6), 0, 'a mixture');
      assert.equal(await captures(loaded, 7, { controls: { only: expert } }), 0, 'one expert');
      assert.equal(await captures(loaded, 6, { controls: { experts: { [expert]: 0.5 } } }), 0, 'fixed weights');
      assert.equal(await captures({ model: loaded.model, mixture }, 6), 0, 'another mixture');
      assert.equal(await captures(loaded, 9, { controls: null }), 1, 'another bucket');
    });

    it('texts are the same without graphs', async (t) => {
      const prompt = [5, 1, 17, 30, 2];
      const generate = async ({ mixture, model }: LoadedCase) => {
        const requests = [mixture.complete(prompt, exact), mixture.complete([3], exact), model.complete(prompt, exact)];
        return (await Promise.all(requests)).map(bits);
      };
      const expected = await generate(await loadCase(t, 'qwen2-token-topk', device));
      t.after(setVariable('AT_MOE_CUDA_GRAPH', 'off'));
      const loaded = await loadCase(t, 'qwen2-token-topk', device);
      assert.deepEqual(await generate(loaded), expected);
      assert.equal((await workOf(loaded, 2)).graphs, 0);
    });

    it('ops that join one launch give the bits of ops that are launched alone', async (t) => {
      const prompt = Array.from({ length: 80 }, (_, i) => (i * i + 3 * i) % 90);
      const request = { ...exact, maxTokens: 2, trace: true };
      for (const name of ['qwen3-headdim', 'llama-sequence-dense']) {
        const [alone, joined] = [
          await loadCase(t, name, device, { stepTokens: 80, chunkRows: 80 }),
          await loadCase(t, name, device, { stepTokens: 80, chunkRows: 27 }),
        ];
        const expected = await alone.mixture.complete(prompt, request);
        const result = await joined.mixture.complete(prompt, request);
        assert.deepEqual(bits(result), bits(expected), name);
        assert.deepEqual(result.routing, expected.routing, name);
      }
    });
  });
}
