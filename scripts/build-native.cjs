#!/usr/bin/env node
// Configures and builds the addon: the one caller of CMake, behind `npm run build`, binding.gyp and prebuildify.
//
//   node scripts/build-native.cjs [build|rebuild|install|emulated] [--debug] [--arch=x64] [--out=DIR] [--cuda=on|off|auto]
//                                [--CDNAME=VALUE …]
//
// `emulated` builds the addon with the emulated device, test equipment, into <out>/emulated instead.
// The addon lands in <out>/<Release|Debug>/at_moe.node, CMake works in <out>/cmake; <out> is build/ unless given.
// Every AT_MOE_… option of CMakeLists.txt may also come from the environment, and goes back to its default when absent.
// node-gyp's other flags (--target, --devdir, --release) are accepted and mean nothing here.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const cmakeJs = resolveOptional('cmake-js/bin/cmake-js');
const optionDefaults = {
  AT_MOE_CUDA: 'auto',
  AT_MOE_CUDA_ARCHITECTURES: '',
  AT_MOE_SANITIZE: '',
  AT_MOE_WERROR: 'OFF',
};

function parse(argv) {
  const parsed = { command: 'build', debug: false, arch: process.arch, out: 'build', defines: {} };
  for (const name of Object.keys(optionDefaults)) parsed.defines[name] = process.env[name] ?? optionDefaults[name];
  const args = [...argv];
  while (args.length > 0) {
    const [flag, inline] = args.shift().split(/=(.*)/s);
    const value = () => inline ?? args.shift();
    if (['build', 'rebuild', 'install', 'emulated'].includes(flag)) parsed.command = flag;
    else if (flag === '--debug') parsed.debug = inline !== 'false';
    else if (flag === '--release') parsed.debug = false;
    else if (flag === '--arch') parsed.arch = value();
    else if (flag === '--out') parsed.out = value();
    else if (flag === '--cuda') parsed.defines.AT_MOE_CUDA = value();
    else if (flag.startsWith('--CD')) parsed.defines[flag.slice(4)] = value();
    else if (flag === '--target' || flag === '--devdir') value();
    else throw new Error(`build-native: unknown argument '${flag}'`);
  }
  return parsed;
}

function run(command, args) {
  const { status, error, signal } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error?.code === 'ENOENT') throw new Error(`build-native: '${command}' was not found`);
  if (error) throw error;
  if (status !== 0) throw new Error(`build-native: '${path.basename(command)}' failed (${signal ?? status})`);
}

function has(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

function resolveOptional(name) {
  try {
    return require.resolve(name);
  } catch {
    return undefined;
  }
}

function withCmakeJs({ work, config, defines, arch, target }) {
  const common = [cmakeJs, '-O', work, '-B', config, '-a', arch, '-l', 'warn'];
  for (const [name, value] of Object.entries(defines)) common.push(`--CD${name}=${value}`);
  run(process.execPath, [...common, 'configure']);
  run(process.execPath, [...common, '-T', target, '-p', String(os.availableParallelism()), 'build']);
}

function withCmake({ work, config, defines, target }) {
  const configure = ['-S', root, '-B', work, `-DCMAKE_BUILD_TYPE=${config}`];
  if (has('ninja')) configure.push('-G', 'Ninja');
  for (const [name, value] of Object.entries(defines)) configure.push(`-D${name}=${value}`);
  run('cmake', configure);
  run('cmake', [
    '--build',
    work,
    '--target',
    target,
    '--config',
    config,
    '--parallel',
    String(os.availableParallelism()),
  ]);
}

function main() {
  const options = parse(process.argv.slice(2));
  if (options.command === 'install' && fs.existsSync(path.join(root, 'tsconfig.json'))) {
    console.log('at-moe: a checkout of the sources; `npm run build` builds the addon');
    return;
  }
  const out = path.resolve(root, options.out);
  const job = {
    work: path.join(out, 'cmake'),
    config: options.debug ? 'Debug' : 'Release',
    defines: { ...options.defines, AT_MOE_OUT: out },
    arch: options.arch,
    target: options.command === 'emulated' ? 'at_moe_emulated' : 'at_moe',
  };
  if (options.command === 'rebuild') fs.rmSync(job.work, { recursive: true, force: true });
  if (cmakeJs) withCmakeJs(job);
  else withCmake(job);
}

try {
  main();
} catch (error) {
  console.error(error.message);
  if (!cmakeJs) {
    console.error('Building at-moe takes CMake 3.24 or newer, a C++20 compiler and the headers of Google Highway');
    console.error('(Debian, Ubuntu: apt-get install cmake ninja-build g++ libhwy-dev)');
  }
  process.exitCode = 1;
}
