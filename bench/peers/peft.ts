// at-moe beside PEFT, in turns on one machine: `node dist/bench/peers/peft.js --python FILE [--help]`. The peer is what
// the user installed for that interpreter; it is no dependency of the package.
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { shapeOf } from '../../lib/bench/shapes.js';
import { timing } from '../../lib/bench/statistics.js';
import type { ModelConfig } from '../../lib/descriptors.js';
import { Comparisons, counts, measurement, ownReport } from './turns.js';

const usage = `node dist/bench/peers/peft.js --python FILE [--shape NAME] [--weights f32|bf16] [--experts 8] [--rank 16]
  [--threads 2] [--batch 4] [--context 256] [--steps 8] [--prompt 128] [--tokens 24] [--rounds 2]

FILE is the interpreter of an environment with torch, transformers and peft:
  python3 -m venv peers && peers/bin/pip install torch transformers peft      # then --python peers/bin/python

Training steps (one expert; the router of a mixture, the classifier of an X-LoRA) of --batch sequences of --context
tokens, the first quarter of each unlabelled, and decoding after --prompt tokens (base, one expert, mixture or X-LoRA), of
both in turns. Prints one JSON object: tokens per second (best of the rounds' medians) and the ratio at-moe / PEFT of each.
`;

const { values } = parseArgs({
  options: {
    python: { type: 'string' },
    shape: { type: 'string', default: 'llama-160m' },
    weights: { type: 'string', default: 'f32' },
    experts: { type: 'string', default: '8' },
    rank: { type: 'string', default: '16' },
    threads: { type: 'string', default: '2' },
    batch: { type: 'string', default: '4' },
    context: { type: 'string', default: '256' },
    steps: { type: 'string', default: '8' },
    prompt: { type: 'string', default: '128' },
    tokens: { type: 'string', default: '24' },
    rounds: { type: 'string', default: '2' },
    help: { type: 'boolean', default: false },
  },
});

interface PeftRequest {
  kind: 'train' | 'decode';
  model: 'base' | 'expert' | 'router';
  /** Arguments of transformers' LlamaConfig. */
  config: Record<string, number | boolean>;
  weights: string;
  rank: number;
  experts: number;
  threads: number;
  /** Sequences of a step, and the tokens of each: all that are trained on, or those before the one that is decoded. */
  batch: number;
  context: number;
  steps: number;
}

interface PeftTimes {
  seconds: number[];
  versions: Record<string, string>;
}

function llamaConfig(config: ModelConfig): PeftRequest['config'] {
  if (config.architecture !== 'llama') throw new TypeError(`--shape: a llama, not a ${config.architecture}`);
  return {
    hidden_size: config.hiddenSize,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKvHeads,
    head_dim: config.headDim,
    intermediate_size: config.intermediateSize,
    vocab_size: config.vocabSize,
    max_position_embeddings: config.maxPositionEmbeddings,
    tie_word_embeddings: config.tieWordEmbeddings,
  };
}

async function compare(python: string): Promise<object> {
  const { shape, weights } = values;
  if (weights !== 'f32' && weights !== 'bf16') throw new TypeError(`--weights ${weights}: f32 or bf16`);
  const names = ['experts', 'rank', 'threads', 'batch', 'context', 'steps', 'prompt', 'tokens', 'rounds'] as const;
  const { experts, rank, threads, batch, context, steps, prompt, tokens, rounds } = counts(values, names);
  const config = llamaConfig(await shapeOf(shape));
  const sizes = {
    train: { batch, context, steps },
    decode: { batch: 1, context: prompt, steps: tokens },
  };
  const found = new Comparisons();
  let versions: PeftTimes['versions'] = {};
  const peer = async (kind: PeftRequest['kind'], model: PeftRequest['model']) => {
    const request: PeftRequest = { kind, model, config, weights, rank, experts, threads, ...sizes[kind] };
    const script = join(import.meta.dirname, '..', '..', '..', 'bench', 'peers', 'peft_child.py');
    const times = await measurement<PeftTimes>(python, [script, JSON.stringify(request)]);
    const perStep = kind === 'train' ? batch * context : 1;
    found.note(`${kind} ${model}`, 'peer', perStep / timing(times.seconds).median);
    versions = times.versions;
  };
  const own = async (kind: PeftRequest['kind'], count: number) =>
    await ownReport(kind, { shape, weights, experts: count, rank, threads, ...sizes[kind] });
  for (let round = 0; round < rounds; round += 1) {
    for (const model of ['expert', 'router'] as const) await peer('train', model);
    const trained = await own('train', experts);
    found.note('train expert', 'own', trained.base_tokens_per_second);
    found.note('train router', 'own', trained.mixture_tokens_per_second);
    for (const model of ['base', 'expert', 'router'] as const) await peer('decode', model);
    found.note('decode expert', 'own', (await own('decode', 1)).mixture_tokens_per_second);
    const decoded = await own('decode', experts);
    found.note('decode base', 'own', decoded.base_tokens_per_second);
    found.note('decode router', 'own', decoded.mixture_tokens_per_second);
  }
  const rows = (kind: string, models: string[]) =>
    Object.fromEntries(models.map((model) => [model, found.of(`${kind} ${model}`)]));
  const { help: _, python: __, ...settings } = values;
  return {
    ...settings,
    versions,
    train: rows('train', ['expert', 'router']),
    decode: rows('decode', ['base', 'expert', 'router']),
  };
}

if (values.help) process.stdout.write(usage);
else if (!values.python)
  throw new TypeError('--python FILE names the interpreter of the peer; --help says what it needs');
else process.stdout.write(`${JSON.stringify(await compare(values.python), null, 2)}\n`);
