// at-moe beside node-llama-cpp, in turns on one machine: `node dist/bench/peers/llama-cpp.js [--help]`. The peer comes
// from the npm registry into a folder of its own, with its published binaries; it is no dependency of the package.
import { execFile, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import type { SpeedReport } from '../../lib/bench/report.js';
import { shapeOf } from '../../lib/bench/shapes.js';
import { timing } from '../../lib/bench/statistics.js';
import { writeAdapter, writeModel } from './gguf.js';
import type { PeerRequest, PeerTimes } from './llama-cpp-child.js';

const usage = `node dist/bench/peers/llama-cpp.js [--shape NAME] [--type f16|q8_0] [--weights bf16|q8] [--adapters 8] [--rank 16]
  [--threads 2] [--prompt 256] [--tokens 48] [--rounds 3] [--folder DIR]

Decode and prefill of both, with and without adapters, in turns; prints one JSON object: tokens per second (best of the
rounds' medians) and the ratio at-moe / node-llama-cpp of each. DIR keeps the installed peer and the random GGUF files.
`;

const { values } = parseArgs({
  options: {
    shape: { type: 'string', default: 'tinyllama-1.1b' },
    type: { type: 'string', default: 'f16' },
    weights: { type: 'string', default: 'bf16' },
    adapters: { type: 'string', default: '8' },
    rank: { type: 'string', default: '16' },
    threads: { type: 'string', default: '2' },
    prompt: { type: 'string', default: '256' },
    tokens: { type: 'string', default: '48' },
    rounds: { type: 'string', default: '3' },
    folder: { type: 'string', default: join(tmpdir(), 'at-moe-peers') },
    help: { type: 'boolean', default: false },
  },
});

const run = promisify(execFile);
const cli = join(import.meta.dirname, '..', '..', 'lib', 'cli', 'main.js');

function installedPeer(folder: string): string {
  const entry = join(folder, 'node_modules', 'node-llama-cpp', 'dist', 'index.js');
  if (existsSync(entry)) return entry;
  const { status } = spawnSync('npm', ['install', '--ignore-scripts', '--prefix', folder, 'node-llama-cpp'], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  if (status !== 0) throw new Error(`npm install node-llama-cpp failed in ${folder}`);
  return entry;
}

async function peerTimes(entry: string, request: PeerRequest): Promise<PeerTimes> {
  const child = join(import.meta.dirname, 'llama-cpp-child.js');
  const { stdout } = await run(process.execPath, [child, entry, JSON.stringify(request)]);
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as PeerTimes;
}

async function ownReport(kind: 'decode' | 'prefill', context: number): Promise<SpeedReport> {
  const { shape, weights, adapters, rank, threads } = values;
  const flags = { shape, weights, experts: adapters, rank, threads, context: String(context) };
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value]);
  const { stdout } = await run(process.execPath, [cli, 'bench', kind, ...args, '--json']);
  return JSON.parse(stdout) as SpeedReport;
}

async function compare(): Promise<object> {
  const { shape, folder, type } = values;
  const [adapters, rank, threads, prompt, tokens, rounds] = (
    ['adapters', 'rank', 'threads', 'prompt', 'tokens', 'rounds'] as const
  ).map((name) => Number(values[name])) as [number, number, number, number, number, number];
  if (type !== 'f16' && type !== 'q8_0') throw new TypeError(`--type ${type}: f16 or q8_0`);
  mkdirSync(folder, { recursive: true });
  const entry = installedPeer(folder);
  const config = await shapeOf(shape);
  const model = join(folder, `${shape}.${type}.gguf`);
  if (!existsSync(model)) await writeModel(model, config, type);
  const files = Array.from({ length: adapters }, (_, i) => join(folder, `${shape}.r${rank}.${i}.gguf`));
  for (const file of files) if (!existsSync(file)) await writeAdapter(file, config, rank);

  const best = { peer: [0, 0], peerAdapters: [0, 0], own: [0, 0], ownAdapters: [0, 0] };
  const note = (row: number[], decode: number, prefill: number) => {
    row[0] = Math.max(row[0] as number, decode);
    row[1] = Math.max(row[1] as number, prefill);
  };
  for (let round = 0; round < rounds; round += 1) {
    for (const [row, adapterFiles] of [
      [best.peer, []],
      [best.peerAdapters, files],
    ] as const) {
      const times = await peerTimes(entry, { model, adapters: [...adapterFiles], threads, prompt, tokens });
      note(row as number[], 1 / timing(times.tokenSeconds).median, prompt / times.promptSeconds);
    }
    const decode = await ownReport('decode', prompt);
    const prefill = await ownReport('prefill', prompt);
    note(best.own, decode.base_tokens_per_second, prefill.base_tokens_per_second);
    note(best.ownAdapters, decode.mixture_tokens_per_second, prefill.mixture_tokens_per_second);
  }
  const row = (own: number[], peer: number[]) =>
    Object.fromEntries(
      ['decode', 'prefill'].map((kind, i) => [
        kind,
        { own: own[i], peer: peer[i], ratio: (own[i] ?? 0) / (peer[i] ?? 1) },
      ]),
    );
  const { help: _, folder: __, ...settings } = values;
  return { ...settings, base: row(best.own, best.peer), adapted: row(best.ownAdapters, best.peerAdapters) };
}

if (values.help) process.stdout.write(usage);
else process.stdout.write(`${JSON.stringify(await compare(), null, 2)}\n`);
