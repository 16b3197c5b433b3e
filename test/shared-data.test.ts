import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { readSafetensorsHeader, readTensor } from '../lib/formats/safetensors.js';
import { AtMoeError, loadModel, type Model, type WeightFormat } from '../lib/index.js';
import type { RoutingRequest } from '../lib/native-mixture-types.js';
import { devices } from './helpers/devices.js';
import { setVariable } from './helpers/environment.js';
import { type Device, difference } from './model/support.js';
import { readShared, sharedData, unlessPresent } from './text/shared-data.js';

const tolerance = (device: string) => (device === 'cpu' ? 1e-4 : 3e-2);

async function load(t: TestContext, dir: string, device: string, weights?: WeightFormat): Promise<Model> {
  const model = await loadModel(dir, { device: device as Device, threads: 1, ...(weights && { weights }) });
  t.after(() => model.dispose());
  return model;
}

/** Error of the logits against the reference beside a model or an adapter. */
async function referenceError(model: Model, dir: string, routing: RoutingRequest): Promise<number> {
  const file = await readSafetensorsHeader(join(dir, 'reference.safetensors'));
  const ids = Int32Array.from(await readTensor(file, 'input_ids'), Number);
  const expected = (await readTensor(file, 'logits')) as Float32Array;
  return difference(await model.core.engine.logits({ ids, first: ids.length, routing }), expected);
}

const models = [
  'stories260K',
  'babyllama-tok105',
  'tiny-random-llama-linear-rope-headdim-sharded',
  'tiny-random-llama3-rope-bf16',
  'tiny-random-mistral-window-f16',
  'tiny-random-qwen2-tied',
  'tiny-random-qwen3-qknorm',
];

/** The same model with its config.json as version 4 of transformers spelt it. */
function versionFour(t: TestContext, dir: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'at-moe-v4-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  for (const name of readdirSync(dir)) {
    if (name.endsWith('.safetensors') || name.endsWith('.index.json')) symlinkSync(join(dir, name), join(folder, name));
  }
  copyFileSync(join(dir, 'config.v4.json'), join(folder, 'config.json'));
  return folder;
}

interface Generation {
  prompt: string;
  ids: number[];
  greedy_ids: number[];
}

