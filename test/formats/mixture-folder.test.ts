import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  nameProblem,
  parseMixtureFile,
  readMixture,
  readMixtureFile,
  writeMixture,
} from '../../lib/formats/mixture-folder.js';
import { modelDescriptor } from '../../lib/formats/model-folder.js';
import { readAdapter } from '../../lib/formats/peft.js';
import { readRouter } from '../../lib/formats/router-file.js';
import { readSafetensorsHeader, readWeights, writeSafetensors } from '../../lib/formats/safetensors.js';
import { parseRoutingOptions } from '../../lib/routing-options.js';
import { golden, rejectsWith, temporaryFolder, tensor, tinyBase, tinyMixture, tinyModel } from './support.js';

const sorted = <T extends { name: string }>(list: T[]) => list.toSorted((a, b) => (a.name < b.name ? -1 : 1));

test('round trip: dense, static, everything learned, without a general adapter', async (t) => {
  const dir = join(temporaryFolder(t), 'mixture');
  const learned = { within_group: 'static', output_scale: 'learned', general_balance: 0.5, expert_top_k: 2 };
  const mixtures = [tinyMixture(0.5), tinyMixture(2, learned)];
  for (const mixture of [...mixtures, { ...tinyMixture(1, { general_balance: 1 }), general: null }]) {
    await writeMixture(dir, tinyBase, mixture);
    const { warnings, ...read } = await readMixture(dir, tinyBase);
    assert.deepEqual(warnings, []);
    assert.deepEqual({ ...read, router: sorted(read.router) }, { ...mixture, router: sorted(mixture.router) });
    assert.equal((await readMixtureFile(dir)).general, mixture.general ? 'general' : null);
    assert.deepEqual(readdirSync(join(dir, '..')), ['mixture']);
  }
});

test('the base: another config.json warns, other shapes are an error', async (t) => {
  const dir = join(temporaryFolder(t), 'mixture');
  await writeMixture(dir, tinyBase, tinyMixture(1));
  const { warnings } = await readMixture(dir, { ...tinyBase, sha256: 'b'.repeat(64) });
  assert.match(warnings.join(), /mixture\.json.*tiny/);
  const wider = { ...tinyBase, config: { ...tinyModel, hiddenSize: 16 } };
  await rejectsWith(readMixture(dir, wider), 'ERR_AT_MOE_MISMATCH', /hidden_size 8 and 2 layers.*16 and 2/);
  const deeper = { ...tinyBase, config: { ...tinyModel, numLayers: 3 } };
  await rejectsWith(readMixture(dir, deeper), 'ERR_AT_MOE_MISMATCH', /2 layers.*8 and 3/);
  const narrower = { ...tinyBase, config: { ...tinyModel, intermediateSize: 10 } };
  await rejectsWith(readMixture(dir, narrower), 'ERR_AT_MOE_MISMATCH', /diagnosis.*gate_proj.*\[12,2\].*\[10,2\]/);
});

test('the router: missing, foreign, misshapen, mistyped and non-finite tensors are named', async (t) => {
  const dir = join(temporaryFolder(t), 'mixture');
  await writeMixture(dir, tinyBase, tinyMixture(1));
  const path = join(dir, 'router.safetensors');
  const tensors = await readWeights(await readSafetensorsHeader(path));
  const without = tensors.filter(({ name }) => name !== 'layers.1.expert.weight');
  const bytes = new Uint8Array(3 * 8 * 2);
  const cases: [Parameters<typeof writeSafetensors>[1], string, RegExp][] = [
    [without, 'ERR_AT_MOE_MISMATCH', /no tensor "layers\.1\.expert\.weight" of shape \[3,8\]/],
    [[...tensors, tensor('layers.0.scale', [1], 1)], 'ERR_AT_MOE_MISMATCH', /"layers\.0\.scale" has no place/],
    [
      [...tensors, tensor('layers.2.group.bias', [2], 1)],
      'ERR_AT_MOE_MISMATCH',
      /"layers\.2\.group\.bias" has no place/,
    ],
    [[...without, tensor('layers.1.expert.weight', [2, 8], 1)], 'ERR_AT_MOE_MISMATCH', /\[2,8\].*\[3,8\]/],
    [
      [...without, { name: 'layers.1.expert.weight', dtype: 'F16', shape: [3, 8], data: bytes }],
      'ERR_AT_MOE_MISMATCH',
      /F16.*F32/,
    ],
    [
      [...without, tensor('layers.1.expert.weight', [3, 8], Number.NaN)],
      'ERR_AT_MOE_NOT_FINITE',
      /router\.safetensors.*expert\.weight/,
    ],
  ];
  for (const [changed, code, pattern] of cases) {
    await writeSafetensors(path, changed);
    await rejectsWith(readMixture(dir, tinyBase), code as 'ERR_AT_MOE_MISMATCH', pattern);
  }
  rmSync(path);
  await rejectsWith(readMixture(dir, tinyBase), 'ERR_AT_MOE_NOT_FOUND', /router\.safetensors/);
});

