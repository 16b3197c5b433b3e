import assert from 'node:assert/strict';
import { cpSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fromFloat32 } from '../../lib/formats/float-types.js';
import { modelDescriptor } from '../../lib/formats/model-folder.js';
import {
  AtMoeError,
  type AtMoeErrorCode,
  estimateMemory,
  initializeModel,
  loadModel,
  type RoutingControls,
  renderTrace,
} from '../../lib/index.js';
import { createEngine } from '../../lib/native.js';
import type { MixtureDescriptor } from '../../lib/native-mixture-types.js';
import type { MicroBatch } from '../../lib/native-training-types.js';
import type { NativeEngine } from '../../lib/native-types.js';
import { defaultRouterOptions } from '../../lib/routing-controls.js';
import { golden } from '../formats/support.js';
import { expertDir, inMemory, loadBase, loadCase, temporary, textModel, valuesOf } from './support.js';

async function rejects(promise: Promise<unknown>, code: AtMoeErrorCode, ...patterns: RegExp[]): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof AtMoeError, `not coded: ${error}`);
    assert.equal(error.code, code, error.message);
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  });
}

const base = join(golden, 'mistral-window', 'base');

test('a model file that ends early names the file', async (t) => {
  const dir = join(temporary(t), 'base');
  cpSync(base, dir, { recursive: true });
  const file = join(dir, 'model.safetensors');
  truncateSync(file, readFileSync(file).length - 100);
  await rejects(loadModel(dir, { device: 'cpu' }), 'ERR_AT_MOE_BAD_FILE', /model\.safetensors/, /truncated/);
});

test('a GPU that is not there is named, and says why', async () => {
  await rejects(loadModel(base, { device: 'cuda:4095' }), 'ERR_AT_MOE_DEVICE_UNAVAILABLE', /'cuda:4095'/);
  await assert.rejects(loadModel(base, { device: 'cuda:x' as 'cuda' }), /device.*cuda:N/s);
});

test('a weight that is not a number names its tensor, wherever it lies', async (t) => {
  const { descriptor } = await modelDescriptor(base);
  const loaded = inMemory(descriptor);
  for (const name of ['layers.1.mlp.down_proj.weight', 'embed_tokens.weight', 'layers.0.input_layernorm.weight']) {
    for (const bad of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      const tensors = loaded.tensors.map((tensor) => {
        if (tensor.name !== name) return tensor;
        const values = valuesOf(tensor);
        values[values.length - 1] = bad;
        return { ...tensor, dtype: 'f32' as const, data: fromFloat32('f32', values) };
      });
      const engine = createEngine({ device: 'cpu', threads: 1 });
      t.after(() => engine.dispose());
      const loading = engine.loadModel({ ...loaded, tensors }, { weights: 'f32' });
      await rejects(loading, 'ERR_AT_MOE_NOT_FINITE', new RegExp(name.replaceAll('.', '\\.')));
      await engine.dispose();
    }
  }
});

test('an adapter or a mixture of another base is refused', async (t) => {
  const { model } = await loadCase(t, 'qwen2-token-topk', 'cpu');
  await rejects(model.loadAdapter(expertDir('llama-token-dense', 'skill/translate')), 'ERR_AT_MOE_MISMATCH', /shape/);
  const other = await loadCase(t, 'llama-token-dense', 'cpu');
  const dir = join(temporary(t), 'mixture');
  await other.mixture.save(dir);
  await rejects(model.loadMixture(dir), 'ERR_AT_MOE_MISMATCH', /mixture\.json/);
  await rejects(model.loadMixture(join(dir, 'nowhere')), 'ERR_AT_MOE_NOT_FOUND');
});

test('a base whose config differs is told, and serves', async (t) => {
  const { mixture } = await loadCase(t, 'mistral-window', 'cpu');
  const folder = temporary(t);
  const dir = join(folder, 'base');
  await mixture.save(join(folder, 'mixture'));
  cpSync(base, dir, { recursive: true });
  const config = JSON.parse(readFileSync(join(base, 'config.json'), 'utf8')) as object;
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, transformers_version: '0.0' }));
  const model = await loadBase(t, dir, 'cpu');
  const warnings: string[] = [];
  const loaded = await model.loadMixture(join(folder, 'mixture'), { onWarning: (text) => warnings.push(text) });
  assert.equal(warnings.length, 1);
  assert.deepEqual(loaded.groups, mixture.groups);
});

