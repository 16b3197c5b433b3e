import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { LayerRouting, RoutingControls } from '../../lib/index.js';
import { devices } from '../helpers/devices.js';
import { bits, difference, exact, expertDir, type LoadedCase, loadCase, temporary } from './support.js';

const close = (actual: number, expected: number) =>
  assert.ok(Math.abs(actual - expected) < 1e-5, `${actual} instead of ${expected}`);

const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);

async function routed({ golden, mixture }: LoadedCase, routing: RoutingControls = {}): Promise<LayerRouting[]> {
  const trace = await mixture.explain(golden.sequences[0] as Int32Array, { routing });
  return trace.tokens?.flatMap(({ layers }) => layers) ?? trace.layers;
}

/** Logits of the last token's row are enough to tell computations apart. */
async function logits(
  { golden, model }: LoadedCase,
  of: { requestRouting: LoadedCase['mixture']['requestRouting'] },
  controls: RoutingControls = {},
) {
  const ids = golden.sequences[0] as Int32Array;
  return await model.core.engine.logits({ ids, first: ids.length, routing: of.requestRouting(controls).request });
}

for (const device of devices) {
  const tolerance = device === 'cpu' ? 1e-5 : 3e-2;

  describe(`weights on ${device}`, () => {
    for (const name of ['llama-token-dense', 'llama-sequence-dense', 'qwen2-token-topk', 'llama3-rope-topp']) {
      it(`${name}: groups and experts share 1`, async (t) => {
        const loaded = await loadCase(t, name, device);
        const sizes = loaded.mixture.groups.map(({ experts }) => experts.length);
        for (const { groupWeights, expertWeights, groupProbabilities } of await routed(loaded)) {
          close(sum(groupProbabilities), 1);
          close(sum(groupWeights), 1);
          close(sum(expertWeights), 1);
          let first = 0;
          for (const [g, size] of sizes.entries()) {
            close(sum(expertWeights.slice(first, first + size)), groupWeights[g] as number);
            first += size;
          }
        }
      });
    }

    it('deny, allow, weight and bias do what they say', async (t) => {
      const loaded = await loadCase(t, 'llama-token-dense', device);
      // Of the first layer alone: what comes after it sees other inputs once weights change.
      const firstLayer = (layers: LayerRouting[]) => layers.filter((_, i) => i % loaded.model.config.numLayers === 0);
      const plain = firstLayer(await routed(loaded));
      for (const { groupWeights, expertWeights } of await routed(loaded, { deny: ['skill', 'law'] })) {
        assert.equal(groupWeights[1], 0);
        assert.deepEqual(expertWeights.slice(1, 5), [0, 0, 0, 0]);
        close(sum(groupWeights), 1);
        close(expertWeights[0] as number, groupWeights[0] as number);
      }
      for (const { expertWeights } of await routed(loaded, { allow: ['translate'] })) {
        assert.deepEqual(
          expertWeights.map((weight) => Math.round(weight)),
          [0, 0, 0, 0, 1, 0],
        );
      }
      for (const [i, layer] of firstLayer(await routed(loaded, { weight: { style: 0.5, law: 0.25 } })).entries()) {
        close(layer.groupWeights[2] as number, 0.5);
        close(layer.expertWeights[1] as number, 0.25 * (layer.groupWeights[0] as number));
        const before = plain[i] as LayerRouting;
        const ratio = (of: LayerRouting) => (of.groupWeights[0] as number) / (of.groupWeights[1] as number);
        assert.ok(Math.abs(ratio(layer) / ratio(before) - 1) < 1e-4, 'the others keep their proportion');
      }
      for (const [i, layer] of firstLayer(await routed(loaded, { bias: { skill: 1 } })).entries()) {
        const { groupWeights } = plain[i] as LayerRouting;
        const odds = ([a, b]: number[]) => (b as number) / (a as number);
        assert.ok(Math.abs(odds(layer.groupWeights) / odds(groupWeights) / Math.E - 1) < 1e-4);
      }
      for (const { expertWeights } of await routed(loaded, { group_top_k: 1, expert_top_k: 1 })) {
        assert.equal(expertWeights.filter((weight) => weight > 0).length, 1);
      }
      for (const { groupWeights } of await routed(loaded, { group_temperature: 1e6 })) {
        for (const weight of groupWeights) close(weight, 1 / 3);
      }
    });

    it('controls that cannot be met are refused', async (t) => {
      const { mixture } = await loadCase(t, 'llama-token-dense', device);
      const refuses = async (routing: RoutingControls, expected: string | typeof RangeError) =>
        await assert.rejects(mixture.complete([1], { routing }), (error) =>
          typeof expected === 'string' ? (error as { code?: string }).code === expected : error instanceof expected,
        );
      await refuses({ deny: ['domain', 'skill', 'style'] }, 'ERR_AT_MOE_ROUTING');
      await refuses({ deny: ['nobody'] }, 'ERR_AT_MOE_UNKNOWN_NAME');
      await refuses({ only: 'skill' }, 'ERR_AT_MOE_UNKNOWN_NAME');
      await refuses({ experts: { nobody: 1 } }, 'ERR_AT_MOE_UNKNOWN_NAME');
      await refuses({ weight: { domain: 0.7, skill: 0.7 } }, RangeError);
      await refuses({ weight: { domain: 0, skill: 0, style: 0 } }, 'ERR_AT_MOE_ROUTING');
      await refuses({ weight: { domain: 0, skill: 0 }, deny: ['style'] }, 'ERR_AT_MOE_ROUTING');
      await refuses({ bias: { domain: 1e300 } }, RangeError);
      await refuses({ experts: { law: 1e300 } }, RangeError);
      await refuses({ group_temperature: 1e-300 }, RangeError);
      await refuses({ only: 'law', deny: ['skill'] }, TypeError as unknown as typeof RangeError);
    });
  });

  describe(`experts on ${device}`, () => {
    it('one expert alone is its adapter; explicit weights are taken as they are', async (t) => {
      for (const [name, path] of [
        ['llama-token-dense', 'skill/explain'],
        ['atmoe-paper-general', 'domain/surgery'],
        ['scale-constant-topk', 'function/c'],
      ] as const) {
        const loaded = await loadCase(t, name, device);
        const adapter = await loaded.model.loadAdapter(expertDir(name, path));
        const alone = await logits(loaded, loaded.mixture, { only: path });
        assert.ok(difference(alone, await logits(loaded, adapter)) < tolerance);
        const base = await logits(loaded, loaded.model);
        assert.ok(difference(alone, base) > tolerance, 'the expert changes something');
      }
      const loaded = await loadCase(t, 'llama-token-dense', device);
      const none = await logits(loaded, loaded.mixture, { experts: {} });
      assert.ok(difference(none, await logits(loaded, loaded.model)) < tolerance);
      const verbatim = await logits(loaded, loaded.mixture, { experts: { law: 1 } });
      assert.ok(difference(verbatim, await logits(loaded, loaded.mixture, { only: 'law' })) < tolerance);
    });

    it('the general adapter takes what the mixture leaves', async (t) => {
      const name = 'atmoe-paper-general';
      const loaded = await loadCase(t, name, device);
      const folder = join(loaded.golden.dir, 'general');
      const general = await loaded.model.loadAdapter(folder);
      const expert = { adapter: expertDir(name, 'style/rigorous') };
      const make = async (balance: number) =>
        await loaded.model.createMixture({
          groups: { style: { rigorous: expert } },
          general: { adapter: folder },
          routing: { general_balance: balance },
        });
      const alone = await logits(loaded, await make(0));
      assert.ok(difference(alone, await logits(loaded, general)) < tolerance);
      const adapter = await loaded.model.loadAdapter(expert.adapter);
      assert.ok(difference(await logits(loaded, await make(1)), await logits(loaded, adapter)) < tolerance);
    });

    it('an expert that comes and goes leaves no trace', async (t) => {
      const name = 'llama-token-dense';
      const loaded = await loadCase(t, name, device, { threads: 1 });
      const { mixture } = loaded;
      const prompt = loaded.golden.sequences[0] as Int32Array;
      const before = bits(await mixture.complete(prompt, exact));
      const adapter = expertDir(name, 'domain/law');
      await mixture.addExpert('domain', 'lawyer', { adapter });
      await mixture.addExpert('mood', 'calm', { rank: 2 });
      assert.deepEqual(
        mixture.groups.map((group) => group.experts.length),
        [3, 3, 1, 1],
      );
      assert.notDeepEqual(bits(await mixture.complete(prompt, exact)), before);
      await mixture.removeExpert('mood/calm');
      await mixture.removeExpert('lawyer');
      assert.deepEqual(bits(await mixture.complete(prompt, exact)), before);
      await mixture.replaceExpert('law', { adapter: expertDir(name, 'domain/medicine') });
      assert.notDeepEqual(bits(await mixture.complete(prompt, exact)), before);
      await mixture.replaceExpert('law', { adapter });
      assert.deepEqual(bits(await mixture.complete(prompt, exact)), before);
      await assert.rejects(mixture.addExpert('domain', 'LAW', { rank: 1 }), RangeError);
      await assert.rejects(
        mixture.removeExpert('nobody'),
        (error) => (error as { code?: string }).code === 'ERR_AT_MOE_UNKNOWN_NAME',
      );
    });

    it('a fresh mixture is the base, and weighs all groups alike', async (t) => {
      const loaded = await loadCase(t, 'mistral-window', device);
      const groups = { a: { x: { rank: 3 }, y: { rank: 2 } }, b: { z: { rank: 1 } } };
      const fresh = await loaded.model.createMixture({ groups });
      assert.ok(difference(await logits(loaded, fresh), await logits(loaded, loaded.model)) < tolerance);
      const { layers } = await fresh.explain([1, 2, 3]);
      for (const { groupWeights, expertWeights } of layers) {
        for (const weight of groupWeights) close(weight, 0.5);
        for (const [i, weight] of [0.25, 0.25, 0.5].entries()) close(expertWeights[i] as number, weight);
      }
    });
  });
}

