import { type FileHandle, open, stat } from 'node:fs/promises';
import type { StorageType, TensorSource } from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import { firstNonFinite } from './float-types.js';
import { badFile, ioError, parseJson } from './json.js';

const maxHeaderBytes = 100_000_000;

/** In the order of the safetensors library, which sorts tensors by it, the last first. */
const dtypeBytes = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  F64: 8,
  I64: 8,
  U64: 8,
} as const;
const dtypeOrder = Object.keys(dtypeBytes);

export type SafetensorsDtype = keyof typeof dtypeBytes;

export interface SafetensorsEntry {
  name: string;
  dtype: SafetensorsDtype;
  shape: number[];
  /** Bytes from the start of the file. */
  offset: number;
  byteLength: number;
}

export interface SafetensorsFile {
  path: string;
  metadata: Record<string, string>;
  /** In the order of their offsets. */
  tensors: Map<string, SafetensorsEntry>;
}

export type TensorArray =
  | Float32Array
  | Float64Array
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | BigInt64Array
  | BigUint64Array;

/** A tensor to write: its bytes in memory (`data`), made when their turn comes, or in a file (`file`, `offset`). */
export type WritableTensor = Omit<TensorSource, 'dtype' | 'data'> & {
  dtype: StorageType | SafetensorsDtype;
  data?: Uint8Array | (() => Promise<Uint8Array>);
};

/** The dtype of a tensor that can hold weights, in the spelling of the descriptors; undefined for the others. */
export function storageType(dtype: SafetensorsDtype): StorageType | undefined {
  if (dtype === 'F32') return 'f32';
  if (dtype === 'F16') return 'f16';
  return dtype === 'BF16' ? 'bf16' : undefined;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** Product of a shape; undefined beyond 2^53. */
function elementCount(shape: number[]): number | undefined {
  if (shape.includes(0)) return 0;
  let count = 1;
  for (const size of shape) {
    count *= size;
    if (!Number.isSafeInteger(count)) return undefined;
  }
  return count;
}

function parseEntry(path: string, name: string, value: unknown, dataStart: number): SafetensorsEntry {
  const bad = (problem: string) => badFile(path, `tensor ${JSON.stringify(name)}: ${problem}`);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw bad('its entry is not an object');
  const { dtype, shape, data_offsets: offsets, ...rest } = value as Record<string, unknown>;
  const unknown = Object.keys(rest)[0];
  if (unknown !== undefined) throw bad(`unknown key ${JSON.stringify(unknown)}`);
  if (typeof dtype !== 'string' || !Object.hasOwn(dtypeBytes, dtype))
    throw bad(`unknown dtype ${JSON.stringify(dtype)}`);
  if (!Array.isArray(shape) || !shape.every(isCount)) throw bad(`bad shape ${JSON.stringify(shape)}`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw bad(`bad data_offsets ${JSON.stringify(offsets)}`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) throw bad(`data_offsets ${JSON.stringify(offsets)} run backwards`);
  const elements = elementCount(shape);
  const byteLength = elements === undefined ? Number.NaN : elements * dtypeBytes[dtype as SafetensorsDtype];
  if (byteLength !== end - begin) {
    throw bad(`shape ${JSON.stringify(shape)} of ${dtype} does not fit its ${end - begin} bytes`);
  }
  return { name, dtype: dtype as SafetensorsDtype, shape, offset: dataStart + begin, byteLength };
}

function parseMetadata(path: string, value: unknown): Record<string, string> {
  if (value === undefined) return {};
  const isMap = typeof value === 'object' && value !== null && !Array.isArray(value);
  if (!isMap || !Object.values(value).every((text) => typeof text === 'string')) {
    throw badFile(path, '__metadata__ is not a map of strings');
  }
  return value as Record<string, string>;
}

function parseHeader(path: string, header: unknown, dataStart: number, fileSize: number): SafetensorsFile {
  if (typeof header !== 'object' || header === null || Array.isArray(header)) {
    throw badFile(path, 'the header is not a JSON object');
  }
  const { __metadata__: metadata, ...tensors } = header as Record<string, unknown>;
  const entries = Object.entries(tensors).map(([name, value]) => parseEntry(path, name, value, dataStart));
  entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let next = dataStart;
  for (const entry of entries) {
    if (entry.offset !== next) {
      const problem = entry.offset < next ? 'overlaps the tensor before it' : 'leaves a hole before it';
      throw badFile(path, `tensor ${JSON.stringify(entry.name)} ${problem}`);
    }
    next += entry.byteLength;
  }
  if (next !== fileSize) {
    const problem = next > fileSize ? 'truncated' : 'bytes after the last tensor';
    throw badFile(path, `${problem}: the header describes ${next} bytes, the file has ${fileSize}`);
  }
  return { path, metadata: parseMetadata(path, metadata), tensors: new Map(entries.map((e) => [e.name, e])) };
}

/** Fills `target` from the file at `position`. Error: BAD_FILE when the file ends early. */
async function readFully(path: string, handle: FileHandle, target: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < target.byteLength; ) {
    const length = Math.min(target.byteLength - done, 1 << 30);
    const { bytesRead } = await handle.read(target, done, length, position + done);
    if (bytesRead === 0) throw badFile(path, `truncated: no byte at ${position + done}`);
    done += bytesRead;
  }
}

async function withFile<T>(path: string, use: (handle: FileHandle, size: number) => Promise<T>): Promise<T> {
  let handle: FileHandle | undefined;
  try {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if (!(await stat(path)).isFile()) throw badFile(path, 'not a regular file');
    handle = await open(path, 'r');
    return await use(handle, (await handle.stat()).size);
  } catch (error) {
    throw error instanceof AtMoeError ? error : ioError(path, 'reading', error);
  } finally {
    await handle?.close();
  }
}

/**
 * Reads and checks the header: known dtypes, shapes that fit their bytes, tensors that cover the data without hole or overlap.
 * Errors: NOT_FOUND, IO, BAD_FILE naming the file and the tensor.
 */
export async function readSafetensorsHeader(path: string): Promise<SafetensorsFile> {
  return await withFile(path, async (handle, size) => {
    if (size < 8) throw badFile(path, `truncated: ${size} bytes, a safetensors file has at least 8`);
    const prefix = new Uint8Array(8);
    await readFully(path, handle, prefix, 0);
    const length = new DataView(prefix.buffer).getBigUint64(0, true);
    if (length > BigInt(maxHeaderBytes)) {
      throw badFile(path, `a header of ${length} bytes, at most ${maxHeaderBytes} are allowed`);
    }
    const dataStart = 8 + Number(length);
    if (dataStart > size) throw badFile(path, `truncated: a header of ${length} bytes, the file has ${size}`);
    const text = new Uint8Array(Number(length));
    await readFully(path, handle, text, 8);
    return parseHeader(path, parseJson(path, text), dataStart, size);
  });
}

function typedArray(dtype: SafetensorsDtype, buffer: ArrayBuffer): TensorArray {
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer);
    case 'F32':
      return new Float32Array(buffer);
    case 'I64':
      return new BigInt64Array(buffer);
    case 'U64':
      return new BigUint64Array(buffer);
    case 'I32':
      return new Int32Array(buffer);
    case 'U32':
      return new Uint32Array(buffer);
    case 'I16':
      return new Int16Array(buffer);
    case 'U16':
    case 'F16':
    case 'BF16':
      return new Uint16Array(buffer);
    case 'I8':
      return new Int8Array(buffer);
    default:
      return new Uint8Array(buffer);
  }
}