test('training refuses unknown names and labels outside the mixture', async (t) => {
  const { model, mixture } = await loadCase(t, 'llama-token-dense', 'cpu');
  const row = { prompt: [1, 2], completion: [3, 4] };
  const options = { appendEos: false };
  const unknown = { code: 'ERR_AT_MOE_UNKNOWN_NAME' };
  assert.throws(() => mixture.trainExpert('nobody', [row], options), unknown);
  assert.throws(() => mixture.trainGeneral([row], options), unknown);
  for (const labels of [{ groups: ['nowhere'] }, { experts: ['skill/law'] }]) {
    const run = mixture.trainRouter([{ ...row, ...labels }], { ...options, balance: { supervision: 1 } });
    await rejects(run.next(), 'ERR_AT_MOE_BAD_DATA', /row 1/, /nowhere|skill\/law/);
  }
  await rejects(model.train([row], options).next(), 'ERR_AT_MOE_UNSUPPORTED', /to be trained/);
  const training = mixture.trainRouter([row], options);
  await training.next();
  await rejects(mixture.trainExpert('law', [row], options).next(), 'ERR_AT_MOE_BUSY');
  await training.return(undefined);
  assert.equal((await mixture.complete([1, 2], { maxTokens: 1, ignoreEos: true })).tokens.length, 1);
});

test('a training that begins after another goes on from what that one learnt', async (t) => {
  const { mixture } = await loadCase(t, 'mistral-window', 'cpu');
  const row = { prompt: [1, 2], completion: [3, 4, 5] };
  const options = { appendEos: false, steps: 3, learningRate: 0.02 };
  const loss = async () => (await mixture.score(row.prompt, row.completion, { routing: { only: 'e0' } })).perplexity;
  const later = mixture.trainExpert('e0', [row], options);
  for await (const _ of mixture.trainJoint([row], options));
  const before = await loss();
  for await (const _ of later);
  assert.ok((await loss()) < before * 0.9, 'the expert kept what it learnt');
});

test('what was disposed says so', async (t) => {
  const { model, mixture } = await loadCase(t, 'mistral-window', 'cpu');
  mixture.dispose();
  mixture.dispose();
  await rejects(mixture.complete([1]), 'ERR_AT_MOE_DISPOSED', /mixture/);
  assert.equal((await model.complete([1], { maxTokens: 1, ignoreEos: true })).tokens.length, 1);
  await model.dispose();
  await model.dispose();
  await rejects(model.complete([1]), 'ERR_AT_MOE_DISPOSED', /model/);
});

/** A tiny step whose parts can be broken one by one. */
const goodBatch = (): MicroBatch => ({
  ids: Int32Array.of(1, 2, 3, 4, 5),
  offsets: Int32Array.of(0, 3, 5),
  promptLengths: Int32Array.of(1, 1),
  labels: Int32Array.of(2, 3, -100, 5, -100),
  stepLossWeight: 3,
  stepTokens: 5,
});

