/**
 * A file of packed weights: a safetensors file of U8 tensors, one per packed weight by its name without "model.", each padded
 * with zeros to whole pages so that it can be mapped and read where it is. Its metadata names the form, and a key that changes
 * with everything the bytes follow from. It is a cache: any other file in its place counts as none.
 */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename } from 'node:path';
import type { ModelDescriptor, WeightFormat } from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import type { PackedSource } from '../native-types.js';
import { replaceFile } from './atomic.js';
import { ioError } from './json.js';
import { readSafetensorsHeader, writeSafetensors } from './safetensors.js';

const format = 'at-moe-packed-1';
const page = 4096;

/** What the bytes of packed weights follow from. */
export interface PackedOrigin {
  descriptor: ModelDescriptor;
  weights: WeightFormat;
  /** Of the device: panels and their version. */
  layout: string;
  /** Versions of the files of the descriptor, by path. */
  versions: Readonly<Record<string, string>>;
}

export function packedName(weights: WeightFormat): string {
  return `packed-${weights}.safetensors`;
}

/** Files are named without their folder, so that a folder may be reached by several paths. */
export function packedKey({ descriptor, weights, layout, versions }: PackedOrigin): string {
  const files = Object.entries(versions).map(([path, version]) => [basename(path), version]);
  const text = JSON.stringify([format, layout, weights, descriptor.config, descriptor.tensors, files], (name, value) =>
    name === 'file' ? basename(value as string) : value,
  );
  return createHash('sha256').update(text).digest('hex');
}

/**
 * Whether a file may be replaced by packed weights: there is none, an empty one, or one that begins as such files do, maybe
 * truncated. Error: IO.
 */
export async function isReplaceable(path: string): Promise<boolean> {
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      if (!(await file.stat()).isFile()) return false;
      const { bytesRead, buffer } = await file.read(Buffer.alloc(256), 0, 256, 0);
      return bytesRead === 0 || buffer.subarray(0, bytesRead).includes('"format":"at-moe-packed-');
    } finally {
      await file.close();
    }
  } catch (error) {
    const failure = ioError(path, 'reading', error);
    if (failure.code === 'ERR_AT_MOE_NOT_FOUND') return true;
    throw failure;
  }
}

/** The file's sections; undefined when there is no file, or one that is truncated, foreign or of another key. Error: IO. */
export async function readPacked(path: string, key: string): Promise<PackedSource | undefined> {
  try {
    const { metadata, tensors } = await readSafetensorsHeader(path);
    const sections = [...tensors.values()];
    const fits = sections.every(({ dtype, offset }) => dtype === 'U8' && offset % page === 0);
    if (metadata.format !== format || metadata.key !== key || !fits) return undefined;
    return { file: path, sections: sections.map(({ name, offset, byteLength }) => ({ name, offset, byteLength })) };
  } catch (error) {
    if (error instanceof AtMoeError && ['ERR_AT_MOE_NOT_FOUND', 'ERR_AT_MOE_BAD_FILE'].includes(error.code)) {
      return undefined;
    }
    throw error;
  }
}

/** Replaces the file at once; of several writers the last stays. `read` gives the bytes of a section. Error: IO. */
export async function writePacked(
  path: string,
  key: string,
  sizes: Readonly<Record<string, number>>,
  read: (name: string) => Promise<Uint8Array>,
): Promise<void> {
  const tensors = Object.entries(sizes).map(([name, bytes]) => {
    const padded = Math.ceil(bytes / page) * page;
    const data = async () => {
      const found = await read(name);
      if (found.byteLength === padded) return found;
      const whole = new Uint8Array(padded);
      whole.set(found);
      return whole;
    };
    return { name, dtype: 'U8' as const, shape: [padded], data };
  });
  await replaceFile(path, (temporary) => writeSafetensors(temporary, tensors, { format, key }, page));
}
