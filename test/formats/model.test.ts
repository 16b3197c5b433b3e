import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { copyFileSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { readCheckpoint } from '../../lib/formats/checkpoint.js';
import { parseJson, readJson } from '../../lib/formats/json.js';
import { parseModelConfig } from '../../lib/formats/model-config.js';
import { modelDescriptor, writeModel } from '../../lib/formats/model-folder.js';
import { readSafetensorsHeader, readWeights, writeSafetensors } from '../../lib/formats/safetensors.js';
import { golden, rejectsWith, sharedData, temporaryFolder, tensor } from './support.js';

const base = {
  model_type: 'llama',
  architectures: ['LlamaForCausalLM'],
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 32,
};
const qwen2 = { ...base, model_type: 'qwen2', architectures: ['Qwen2ForCausalLM'] };
const mistral = { ...base, model_type: 'mistral', architectures: ['MistralForCausalLM'] };
const config = (value: unknown) => parseModelConfig('config.json', value).config;

test('defaults are those of transformers', () => {
  const llama = config(base);
  assert.equal(llama.headDim, 16);
  assert.equal(llama.ropeTheta, 10000);
  assert.equal(llama.rmsNormEps, 1e-6);
  assert.equal(llama.tieWordEmbeddings, false);
  assert.deepEqual(llama.windows, [0, 0, 0, 0]);
  const { num_key_value_heads: _, ...bare } = base;
  assert.equal(config(bare).numKvHeads, 4);
  assert.equal(config({ ...mistral, num_key_value_heads: null }).numKvHeads, 4);
  assert.equal(config({ ...base, model_type: 'qwen3', architectures: ['Qwen3ForCausalLM'] }).headDim, 128);
});

test('windows: mistral on every layer, qwen2 only when used, from max_window_layers on or by layer_types', () => {
  assert.deepEqual(config({ ...mistral, sliding_window: 7 }).windows, [7, 7, 7, 7]);
  assert.deepEqual(config({ ...mistral, sliding_window: null }).windows, [0, 0, 0, 0]);
  assert.deepEqual(config({ ...base, sliding_window: 7 }).windows, [0, 0, 0, 0]);
  assert.deepEqual(config({ ...qwen2, sliding_window: 7, max_window_layers: 1 }).windows, [0, 0, 0, 0]);
  const used = { ...qwen2, sliding_window: 7, use_sliding_window: true, max_window_layers: 3 };
  assert.deepEqual(config(used).windows, [0, 0, 0, 7]);
  const types = ['sliding_attention', 'full_attention', 'sliding_attention', 'full_attention'];
  assert.deepEqual(config({ ...used, layer_types: types }).windows, [7, 0, 7, 0]);
  const contradictions = [
    { ...qwen2, layer_types: types },
    { ...used, layer_types: ['full_attention'] },
    { ...base, layer_types: types },
  ];
  for (const value of contradictions)
    assert.throws(() => config(value), { code: 'ERR_AT_MOE_BAD_FILE', message: /layer_types/ });
});

test('both spellings of the rotary settings agree', () => {
  const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
  const v4 = config({
    ...base,
    rope_theta: 5e5,
    rope_scaling: { rope_type: 'llama3', ...llama3 },
    torch_dtype: 'bfloat16',
  });
  const v5 = config({
    ...base,
    rope_parameters: { rope_theta: 5e5, rope_type: 'llama3', ...llama3 },
    dtype: 'bfloat16',
  });
  assert.deepEqual(v4, v5);
  assert.equal(v4.storedType, 'bf16');
  assert.deepEqual(config({ ...base, rope_scaling: { type: 'linear', factor: 2 } }).ropeScaling, {
    type: 'linear',
    factor: 2,
  });
});

const refused: [object, RegExp][] = [
  [{ model_type: 'gpt2' }, /"gpt2".*LlamaForCausalLM/],
  [{ model_type: undefined }, /model_type/],
  [{ architectures: ['LlamaForSequenceClassification'] }, /LlamaForSequenceClassification/],
  [{ hidden_act: 'gelu' }, /hidden_act "gelu".*silu/],
  [{ rope_scaling: { rope_type: 'yarn', factor: 4 } }, /"yarn".*linear, llama3/],
  [{ rope_scaling: { type: 'dynamic', factor: 4 } }, /"dynamic"/],
  [{ rope_parameters: { rope_type: 'longrope' } }, /"longrope"/],
  [{ rope_parameters: { full_attention: { rope_type: 'default' } } }, /by layer type/],
  [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor/],
  [{ quantization_config: { bits: 4 } }, /quantization_config/],
  [{ dtype: 'float8_e4m3fn' }, /float8_e4m3fn/],
  [{ layer_types: ['chunked_attention', 'a', 'b', 'c'] }, /chunked_attention/],
];
for (const [change, pattern] of refused) {
  test(`unsupported: ${JSON.stringify(change)}`, () => {
    assert.throws(() => config({ ...base, ...change }), { code: 'ERR_AT_MOE_UNSUPPORTED', message: pattern });
  });
}

const broken: [object, RegExp][] = [
  [{ hidden_size: undefined }, /hidden_size/],
  [{ hidden_size: -64 }, /hidden_size/],
  [{ hidden_size: 65 }, /head_dim/],
  [{ head_dim: 7 }, /head_dim 7 is odd/],
  [{ num_hidden_layers: 1e9 }, /num_hidden_layers/],
  [{ num_attention_heads: 4, num_key_value_heads: 3 }, /multiple/],
  [{ vocab_size: '32' }, /vocab_size/],
  [{ rms_norm_eps: 0 }, /rms_norm_eps/],
  [{ rope_scaling: { rope_type: 'llama3', factor: 8 } }, /low_freq_factor/],
  [{ rope_scaling: { rope_type: 'linear' } }, /factor/],
];
for (const [change, pattern] of broken) {
  test(`bad config: ${JSON.stringify(change)}`, () => {
    assert.throws(() => config({ ...base, ...change }), { code: 'ERR_AT_MOE_BAD_FILE', message: pattern });
  });
}

test('JSON: missing, malformed and repeated keys are coded errors', async (t) => {
  const path = join(temporaryFolder(t), 'x.json');
  await rejectsWith(readJson(path), 'ERR_AT_MOE_NOT_FOUND', /x\.json/);
  const bad = (text: string) =>
    assert.throws(() => parseJson('x.json', Buffer.from(text)), { code: 'ERR_AT_MOE_BAD_FILE' });
  for (const text of ['', '{', '{"a":1,"a":1}', '{"a":[{"b":1,"c":{},"b":2}]}', '\ufeff\ufeff{}', '{"a":"\\"","a":""}'])
    bad(text);
  for (const text of [
    '{"a":"a","b":["a","a"]}',
    '{"a":{"a":{"a":"{,\\"a\\":"}}}',
    '["a","a",{"a":0},{"a":0}]',
    '"{"',
  ]) {
    assert.deepEqual(parseJson('x.json', Buffer.from(text)), JSON.parse(text));
  }
});

test('every golden base is a whole model', async () => {
  for (const name of readdirSync(golden)) {
    const { descriptor, sha256 } = await modelDescriptor(join(golden, name, 'base'));
    assert.equal(
      sha256,
      createHash('sha256')
        .update(readFileSync(join(golden, name, 'base', 'config.json')))
        .digest('hex'),
    );
    assert.ok(descriptor.tensors.some((tensor) => tensor.name === 'layers.1.mlp.down_proj.weight'));
    assert.equal(descriptor.config.storedType, name === 'llama-bf16-weights' ? 'bf16' : 'f32');
    assert.deepEqual(new Set(descriptor.config.windows), new Set([name === 'mistral-window' ? 7 : 0]));
  }
});

test('real models load in both spellings, GPT-2 is refused by name', async (t) => {
  const shared = sharedData(t);
  if (!shared) return;
  const models = readdirSync(join(shared, 'models')).filter((name) =>
    existsSync(join(shared, 'models', name, 'config.json')),
  );
  assert.ok(models.length >= 10);
  for (const name of models) {
    const dir = join(shared, 'models', name);
    if (name.includes('gpt2')) {
      await rejectsWith(modelDescriptor(dir), 'ERR_AT_MOE_UNSUPPORTED', /gpt2/);
      continue;
    }
    const { descriptor } = await modelDescriptor(dir);
    if (!existsSync(join(dir, 'config.v4.json'))) continue;
    assert.deepEqual(config(await readJson(join(dir, 'config.v4.json'))), descriptor.config, name);
  }
  const sharded = await modelDescriptor(join(shared, 'models', 'tiny-random-llama-linear-rope-headdim-sharded'));
  assert.equal(new Set(sharded.descriptor.tensors.map(({ file }) => file)).size, 5);
  assert.ok(sharded.descriptor.tensors.some(({ name }) => name === 'layers.0.mlp.gate_proj.bias'));
});

test('a model written is read back; foreign, missing and misshapen tensors are named', async (t) => {
  const dir = join(temporaryFolder(t), 'model');
  const source = join(golden, 'qwen2-token-topk', 'base');
  const json = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8'));
  const tensors = await readWeights(await readSafetensorsHeader(join(source, 'model.safetensors')));
  await writeModel(dir, json, tensors, { 'tokenizer.json': '{}' });
  assert.deepEqual((await modelDescriptor(dir)).descriptor.config, (await modelDescriptor(source)).descriptor.config);

  const file = join(dir, 'model.safetensors');
  const inv = tensor('model.layers.0.self_attn.rotary_emb.inv_freq', [8], 1);
  await writeSafetensors(file, [...tensors, inv]);
  await modelDescriptor(dir);
  await writeSafetensors(file, [...tensors, tensor('model.extra', [1], 1)]);
  await rejectsWith(modelDescriptor(dir), 'ERR_AT_MOE_MISMATCH', /model\.safetensors.*"model\.extra"/);
  const bias = 'model.layers.1.self_attn.k_proj.bias';
  await writeSafetensors(
    file,
    tensors.filter(({ name }) => name !== bias),
  );
  await rejectsWith(
    modelDescriptor(dir),
    'ERR_AT_MOE_MISMATCH',
    /no tensor "model\.layers\.1\.self_attn\.k_proj\.bias" of shape \[\d+\]/,
  );
  await writeSafetensors(
    file,
    tensors.map((t) => (t.name === bias ? tensor(bias, [3], 0) : t)),
  );
  await rejectsWith(modelDescriptor(dir), 'ERR_AT_MOE_MISMATCH', /k_proj\.bias.*\[3\].*\[\d+\]/);
  await writeSafetensors(file, [
    ...tensors.filter(({ name }) => name !== bias),
    { ...tensor(bias, [16], 0), dtype: 'I32' },
  ]);
  await rejectsWith(modelDescriptor(dir), 'ERR_AT_MOE_UNSUPPORTED', /I32/);
});

test('lm_head beside tied embeddings is ignored, and asked for without tying', async (t) => {
  const dir = join(temporaryFolder(t), 'model');
  cpSync(join(golden, 'llama-token-dense', 'base'), dir, { recursive: true });
  const path = join(dir, 'config.json');
  const json = JSON.parse(readFileSync(path, 'utf8'));
  assert.ok((await modelDescriptor(dir)).descriptor.tensors.some(({ name }) => name === 'lm_head.weight'));
  writeFileSync(path, JSON.stringify({ ...json, tie_word_embeddings: true }));
  assert.ok(!(await modelDescriptor(dir)).descriptor.tensors.some(({ name }) => name === 'lm_head.weight'));
});

test('shards: escaping names, missing shards and misplaced tensors are refused', async (t) => {
  const dir = temporaryFolder(t);
  const index = (map: object) =>
    writeFileSync(join(dir, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }));
  await writeSafetensors(join(dir, 'one.safetensors'), [tensor('a', [1], 1)]);
  index({ a: 'one.safetensors' });
  assert.equal((await readCheckpoint(dir)).get('a')?.file, join(dir, 'one.safetensors'));
  for (const name of [
    '../one.safetensors',
    '/etc/one.safetensors',
    'sub/one.safetensors',
    '..\\one.safetensors',
    'C:one.safetensors',
    'one.bin',
    '',
  ]) {
    index({ a: name });
    await rejectsWith(readCheckpoint(dir), 'ERR_AT_MOE_BAD_FILE', /not the name of a safetensors file/);
  }
  index({ a: 'one.safetensors', b: 'two.safetensors' });
  await rejectsWith(readCheckpoint(dir), 'ERR_AT_MOE_NOT_FOUND', /two\.safetensors/);
  index({ a: 'one.safetensors', b: 'one.safetensors' });
  await rejectsWith(readCheckpoint(dir), 'ERR_AT_MOE_BAD_FILE', /no tensor "b"/);
  await writeSafetensors(join(dir, 'two.safetensors'), [tensor('a', [1], 1), tensor('b', [1], 1)]);
  index({ a: 'one.safetensors', b: 'two.safetensors' });
  await rejectsWith(readCheckpoint(dir), 'ERR_AT_MOE_BAD_FILE', /two\.safetensors: tensor "a"/);
});

test('pickle and GGUF folders are refused by name, an empty one is not found', async (t) => {
  const dir = temporaryFolder(t);
  await rejectsWith(readCheckpoint(dir), 'ERR_AT_MOE_NOT_FOUND', /no model\.safetensors/);
  await rejectsWith(readCheckpoint(join(dir, 'none')), 'ERR_AT_MOE_NOT_FOUND');
  writeFileSync(join(dir, 'model.gguf'), '');
  await rejectsWith(readCheckpoint(dir), 'ERR_AT_MOE_UNSUPPORTED', /model\.gguf: GGUF/);
  mkdirSync(join(dir, 'more'));
  writeFileSync(join(dir, 'pytorch_model.bin'), '');
  await rejectsWith(readCheckpoint(dir), 'ERR_AT_MOE_UNSUPPORTED', /pytorch_model\.bin: pickled/);
  copyFileSync(join(golden, 'llama-token-dense', 'base', 'model.safetensors'), join(dir, 'model.safetensors'));
  rmSync(join(dir, 'more'), { recursive: true });
  assert.ok((await readCheckpoint(dir)).has('lm_head.weight'));
});
