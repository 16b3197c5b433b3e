// npm run test:cuda [-- what run-tests.cjs takes]: the tests on this machine's GPU. Without one it fails and says why.
'use strict';

const { spawnSync } = require('node:child_process');
const path = require('node:path');

const root = path.join(__dirname, '..');
const gpus = require('node-gyp-build')(root)
  .devices()
  .filter(({ name }) => name.startsWith('cuda'));
const gpu = gpus.find(({ available }) => available);
if (!gpu) {
  console.error(`test:cuda: ${gpus.map(({ reason }) => reason).join('; ')}`);
  process.exit(1);
}
console.log(`test:cuda: ${gpu.name}: ${gpu.description}`);
const { status } = spawnSync(
  process.execPath,
  [path.join(__dirname, 'run-tests.cjs'), '--device=cuda', ...process.argv.slice(2)],
  { cwd: root, stdio: 'inherit' },
);
process.exit(status ?? 1);
