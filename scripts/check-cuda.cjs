// npm run check:cuda: compiles every kernel file under cuda/ for every architecture in cmake/cuda-architectures.txt that
// this nvcc knows; needs no GPU. A kernel fails that spills, uses more registers than its limit or more static shared memory
// than a block has; so does a file of which ptxas says that it loses performance, and the whole when its compressed code is
// too large for the package. Prints one line per kernel:
// its worst instance on its worst architecture.
// Results are kept under build/check-cuda by the contents of a file and of all that it includes.
'use strict';

const { spawn, spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const cache = path.join(root, 'build', 'check-cuda');
const flags = ['-std=c++20', '-O3', '--expt-relaxed-constexpr', '-Xptxas=-v', '-fatbin', '-I', 'native', '-I', '.'];

// Of the addon's 25 MB; CUDA's runtime and the rest of the addon take less than the others.
const codeLimit = 20e6;
const sharedLimit = 48 * 1024;
// Two blocks of 256 threads then fit a multiprocessor of 65 536 registers.
const registerLimit = 128;
// Attention over heads of more than 128 values: shared memory admits one block a multiprocessor, and so may registers.
// Products of warpgroups: all registers of a multiprocessor for one block of 384 threads, which then shares them out anew.
const ownRegisterLimits = { attend: 200, backward_queries: 180, backward_keys: 240, multiply_tensor_tiles: 168 };

function findNvcc() {
  const folders = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda'].filter(Boolean);
  const candidates = ['nvcc', ...folders.map((folder) => path.join(folder, 'bin', 'nvcc'))];
  return candidates.find((nvcc) => spawnSync(nvcc, ['--version'], { stdio: 'ignore' }).status === 0);
}

const output = (command, ...args) => spawnSync(command, args, { encoding: 'utf8' }).stdout;

function architectures(nvcc) {
  const known = output(nvcc, '--list-gpu-arch').split('\n');
  const list = fs.readFileSync(path.join(root, 'cmake', 'cuda-architectures.txt'), 'utf8');
  return list
    .split('\n')
    .filter(Boolean)
    .filter((name) => known.includes(`compute_${Number.parseInt(name, 10)}`));
}

// The file and what it includes of ours, in a fixed order.
function sourcesOf(file, seen = new Set()) {
  if (seen.has(file)) return seen;
  seen.add(file);
  for (const [, name] of fs.readFileSync(path.join(root, file), 'utf8').matchAll(/^\s*#\s*include\s*"([^"]+)"/gm)) {
    const found = [name, path.join('native', name)].find((each) => fs.existsSync(path.join(root, each)));
    if (found) sourcesOf(found, seen);
  }
  return seen;
}

function hashOf(file, compiler) {
  const hash = crypto.createHash('sha256').update(compiler);
  for (const each of sourcesOf(file)) hash.update(`${each}\0`).update(fs.readFileSync(path.join(root, each)));
  return hash.digest('hex');
}

// The last name of a mangled function: _ZN6at_moe4cuda…11gather_rowsI… -> gather_rows.
function nameOf(mangled) {
  let rest = mangled.replace(/^_ZN?/, '');
  let name = mangled;
  for (let part = /^(\d+)/.exec(rest); part; part = /^(\d+)/.exec(rest)) {
    const start = part[1].length;
    const end = start + Number(part[1]);
    name = rest.slice(start, end);
    rest = rest.slice(end);
  }
  return name;
}

// ptxas -v prints, for each kernel: "Compiling entry function 'name' for 'sm_80'", stack and spills, "Used N registers, …".
function kernels(log) {
  const found = [];
  for (const line of log.split('\n')) {
    const entry = /Compiling entry function '([^']+)' for '([^']+)'/.exec(line);
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    const used = /Used (\d+) registers(.*)/.exec(line);
    if (entry) found.push({ name: nameOf(entry[1]), architecture: entry[2], registers: 0, spilled: 0, shared: 0 });
    const kernel = found.at(-1);
    if (kernel && spills) kernel.spilled += Number(spills[1]) + Number(spills[2]);
    if (kernel && used) {
      kernel.registers = Number(used[1]);
      kernel.shared = Number(/(\d+) bytes smem/.exec(used[2])?.[1] ?? 0);
    }
  }
  return found;
}

// Products of warpgroups that wait for each other, requests for registers that are ignored.
const lossesIn = (log) => log.split('\n').filter((line) => line.includes('Potential Performance Loss'));

// What cmake/cuda.cmake compiles for: machine code for each, PTX of the lowest, compressed where nvcc can.
function codeFlags(nvcc, targets) {
  const codes = targets.map((name) => `-gencode=arch=compute_${name},code=sm_${name}`);
  codes.push(`-gencode=arch=compute_${targets[0]},code=compute_${targets[0]}`);
  if (output(nvcc, '--help').includes('--compress-mode')) codes.push('--compress-mode=size');
  return codes;
}

function compile(nvcc, source, codes, folder) {
  const result = path.join(folder, `${path.basename(source)}.fatbin`);
  return new Promise((resolve) => {
    const child = spawn(nvcc, [...flags, ...codes, source, '-o', result], { cwd: root });
    let log = '';
    const hear = (text) => {
      log += text;
    };
    child.stdout.on('data', hear);
    child.stderr.on('data', hear);
    child.on('error', (error) => hear(error.message));
    child.on('close', (status) =>
      resolve(
        status === 0 ? { kernels: kernels(log), losses: lossesIn(log), bytes: fs.statSync(result).size } : { log },
      ),
    );
  });
}

function failuresOf(kernel) {
  const failures = [];
  const limit = ownRegisterLimits[kernel.name] ?? registerLimit;
  if (kernel.spilled > 0) failures.push(`${kernel.spilled} bytes of registers spilled`);
  if (kernel.registers > limit) failures.push(`${kernel.registers} registers, more than ${limit}`);
  if (kernel.shared > sharedLimit) failures.push(`${kernel.shared} bytes of static shared memory, more than 48 KiB`);
  return failures;
}

/** Prints the kernels of a file; returns the number of failures. */
function report(source, result) {
  if (result.log !== undefined) {
    console.log(`${source}: FAILED to compile\n${result.log}`);
    return 1;
  }
  let failed = result.losses.length;
  for (const loss of result.losses) console.log(`${source}: FAILED: ${loss}`);
  const groups = new Map();
  for (const kernel of result.kernels) {
    groups.set(kernel.name, [...(groups.get(kernel.name) ?? []), kernel]);
    for (const failure of failuresOf(kernel)) {
      console.log(`${source} ${kernel.name} on ${kernel.architecture}: FAILED: ${failure}`);
      failed++;
    }
  }
  for (const [name, all] of groups) {
    const most = (key) => Math.max(...all.map((kernel) => kernel[key]));
    console.log(
      `${source} ${name} (${all.length} compiled): ${most('registers')} registers, ${most('shared')} bytes shared`,
    );
  }
  return failed;
}

async function main() {
  const sources = fs
    .readdirSync(path.join(root, 'cuda'), { recursive: true })
    .filter((name) => name.endsWith('.cu'))
    .map((name) => path.join('cuda', name))
    .sort();
  const nvcc = findNvcc();
  if (!nvcc) return console.log(`check:cuda: nvcc was not found, ${sources.length} files left unchecked`);
  const targets = architectures(nvcc);
  const codes = codeFlags(nvcc, targets);
  const compiler = [output(nvcc, '--version'), ...flags, ...codes, fs.readFileSync(__filename, 'utf8')].join('\n');
  fs.mkdirSync(cache, { recursive: true });
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'at-moe-cuda-'));
  const queue = sources.map((source) => ({ source, file: path.join(cache, `${hashOf(source, compiler)}.json`) }));
  const wanted = new Set(queue.map((job) => path.basename(job.file)));
  let compiled = 0;
  let failed = 0;
  let bytes = 0;
  const worker = async () => {
    for (let job = queue.shift(); job; job = queue.shift()) {
      let result;
      if (fs.existsSync(job.file)) {
        result = JSON.parse(fs.readFileSync(job.file, 'utf8'));
      } else {
        result = await compile(nvcc, job.source, codes, folder);
        compiled++;
        if (result.kernels) fs.writeFileSync(job.file, JSON.stringify(result));
      }
      failed += report(job.source, result);
      bytes += result.bytes ?? 0;
    }
  };
  await Promise.all(Array.from({ length: os.availableParallelism() }, worker));
  for (const name of fs.readdirSync(cache)) if (!wanted.has(name)) fs.rmSync(path.join(cache, name));
  fs.rmSync(folder, { recursive: true });
  if (bytes > codeLimit) {
    console.log(`check:cuda: FAILED: ${bytes} bytes of compressed code, more than ${codeLimit}`);
    failed++;
  }
  const what = `${sources.length} files (${compiled} compiled, the others unchanged), ${(bytes / 1e6).toFixed(1)} MB, sm_${targets.join(', sm_')}`;
  console.log(`check:cuda: ${what}: ${failed === 0 ? 'ok' : `${failed} failures`}`);
  if (failed > 0) process.exitCode = 1;
}

main();
