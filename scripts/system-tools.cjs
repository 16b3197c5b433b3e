// What a build needs from the system, how to see whether it is there, and the Debian package that brings it.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const works = (command, ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0;

function compiles(source) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'at-moe-'));
  const file = path.join(folder, 'try.cc');
  fs.writeFileSync(file, source);
  const found = works(process.env.CXX ?? 'c++', '-std=c++20', '-fsyntax-only', file);
  fs.rmSync(folder, { recursive: true });
  return found;
}

function cmakeIsRecent() {
  const { stdout } = spawnSync('cmake', ['--version'], { encoding: 'utf8' });
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(stdout ?? '') ?? [];
  return Number(major) > 3 || (Number(major) === 3 && Number(minor) >= 24);
}

const buildTools = [
  { name: 'CMake 3.24 or newer', debian: 'cmake', present: cmakeIsRecent },
  {
    name: 'ninja or make',
    debian: 'ninja-build',
    present: () => works('ninja', '--version') || works('make', '--version'),
  },
  {
    name: 'a C++20 compiler',
    debian: 'g++',
    present: () => compiles('#include <coroutine>\n#include <span>\nstd::span<int> all;\n'),
  },
  { name: 'Highway headers', debian: 'libhwy-dev', present: () => compiles('#include <hwy/highway.h>\n') },
];

const lintTools = [
  { name: 'clang-format', debian: 'clang-format', present: () => works('clang-format', '--version') },
  { name: 'clang-tidy', debian: 'clang-tidy', present: () => works('clang-tidy', '--version') },
];

const neonTools = [
  {
    name: 'a C++ compiler for arm64',
    debian: 'g++-aarch64-linux-gnu',
    present: () => works('aarch64-linux-gnu-g++', '--version'),
  },
  { name: 'QEMU for programs', debian: 'qemu-user', present: () => works('qemu-aarch64', '--version') },
];

function aptPrefix() {
  if (!works('apt-get', '--version')) return undefined;
  if (process.getuid?.() === 0) return [];
  return works('sudo', '-n', 'true') ? ['sudo', '-n'] : undefined;
}

// Installs what is missing where it can (apt, as root or with sudo), else throws with the command to run.
function ensure(tools) {
  const missing = tools.filter((tool) => !tool.present());
  if (missing.length === 0) return;
  const names = missing.map((tool) => tool.name).join(', ');
  const packages = missing.map((tool) => tool.debian);
  const prefix = aptPrefix();
  if (prefix) {
    console.log(`missing: ${names}; installing ${packages.join(' ')} with apt-get`);
    const apt = (...args) => {
      const [command, ...rest] = [...prefix, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-qq', ...args];
      return spawnSync(command, rest, { stdio: ['ignore', 'ignore', 'inherit'] }).status;
    };
    apt('update');
    apt('install', '-y', '--no-install-recommends', ...packages);
    if (missing.every((tool) => tool.present())) return;
  }
  const hint =
    process.platform === 'darwin'
      ? `xcode-select --install; brew install ${packages.filter((name) => name !== 'g++').join(' ')}`
          .replace('ninja-build', 'ninja')
          .replace('libhwy-dev', 'highway')
      : `sudo apt-get update && sudo apt-get install -y ${packages.join(' ')}`;
  throw new Error(`missing: ${names}\nInstall them and try again, for example:\n  ${hint}`);
}

module.exports = { buildTools, lintTools, neonTools, ensure };
