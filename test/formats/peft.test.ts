import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ModelConfig } from '../../lib/descriptors.js';
import { loraConfig, resolveLora } from '../../lib/formats/lora-options.js';
import { type LoraConfig, resolveTargets } from '../../lib/formats/lora-targets.js';
import { readModelConfig } from '../../lib/formats/model-config.js';
import { readAdapter, writeAdapter } from '../../lib/formats/peft.js';
import { formatAdapterConfig, parseAdapterConfig } from '../../lib/formats/peft-config.js';
import { readSafetensorsHeader, readWeights, writeSafetensors } from '../../lib/formats/safetensors.js';
import { golden, rejectsWith, sharedData, temporaryFolder, tensor, tinyAdapter, tinyModel } from './support.js';

const baseConfig = loraConfig({ rank: 4, alpha: 8 });

function targets(change: Partial<LoraConfig>, model: ModelConfig = tinyModel): string[] {
  const refuse = (problem: string) => new Error(problem);
  return resolveTargets({ ...baseConfig, ...change }, model, refuse).map(({ layer, module }) => `${layer}.${module}`);
}

test('target_modules: name ends, whole paths, expressions, the keyword, exclusions, layers', () => {
  assert.deepEqual(targets({ targetModules: ['q_proj', 'mlp.up_proj'] }), [
    '0.q_proj',
    '0.up_proj',
    '1.q_proj',
    '1.up_proj',
  ]);
  assert.deepEqual(targets({ targetModules: ['model.layers.1.self_attn.q_proj', '0.mlp.down_proj'] }), [
    '0.down_proj',
    '1.q_proj',
  ]);
  assert.deepEqual(targets({ targetModules: '.*\\.1\\.mlp\\.(gate|down)_proj' }), ['1.gate_proj', '1.down_proj']);
  assert.equal(targets({ targetModules: 'All-Linear' }).length, 14);
  assert.deepEqual(targets({ targetModules: ['q_proj'], excludeModules: ['1.self_attn.q_proj'] }), ['0.q_proj']);
  assert.deepEqual(targets({ targetModules: ['q_proj'], excludeModules: '.*\\.0\\..*' }), ['1.q_proj']);
  assert.deepEqual(targets({ targetModules: ['q_proj'], layers: [1] }), ['1.q_proj']);
  assert.deepEqual(targets({ targetModules: ['q_proj'], layers: [] }), ['0.q_proj', '1.q_proj']);
  assert.deepEqual(targets({ targetModules: ['q_proj'], layers: [1], layersPattern: ['h', 'layers'] }), ['1.q_proj']);
  assert.throws(() => targets({ targetModules: ['q_proj'], layers: [1], layersPattern: ['h'] }), /matches no module/);
  assert.throws(() => targets({ targetModules: ['_proj'] }), /matches no module/);
  assert.throws(() => targets({ targetModules: 'q_proj' }), /matches no module/);
  assert.throws(() => targets({ targetModules: ['embed_tokens', 'q_proj'] }), /LoRA on model\.embed_tokens/);
  assert.throws(() => targets({ targetModules: '.*' }), /LoRA on model;/);
  assert.throws(() => targets({ targetModules: ['lm_head'] }), /LoRA on lm_head/);
  assert.throws(() => targets({ targetModules: '(?i)Q_PROJ' }), /cannot be read/);
  assert.throws(() => targets({ targetModules: '.*q_proj\\Z' }), /cannot be read/);
});

test('an expression that backtracks without end is stopped', () => {
  assert.throws(() => targets({ targetModules: '([a-z._0-9]+)+[a-z._0-9]+!' }), /takes too long/);
});