/** One tensor's values, in memory of their own; F16 and BF16 as their 16-bit codes. Errors: UNKNOWN_NAME, NOT_FOUND, IO, BAD_FILE. */
export async function readTensor(file: SafetensorsFile, name: string): Promise<TensorArray> {
  const entry = file.tensors.get(name);
  if (!entry) throw new AtMoeError('ERR_AT_MOE_UNKNOWN_NAME', `${file.path}: no tensor ${JSON.stringify(name)}`);
  const bytes = await withFile(file.path, (handle) => readEntry(file.path, handle, entry));
  return typedArray(entry.dtype, bytes.buffer);
}

async function readEntry(
  path: string,
  handle: FileHandle,
  entry: Pick<SafetensorsEntry, 'offset' | 'byteLength'>,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(entry.byteLength);
  await readFully(path, handle, bytes, entry.offset);
  return bytes;
}

/** The bytes of a tensor that lies in a file. Errors: NOT_FOUND, IO, BAD_FILE. */
export async function readSource({ file = '', offset = 0, dtype, shape }: WritableTensor): Promise<Uint8Array> {
  const byteLength = (elementCount(shape) ?? 0) * dtypeBytes[dtype.toUpperCase() as SafetensorsDtype];
  return await withFile(file, (handle) => readEntry(file, handle, { offset, byteLength }));
}

/** All tensors of a file of weights (F32, F16, BF16), in memory, in the order of their offsets. Errors: BAD_FILE (another dtype), IO. */
export async function readWeights(file: SafetensorsFile): Promise<TensorSource[]> {
  return await withFile(file.path, async (handle) => {
    const sources: TensorSource[] = [];
    for (const entry of file.tensors.values()) {
      const dtype = storageType(entry.dtype);
      if (!dtype) throw badFile(file.path, `tensor ${JSON.stringify(entry.name)}: ${entry.dtype} cannot hold weights`);
      const data = await readEntry(file.path, handle, entry);
      sources.push({ name: entry.name, dtype, shape: entry.shape, data });
    }
    return sources;
  });
}

