// npm run check:instructions [-- --write]: counts the instructions of one call of each hot CPU kernel under callgrind and
// compares them with scripts/instructions.json, so that a compiler's or an edit's extra work shows where timings are noise.
// A kernel fails that takes 5 % more than noted, or 5 % less (note it, then: --write). Of the AVX2 set: valgrind knows no
// AVX-512. Says so and passes where valgrind, the processor or counts of this compiler are missing.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const work = path.join(root, 'build', 'cmake');
const notes = path.join(__dirname, 'instructions.json');
const tolerance = 0.05;

function run(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd: root, encoding: 'utf8' });
  if (error || status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stdout + stderr}`);
  return { stdout, stderr };
}

// What a second call adds.
function count(program, kernel) {
  const [once, twice] = [1, 2].map((calls) => {
    const args = ['--tool=callgrind', '--callgrind-out-file=/dev/null', program, kernel, String(calls)];
    return Number(/Collected : (\d+)/.exec(run('valgrind', args).stderr)[1]);
  });
  return twice - once;
}

function main() {
  const skip = (why) => console.log(`check:instructions: skipped, ${why}`);
  if (process.arch !== 'x64') return skip('it counts kernels of x86-64');
  if (spawnSync('valgrind', ['--version']).status !== 0) return skip('valgrind was not found');
  if (!fs.existsSync(path.join(work, 'CMakeCache.txt'))) return skip('there is no build (npm run build:native)');
  run('cmake', ['--build', work, '--config', 'Release', '--target', 'at_moe_instructions']);
  const program = ['Release', '.'].map((folder) => path.join(work, folder, 'at_moe_instructions')).find(fs.existsSync);
  const [compiler, ...kernels] = run(program, []).stdout.trim().split('\n');
  const noted = JSON.parse(fs.readFileSync(notes, 'utf8'));
  const writes = process.argv.includes('--write');
  if (!writes && !noted[compiler]) return skip(`no counts of ${compiler} are noted`);
  const counts = Object.fromEntries(kernels.map((kernel) => [kernel, count(program, kernel)]));
  if (writes) {
    fs.writeFileSync(notes, `${JSON.stringify({ ...noted, [compiler]: counts }, null, 2)}\n`);
  }
  for (const kernel of kernels) {
    const before = noted[compiler]?.[kernel];
    const ratio = counts[kernel] / before;
    const fails = !writes && !(Math.abs(ratio - 1) <= tolerance);
    if (fails) process.exitCode = 1;
    const beside = before ? `${ratio.toFixed(3)} of ${before}` : 'not noted';
    console.log(`${fails ? 'FAILED' : 'ok'}  ${kernel}: ${counts[kernel]} instructions, ${beside}`);
  }
}

main();
