import { readFile, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { abortReason } from './abort.js';
import { checkArgument, checkFolder } from './arguments.js';
import type { TensorSource } from './descriptors.js';
import { AtMoeError } from './errors.js';
import { checkModelFolder, modelDescriptor, readCompanions, tensorKey, writeModel } from './formats/model-folder.js';
import { isQuantizable, quantizationConfig, scaleName, scaleShape } from './formats/q8.js';
import type { WritableTensor } from './formats/safetensors.js';
import { createEngine } from './native.js';
import type { NativeEngine } from './native-types.js';

export interface QuantizeOptions {
  signal?: AbortSignal;
}

const schema = z.strictObject({ signal: z.instanceof(AbortSignal).optional() });

/**
 * Writes a model folder with linears and head in 8 bits, which loadModel takes as it takes any: int8 in blocks of 32 inputs
 * with one f16 scale, each weight within half a step, 1/254 of its block's largest, of what it was. Embedding, norms,
 * biases and the files beside the weights stay. The folder is exchanged at once.
 * @throws TypeError; AtMoeError as loadModel's of reading a folder; ERR_AT_MOE_UNSUPPORTED for a model in 8 bits or weights
 * beyond 8.3e6; ERR_AT_MOE_IO; the signal's reason.
 */
export async function quantizeModel(path: string, dir: string, options: QuantizeOptions = {}): Promise<void> {
  checkFolder(path, 'quantizeModel needs the folder of a model');
  checkFolder(dir, 'quantizeModel needs a folder to write');
  const { signal } = checkArgument('quantizeModel', schema, options);
  signal?.throwIfAborted();
  const { descriptor } = await modelDescriptor(path);
  const companions = await readCompanions(path);
  await checkModelFolder(dir, companions);
  if ((await realpath(dir).catch(() => undefined)) === (await realpath(path))) {
    throw new AtMoeError('ERR_AT_MOE_IO', `${dir} is the folder of the model itself: write to another one`);
  }
  const config = JSON.parse(await readFile(join(path, 'config.json'), 'utf8')) as Record<string, unknown>;
  const engine = createEngine({ device: 'cpu' });
  try {
    const tensors: WritableTensor[] = [];
    for (const tensor of descriptor.tensors) {
      if (tensor.dtype === 'q8') throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', `${path} is in 8 bits already`);
      if (isQuantizable(tensor.name)) tensors.push(...(await inBlocks(engine, tensor, signal)));
      else {
        await engine.quantize(tensor, { signal }); // fails where a load would
        tensors.push({ ...tensor, name: tensorKey(tensor.name) });
      }
    }
    await writeModel(dir, { ...config, quantization_config: quantizationConfig }, tensors, companions);
  } catch (error) {
    throw abortReason(error, signal);
  } finally {
    await engine.dispose();
  }
}

/** Scales come before values in the file, and values of all tensors are too much to keep: they are made twice. */
async function inBlocks(engine: NativeEngine, tensor: TensorSource, signal?: AbortSignal): Promise<WritableTensor[]> {
  const { shape } = tensor;
  const name = tensorKey(tensor.name);
  const make = async () => await engine.quantize(tensor, { signal });
  const { scales } = await make();
  return [
    { name, dtype: 'I8', shape, data: async () => (await make()).values },
    { name: scaleName(name), dtype: 'F16', shape: scaleShape(shape), data: scales },
  ];
}
