import { join } from 'node:path';
import { AtMoeError } from '../errors.js';
import { readJsonObjectIfPresent } from './json-file.js';

/** Token ids that a model folder declares in generation_config.json, or failing that in config.json. */
export interface SpecialIds {
  bosId: number | undefined;
  padId: number | undefined;
  /** Ids that end a generation, without duplicates; empty when the folder names none. */
  eosIds: number[];
}

function idList(value: unknown, file: string, key: string): number[] {
  if (value === undefined || value === null) return [];
  const list = Array.isArray(value) ? value : [value];
  // -1 stands for "none" in some older checkpoints.
  const ids = list.filter((id) => id !== -1);
  if (!ids.every((id) => Number.isInteger(id) && id >= 0)) {
    throw new AtMoeError('ERR_AT_MOE_BAD_FILE', `${file}: ${key} must be a token id or a list of token ids`);
  }
  return [...new Set(ids as number[])];
}

/**
 * Reads the special ids of a model folder; needs no tokenizer.
 * @throws AtMoeError ERR_AT_MOE_BAD_FILE when a file is not JSON or an id is not a token id.
 */
export async function readSpecialIds(folder: string): Promise<SpecialIds> {
  const files = ['generation_config.json', 'config.json'].map((name) => join(folder, name));
  const configs = await Promise.all(files.map(readJsonObjectIfPresent));
  const first = (key: string): number[] => {
    for (const [i, config] of configs.entries()) {
      const ids = idList(config?.[key], files[i] as string, key);
      if (ids.length > 0) return ids;
    }
    return [];
  };
  return { bosId: first('bos_token_id')[0], padId: first('pad_token_id')[0], eosIds: first('eos_token_id') };
}
