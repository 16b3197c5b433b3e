import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import type { Mixture } from '../../lib/mixture.js';
import type { Model } from '../../lib/model.js';
import { devices } from '../helpers/devices.js';
import { goldenBase, startGeneration } from '../helpers/engine.js';
import { loadBase, loadCase, temporary } from '../model/support.js';
import { emulated, prompt } from './support.js';

const make = (model: Model, rank = 8) => model.createMixture({ groups: { g: { e: { rank } } } });
const outOfMemory = { code: 'ERR_AT_MOE_OUT_OF_MEMORY' };

/** A base whose `adapterBytes` is `places` times what one of the mixtures takes, and two of them. */
async function openPlaces(t: TestContext, places: number, device: string): Promise<[Model, Mixture, Mixture]> {
  const free = await loadBase(t, goldenBase, device);
  await make(free);
  const { adapterBytes } = await free.stats();
  const model = await loadBase(t, goldenBase, device, { adapterBytes: Math.round(places * adapterBytes) });
  return [model, await make(model), await make(model)];
}

/** Runs `body` while a request has the mixture on the device. */
async function whileUsed(model: Model, mixture: Mixture, body: () => Promise<void>): Promise<void> {
  const { engine } = model.core;
  const { request: routing } = mixture.requestRouting({});
  const used = startGeneration(engine, { routing, maxTokens: 480 });
  const { completionTokens } = await model.stats();
  while ((await model.stats()).completionTokens === completionTokens);
  await body();
  engine.cancel(used.id);
  assert.notEqual((await used.done).reason, 'error');
}

for (const device of devices) {
  describe(`pinned mixtures on ${device}`, { timeout: 120_000 }, () => {
    it('jobs bring a mixture in while nothing else runs', async (t) => {
      const [model, a, b] = await openPlaces(t, 1, device);
      const { engine } = model.core;
      for (const one of [b, a, b, a]) {
        await one.pin();
        one.unpin();
      }
      for (const one of [b, a]) {
        await engine.logits({ ids: prompt(4, 1), first: 2, routing: one.requestRouting({}).request });
      }
      await b.pin();
      const { adaptersPinned, adaptersResident } = await model.stats();
      assert.deepEqual({ adaptersPinned, adaptersResident }, { adaptersPinned: 1, adaptersResident: 1 });
    });

    it('a job takes the place that another one leaves', async (t) => {
      const [model, a, b] = await openPlaces(t, 1, device);
      const { engine } = model.core;
      const logits = (of: Mixture) =>
        engine.logits({ ids: prompt(4, 1), first: 2, routing: of.requestRouting({}).request });
      for (let i = 0; i < 10; i++) await Promise.all([logits(a), logits(b)]);
    });

    it('a pinned mixture stays pinned when it is replaced', async (t) => {
      const { model, mixture } = await loadCase(t, 'llama-token-dense', device, { adapterBytes: 1 << 24 });
      const pinned = async () => (await model.stats()).adaptersPinned;
      const dir = join(temporary(t), 'saved');
      await mixture.save(dir);
      await mixture.pin();
      await mixture.replace(dir);
      assert.equal(await pinned(), 1);
      mixture.unpin();
      assert.equal(await pinned(), 0);
      await Promise.all([mixture.pin(), mixture.replace(dir)]);
      assert.equal(await pinned(), 1);
      const other = await model.loadMixture(dir, { pin: true });
      assert.equal(await pinned(), 2);
      for (const one of [mixture, other]) one.dispose();
      assert.equal(await pinned(), 0);
      await assert.rejects(mixture.pin(), { code: 'ERR_AT_MOE_DISPOSED' });
    });

    for (const places of [1.3, 2.2]) {
      it(`requests go on while their pinned mixture is replaced in the room of ${places}`, async (t) => {
        const [model, mixture, other] = await openPlaces(t, places, device);
        await mixture.pin();
        let replacing = true;
        const asking = Array.from({ length: 4 }, async (_, i) => {
          while (replacing) await mixture.complete(prompt(3, i), { maxTokens: 4 + 4 * i, ignoreEos: true });
        });
        for (let i = 0; i < (emulated(device) ? 2 : 10); i++) await mixture.replace(other);
        replacing = false;
        await Promise.all(asking);
        await mixture.pin();
        const { adaptersPinned, adapterPeakBytes, adapterBudget } = await model.stats();
        assert.equal(adaptersPinned, 1);
        assert.ok(adapterPeakBytes <= adapterBudget, `${adapterPeakBytes} of ${adapterBudget}`);
      });
    }

    it('a replaced mixture is pinned as was asked for last', async (t) => {
      const [model, mixture, other] = await openPlaces(t, 1.3, device);
      const pinned = async () => (await model.stats()).adaptersPinned;
      await mixture.pin();
      let replaced: Promise<void> | undefined;
      await whileUsed(model, mixture, async () => {
        replaced = mixture.replace(other);
        for (let i = 0; i < 20; i++) await model.stats(); // it waits for the request's end
        mixture.unpin();
      });
      await replaced;
      assert.equal(await pinned(), 0);
      await whileUsed(model, mixture, async () => {
        replaced = mixture.replace(other);
        await mixture.pin();
      });
      await replaced;
      assert.equal(await pinned(), 1);
    });

    it('content that has no place beside what is pinned is refused, and changes nothing', async (t) => {
      const [model, mixture, other] = await openPlaces(t, 2.2, device);
      const large = await make(model, 12);
      await other.pin();
      for (const pins of [false, true]) {
        if (pins) await mixture.pin();
        await assert.rejects(mixture.replace(large), outOfMemory);
        assert.equal(mixture.version, 1);
        assert.equal((await model.stats()).adaptersPinned, pins ? 2 : 1);
        await mixture.complete(prompt(3, 1), { maxTokens: 2 });
      }
      other.unpin();
      await mixture.replace(large);
      assert.equal((await model.stats()).adaptersPinned, 1);
      await mixture.complete(prompt(3, 1), { maxTokens: 2 });
    });
  });
}
