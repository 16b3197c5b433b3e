import assert from 'node:assert/strict';
import { cpSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { modelDescriptor } from '../../lib/formats/model-folder.js';
import { loadModel } from '../../lib/index.js';
import { golden } from '../formats/support.js';
import { devices } from '../helpers/devices.js';
import { bits, difference, exact, loadBase, loadCase, temporary } from './support.js';

/** Names of all experts with weights that sum to 0.9, some of them zero. */
function unevenWeights(names: string[]): Record<string, number> {
  return Object.fromEntries(names.map((name, i) => [name, i % 3 === 2 ? 0 : (i + 1) / (names.length * 2)]));
}

for (const device of devices) {
  describe(`saving and export on ${device}`, () => {
    for (const name of ['atmoe-paper-general', 'scale-learned', 'atmoe-static-scores', 'llama-bf16-weights']) {
      it(`${name}: saved and loaded gives the same bits`, async (t) => {
        const { model, mixture, golden } = await loadCase(t, name, device, { threads: 1 });
        const ids = golden.sequences[0] as Int32Array;
        const before = await mixture.complete(ids, { ...exact, trace: true });
        const dir = join(temporary(t), 'mixture');
        await mixture.save(dir);
        const loaded = await model.loadMixture(dir, { onWarning: assert.fail });
        const after = await loaded.complete(ids, { ...exact, trace: true });
        assert.deepEqual(bits(after), bits(before));
        assert.deepEqual(after.routing, before.routing);
        assert.deepEqual(loaded.groups, mixture.groups);
        assert.deepEqual(loaded.routing, mixture.routing);
        const other = await loadBase(t, join(golden.dir, '..', 'mistral-window', 'base'), device, { threads: 1 });
        await assert.rejects(
          other.loadMixture(dir),
          (error) => (error as { code?: string }).code === 'ERR_AT_MOE_MISMATCH',
        );
      });
    }

    for (const name of ['atmoe-paper-general', 'scale-learned', 'qwen2-token-topk', 'qwen3-headdim']) {
      it(`${name}: merged and as one PEFT adapter it computes what it computed`, async (t) => {
        const { model, mixture, golden } = await loadCase(t, name, device, { threads: 1 });
        const experts = unevenWeights(mixture.groups.flatMap((group) => group.experts));
        const ids = golden.sequences[0] as Int32Array;
        const first = ids.length;
        const request = mixture.requestRouting({ experts }).request;
        const expected = await model.core.engine.logits({ ids, first, routing: request });
        const tolerance = device === 'cpu' ? 1e-5 : 3e-2;

        const merged = join(temporary(t), 'merged');
        await mixture.export(merged, { as: 'merged', weights: experts });
        const plain = await loadBase(t, merged, device, { threads: 1 });
        const { descriptor } = await modelDescriptor(merged);
        assert.deepEqual(descriptor.config, model.config);
        const asModel = await plain.core.engine.logits({ ids, first, routing: { kind: 'base' } });
        assert.ok(difference(asModel, expected) < tolerance, `merged ${difference(asModel, expected)}`);

        const peft = join(temporary(t), 'peft');
        await mixture.export(peft, { as: 'peft', weights: experts });
        const adapter = await model.loadAdapter(peft);
        const routing = adapter.requestRouting({}).request;
        const asAdapter = await model.core.engine.logits({ ids, first, routing });
        assert.ok(difference(asAdapter, expected) < tolerance, `peft ${difference(asAdapter, expected)}`);
      });
    }

    it('a merged export is made from the files that were loaded, and not over them', async (t) => {
      const folder = temporary(t);
      const path = join(folder, 'base');
      cpSync(join(golden, 'mistral-window', 'base'), path, { recursive: true });
      const model = await loadModel(path, { device: device as 'cpu' });
      t.after(() => model.dispose());
      const mixture = await model.createMixture({ groups: { a: { x: { rank: 2 } } } });
      const exported = (dir: string) => mixture.export(dir, { as: 'merged', weights: { x: 1 } });
      await assert.rejects(exported(join(folder, '.', 'base')), { code: 'ERR_AT_MOE_IO' });
      await exported(join(folder, 'merged'));
      const file = join(path, 'model.safetensors');
      utimesSync(file, new Date(), new Date(Date.now() + 5000));
      await assert.rejects(exported(join(folder, 'again')), { code: 'ERR_AT_MOE_MISMATCH', message: /has changed/ });
    });

    it('an export names its experts', async (t) => {
      const { mixture } = await loadCase(t, 'mistral-window', device);
      const target = join(temporary(t), 'merged');
      await assert.rejects(
        mixture.export(target, { as: 'merged', weights: { nobody: 1 } }),
        (error) => (error as { code?: string }).code === 'ERR_AT_MOE_UNKNOWN_NAME',
      );
    });
  });
}
