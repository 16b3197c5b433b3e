/**
 * Weights of 8 bits on disk: for each linear `NAME.weight` (the head included) int8 of its shape, and `NAME.weight.scale`, f16
 * [rows, ceil(cols / 32)], one scale for each 32 neighbouring columns. A weight is value · scale. Everything else is stored
 * as in any checkpoint; config.json says so in `quantization_config`, which makes software that does not know it refuse.
 */
import { isDeepStrictEqual } from 'node:util';
import { linearModules, type StorageType, type WeightFormat } from '../descriptors.js';
import { bytesPerElement, f16ToFloat32 } from './float-types.js';

const blockSize = 32;

export const quantizationConfig = { quant_method: 'at-moe-q8', block_size: blockSize, version: 1 };

export function isQuantizationConfig(value: unknown): boolean {
  return isDeepStrictEqual(value, quantizationConfig);
}

/** config.json of the same model in plain numbers. */
export function plainConfig({ quantization_config: _, ...config }: Record<string, unknown>): Record<string, unknown> {
  return config;
}

/** Whether a tensor, by its name without "model.", is held in blocks when weights are of 8 bits. */
export function isQuantizable(name: string): boolean {
  return name === 'lm_head.weight' || linearModules.some((module) => name.endsWith(`.${module}.weight`));
}

export const scaleName = (name: string): string => `${name}.scale`;

/** Shape of the scales of a weight [rows, cols]. */
export function scaleShape(shape: readonly number[]): [rows: number, blocks: number] {
  const [rows, cols] = shape as [number, number];
  return [rows, Math.ceil(cols / blockSize)];
}

/** Bytes of a tensor; in q8, of values and scales. */
export function storedBytes(format: WeightFormat, shape: readonly number[]): number {
  const elements = shape.reduce((product, extent) => product * extent, 1);
  if (format !== 'q8') return elements * bytesPerElement[format];
  const [rows, blocks] = scaleShape(shape);
  return elements + rows * blocks * bytesPerElement.f16;
}

/** The type of what an engine holds in numbers beside weights of this format, where no file says it. */
export function numberType(format: WeightFormat): StorageType {
  return format === 'q8' ? 'bf16' : format;
}

/**
 * Bytes of LoRA pairs of `ranks` columns in all on a linear: A [ranks, in] and B [out, ranks]. In q8 a matrix of fewer inputs
 * than a block is held in numbers.
 */
export function pairBytes(
  format: WeightFormat,
  numbers: StorageType,
  { outFeatures, inFeatures }: { outFeatures: number; inFeatures: number },
  ranks: number,
): number {
  const bytes = (shape: [number, number]) => storedBytes(shape[1] < blockSize ? numbers : format, shape);
  return bytes([ranks, inFeatures]) + bytes([outFeatures, ranks]);
}

/** value · scale, exact in f32. */
export function widenQ8(values: Uint8Array, scales: Uint8Array, shape: readonly number[]): Float32Array {
  const [rows, blocks] = scaleShape(shape);
  const cols = shape[1] as number;
  const codes = new Int8Array(values.buffer, values.byteOffset, values.byteLength);
  const wide = f16ToFloat32(new Uint16Array(scales.slice().buffer));
  const result = new Float32Array(rows * cols);
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const at = row * cols + col;
      result[at] = (codes[at] as number) * (wide[row * blocks + Math.floor(col / blockSize)] as number);
    }
  }
  return result;
}