it('a checkpoint of an expert goes on with the saved and loaded mixture, and only with that expert', async (t) => {
  const { model, mixture } = await loadCase(t, 'llama-token-dense', 'cpu', { threads: 1 });
  const lora = { rank: 3, alpha: 6 };
  const fresh = () => model.createMixture({ groups: { a: { x: lora, y: lora }, b: { z: lora } } });
  const rows = Array.from({ length: 12 }, (_, i) => ({ prompt: [i + 1, 2], completion: [i + 3, 4, 5] }));
  const options = { epochs: 2, batchExamples: 3, seed: 1 };
  const last = async (steps: ReturnType<typeof mixture.trainExpert>, stopAfter = Number.POSITIVE_INFINITY) => {
    let loss = Number.NaN;
    for await (const step of steps) {
      loss = step.loss;
      if (step.step === stopAfter) break;
    }
    return loss;
  };
  const whole = await last((await fresh()).trainExpert('x', rows, options));
  const dir = temporary(t);
  const state = join(dir, 'state');
  const started = await fresh();
  await last(started.trainExpert('x', rows, { ...options, checkpoint: { dir: state, every: 1 } }), 4);
  await started.save(join(dir, 'mixture'));
  const loaded = await model.loadMixture(join(dir, 'mixture'));
  await assert.rejects(last(loaded.trainExpert('y', rows, { ...options, resume: state })), {
    code: 'ERR_AT_MOE_MISMATCH',
  });
  assert.equal(await last(loaded.trainExpert('x', rows, { ...options, resume: state })), whole);
});