test('mixture.json: every wrong field is refused', async (t) => {
  const dir = join(temporaryFolder(t), 'mixture');
  await writeMixture(dir, tinyBase, tinyMixture(1));
  const json = JSON.parse(readFileSync(join(dir, 'mixture.json'), 'utf8'));
  parseMixtureFile('m', json);
  const changes: [object, RegExp][] = [
    [{ format: 'other' }, /format/],
    [{ version: 0 }, /version/],
    [{ extra: 1 }, /extra/],
    [{ base: { ...json.base, sha256: 'x' } }, /base\.sha256/],
    [{ groups: [] }, /needs a group/],
    [{ groups: [{ name: 'a', experts: [] }] }, /no expert/],
    [{ groups: [{ name: '../a', experts: ['x'] }] }, /group name "\.\.\/a"/],
    [{ groups: [{ name: 'a', experts: ['..'] }] }, /expert name "\.\."/],
    [{ groups: [{ name: 'a', experts: ['x', 'X'] }] }, /"X" is used twice/],
    [{ general: '' }, /general adapter name ""/],
    [{ routing: { scope: 'word' } }, /routing: scope/],
    [{ routing: undefined }, /routing/],
    [{ general: null }, /general_balance "learned" without/],
  ];
  for (const [change, message] of changes) {
    assert.throws(() => parseMixtureFile('m', { ...json, ...change }), { code: 'ERR_AT_MOE_BAD_FILE', message });
  }
  assert.throws(() => parseMixtureFile('m', { ...json, version: 2 }), {
    code: 'ERR_AT_MOE_UNSUPPORTED',
    message: /version 2/,
  });
});

test('names: usable as paths, unique ignoring case across all groups', async (t) => {
  const one = (name: string) => nameProblem({ groups: [{ name: 'g', experts: [name] }], general: null });
  for (const name of ['a', 'A.b_c-9', '0', 'x'.repeat(64)]) assert.equal(one(name), undefined);
  for (const name of ['', '.a', '-a', '_a', 'a/b', 'a\\b', 'a b', 'ä', 'x'.repeat(65), 'a\n'])
    assert.match(one(name) ?? '', /expert name/);
  const groups = [
    { name: 'g', experts: ['a'] },
    { name: 'h', experts: ['A'] },
  ];
  assert.match(nameProblem({ groups, general: null }) ?? '', /expert name "A" is used twice/);
  const mixture = tinyMixture(1);
  mixture.groups[1] = { ...(mixture.groups[1] as (typeof mixture.groups)[0]), name: 'FUNCTION' };
  const dir = join(temporaryFolder(t), 'mixture');
  await assert.rejects(writeMixture(dir, tinyBase, mixture), RangeError);
});

test('folders of experts must be those that mixture.json names', async (t) => {
  const dir = join(temporaryFolder(t), 'mixture');
  const save = () => writeMixture(dir, tinyBase, tinyMixture(1));
  await save();
  mkdirSync(join(dir, 'experts', 'style', 'casual'));
  await rejectsWith(readMixture(dir, tinyBase), 'ERR_AT_MOE_BAD_FILE', /casual/);
  await save();
  renameSync(join(dir, 'experts', 'style'), join(dir, 'experts', 'tone'));
  await rejectsWith(readMixture(dir, tinyBase), 'ERR_AT_MOE_BAD_FILE', /tone/);
  await save();
  rmSync(join(dir, 'experts', 'style', 'formal'), { recursive: true });
  await rejectsWith(readMixture(dir, tinyBase), 'ERR_AT_MOE_NOT_FOUND', /formal/);
  await save();
  const json = JSON.parse(readFileSync(join(dir, 'mixture.json'), 'utf8'));
  const routing = { ...json.routing, general_balance: 1 };
  writeFileSync(join(dir, 'mixture.json'), JSON.stringify({ ...json, general: null, routing }));
  await rejectsWith(readMixture(dir, tinyBase), 'ERR_AT_MOE_BAD_FILE', /general/);
});

test('every golden case becomes a mixture folder and comes back', async (t) => {
  for (const name of readdirSync(golden)) {
    const source = join(golden, name);
    const { descriptor, sha256 } = await modelDescriptor(join(source, 'base'));
    const base = { nameOrPath: name, config: descriptor.config, sha256 };
    const json = JSON.parse(readFileSync(join(source, 'case.json'), 'utf8'));
    const routing = parseRoutingOptions(json.routing, json.general !== null);
    const groups = [];
    for (const group of json.groups as { name: string; experts: string[] }[]) {
      const experts = [];
      for (const expert of group.experts) {
        experts.push({
          name: expert,
          adapter: await readAdapter(join(source, 'experts', group.name, expert), base.config),
        });
      }
      groups.push({ name: group.name, experts });
    }
    const general = json.general && {
      name: json.general,
      adapter: await readAdapter(join(source, 'general'), base.config),
    };
    const sizes = groups.map(({ experts }) => experts.length);
    const router = await readRouter(join(source, 'router.safetensors'), sizes, routing, base.config);
    const mixture = { groups, general, routing, router };
    const dir = join(temporaryFolder(t), name);
    await writeMixture(dir, base, mixture);
    assert.deepEqual(await readMixture(dir, base), { ...mixture, warnings: [] }, name);
  }
});