/** Error: NOT_FINITE, naming the file, the tensor and the first bad element, when `tensor.data` holds NaN or infinity. */
export function checkFinite(path: string, tensor: TensorSource): void {
  const index = tensor.data ? firstNonFinite(tensor.dtype, tensor.data) : -1;
  if (index >= 0) {
    const message = `${path}: tensor ${JSON.stringify(tensor.name)}: element ${index} is not finite`;
    throw new AtMoeError('ERR_AT_MOE_NOT_FINITE', message);
  }
}

/** Error: INTERNAL when a tensor to write has not the bytes its shape asks for. */
function checkLength(path: string, { name, shape, dtype }: WritableTensor, wanted: number, found: number): void {
  if (Number.isSafeInteger(wanted) && found === wanted) return;
  const problem = `shape ${JSON.stringify(shape)} of ${dtype} does not fit ${found} bytes`;
  throw new AtMoeError('ERR_AT_MOE_INTERNAL', `${path}: tensor ${JSON.stringify(name)}: ${problem}`);
}

function layout(path: string, tensors: WritableTensor[], metadata: Record<string, string>, alignment: number) {
  const rows = tensors.map((tensor) => {
    const dtype = tensor.dtype.toUpperCase() as SafetensorsDtype;
    const byteLength = (elementCount(tensor.shape) ?? Number.NaN) * dtypeBytes[dtype];
    const known = tensor.data instanceof Uint8Array ? tensor.data.byteLength : byteLength;
    checkLength(path, tensor, byteLength, known);
    return { tensor, dtype, byteLength, key: Buffer.from(tensor.name) };
  });
  rows.sort((a, b) => dtypeOrder.indexOf(b.dtype) - dtypeOrder.indexOf(a.dtype) || Buffer.compare(a.key, b.key));
  const fields: [string, unknown][] = Object.keys(metadata).length > 0 ? [['__metadata__', metadata]] : [];
  let next = 0;
  for (const { tensor, dtype, byteLength } of rows) {
    fields.push([tensor.name, { dtype, shape: tensor.shape, data_offsets: [next, next + byteLength] }]);
    next += byteLength;
  }
  if (new Set(fields.map(([name]) => name)).size !== fields.length) {
    throw new AtMoeError('ERR_AT_MOE_INTERNAL', `${path}: two tensors of one name`);
  }
  const text = Buffer.from(
    `{${fields.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join(',')}}`,
  );
  const header = Buffer.alloc(Math.ceil((8 + text.length) / alignment) * alignment, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8));
  text.copy(header, 8);
  return { header, rows };
}

async function copyRange(source: WritableTensor, byteLength: number, write: (chunk: Uint8Array) => Promise<void>) {
  const path = source.file as string;
  await withFile(path, async (handle) => {
    const chunk = new Uint8Array(Math.min(byteLength, 1 << 22));
    for (let done = 0; done < byteLength; done += chunk.byteLength) {
      const part = chunk.subarray(0, Math.min(chunk.byteLength, byteLength - done));
      await readFully(path, handle, part, (source.offset ?? 0) + done);
      await write(part);
    }
  });
}

/**
 * Writes a safetensors file, byte for byte as the safetensors library would: by dtype, then name; header padded to 8
 * bytes, or to a larger `alignment` of the data.
 * Tensors in files are copied in pieces of 4 MiB. Not synced: replaceFolder and replaceFile do that. Error: IO.
 */
export async function writeSafetensors(
  path: string,
  tensors: WritableTensor[],
  metadata: Record<string, string> = { format: 'pt' },
  alignment = 8,
): Promise<void> {
  const { header, rows } = layout(path, tensors, metadata, alignment);
  try {
    const handle = await open(path, 'w');
    const write = async (bytes: Uint8Array) => {
      try {
        for (let done = 0; done < bytes.byteLength; ) {
          done += (await handle.write(bytes, done, Math.min(bytes.byteLength - done, 1 << 30))).bytesWritten;
        }
      } catch (error) {
        // Coded here, where it is known that it was not the file copied from.
        throw ioError(path, 'writing', error);
      }
    };
    try {
      await write(header);
      for (const { tensor, byteLength } of rows) {
        const data = typeof tensor.data === 'function' ? await tensor.data() : tensor.data;
        if (data) checkLength(path, tensor, byteLength, data.byteLength);
        if (data) await write(data);
        else await copyRange(tensor, byteLength, write);
      }
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw error instanceof AtMoeError ? error : ioError(path, 'writing', error);
  }
}
