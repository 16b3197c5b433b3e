// at-moe beside node-llama-cpp, in turns on one machine: `node dist/bench/peers/llama-cpp.js [--help]`. The peer comes
// from the npm registry into a folder of its own, with its published binaries; it is no dependency of the package.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { shapeOf } from '../../lib/bench/shapes.js';
import { timing } from '../../lib/bench/statistics.js';
import { writeAdapter, writeModel } from './gguf.js';
import type { PeerRequest, PeerTimes } from './llama-cpp-child.js';
import { Comparisons, counts, measurement, ownReport } from './turns.js';

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
  return await measurement<PeerTimes>(process.execPath, [child, entry, JSON.stringify(request)]);
}

async function compare(): Promise<object> {
  const { shape, weights, folder, type } = values;
  const names = ['adapters', 'rank', 'threads', 'prompt', 'tokens', 'rounds'] as const;
  const { adapters, rank, threads, prompt, tokens, rounds } = counts(values, names);
  if (type !== 'f16' && type !== 'q8_0') throw new TypeError(`--type ${type}: f16 or q8_0`);
  mkdirSync(folder, { recursive: true });
  const entry = installedPeer(folder);
  const config = await shapeOf(shape);
  const model = join(folder, `${shape}.${type}.gguf`);
  if (!existsSync(model)) await writeModel(model, config, type);
  const files = Array.from({ length: adapters }, (_, i) => join(folder, `${shape}.r${rank}.${i}.gguf`));
  for (const file of files) if (!existsSync(file)) await writeAdapter(file, config, rank);

  const found = new Comparisons();
  for (let round = 0; round < rounds; round += 1) {
    for (const [what, adapterFiles] of [
      ['base', []],
      ['adapted', files],
    ] as const) {
      const times = await peerTimes(entry, { model, adapters: [...adapterFiles], threads, prompt, tokens });
      found.note(`${what} decode`, 'peer', 1 / timing(times.tokenSeconds).median);
      found.note(`${what} prefill`, 'peer', prompt / times.promptSeconds);
    }
    for (const kind of ['decode', 'prefill'] as const) {
      const flags = { shape, weights, experts: adapters, rank, threads, context: prompt };
      const report = await ownReport(kind, flags);
      found.note(`base ${kind}`, 'own', report.base_tokens_per_second);
      found.note(`adapted ${kind}`, 'own', report.mixture_tokens_per_second);
    }
  }
  const both = (what: string) => ({ decode: found.of(`${what} decode`), prefill: found.of(`${what} prefill`) });
  const { help: _, folder: __, ...settings } = values;
  return { ...settings, base: both('base'), adapted: both('adapted') };
}

if (values.help) process.stdout.write(usage);
else process.stdout.write(`${JSON.stringify(await compare(), null, 2)}\n`);
