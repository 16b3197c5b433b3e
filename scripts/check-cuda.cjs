// npm run check:cuda: compiles every .cu under cuda/ for every architecture in cmake/cuda-architectures.txt that this
// nvcc knows, needs no GPU, and reports registers, spills and shared memory per kernel. A spill fails.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');

function findNvcc() {
  const folders = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda'].filter(Boolean);
  const candidates = ['nvcc', ...folders.map((folder) => path.join(folder, 'bin', 'nvcc'))];
  return candidates.find((nvcc) => spawnSync(nvcc, ['--version'], { stdio: 'ignore' }).status === 0);
}

function architectures(nvcc) {
  const known = spawnSync(nvcc, ['--list-gpu-arch'], { encoding: 'utf8' }).stdout.split('\n');
  const wanted = fs
    .readFileSync(path.join(root, 'cmake', 'cuda-architectures.txt'), 'utf8')
    .split('\n')
    .filter(Boolean);
  return wanted.filter((name) => known.includes(`compute_${Number.parseInt(name, 10)}`));
}

// ptxas -v prints, for each kernel: "Compiling entry function 'name' for 'sm_80'", stack and spills, "Used N registers, …".
function kernels(log) {
  const found = [];
  for (const line of log.split('\n')) {
    const entry = /Compiling entry function '([^']+)'/.exec(line);
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    const used = /Used (\d+) registers(.*)/.exec(line);
    if (entry) found.push({ name: entry[1], registers: 0, spilled: 0, shared: 0 });
    const kernel = found.at(-1);
    if (kernel && spills) kernel.spilled = Number(spills[1]) + Number(spills[2]);
    if (kernel && used) {
      kernel.registers = Number(used[1]);
      kernel.shared = Number(/(\d+) bytes smem/.exec(used[2])?.[1] ?? 0);
    }
  }
  return found;
}

function compile(nvcc, source, architecture, folder) {
  const output = path.join(folder, `${path.basename(source)}.${architecture}.cubin`);
  const flags = [
    '-std=c++20',
    '-O3',
    '--expt-relaxed-constexpr',
    '-cubin',
    `-arch=sm_${architecture}`,
    '-Xptxas=-v',
    '-I',
    'native',
    '-I',
    '.',
  ];
  const { status, stderr } = spawnSync(nvcc, [...flags, source, '-o', output], { cwd: root, encoding: 'utf8' });
  if (status !== 0) {
    console.log(`${source} sm_${architecture}: does not compile\n${stderr}`);
    return false;
  }
  let ok = true;
  for (const { name, registers, spilled, shared } of kernels(stderr)) {
    const spill = spilled > 0 ? `, ${spilled} bytes SPILLED` : '';
    console.log(`${source} sm_${architecture} ${name}: ${registers} registers, ${shared} bytes shared${spill}`);
    ok &&= spilled === 0;
  }
  return ok;
}

function main() {
  const sources = fs
    .readdirSync(path.join(root, 'cuda'), { recursive: true })
    .filter((name) => name.endsWith('.cu'))
    .map((name) => path.join('cuda', name))
    .sort();
  if (sources.length === 0) return console.log('check:cuda: no .cu files under cuda/, nothing to check');
  const nvcc = findNvcc();
  if (!nvcc) return console.log(`check:cuda: nvcc was not found, ${sources.length} files left unchecked`);
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'at-moe-cuda-'));
  const targets = architectures(nvcc);
  let bad = 0;
  for (const source of sources) for (const target of targets) bad += compile(nvcc, source, target, folder) ? 0 : 1;
  fs.rmSync(folder, { recursive: true });
  console.log(
    `check:cuda: ${sources.length} files for sm_${targets.join(', sm_')}: ${bad === 0 ? 'ok' : `${bad} failed`}`,
  );
  if (bad > 0) process.exitCode = 1;
}

main();