for (const device of devices) {
  for (const name of models) {
    const path = `models/${name}`;
    test(`${name} on ${device}: logits of the reference`, { skip: unlessPresent(path) }, async (t) => {
      const dir = join(sharedData, path);
      const model = await load(t, dir, device);
      const error = await referenceError(model, dir, { kind: 'base' });
      assert.ok(error <= tolerance(device), `${error}`);
      if (!readdirSync(dir).includes('config.v4.json')) return;
      const old = await load(t, versionFour(t, dir), device);
      assert.deepEqual(old.config, model.config);
      const same = await referenceError(old, dir, { kind: 'base' });
      assert.equal(same, error);
    });
  }

  for (const name of ['stories260K', 'babyllama-tok105']) {
    const path = `models/${name}`;
    test(`${name} on ${device}: greedy text of the reference`, { skip: unlessPresent(path) }, async (t) => {
      const model = await load(t, join(sharedData, path), device);
      const { generation } = readShared<{ generation: Generation[] }>(`${path}/reference.json`);
      for (const { prompt, ids, greedy_ids: greedy } of generation) {
        const options = { maxTokens: greedy.length - ids.length, ignoreEos: true };
        const byText = await model.complete(prompt, options);
        assert.deepEqual([...ids, ...byText.tokens], greedy);
        assert.deepEqual((await model.complete(ids, options)).tokens, byText.tokens);
      }
    });
  }

  for (const name of ['stories260K', 'babyllama-tok105']) {
    const text = 'tasks/text/tinystories_sample.txt';
    const skip = unlessPresent(`models/${name}`) || unlessPresent(text);
    test(`${name} on ${device}: 8 bits cost less than 0.5 % of the loss on real text`, { skip }, async (t) => {
      const stories = readFileSync(join(sharedData, text), 'utf8').match(/.{1,200}/gs) ?? [];
      const loss = async (weights: 'bf16' | 'q8') => {
        const model = await load(t, join(sharedData, 'models', name), device, weights);
        const scores = await Promise.all(stories.map((part) => model.score('\n', part)));
        return -scores.flatMap(({ logProbs }) => [...logProbs]).reduce((sum, value) => sum + value, 0);
      };
      const plain = await loss('bf16');
      for (const activations of device === 'cpu' ? ['quantised', 'f32'] : ['']) {
        const restore = setVariable('AT_MOE_CPU_Q8', activations);
        const small = await loss('q8').finally(restore);
        assert.ok(Math.abs(small / plain - 1) < 5e-3, `${plain} in bf16, ${small} in 8 bits ${activations}`);
      }
    });
  }

  test(`adapters on ${device}: logits of the reference`, { skip: unlessPresent('adapters') }, async (t) => {
    const adapters = join(sharedData, 'adapters');
    const model = await load(t, join(sharedData, 'models/stories260K'), device);
    const supported = [
      'peft-layers-to-transform',
      'peft-lora-all-linear-keyword',
      'peft-lora-all-r8',
      'peft-lora-qv-r4',
      'peft-lora-regex-targets',
      'peft-rank-alpha-pattern',
      'peft-rslora-r16',
    ];
    for (const name of supported) {
      const adapter = await model.loadAdapter(join(adapters, name));
      const error = await referenceError(model, join(adapters, name), adapter.requestRouting({}).request);
      assert.ok(error <= tolerance(device), `${name}: ${error}`);
      adapter.dispose();
    }
  });

  test(`adapters on ${device}: what is not computed is refused`, { skip: unlessPresent('adapters') }, async (t) => {
    const model = await load(t, join(sharedData, 'models/stories260K'), device);
    const refused = {
      'peft-dora-r4': /use_dora/,
      'peft-dora-rslora-r8': /use_dora/,
      'peft-embedding-lora': /embed_tokens/,
      'peft-gpt2-conv1d-r4': /matches no module/,
      'peft-lora-b-bias': /lora_bias/,
      'peft-modules-to-save-norm': /modules_to_save/,
      'peft-negative-ia3': /IA3/,
      'peft-qwen2-bias-lora-only': /lora_only/,
      'peft-xlora-layerwise': /XLORA/,
    };
    for (const [name, reason] of Object.entries(refused)) {
      await assert.rejects(model.loadAdapter(join(sharedData, 'adapters', name)), (error) => {
        assert.ok(error instanceof AtMoeError);
        assert.equal(error.code, 'ERR_AT_MOE_UNSUPPORTED');
        assert.match(error.message, reason);
        return true;
      });
    }
  });

  test(`language experts on ${device}: each helps its own language`, {
    skip: unlessPresent('adapters/lang-experts'),
  }, async (t) => {
    const model = await load(t, join(sharedData, 'models/stories260K'), device);
    const experts = join(sharedData, 'adapters/lang-experts');
    const mixture = await model.createMixture({
      groups: {
        germanic: { deu: { adapter: join(experts, 'deu') } },
        romance: { fra: { adapter: join(experts, 'fra') } },
      },
    });
    const perplexity = async (text: string, only?: string) =>
      (await (only ? mixture.score('\n', text, { routing: { only } }) : model.score('\n', text))).perplexity;
    const german = 'Ich habe keine Zeit, mit dir zu gehen.';
    const french = 'Je ne sais pas pourquoi il est parti.';
    assert.ok((await perplexity(german, 'deu')) < (await perplexity(german, 'fra')));
    assert.ok((await perplexity(french, 'fra')) < (await perplexity(french, 'deu')));
    assert.ok((await perplexity(german, 'deu')) < (await perplexity(german)));
  });
}

test('language experts in 8 bits on the CPU cost less than 0.5 % of the loss', {
  skip: unlessPresent('adapters/lang-experts') || unlessPresent('tasks/tatoeba.jsonl'),
}, async (t) => {
  const names = ['deu', 'nld', 'swe', 'fra', 'spa', 'ita', 'pol', 'ces', 'hrv'];
  const rows = readFileSync(join(sharedData, 'tasks/tatoeba.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((row) => JSON.parse(row));
  const own = rows.filter(({ task, split }) => names.includes(task) && split === 'test');
  const tests = own.filter((_, i) => i % 4 === 0);
  assert.ok(tests.length > 200);
  const losses = async (expertWeights: 'auto' | 'q8') => {
    const options = { device: 'cpu', weights: 'bf16', threads: 1, expertWeights } as const;
    const model = await loadModel(join(sharedData, 'models/stories260K'), options);
    t.after(() => model.dispose());
    const adapter = (name: string) => [name, { adapter: join(sharedData, 'adapters/lang-experts', name) }] as const;
    const mixture = await model.createMixture({ groups: { languages: Object.fromEntries(names.map(adapter)) } });
    const sum = async (routing: (task: string) => object) => {
      const scores = tests.map(({ task, completion }) => mixture.score('\n', completion, { routing: routing(task) }));
      return -(await Promise.all(scores)).flatMap(({ logProbs }) => [...logProbs]).reduce((a, b) => a + b, 0);
    };
    // Each its own language, and all together, as a router that has learnt nothing weighs them.
    return [await sum((task) => ({ only: task })), await sum(() => ({}))];
  };
  const [stored, blocks] = [await losses('auto'), await losses('q8')];
  for (const [i, loss] of stored.entries()) {
    const change = (blocks[i] as number) / loss - 1;
    t.diagnostic(`${change}`);
    assert.ok(Math.abs(change) < 5e-3 && change !== 0, `${loss}, ${blocks[i]} in 8 bits`);
  }
});
