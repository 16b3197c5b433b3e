// Runs the compiled tests with node's own runner: `npm test [-- part-of-a-path …] [--node-flag …]`, on the CPU or on
// AT_MOE_TEST_DEVICES; then, on the CPU, products with bf16 weights by each kind of kernels, and a part of all on the
// emulated device. `--device=emulated` (npm run test:emulated): all tests that take a device, on the emulated one,
// those of ops and of decode steps under its other schedules too, and those of products with either engine of
// products. `--device=cuda`: on the GPU. Node 20's --test takes no globs, so the files are listed here.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { hasEmulated, folder } = require('./emulated.cjs');

const root = path.join(__dirname, '..');
const args = process.argv.slice(2);
const device = args.find((arg) => arg.startsWith('--device='))?.slice('--device='.length);
const flags = args.filter((arg) => arg.startsWith('--') && !arg.startsWith('--device='));
const filters = args.filter((arg) => !arg.startsWith('--'));

const quickGolden = 'llama-token-dense';
const schedules = [
  { name: 'forward order', env: { AT_MOE_EMULATED_ORDER: 'forward' } },
  { name: 'reverse order', env: { AT_MOE_EMULATED_ORDER: 'reverse' } },
  { name: 'random order', env: { AT_MOE_EMULATED_ORDER: 'random', AT_MOE_EMULATED_SEED: '2' } },
  { name: 'four blocks in flight', env: { AT_MOE_EMULATED_RESIDENT: '4', AT_MOE_EMULATED_SEED: '3' } },
];

const byWgmma = { AT_MOE_CUDA_WGMMA: '1' };
const inBf16 = { AT_MOE_TEST_WEIGHTS: 'bf16', AT_MOE_TEST_GOLDEN: 'llama-bf16-weights' };
const byVectors = { ...inBf16, AT_MOE_SIMD: 'avx512bf16' };
const byTiles = { ...inBf16, AT_MOE_SIMD: 'amx', AT_MOE_PREBUILD: path.join(root, folder) };

const files = fs
  .readdirSync(path.join(root, 'dist', 'test'), { recursive: true })
  .filter((name) => name.endsWith('.test.js'))
  .map((name) => path.join('dist', 'test', name))
  .filter((file) => filters.length === 0 || filters.some((filter) => file.includes(filter.replace(/\.ts$/, '.js'))))
  .sort();

// Whether a test, or what it imports from dist/test, asks test/helpers/devices.ts for devices.
function takesDevice(file) {
  if (file === path.join('dist', 'test', 'helpers', 'devices.js')) return true;
  const imports = fs.readFileSync(path.join(root, file), 'utf8').matchAll(/^(?:import|export) .* from '(\.[^']+)'/gm);
  return [...imports]
    .map(([, name]) => path.join(path.dirname(file), name))
    .some((name) => name.startsWith(path.join('dist', 'test')) && takesDevice(name));
}

// Ops, and the steps whose ops share launches.
const isOp = (file) =>
  path.dirname(file) === path.join('dist', 'test', 'ops') ||
  file === path.join('dist', 'test', 'model', 'steps.test.js');
const isLinear = (file) => isOp(file) && path.basename(file).startsWith('linear');
const isGolden = (file) => path.basename(file) === 'golden.test.js';

function plan() {
  const emulated = { AT_MOE_TEST_DEVICES: 'emulated', AT_MOE_PREBUILD: path.join(root, folder) };
  const onDevice = files.filter(takesDevice);
  if (device === 'emulated') {
    const all = schedules.map(({ name, env }, i) => ({
      name: `emulated device, ${name}`,
      files: i === 0 ? onDevice : onDevice.filter(isOp),
      env: { ...emulated, ...env },
    }));
    const products = schedules.map(({ name, env }, i) => ({
      name: `emulated device, products by wgmma, ${name}`,
      files: onDevice.filter((file) => isLinear(file) || (i === 0 && isGolden(file))),
      env: { ...emulated, ...byWgmma, AT_MOE_TEST_GOLDEN: quickGolden, ...env },
    }));
    return [...all, ...products];
  }
  if (device) return [{ name: device, files: onDevice, env: { AT_MOE_TEST_DEVICES: device } }];
  const first = { name: process.env.AT_MOE_TEST_DEVICES ?? 'cpu', files, env: {} };
  if (process.env.AT_MOE_TEST_DEVICES) return [first];
  const part = onDevice.filter((file) => isOp(file) || isGolden(file));
  const products = part.filter((file) => isLinear(file) || isGolden(file));
  return [
    first,
    { name: 'cpu, weights of bf16', files: products.filter(isLinear), env: inBf16 },
    { name: 'cpu, pairs by vectors', files: products, env: byVectors },
    { name: 'cpu, pairs by emulated tiles', files: products, env: byTiles },
    { name: 'emulated device', files: part, env: { ...emulated, AT_MOE_TEST_GOLDEN: quickGolden } },
    { name: 'emulated device, products by wgmma', files: part.filter(isLinear), env: { ...emulated, ...byWgmma } },
  ];
}

const unlessGiven = (flag, value) => (flags.some((given) => given.startsWith(flag)) ? [] : [`${flag}=${value}`]);
const defaults = [
  ...unlessGiven('--test-reporter', 'spec'),
  ...unlessGiven('--test-concurrency', '2'),
  ...unlessGiven('--test-timeout', 1_200_000), // of a file: one that hangs fails
];

// The set of the CPU's kernels that AT_MOE_SIMD leaves a run.
function setOf({ env }) {
  const print = `import('./dist/lib/index.js').then(({ devices }) => console.log(devices()[0].description))`;
  const { stdout } = spawnSync(process.execPath, ['-e', print], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  return stdout.trim().split(', ').at(-1);
}

function passes(run) {
  const { status } = spawnSync(process.execPath, ['--test', ...defaults, ...flags, ...run.files], {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...run.env },
  });
  return status === 0;
}

function main() {
  if (device && !['cuda', 'emulated'].includes(device)) throw new Error(`--device=${device}: cuda or emulated`);
  if (files.length === 0) throw new Error(`no test file matches ${filters.join(' ')}`);
  const runs = plan().filter((run) => run.files.length > 0);
  const failed = [];
  for (const run of runs) {
    if (run.env.AT_MOE_PREBUILD && !hasEmulated) {
      console.log(`tests on the ${run.name}: skipped, it exists on Linux x86-64 only`);
      continue;
    }
    const set = run.env.AT_MOE_SIMD;
    if (set && setOf(run) !== set) {
      console.log(`tests on the ${run.name}: skipped, this processor or build does not run ${set}`);
      continue;
    }
    if (runs.length > 1) console.log(`tests: ${run.name}`);
    if (!passes(run)) failed.push(run.name);
  }
  if (failed.length === 0) return;
  if (runs.length > 1) console.error(`tests failed: ${failed.join('; ')}`);
  process.exitCode = 1;
}

try {
  main();
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
