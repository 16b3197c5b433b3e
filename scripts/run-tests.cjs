// Runs the compiled tests with node's own runner: `npm test [-- part-of-a-path …] [--node-flag …]`.
// Node 20's --test takes no globs, so the files are listed here.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const args = process.argv.slice(2);
const flags = args.filter((arg) => arg.startsWith('--'));
const filters = args.filter((arg) => !arg.startsWith('--'));

const files = fs
  .readdirSync(path.join(root, 'dist', 'test'), { recursive: true })
  .filter((name) => name.endsWith('.test.js'))
  .map((name) => path.join('dist', 'test', name))
  .filter((file) => filters.length === 0 || filters.some((filter) => file.includes(filter.replace(/\.ts$/, '.js'))))
  .sort();
if (files.length === 0) {
  console.error(`no test file matches ${filters.join(' ')}`);
  process.exit(1);
}
const unlessGiven = (flag, value) => (flags.some((given) => given.startsWith(flag)) ? [] : [`${flag}=${value}`]);
const defaults = [...unlessGiven('--test-reporter', 'spec'), ...unlessGiven('--test-concurrency', '2')];
const { status } = spawnSync(process.execPath, ['--test', ...defaults, ...flags, ...files], {
  cwd: root,
  stdio: 'inherit',
});
process.exit(status ?? 1);
