// npm run stage:gpu [-- --arch=90a --with-node]: one folder, build/gpu-stage, that tests this checkout on a machine with a
// GPU and little else: the addon with its kernels, the compiled tests, their fixtures and packages in one archive, and run.sh,
// which says what it runs. Nothing is installed or compiled there. --arch=all builds for every architecture, and takes long;
// --with-node brings this machine's node along.
'use strict';

const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const build = path.join(root, 'build', 'gpu');
const stage = path.join(root, 'build', 'gpu-stage');

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error || status !== 0) throw new Error(`stage:gpu: ${command} failed${error ? `: ${error.message}` : ''}`);
}

function copy(from, to = from) {
  fs.cpSync(path.resolve(root, from), path.join(stage, to), { recursive: true, dereference: true });
}

// The packages that the tests load, with all that those need, as the lock file places them.
function neededPackages() {
  const { packages } = JSON.parse(fs.readFileSync(path.join(root, 'package-lock.json'), 'utf8'));
  const needed = new Set();
  const visit = (name, from) => {
    let folder = from;
    let place = path.posix.join(folder, 'node_modules', name);
    while (!packages[place] && folder !== '') {
      folder = folder.slice(0, Math.max(0, folder.lastIndexOf('node_modules') - 1));
      place = path.posix.join(folder, 'node_modules', name);
    }
    if (!packages[place] || needed.has(place)) return;
    needed.add(place);
    const { dependencies = {}, optionalDependencies = {} } = packages[place];
    for (const each of Object.keys({ ...dependencies, ...optionalDependencies })) visit(each, place);
  };
  for (const name of [...Object.keys(packages[''].dependencies), 'fast-check']) visit(name, '');
  return [...needed].filter((place) => fs.existsSync(path.join(root, place)));
}

const runScript = `#!/usr/bin/env bash
# Usage: [OUT=folder] [STEPS="test memcheck racecheck bench"] [STEP_SECONDS=n] ./run.sh
# Writes one log per step into $OUT (default ./results) and fails if a step did. STEPS=wgmma: products by wgmma, on Hopper.
set -uo pipefail
cd "$(dirname "$0")"
out=\${OUT:-results}
mkdir -p "$out"
if [ ! -d dist ]; then
  tar -xJf stage.tar.xz || python3 -c 'import tarfile; tarfile.open("stage.tar.xz").extractall()' || exit 1
fi
[ -x bin/node ] && PATH=$PWD/bin:$PATH
export PATH AT_MOE_PREBUILD=$PWD AT_MOE_TEST_DEVICES=cuda
command -v node >/dev/null || { echo "there is no node here; stage with --with-node"; exit 1; }

step_test() { node scripts/test-cuda.cjs --test-reporter=tap; }
step_wgmma() { AT_MOE_CUDA_WGMMA=1 node scripts/test-cuda.cjs --test-reporter=tap linear; }
sanitize() {
  local status=0
  for file in dist/test/ops/*.test.js; do
    echo "# $1 $file"
    compute-sanitizer --tool "$1" --error-exitcode 9 node "$file" || status=1
  done
  return $status
}
step_memcheck() { sanitize memcheck; }
step_racecheck() { sanitize racecheck; }
step_bench() {
  local status=0
  for kind in decode prefill train; do
    node dist/lib/cli/main.js bench $kind --device cuda --shape llama-160m --weights bf16 --json || status=1
  done
  return $status
}

failed=0
for step in \${STEPS:-test memcheck racecheck bench}; do
  case $step in
    test | wgmma | memcheck | racecheck | bench) ;;
    *) echo "there is no step '$step'"; exit 1 ;;
  esac
  if timeout "\${STEP_SECONDS:-1800}" bash -c "$(declare -f sanitize "step_$step"); step_$step" >"$out/$step.log" 2>&1; then
    echo "$step: ok"
  else
    echo "$step: FAILED ($?), the end of $out/$step.log:"
    tail -n 30 "$out/$step.log"
    failed=1
  fi
done
exit $failed
`;

function copyNode() {
  const file = path.join(stage, 'bin', 'node');
  fs.mkdirSync(path.dirname(file));
  fs.copyFileSync(fs.realpathSync(process.execPath), file);
  fs.chmodSync(file, 0o755);
  run('strip', [file]);
}

// One archive and run.sh beside it.
function pack() {
  const archive = path.join(root, 'build', 'stage.tar.xz');
  run('tar', ['-cJf', archive, '-C', stage, '.']);
  fs.rmSync(stage, { recursive: true });
  fs.mkdirSync(stage);
  fs.renameSync(archive, path.join(stage, 'stage.tar.xz'));
  fs.writeFileSync(path.join(stage, 'run.sh'), runScript, { mode: 0o755 });
}

function main() {
  const args = process.argv.slice(2);
  const unknown = args.find((arg) => arg !== '--with-node' && !arg.startsWith('--arch='));
  if (unknown) throw new Error(`stage:gpu: unknown argument '${unknown}'`);
  const arch = args.find((arg) => arg.startsWith('--arch='))?.slice('--arch='.length) ?? '90a';
  const architectures = arch === 'all' ? '' : arch.replaceAll(',', ';');
  // With line numbers, for the sanitizer's reports.
  run(process.execPath, [
    'scripts/build-native.cjs',
    ...['build', '--cuda=on', `--out=${build}`, '--CDCMAKE_CUDA_FLAGS=-lineinfo'],
    `--CDAT_MOE_CUDA_ARCHITECTURES=${architectures}`,
  ]);
  run(process.execPath, ['scripts/build-ts.cjs']);
  fs.rmSync(stage, { recursive: true, force: true });
  copy(path.join(build, 'Release', 'at_moe.node'), 'build/Release/at_moe.node');
  run('strip', ['--strip-unneeded', path.join(stage, 'build', 'Release', 'at_moe.node')]);
  for (const each of ['dist', 'test/fixtures', 'package.json', 'scripts/run-tests.cjs', 'scripts/test-cuda.cjs'])
    copy(each);
  for (const each of neededPackages()) copy(each);
  if (args.includes('--with-node')) copyNode();
  pack();
  const size = execFileSync('du', ['-sm', stage], { encoding: 'utf8' }).split('\t')[0];
  console.log(`stage:gpu: ${path.relative(root, stage)}, ${size} MB; run.sh there runs the tests`);
}

try {
  main();
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
