import { SingleBar } from 'cli-progress';
import type { Adapter } from '../adapter.js';
import { listedDevices, unlistedDevice } from '../device.js';
import type { Mixture } from '../mixture.js';
import { type LoadModelOptions, loadModel, type Model } from '../model.js';
import { type Flags, required, UsageError, type Values } from './flags.js';

/** Which model, and where it runs. */
export const modelFlags = {
  model: { type: 'string', short: 'm', value: 'DIR|NAME', help: 'folder of the base model, or its name on the Hub' },
  device: {
    type: 'string',
    choices: listedDevices,
    unlisted: unlistedDevice,
    help: 'default auto: a GPU when there is one; cuda:1 is the second',
  },
  storage: {
    type: 'string',
    choices: ['auto', 'f32', 'f16', 'bf16', 'q8'],
    help: 'of the base weights; q8: 8 bits; default as stored',
  },
  'expert-storage': {
    type: 'string',
    choices: ['auto', 'f32', 'f16', 'bf16', 'q8'],
    help: 'of experts and adapters; q8 on the CPU alone; default as stored',
  },
  threads: { type: 'integer', help: 'CPU threads, at most 4 for each logical processor; default the physical cores' },
  'packed-cache': {
    type: 'boolean',
    help: 'keep packed weights in the model folder and map them from the next load on',
  },
  'context-length': { type: 'integer', help: 'longest sequence in tokens' },
  revision: { type: 'string', help: 'branch, tag or commit of a Hub model' },
  'cache-dir': { type: 'string', value: 'DIR', help: 'the Hugging Face cache' },
  offline: { type: 'boolean', help: 'use the cache alone' },
} as const satisfies Flags;

/** What writes: the base model without either. */
export const targetFlags = {
  mixture: { type: 'string', value: 'DIR', help: 'folder of a mixture' },
  adapter: { type: 'string', value: 'DIR', help: 'folder of one PEFT LoRA adapter' },
} as const satisfies Flags;

function downloadBar(): SingleBar {
  const format = 'fetching {file} [{bar}] {percentage}% ETA {eta_formatted}';
  return new SingleBar({ format, stream: process.stderr, hideCursor: true, clearOnComplete: true });
}

/** Loads the model of the flags; a download shows its progress on a terminal. */
export async function openModel(
  values: Values<typeof modelFlags>,
  signal: AbortSignal,
  more: Pick<LoadModelOptions, 'trainable' | 'maxBatch' | 'maxQueue' | 'kvTokens' | 'adapterBytes'> = {},
): Promise<Model> {
  const name = required('model', values.model);
  const bar = process.stderr.isTTY ? downloadBar() : undefined;
  try {
    return await loadModel(name, {
      ...more,
      device: (values.device ?? 'auto') as LoadModelOptions['device'],
      weights: (values.storage ?? 'auto') as LoadModelOptions['weights'],
      expertWeights: (values['expert-storage'] ?? 'auto') as LoadModelOptions['expertWeights'],
      threads: values.threads,
      packedCache: values['packed-cache'],
      contextLength: values['context-length'],
      revision: values.revision,
      cacheDir: values['cache-dir'],
      offline: values.offline,
      onDownload: ({ file, loadedBytes, totalBytes }) => {
        if (bar && !bar.isActive) bar.start(totalBytes, loadedBytes, { file });
        bar?.update(loadedBytes, { file });
      },
      signal,
    });
  } finally {
    bar?.stop();
  }
}

/** Runs `work` with the model, or with the mixture or adapter the flags name, and frees it all. */
export async function withTarget<T>(
  values: Values<typeof modelFlags & typeof targetFlags>,
  signal: AbortSignal,
  work: (target: Model | Mixture | Adapter, model: Model) => Promise<T>,
): Promise<T> {
  if (values.mixture !== undefined && values.adapter !== undefined) {
    throw new UsageError('give either --mixture or --adapter');
  }
  const model = await openModel(values, signal);
  try {
    return await work(await openTarget(model, values), model);
  } finally {
    await model.dispose();
  }
}

async function openTarget(model: Model, values: Values<typeof targetFlags>): Promise<Model | Mixture | Adapter> {
  if (values.mixture !== undefined) return await openMixture(model, values.mixture);
  return values.adapter === undefined ? model : await model.loadAdapter(values.adapter);
}

export async function openMixture(model: Model, dir: string): Promise<Mixture> {
  return await model.loadMixture(dir, { onWarning: (message) => process.stderr.write(`warning: ${message}\n`) });
}
