// Which engine sums products: AT_MOE_CUDA_WGMMA, for a whole backend. The emulated ones round differently, so bits tell.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { close } from '../ops/support.js';

const root = path.join(import.meta.dirname, '..', '..', '..');
const prebuild = path.join(root, 'build', 'emulated');
const skip =
  !existsSync(path.join(prebuild, 'build', 'Release', 'at_moe.node')) && 'the emulated device is not built here';

function child(wgmma: string) {
  return spawnSync(process.execPath, [path.join(import.meta.dirname, 'product-child.js')], {
    encoding: 'utf8',
    env: { ...process.env, AT_MOE_PREBUILD: prebuild, AT_MOE_CUDA_WGMMA: wgmma },
  });
}

test('products: by one engine for all numbers of rows, and by wgmma where it is asked for', { skip }, () => {
  const [plain, wgmma] = ['0', '1'].map((value) => {
    const { status, stdout, stderr } = child(value);
    assert.equal(status, 0, stderr);
    const [alone, among] = JSON.parse(stdout) as number[][];
    assert.deepEqual(alone, among);
    return alone!;
  });
  close(wgmma!, plain!, 1e-5, 'y');
  assert.notDeepEqual(wgmma, plain);
});

test('products: another value is an error', { skip }, () => {
  const { status, stderr } = child('yes');
  assert.notEqual(status, 0);
  assert.match(stderr, /AT_MOE_CUDA_WGMMA is 'yes': 0 or 1 was expected/);
});