test('patterns for rank and alpha: the end of the path, "^" anchors it, the first key wins', () => {
  const config = {
    ...baseConfig,
    targetModules: ['q_proj', 'v_proj'],
    rankPattern: { '^model.layers.0.self_attn.q_proj': 6, '^self_attn.v_proj': 9, 'self_attn.v_proj': 2, v_proj: 3 },
    alphaPattern: { '1.self_attn.(q|v)_proj': 32, proj: 1 },
  };
  const resolved = resolveTargets(config, tinyModel, (problem) => new Error(problem));
  assert.deepEqual(
    resolved.map(({ rank, scaling }) => [rank, scaling]),
    [
      [6, 8 / 6],
      [2, 4],
      [4, 8],
      [2, 16],
    ],
  );
  const rslora = resolveTargets({ ...config, rslora: true }, tinyModel, (problem) => new Error(problem));
  assert.equal(rslora[0]?.scaling, 8 / Math.sqrt(6));
});

test('fresh experts: shapes, defaults, wrong arguments', () => {
  const [q, k, , o, , , down] = resolveLora({}, tinyModel);
  assert.deepEqual(q, { layer: 0, module: 'q_proj', rank: 8, scaling: 1, inFeatures: 8, outFeatures: 8 });
  assert.deepEqual([k?.outFeatures, o?.inFeatures, down?.inFeatures, down?.outFeatures], [4, 8, 12, 8]);
  assert.equal(resolveLora({ rank: 2, layers: [1], targetModules: ['o_proj'] }, tinyModel).length, 1);
  const wrong: [object, ErrorConstructor][] = [
    [{ rank: 0 }, RangeError],
    [{ rank: 1.5 }, TypeError],
    [{ alpha: -1 }, RangeError],
    [{ dropout: 1 }, RangeError],
    [{ layers: [2] }, RangeError],
    [{ targetModules: ['lm_head'] }, TypeError],
    [{ targetModules: 'nothing' }, TypeError],
    [{ targetModules: '.*q_proj', layers: [0] }, TypeError],
    [{ r: 8 }, TypeError],
    [{ rankPattern: { nothing: 4 } }, RangeError],
    [{ alphaPattern: { q_proj: 4 }, targetModules: ['k_proj'] }, RangeError],
  ];
  for (const [options, type] of wrong)
    assert.throws(() => resolveLora(options, tinyModel), type, JSON.stringify(options));
});

const plain = formatAdapterConfig({ ...baseConfig, targetModules: ['q_proj'] });
const refused: [object, RegExp][] = [
  [{ peft_type: 'IA3' }, /"IA3".*LORA/],
  [{ use_dora: true }, /use_dora/],
  [{ bias: 'all' }, /bias "all"/],
  [{ lora_bias: true }, /lora_bias/],
  [{ modules_to_save: ['norm'] }, /modules_to_save/],
  [{ trainable_token_indices: [1] }, /trainable_token_indices/],
  [{ trainable_token_indices: { embed_tokens: [1] } }, /trainable_token_indices/],
  [{ megatron_config: { a: 1 } }, /megatron_config/],
  [{ use_qalora: true }, /use_qalora/],
  [{ layer_replication: [[0, 2]] }, /layer_replication/],
  [{ alora_invocation_tokens: [1, 2] }, /alora_invocation_tokens/],
  [{ arrow_config: { top_k: 1 } }, /arrow_config/],
  [{ target_parameters: ['w'] }, /target_parameters/],
  [{ init_lora_weights: 'pissa_niter_4' }, /pissa_niter_4/],
  [{ init_lora_weights: 'corda' }, /corda/],
  [{ init_lora_weights: 'olora' }, /olora/],
  [{ init_lora_weights: 'loftq' }, /loftq/],
  [{ task_type: 'SEQ_CLS' }, /SEQ_CLS/],
  [{ use_something_new: true }, /use_something_new true/],
  [{ target_modules: '.*q_proj', layers_to_transform: [1] }, /layers_to_transform/],
];
for (const [change, pattern] of refused) {
  test(`adapter config refused: ${JSON.stringify(change)}`, () => {
    const parse = () => parseAdapterConfig('adapter_config.json', { ...plain, ...change });
    assert.throws(parse, { code: 'ERR_AT_MOE_UNSUPPORTED', message: pattern });
  });
}

