import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ModelDescriptor, WeightFormat } from './descriptors.js';
import type { Device } from './device.js';
import { AtMoeError } from './errors.js';
import { ioError } from './formats/json.js';
import { isReplaceable, packedKey, packedName, readPacked, writePacked } from './formats/packed-file.js';
import { devices, loadAddon } from './native.js';
import type { NativeEngine, PackedSource } from './native-types.js';

/** `code` of the warnings about a cache that is not used, or not written: the load itself goes on. */
export const packedCacheWarning = 'AT_MOE_PACKED_CACHE';

export interface PackedCache {
  /** What the file holds; undefined when it is to be written. */
  found: PackedSource | undefined;
  /** Writes the file from a loaded engine, unless it is there, or the checkpoint changed during the load; what stops it is a warning. */
  save(engine: NativeEngine): Promise<void>;
}

/**
 * Sizes and times of files, by path. The time of change is set by the system at every write and rename, also where a tool
 * restores that of modification. Device and inode are left out: containers see the same file under several. Errors: NOT_FOUND, IO.
 */
async function versionsOf({ tensors }: ModelDescriptor): Promise<Record<string, string>> {
  const version = async (path: string) => {
    try {
      const { size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
      return [path, `${size} ${mtimeNs} ${ctimeNs}`] as const;
    } catch (error) {
      throw ioError(path, 'reading', error);
    }
  };
  return Object.fromEntries(await Promise.all([...new Set(tensors.flatMap(({ file }) => file ?? []))].map(version)));
}

function warn(message: string): void {
  process.emitWarning(message, { code: packedCacheWarning });
}

function runsOnCpu(device: Device): boolean {
  return device === 'cpu' || (device === 'auto' && !devices().some((one) => one.name !== 'cpu' && one.available));
}

/**
 * The cache of a model folder's packed weights: at `option`, or in the folder when it is true. With another device than the
 * CPU, or where `option` is a file of something else, there is none, and a warning.
 */
export async function openPackedCache(
  option: true | string,
  model: { path: string; descriptor: ModelDescriptor; weights: WeightFormat; device: Device },
): Promise<PackedCache | undefined> {
  const { descriptor, weights, device } = model;
  if (!runsOnCpu(device)) {
    warn(`packedCache is for the CPU: the device ${device} packs the checkpoint's weights anew`);
    return undefined;
  }
  const path = option === true ? join(model.path, packedName(weights)) : option;
  const keyNow = async () =>
    packedKey({ descriptor, weights, layout: loadAddon().packedLayout, versions: await versionsOf(descriptor) });
  const key = await keyNow();
  const failed = (error: unknown) => {
    if (!(error instanceof AtMoeError)) throw error;
    warn(`packed weights are not kept: ${error.message}`);
  };
  let found: PackedSource | undefined;
  try {
    found = await readPacked(path, key);
    if (option !== true && !found && !(await isReplaceable(path))) {
      throw new AtMoeError('ERR_AT_MOE_IO', `${path} is another file, which they do not replace`);
    }
  } catch (error) {
    failed(error);
    return undefined;
  }
  return {
    found,
    async save(engine) {
      if (found) return;
      try {
        if (key !== (await keyNow())) return;
        await writePacked(path, key, await engine.packedSections(), (name) => engine.packedSection(name));
      } catch (error) {
        failed(error);
      }
    },
  };
}
