import { availableParallelism } from 'node:os';
import { checkArgument } from '../arguments.js';
import { benchDecode } from '../bench/decode.js';
import { benchEventLoop, eventLoopText } from '../bench/event-loop.js';
import { benchIdle, idleText } from '../bench/idle.js';
import { benchLoad, loadText } from '../bench/load.js';
import { benchPrefill } from '../bench/prefill.js';
import { speedText } from '../bench/report.js';
import { benchServe, serveText } from '../bench/serve.js';
import type { BenchOptions } from '../bench/setup.js';
import { shapeOf, shapes } from '../bench/shapes.js';
import { benchSoak, soakText } from '../bench/soak.js';
import { benchTrain } from '../bench/train.js';
import type { WeightFormat } from '../descriptors.js';
import { listedDevices, unlistedDevice } from '../device.js';
import { threadsSchema } from '../threads.js';
import { type Command, type Flags, parseCommand, UsageError, type Values } from './flags.js';

const command = {
  name: 'bench',
  usage: 'decode|prefill|train|load|event-loop|idle|soak|serve [flags]',
  summary:
    'Measures a model of random weights. decode, prefill: base and mixture in turns. train: a step of one expert ' +
    '("base") and of the router over all experts ("mixture"). Each is set against its floor, from bytes or ' +
    'multiply-adds, and against the rate this machine reached in the same run. load: time and peak memory of loading a ' +
    'checkpoint, against a copy of it into fresh memory. event-loop: how late a 10 ms timer fires while the package works. idle: what loaded mixtures cost the ' +
    'base. soak: random traffic with slow readers, aborts, replaced mixtures and too little KV cache; compares every text ' +
    'with the same request alone. serve: one stream and several at once from the HTTP server in this process.',
  positionals: 1,
  flags: {
    shape: {
      type: 'string',
      value: 'NAME|DIR',
      help: `${Object.keys(shapes).join(', ')}, or a model folder; default llama-160m`,
    },
    weights: {
      type: 'string',
      choices: ['f32', 'f16', 'bf16', 'q8'],
      help: 'storage of base and adapters (beside q8: bf16); default bf16',
    },
    'expert-weights': {
      type: 'string',
      choices: ['f32', 'f16', 'bf16', 'q8'],
      help: 'storage of the adapters, if another; q8 on the CPU alone',
    },
    experts: { type: 'integer', help: 'default 8' },
    groups: { type: 'integer', help: 'default 2, 1 for a single expert' },
    rank: { type: 'integer', help: 'of every expert, on all linears; default 16' },
    'expert-top-k': { type: 'integer', least: 0, help: 'experts that the router keeps of each group; default 0 = all' },
    batch: { type: 'integer', help: 'sequences of a step; default 1; serve: streams at once, 8' },
    context: {
      type: 'integer',
      help: 'decode: tokens before the step; else of each sequence; default 128, prefill 256',
    },
    steps: {
      type: 'integer',
      help: 'of each variant; default 24 for decode, 8 for prefill and train, 100 for idle; load: loads, 3; serve: requests of a stream, 3',
    },
    threads: { type: 'integer', help: 'default all cores; event-loop: cores - 1' },
    seconds: { type: 'number', help: 'event-loop: of each phase; soak: in all; default 20' },
    'adapter-bytes': { type: 'integer', help: 'soak: device memory for mixtures; default any' },
    'packed-cache': { type: 'boolean', help: 'load: also from a file of packed weights' },
    device: { type: 'string', choices: listedDevices, unlisted: unlistedDevice, help: 'default auto' },
    json: { type: 'boolean', help: 'one JSON object' },
  },
  examples: [
    'bench decode --shape tinyllama-1.1b --weights bf16 --experts 8 --rank 16',
    'bench decode --experts 64 --groups 1 --expert-top-k 4',
    'bench prefill --shape llama-160m --context 512 --json',
    'bench decode --weights q8 --expert-weights q8',
    'bench train --shape llama-160m --batch 4 --context 128',
    'bench load --shape tinyllama-1.1b --weights bf16',
    'bench event-loop --shape llama-160m --seconds 30',
    'bench soak --shape llama-160m --seconds 600',
    'bench serve --shape llama-160m --batch 8',
  ],
} as const satisfies Command<Flags>;

const kinds = ['decode', 'prefill', 'train', 'load', 'event-loop', 'idle', 'soak', 'serve'] as const;
type Kind = (typeof kinds)[number];

const defaultSteps = { decode: 24, prefill: 8, train: 8, load: 3, 'event-loop': 1, idle: 100, soak: 1, serve: 3 };

function atLeastOne(name: string, value: number): number {
  if (value < 1) throw new UsageError(`--${name} is at least 1`);
  return value;
}

async function optionsOf(kind: Kind, values: Values<typeof command.flags>, signal: AbortSignal): Promise<BenchOptions> {
  const shape = values.shape ?? 'llama-160m';
  const cores = availableParallelism();
  const experts = atLeastOne('experts', values.experts ?? 8);
  const groups = atLeastOne('groups', values.groups ?? Math.min(2, experts));
  if (groups > experts) throw new UsageError('--groups is at most --experts');
  const threads = values.threads ?? (kind === 'event-loop' ? Math.max(1, cores - 1) : cores);
  return {
    shape,
    config: await shapeOf(shape),
    weights: (values.weights ?? 'bf16') as WeightFormat,
    ...(values['expert-weights'] && { expertWeights: values['expert-weights'] as WeightFormat }),
    experts,
    groups,
    rank: atLeastOne('rank', values.rank ?? 16),
    expertTopK: values['expert-top-k'] ?? 0,
    batch: atLeastOne('batch', values.batch ?? (kind === 'serve' ? 8 : 1)),
    context: atLeastOne('context', values.context ?? (kind === 'prefill' ? 256 : 128)),
    steps: atLeastOne('steps', values.steps ?? defaultSteps[kind]),
    threads: checkArgument('--threads', threadsSchema, threads),
    device: (values.device ?? 'auto') as BenchOptions['device'],
    signal,
  };
}

type Given = BenchOptions & { seconds: number; packedCache: boolean; adapterBytes?: number };

interface Result {
  report: object;
  text: string;
}

/** What runs, and how its report reads. */
function benchmark<R extends object>(run: (options: Given) => Promise<R>, text: (report: R) => string) {
  return async (options: Given): Promise<Result> => {
    const report = await run(options);
    return { report, text: text(report) };
  };
}

const benchmarks = {
  decode: benchmark(benchDecode, speedText),
  prefill: benchmark(benchPrefill, speedText),
  train: benchmark(benchTrain, speedText),
  load: benchmark(benchLoad, loadText),
  'event-loop': benchmark(benchEventLoop, eventLoopText),
  idle: benchmark(benchIdle, idleText),
  soak: benchmark(benchSoak, soakText),
  serve: benchmark(benchServe, serveText),
} satisfies Record<Kind, unknown>;

export async function bench(argv: string[], signal: AbortSignal): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const { values, positionals } = parsed;
  const kind = kinds.find((name) => name === positionals[0]);
  if (!kind) throw new UsageError(`what to measure is one of ${kinds.join(', ')}`);
  const options = await optionsOf(kind, values, signal);
  const adapterBytes = values['adapter-bytes'];
  const { report, text } = await benchmarks[kind]({
    ...options,
    seconds: values.seconds ?? 20,
    packedCache: values['packed-cache'] ?? false,
    ...(adapterBytes !== undefined && { adapterBytes: atLeastOne('adapter-bytes', adapterBytes) }),
  });
  process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : text);
  return 0;
}