test('adapter configs: harmless fields pass, wrong types do not', () => {
  const harmless = {
    init_lora_weights: 'eva',
    eva_config: { rho: 2 },
    fan_in_fan_out: true,
    peft_version: '9',
    use_x: false,
    y_config: {},
  };
  assert.deepEqual(parseAdapterConfig('c', { ...plain, ...harmless }), parseAdapterConfig('c', plain));
  assert.deepEqual(parseAdapterConfig('c', { ...plain, target_modules: null }).targetModules, ['q_proj', 'v_proj']);
  for (const change of [
    { r: 0 },
    { r: '8' },
    { lora_alpha: null },
    { target_modules: 4 },
    { rank_pattern: { q: -1 } },
    { use_rslora: 1 },
  ]) {
    assert.throws(
      () => parseAdapterConfig('c', { ...plain, ...change }),
      { code: 'ERR_AT_MOE_BAD_FILE' },
      JSON.stringify(change),
    );
  }
  assert.throws(() => parseAdapterConfig('c', { r: 8 }), { code: 'ERR_AT_MOE_BAD_FILE', message: /peft_type/ });
});

test('round trip: every kind of config, then the same bytes again', async (t) => {
  const dir = temporaryFolder(t);
  const kinds = [
    { rank: 3 },
    { rank: 4, alpha: 7, rslora: true, dropout: 0.1, targetModules: ['q_proj' as const], layers: [1] },
    { targetModules: '.*mlp.*_proj', rankPattern: { up_proj: 2 }, alphaPattern: { '^model.layers.0.mlp.up_proj': 5 } },
  ];
  for (const [i, options] of kinds.entries()) {
    const [first, second] = [join(dir, `${i}a`), join(dir, `${i}b`)];
    const adapter = tinyAdapter(options, 0.5);
    await writeAdapter(first, adapter, tinyModel);
    const read = await readAdapter(first, tinyModel);
    assert.deepEqual(read, adapter);
    await writeAdapter(second, read, tinyModel);
    for (const name of readdirSync(first))
      assert.deepEqual(readFileSync(join(second, name)), readFileSync(join(first, name)));
  }
});

test('missing, foreign, misshapen and non-finite tensors are named', async (t) => {
  const dir = join(temporaryFolder(t), 'adapter');
  await writeAdapter(dir, tinyAdapter({ rank: 2 }, 1), tinyModel);
  const file = join(dir, 'adapter_model.safetensors');
  const tensors = await readWeights(await readSafetensorsHeader(file));
  const name = 'base_model.model.model.layers.1.mlp.up_proj.lora_B.weight';
  const change = (shape: number[], fill: number) =>
    tensors.map((t) => (t.name === name ? tensor(name, shape, fill) : t));
  await writeSafetensors(
    file,
    tensors.filter((t) => t.name !== name),
  );
  await rejectsWith(
    readAdapter(dir, tinyModel),
    'ERR_AT_MOE_MISMATCH',
    /no tensor .*1\.mlp\.up_proj\.lora_B.*\[12,2\]/,
  );
  await writeSafetensors(file, [...tensors, tensor('base_model.model.lm_head.lora_A.weight', [2, 8], 1)]);
  await rejectsWith(readAdapter(dir, tinyModel), 'ERR_AT_MOE_MISMATCH', /lm_head\.lora_A\.weight/);
  await writeSafetensors(file, change([12, 3], 1));
  await rejectsWith(readAdapter(dir, tinyModel), 'ERR_AT_MOE_MISMATCH', /up_proj\.lora_B.*\[12,3\].*\[12,2\]/);
  await writeSafetensors(file, change([12, 2], Number.POSITIVE_INFINITY));
  await rejectsWith(
    readAdapter(dir, tinyModel),
    'ERR_AT_MOE_NOT_FINITE',
    /adapter_model\.safetensors.*up_proj\.lora_B/,
  );
  await writeSafetensors(file, tensors);
  await rejectsWith(readAdapter(dir, { ...tinyModel, hiddenSize: 10 }), 'ERR_AT_MOE_MISMATCH', /\[2,8\].*\[2,10\]/);
  await rejectsWith(readAdapter(dir, { ...tinyModel, numLayers: 1 }), 'ERR_AT_MOE_MISMATCH', /layers\.1/);
  assert.equal((await readAdapter(dir, tinyModel)).modules.length, 14);
});

