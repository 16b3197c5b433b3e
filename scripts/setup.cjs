// Makes a fresh clone ready to run: system packages, npm packages, the addon, the compiled TypeScript. Each step is
// skipped when there is nothing to do. Flags: --quiet (only problems are printed), --emulated (the addon with the emulated
// device too, where there is one), --lint (the linters' tools instead of the builds).
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { hasEmulated, addon } = require('./emulated.cjs');
const { root, fingerprint, isCurrent, writeStamp } = require('./stamps.cjs');
const { buildTools, lintTools, ensure } = require('./system-tools.cjs');

const quiet = process.argv.includes('--quiet');
const lint = process.argv.includes('--lint');
const emulated = process.argv.includes('--emulated') && hasEmulated;
const exists = (...parts) => fs.existsSync(path.join(root, ...parts));

function run(command, args) {
  const stdout = quiet ? 'pipe' : 'inherit';
  const result = spawnSync(command, args, { cwd: root, stdio: ['ignore', stdout, 'inherit'], encoding: 'utf8' });
  if (result.status === 0) return;
  if (quiet) process.stderr.write(result.stdout ?? '');
  throw new Error(`'${[path.basename(command), ...args].join(' ')}' failed`);
}

function step(name, inputs, products, extra, action) {
  const print = fingerprint(inputs, extra);
  if (isCurrent(name, print) && products.every((product) => exists(product))) return;
  if (!quiet) console.log(`setup: ${name}`);
  action();
  writeStamp(name, print);
}

function checkNode() {
  const wanted = require('../package.json').engines.node.replace('>=', '');
  const [major, minor] = process.versions.node.split('.').map(Number);
  const [wantedMajor, wantedMinor] = wanted.split('.').map(Number);
  if (major < wantedMajor || (major === wantedMajor && minor < wantedMinor)) {
    throw new Error(`Node ${wanted} or newer is needed; this is ${process.version}`);
  }
}

// npm keeps what it installed in a lockfile of its own; optional packages of other platforms are absent there.
function packagesAreCurrent() {
  const read = (...parts) => JSON.parse(fs.readFileSync(path.join(root, ...parts), 'utf8')).packages;
  if (!exists('node_modules', '.package-lock.json')) return false;
  const installed = read('node_modules', '.package-lock.json');
  return Object.entries(read('package-lock.json')).every(
    ([name, { version, optional }]) => name === '' || optional || installed[name]?.version === version,
  );
}

function installPackages() {
  if (packagesAreCurrent()) return;
  if (!quiet) console.log('setup: packages');
  // No package here needs its install script, and our own would only report that the addon is not built yet.
  run(process.platform === 'win32' ? 'npm.cmd' : 'npm', ['ci', '--ignore-scripts']);
}

function main() {
  checkNode();
  installPackages();
  if (lint) return ensure(lintTools);

  const options = ['AT_MOE_CUDA', 'AT_MOE_CUDA_ARCHITECTURES', 'AT_MOE_SANITIZE', 'AT_MOE_WERROR']
    .map((name) => process.env[name])
    .join();
  const nativeInputs = ['native', 'cuda', 'cmake', 'CMakeLists.txt', 'scripts/build-native.cjs', 'package-lock.json'];
  step('native', nativeInputs, ['build/Release/at_moe.node'], options, () => {
    ensure(buildTools);
    run(process.execPath, ['scripts/build-native.cjs', 'build']);
  });
  if (emulated) {
    step('emulated', nativeInputs, [addon], options, () => {
      run(process.execPath, ['scripts/build-native.cjs', 'emulated']);
    });
  }
  const typescriptInputs = ['lib', 'test', 'bench', 'examples', 'scripts', 'tsconfig.json', 'package-lock.json'];
  step('typescript', typescriptInputs, ['dist/lib/index.cjs'], '', () => {
    run(process.execPath, ['scripts/build-ts.cjs']);
  });
}

try {
  main();
} catch (error) {
  console.error(`setup: ${error.message}`);
  process.exitCode = 1;
}
