import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { AtMoeError } from '../errors.js';
import { badFile, checkSchema, ioError, readJson, unsupported } from './json.js';
import { readSafetensorsHeader, type SafetensorsEntry } from './safetensors.js';

export interface CheckpointTensor extends SafetensorsEntry {
  file: string;
}

const indexSchema = z.looseObject({ weight_map: z.record(z.string(), z.string()) });
const pickled = /\.(bin|pt|pth|ckpt|pkl)$/;

/** The names in a folder. Errors: NOT_FOUND, IO. */
export async function listFolder(dir: string): Promise<string[]> {
  try {
    return await readdir(dir);
  } catch (cause) {
    throw ioError(dir, 'listing', cause);
  }
}

/** The error for a folder without the safetensors file `wanted`: it says so when there are weights in another format. */
export function missingWeights(dir: string, names: string[], wanted: string): AtMoeError {
  const pickle = names.find((name) => pickled.test(name));
  const gguf = names.find((name) => name.endsWith('.gguf'));
  if (pickle)
    return unsupported(join(dir, pickle), 'pickled weights are not read (they can run code); convert to safetensors');
  if (gguf) return unsupported(join(dir, gguf), 'GGUF is not read; use the safetensors checkpoint');
  return new AtMoeError('ERR_AT_MOE_NOT_FOUND', `${dir}: no ${wanted}`);
}

async function readShards(dir: string, indexPath: string): Promise<Map<string, CheckpointTensor>> {
  const { weight_map: weightMap } = checkSchema(indexPath, indexSchema, await readJson(indexPath));
  const tensors = new Map<string, CheckpointTensor>();
  for (const shard of new Set(Object.values(weightMap))) {
    if (!/^[^/\\:\0]+\.safetensors$/.test(shard)) {
      throw badFile(indexPath, `${JSON.stringify(shard)} is not the name of a safetensors file in the same folder`);
    }
    const file = join(dir, shard);
    for (const [name, entry] of (await readSafetensorsHeader(file)).tensors) {
      if (weightMap[name] !== shard) throw badFile(file, `tensor ${JSON.stringify(name)} is not in it by ${indexPath}`);
      tensors.set(name, { ...entry, file });
    }
  }
  for (const [name, shard] of Object.entries(weightMap)) {
    if (!tensors.has(name))
      throw badFile(join(dir, shard), `no tensor ${JSON.stringify(name)}, which ${indexPath} puts there`);
  }
  return tensors;
}

/**
 * The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.
 * Errors: NOT_FOUND, IO, BAD_FILE; UNSUPPORTED for a folder with pickled or GGUF weights only.
 */
export async function readCheckpoint(dir: string): Promise<Map<string, CheckpointTensor>> {
  const names = await listFolder(dir);
  if (names.includes('model.safetensors')) {
    const file = join(dir, 'model.safetensors');
    const { tensors } = await readSafetensorsHeader(file);
    return new Map([...tensors].map(([name, entry]) => [name, { ...entry, file }]));
  }
  const index = 'model.safetensors.index.json';
  if (names.includes(index)) return await readShards(dir, join(dir, index));
  throw missingWeights(dir, names, 'model.safetensors');
}