test('an adapter that does not follow its config, or holds NaN, is not written', async (t) => {
  const dir = join(temporaryFolder(t), 'adapter');
  const adapter = tinyAdapter({ rank: 2 }, 1);
  await rejectsWith(
    writeAdapter(dir, { ...adapter, modules: adapter.modules.slice(1) }, tinyModel),
    'ERR_AT_MOE_MISMATCH',
    /13 modules/,
  );
  const rescaled = adapter.modules.map((module) => ({ ...module, scaling: 3 }));
  await rejectsWith(
    writeAdapter(dir, { ...adapter, modules: rescaled }, tinyModel),
    'ERR_AT_MOE_MISMATCH',
    /scaling 3/,
  );
  await rejectsWith(writeAdapter(dir, tinyAdapter({}, Number.NaN), tinyModel), 'ERR_AT_MOE_NOT_FINITE');
  assert.ok(!existsSync(dir));
});

test('every golden adapter is read for its base', async () => {
  for (const name of readdirSync(golden)) {
    const dir = join(golden, name);
    const { config } = await readModelConfig(join(dir, 'base'));
    const { groups } = JSON.parse(readFileSync(join(dir, 'case.json'), 'utf8'));
    for (const group of groups) {
      for (const expert of group.experts) {
        const { modules } = await readAdapter(join(dir, 'experts', group.name, expert), config);
        assert.ok(modules.length > 0);
      }
    }
  }
});

const verdicts: Record<string, RegExp | null> = {
  'gpt2-tigrinya-lora': /"c_attn".*matches no module/,
  'peft-dora-r4': /use_dora/,
  'peft-dora-rslora-r8': /use_dora/,
  'peft-embedding-lora': /embed_tokens/,
  'peft-gpt2-conv1d-dora': /use_dora/,
  'peft-gpt2-conv1d-r4': /matches no module/,
  'peft-layers-to-transform': null,
  'peft-lora-all-linear-keyword': null,
  'peft-lora-all-r8': null,
  'peft-lora-b-bias': /lora_bias/,
  'peft-lora-qv-r4': null,
  'peft-lora-qv-r4/as-bin': /adapter_model\.bin: pickled/,
  'peft-lora-qv-r4/as-f16': null,
  'peft-lora-regex-targets': null,
  'peft-modules-to-save-norm': /modules_to_save/,
  'peft-negative-ia3': /"IA3"/,
  'peft-qwen2-bias-lora-only': /bias "lora_only"/,
  'peft-rank-alpha-pattern': null,
  'peft-rslora-r16': null,
  'peft-xlora-layerwise': /"XLORA"/,
  'peft-xlora-top2': /"XLORA"/,
};