test('the engine refuses batches that do not fit together, and goes on', async (t) => {
  const { model, golden: found } = await loadCase(t, 'mistral-window', 'cpu');
  const { engine } = model.core;
  const descriptor = descriptorOf(found.mixture.groups[0]?.experts[0]?.adapter.modules ?? []);
  const { mixture } = await engine.createMixture(descriptor);
  const trainer = await engine.beginTraining(mixture, { target: 'adapter' });
  const good = await engine.microBatch(trainer, goodBatch());
  const broken: Partial<MicroBatch>[] = [
    { ids: Int32Array.of(1, 2, 3, 4, 500) },
    { ids: Int32Array.of(1, 2, 3, 4, -1) },
    { offsets: Int32Array.of(0, 3, 6) },
    { offsets: Int32Array.of(0, 5, 3) },
    { offsets: Int32Array.of(1, 3, 5) },
    { promptLengths: Int32Array.of(1) },
    { promptLengths: Int32Array.of(1, 3) },
    { labels: Int32Array.of(2, 3) },
    { labels: Int32Array.of(2, 3, -100, 5, 96) },
    { lossWeights: Float32Array.of(1) },
    { klMask: Uint8Array.of(1) },
    { groupTarget: Float32Array.of(1, 0, 0) },
  ];
  for (const change of broken) {
    const name = JSON.stringify(change);
    await assert.rejects(engine.microBatch(trainer, { ...goodBatch(), ...change }), AtMoeError, name);
  }
  await engine.discardGradients(trainer);
  assert.deepEqual(await engine.microBatch(trainer, goodBatch()), good);
  await assertServes(engine);
});

function descriptorOf(modules: MixtureDescriptor['experts'][number]): MixtureDescriptor {
  return { groups: [1], experts: [modules], scope: 'token', options: defaultRouterOptions, balance: 1, scale: 1 };
}

async function assertServes(engine: NativeEngine): Promise<void> {
  const logProbs = await engine.score({ ids: Int32Array.of(1, 2, 3), first: 1, routing: { kind: 'base' } });
  assert.ok(logProbs.every((value) => value < 0));
}

