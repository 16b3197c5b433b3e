// npm run test:neon: compiles the addon for arm64 and runs the check of its kernels (test/kernels) under QEMU, on a processor
// with all instructions that it knows, where every set must run, and on one of the first arm64 processors. Says so and passes
// on other systems than Linux x86-64, and where Debian's cross compiler or QEMU cannot be had.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { buildTools, neonTools, ensure } = require('./system-tools.cjs');

const root = path.join(__dirname, '..');
const out = path.join(root, 'build', 'neon');
const processors = ['max', 'cortex-a57'];

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error || status !== 0) throw new Error(`test:neon: '${path.basename(command)} ${args.join(' ')}' failed`);
}

function build() {
  const system = ['SYSTEM_NAME=Linux', 'SYSTEM_PROCESSOR=aarch64', 'CXX_COMPILER=aarch64-linux-gnu-g++'];
  const flags = [`--out=${out}`, '--cuda=off', ...system.map((value) => `--CDCMAKE_${value}`)];
  run(process.execPath, [path.join(__dirname, 'build-native.cjs'), 'build', ...flags]);
  run('cmake', ['--build', path.join(out, 'cmake'), '--config', 'Release', '--target', 'at_moe_kernels']);
  return ['Release', '.'].map((folder) => path.join(out, 'cmake', folder, 'at_moe_kernels')).find(fs.existsSync);
}

function check(program, processor) {
  const args = ['-cpu', processor, '-L', '/usr/aarch64-linux-gnu', program];
  const { status, stdout, stderr, error } = spawnSync('qemu-aarch64', args, { encoding: 'utf8' });
  console.log(`test:neon: ${processor}\n${stdout}${stderr}`);
  if (error || status !== 0) throw new Error(`test:neon: the kernels are wrong on ${processor}`);
  if (processor === 'max' && /^skipped/m.test(stdout)) throw new Error('test:neon: a set was not run');
}

function main() {
  const skip = (why) => console.log(`test:neon: skipped, ${why}`);
  if (process.platform !== 'linux' || process.arch !== 'x64') return skip('it compiles from Linux x86-64 for arm64');
  try {
    ensure([...buildTools, ...neonTools]);
  } catch (error) {
    return skip(error.message);
  }
  const program = build();
  for (const processor of processors) check(program, processor);
}

try {
  main();
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