test('adapters that PEFT wrote load, or are refused by what they use', async (t) => {
  const shared = sharedData(t);
  if (!shared) return;
  const adapters = join(shared, 'adapters');
  const { config } = await readModelConfig(join(shared, 'models', 'stories260K'));
  const folders = readdirSync(adapters).filter((name) => existsSync(join(adapters, name, 'adapter_config.json')));
  assert.deepEqual(
    folders.filter((name) => !(name in verdicts)),
    [],
  );
  for (const [name, verdict] of Object.entries(verdicts)) {
    if (verdict) await rejectsWith(readAdapter(join(adapters, name), config), 'ERR_AT_MOE_UNSUPPORTED', verdict);
    else assert.ok((await readAdapter(join(adapters, name), config)).modules.length > 0, name);
  }
  for (const name of readdirSync(join(adapters, 'lang-experts')).filter((name) => name.length === 3)) {
    assert.equal((await readAdapter(join(adapters, 'lang-experts', name), config)).modules.length, 35);
  }
  const pattern = await readAdapter(join(adapters, 'peft-rank-alpha-pattern'), config);
  const found = (layer: number, module: string) =>
    pattern.modules.find((m) => m.layer === layer && m.module === module);
  assert.deepEqual([found(0, 'q_proj')?.rank, found(1, 'q_proj')?.rank, found(2, 'up_proj')?.rank], [6, 4, 2]);
  assert.deepEqual(
    [found(0, 'q_proj')?.scaling, found(3, 'v_proj')?.scaling, found(4, 'up_proj')?.scaling],
    [8 / 6, 8, 4],
  );
  const f16 = await readAdapter(join(adapters, 'peft-lora-qv-r4', 'as-f16'), config);
  assert.ok(f16.modules.every(({ a, b }) => a.dtype === 'f16' && b.dtype === 'f16'));
});

test('thirty configs of other methods: plain LoRA passes, the rest is refused by name', async (t) => {
  const shared = sharedData(t);
  if (!shared) return;
  const dir = join(shared, 'adapters', 'configs');
  const files = readdirSync(dir);
  assert.equal(files.length, 30);
  const reasons: Record<string, RegExp> = {
    'lora__rank14-target-mlp-bdlora.json': /use_bdlora/,
    'lora__rank32-dora.json': /use_dora/,
    'lora__rank32-kasa.json': /kasa_config/,
  };
  for (const name of files) {
    const value = JSON.parse(readFileSync(join(dir, name), 'utf8'));
    const parse = () => parseAdapterConfig(name, value);
    const message = reasons[name] ?? (value.peft_type === 'LORA' ? null : new RegExp(`peft_type "${value.peft_type}"`));
    if (message) assert.throws(parse, { code: 'ERR_AT_MOE_UNSUPPORTED', message }, name);
    else assert.equal(parse().rank, value.r, name);
  }
});

test('an adapter rewritten from a real one keeps the bytes of its tensors', async (t) => {
  const shared = sharedData(t);
  if (!shared) return;
  const { config } = await readModelConfig(join(shared, 'models', 'stories260K'));
  const dir = temporaryFolder(t);
  mkdirSync(join(dir, 'sub'));
  for (const name of [
    'peft-rank-alpha-pattern',
    'peft-layers-to-transform',
    'peft-lora-regex-targets',
    'peft-lora-qv-r4/as-f16',
  ]) {
    const source = join(shared, 'adapters', name);
    const target = join(dir, 'sub', 'adapter');
    await writeAdapter(target, await readAdapter(source, config), config);
    const weights = 'adapter_model.safetensors';
    assert.deepEqual(readFileSync(join(target, weights)), readFileSync(join(source, weights)), name);
  }
});

test('a folder without an adapter, with half of one, or with a repeated key', async (t) => {
  const dir = temporaryFolder(t);
  await rejectsWith(readAdapter(join(dir, 'none'), tinyModel), 'ERR_AT_MOE_NOT_FOUND');
  await rejectsWith(readAdapter(dir, tinyModel), 'ERR_AT_MOE_NOT_FOUND', /adapter_config\.json/);
  const path = join(dir, 'adapter_config.json');
  writeFileSync(path, JSON.stringify(plain));
  await rejectsWith(readAdapter(dir, tinyModel), 'ERR_AT_MOE_NOT_FOUND', /no adapter_model\.safetensors/);
  writeFileSync(path, '{"peft_type":"LORA","r":4,"r":8}');
  await rejectsWith(readAdapter(dir, tinyModel), 'ERR_AT_MOE_BAD_FILE', /"r" occurs twice/);
  cpSync(path, join(dir, 'adapter_model.safetensors'));
  await rejectsWith(readAdapter(dir, tinyModel), 'ERR_AT_MOE_BAD_FILE');
});