test('wrong arguments are told, not dropped or half understood', async (t) => {
  const { model, mixture } = await loadCase(t, 'llama-token-dense', 'cpu');
  const adapter = expertDir('llama-token-dense', 'skill/translate');
  const wrong = (call: () => unknown, message: RegExp) =>
    assert.rejects(
      async () => await call(),
      (error) => {
        assert.ok(error instanceof TypeError || error instanceof RangeError, `${error}`);
        assert.match(error.message, message);
        return true;
      },
    );
  const bad = <T>(value: unknown) => value as T;
  await wrong(() => model.createMixture(bad({ groups: { a: { b: {} } }, routings: {} })), /"routings"/);
  await wrong(() => model.createMixture({ groups: { a: { b: bad({ adapter, rank: 4 }) } } }), /no LoRA options.*rank/);
  await wrong(() => model.createMixture({ groups: { a: { b: { adapter: '' } } } }), /folder of a PEFT adapter/);
  await wrong(() => mixture.addExpert('skill', 'new', bad(undefined)), /LoRA options or \{ adapter/);
  await wrong(() => mixture.save(''), /a folder to save to/);
  await wrong(() => mixture.export(join(temporary(t), 'x'), bad(undefined)), /"merged" or "peft"/);
  await wrong(() => mixture.export(join(temporary(t), 'x'), bad({ as: 'gguf', weights: {} })), /"merged" or "peft"/);
  const weights = { translate: Number.NaN };
  await wrong(() => mixture.export(join(temporary(t), 'x'), { as: 'peft', weights }), /translate/);
  await wrong(() => model.completeAll(bad('text')), /array of prompts/);
  await wrong(() => model.generateAll(bad('text')).next(), /array of prompts/);
  await wrong(() => model.estimateMemory({ experts: -1 }), /experts/);
  await wrong(() => model.estimateMemory(bad({ weights: 'int8' })), /weights/);
  await wrong(() => model.estimateMemory(bad({ rang: 1 })), /"rang"/);
  await wrong(() => model.estimateMemory({ adapterBytes: 0 }), /adapterBytes/);
  assert.equal(model.estimateMemory({ experts: 8, adapterBytes: 1000 }).experts, 1000);
  await wrong(() => estimateMemory(bad({})), /config: hiddenSize/);
  await wrong(() => mixture.addExpert(bad(5), 'new', {}), /group name 5/);
  for (const as of ['peft', 'merged'] as const) {
    for (const weights of [undefined, null, {}])
      await wrong(() => mixture.export(join(temporary(t), 'x'), bad({ as, weights })), /^export: weights: a number/);
    await wrong(
      () => mixture.export(join(temporary(t), 'x'), bad({ as, weights: { translate: 'a' } })),
      /^export: weights\.translate/,
    );
  }
  await wrong(
    () => mixture.export(join(temporary(t), 'x'), { as: 'peft', weights: { translate: 0 } }),
    /^export: weights/,
  );
  await wrong(() => mixture.export('', { as: 'peft', weights: { translate: 1 } }), /export needs a folder/);
  await wrong(() => model.loadMixture(bad(undefined)), /loadMixture needs a folder/);
  await wrong(() => model.loadAdapter(bad(undefined)), /loadAdapter needs a folder/);
  await wrong(() => model.createMixture({ groups: { a: { b: {} } }, seed: -1 }), /seed/);
  await wrong(() => model.createAdapter({}, -1.5), /seed/);
  await wrong(() => model.score([1], bad(5)), /completion to score is text or token ids/);
  await wrong(() => model.score([1], bad(['a'])), /token id a/);
  await wrong(() => renderTrace(bad({})), /trace: groups/);
  const trace = await mixture.explain([1, 2]);
  await wrong(() => renderTrace(trace, bad(null)), /renderTrace: .*object/);
  await rejects(model.complete([1], { stop: 'x' }), 'ERR_AT_MOE_UNSUPPORTED', /stop needs text/);
  const files = { '../evil.txt': 'x' };
  const config = JSON.parse(readFileSync(join(base, 'config.json'), 'utf8')) as Record<string, unknown>;
  await wrong(() => initializeModel(join(temporary(t), 'x'), config, { files }), /"\.\.\/evil\.txt"/);
});

test('wrong arguments of sessions, chats and tokenizers are told', async (t) => {
  const model = await textModel(t, 'cpu');
  const bad = <T>(value: unknown) => value as T;
  assert.throws(() => model.createSession(bad({ foo: 1 })), /createSession: .*"foo"/);
  assert.throws(() => model.createSession(bad(null)), /createSession: .*object/);
  await assert.rejects(model.createSession().complete(bad([1, 2])), /^TypeError: a turn of a session is text$/);
  for (const message of [{ role: 'user' }, { content: 'hello' }])
    await assert.rejects(model.complete(bad([message])), /^TypeError: messages: 0\.(role|content)/);
  assert.throws(() => model.tokenizer?.decode(bad(undefined)), /ids to decode/);
});

test('what onLoad throws ends the load', async () => {
  const cause = new Error('the caller has had enough');
  const onLoad = () => {
    throw cause;
  };
  await assert.rejects(loadModel(base, { device: 'cpu', onLoad }), (error) => error === cause);
});

test('memory that is not there is told in bytes', async () => {
  const loading = loadModel(base, { device: 'cpu', kvTokens: 1e13 });
  await rejects(loading, 'ERR_AT_MOE_OUT_OF_MEMORY', /cannot allocate \d{15,} bytes of memory, \d+ bytes are free/);
});

test('a base is not trained for a folder it cannot be saved to', async (t) => {
  const model = await loadModel(base, { device: 'cpu', trainable: true });
  t.after(() => model.dispose());
  const saveTo = temporary(t);
  writeFileSync(join(saveTo, 'thesis.tex'), '');
  const training = model.train([{ prompt: [1], completion: [2] }], { appendEos: false, saveTo });
  await rejects(training.next(), 'ERR_AT_MOE_IO', /thesis\.tex/);
});

test('a weight for what is denied names it', async (t) => {
  const { mixture } = await loadCase(t, 'llama-token-dense', 'cpu');
  const routed = (routing: RoutingControls) => mixture.complete([1, 2], { maxTokens: 1, routing });
  await rejects(routed({ deny: ['skill'], weight: { skill: 1 } }), 'ERR_AT_MOE_ROUTING', /"skill" is denied/);
  await rejects(routed({ allow: ['law'], weight: { translate: 1 } }), 'ERR_AT_MOE_ROUTING', /"translate" is denied/);
  await routed({ deny: ['skill'], weight: { skill: 0 } });
});
