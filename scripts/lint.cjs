// npm run lint: biome, tsc, clang-format and clang-tidy; prints what each found and fails if any did.
// npm run format (--write): biome and clang-format rewrite what they can.
'use strict';

const { spawn, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const write = process.argv.includes('--write');
const failed = [];

function run(name, command, args) {
  console.log(`lint: ${name}`);
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error) console.error(error.message);
  if (status !== 0) failed.push(name);
}

const npmTool = (name, ...args) => run(name, path.join(root, 'node_modules', '.bin', name), args);

function nativeFiles(pattern) {
  return ['native', 'cuda', 'test']
    .flatMap((folder) =>
      fs.readdirSync(path.join(root, folder), { recursive: true }).map((name) => path.join(folder, name)),
    )
    .filter((file) => pattern.test(file))
    .sort();
}

// One clang-tidy per file, two at a time, on what the last native build compiled. Not on cuda/: what is compiled there is
// CUDA, or the emulated device, which takes g++'s half floats.
async function clangTidy() {
  const database = path.join(root, 'build', 'cmake');
  if (!fs.existsSync(path.join(database, 'compile_commands.json'))) {
    console.log('lint: clang-tidy skipped, build/cmake/compile_commands.json is missing (npm run build:native)');
    return;
  }
  console.log('lint: clang-tidy');
  const commands = JSON.parse(fs.readFileSync(path.join(database, 'compile_commands.json'), 'utf8'));
  const files = [
    ...new Set(commands.map((command) => path.relative(root, path.resolve(command.directory, command.file)))),
  ];
  const queue = files.filter((file) => file.startsWith('native')).filter((file) => file.endsWith('.cc'));
  const one = (file) =>
    new Promise((resolve) => {
      const tidy = spawn('clang-tidy', ['-p', database, '--quiet', file], { cwd: root });
      let output = '';
      tidy.stdout.on('data', (text) => {
        output += text;
      });
      tidy.on('error', (error) => {
        output += error.message;
      });
      tidy.on('close', (status) => {
        if (output.trim() !== '') console.log(output.trim());
        if (status !== 0 && !failed.includes('clang-tidy')) failed.push('clang-tidy');
        resolve();
      });
    });
  const worker = async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) await one(file);
  };
  await Promise.all([worker(), worker()]);
}

async function main() {
  npmTool('biome', 'check', ...(write ? ['--write'] : []), '.');
  const formatted = nativeFiles(/\.(cc|h|cu|cuh)$/);
  run('clang-format', 'clang-format', [...(write ? ['-i'] : ['--dry-run', '-Werror']), ...formatted]);
  if (!write) {
    npmTool('tsc', '--noEmit');
    await clangTidy();
  }
  if (failed.length > 0) {
    console.error(`lint: failed: ${failed.join(', ')}`);
    process.exitCode = 1;
  }
}

main();
