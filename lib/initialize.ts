import { basename } from 'node:path';
import { f32Source } from './adapter-tensors.js';
import { checkSeed } from './arguments.js';
import { randomBits } from './data/random.js';
import { parseModelConfig } from './formats/model-config.js';
import { expectedTensors, tensorKey, writeModel } from './formats/model-folder.js';
import { plainConfig } from './formats/q8.js';

export interface InitializeOptions {
  /** Of the weights; default 0. */
  seed?: number;
  /** Standard deviation of the weights; default config.initializer_range, else 0.02. */
  deviation?: number;
  /** Written beside the model: tokenizer.json and the like. */
  files?: Record<string, string | Uint8Array>;
}

/** Normal values by Box and Muller from counter-based bits: a value depends on (seed, tensor, index) alone. */
function normal(count: number, deviation: number, seed: number, stream: number): Float32Array {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log((randomBits(seed, stream, i) + 1) / 2 ** 32)) * deviation;
    const angle = (2 * Math.PI * randomBits(seed, stream, i + 1)) / 2 ** 32;
    values[i] = radius * Math.cos(angle);
    if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

/**
 * Writes a model folder with random weights, to be trained from scratch: linears and embeddings normal, norms 1, biases 0,
 * as transformers starts them. `config` is the content of config.json. @throws RangeError
 * for a name in `files` that is a path; AtMoeError as loadModel for the config; ERR_AT_MOE_IO.
 */
export async function initializeModel(
  dir: string,
  config: Record<string, unknown>,
  options: InitializeOptions = {},
): Promise<void> {
  const file = parseModelConfig(`${dir}/config.json`, config);
  const { seed = 0, deviation = (config.initializer_range as number | undefined) ?? 0.02, files = {} } = options;
  checkSeed(seed);
  const path = Object.keys(files).find((name) => basename(name) !== name || ['', '.', '..'].includes(name));
  if (path !== undefined) throw new RangeError(`files: ${JSON.stringify(path)} is not the name of a file`);
  const tensors = [...expectedTensors(file)].map(([name, shape], stream) => {
    const count = shape.reduce((product, extent) => product * extent, 1);
    const constant = new Float32Array(count).fill(name.endsWith('.bias') ? 0 : 1);
    const values = shape.length === 2 ? normal(count, deviation, seed, stream) : constant;
    return f32Source(tensorKey(name), shape, values);
  });
  await writeModel(dir, { ...plainConfig(config), torch_dtype: 'float32' }, tensors, files);
}
