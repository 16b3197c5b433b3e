import type { StorageType } from '../descriptors.js';

export const bytesPerElement: Record<StorageType, number> = { f32: 4, f16: 2, bf16: 2 };

const scratch = new Float32Array(1);
const scratchBits = new Uint32Array(scratch.buffer);

/** Bits of the f32 that equals the f16 with these bits; NaN payloads are kept. */
function f16ToF32Bits(code: number): number {
  const sign = (code & 0x8000) << 16;
  const exponent = (code >> 10) & 0x1f;
  const fraction = code & 0x3ff;
  if (exponent === 0x1f) return (sign | 0x7f800000 | (fraction << 13)) >>> 0;
  if (exponent !== 0) return (sign | ((exponent + 112) << 23) | (fraction << 13)) >>> 0;
  scratch[0] = fraction * 2 ** -24;
  return (sign | (scratchBits[0] as number)) >>> 0;
}

let f16Table: Uint32Array | undefined;

/** Widens f16 codes, exactly. */
export function f16ToFloat32(codes: Uint16Array): Float32Array {
  f16Table ??= Uint32Array.from({ length: 65536 }, (_, code) => f16ToF32Bits(code));
  const bits = new Uint32Array(codes.length);
  for (let i = 0; i < codes.length; i++) bits[i] = f16Table[codes[i] as number] as number;
  return new Float32Array(bits.buffer);
}

/** Widens bf16 codes, exactly. */
export function bf16ToFloat32(codes: Uint16Array): Float32Array {
  const bits = new Uint32Array(codes.length);
  for (let i = 0; i < codes.length; i++) bits[i] = (codes[i] as number) << 16;
  return new Float32Array(bits.buffer);
}

function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}

/** `value >> shift`, rounded to the nearest, ties to even. */
function roundShift(value: number, shift: number): number {
  const kept = value >>> shift;
  const rest = value & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  return rest > half || (rest === half && (kept & 1) === 1) ? kept + 1 : kept;
}

function f32BitsToF16(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff);
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  // A carry out of the fraction runs into the exponent, which is the right answer there, infinity included.
  if (magnitude >= 0x38800000) return sign | roundShift(magnitude - (112 << 23), 13);
  const shift = 126 - (magnitude >>> 23);
  return shift > 24 ? sign : sign | roundShift((magnitude & 0x7fffff) | 0x800000, shift);
}

/** Narrows to f16 codes: nearest, ties to even; overflow gives infinity. */
export function float32ToF16(values: Float32Array): Uint16Array {
  const bits = bitsOf(values);
  const codes = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) codes[i] = f32BitsToF16(bits[i] as number);
  return codes;
}

/** Narrows to bf16 codes: nearest, ties to even; overflow gives infinity. */
export function float32ToBf16(values: Float32Array): Uint16Array {
  const bits = bitsOf(values);
  const codes = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i] as number;
    const isNotANumber = (b & 0x7fffffff) > 0x7f800000;
    codes[i] = isNotANumber ? (b >>> 16) | 0x40 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
  }
  return codes;
}

function words(bytes: Uint8Array): Uint16Array {
  return bytes.byteOffset % 2 === 0
    ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2)
    : new Uint16Array(bytes.slice().buffer);
}

function floats(bytes: Uint8Array): Float32Array {
  return bytes.byteOffset % 4 === 0
    ? new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    : new Float32Array(bytes.slice().buffer);
}

/** The values of a stored tensor; a view of the same memory for aligned f32, a copy otherwise. */
export function toFloat32(dtype: StorageType, bytes: Uint8Array): Float32Array {
  if (dtype === 'f16') return f16ToFloat32(words(bytes));
  if (dtype === 'bf16') return bf16ToFloat32(words(bytes));
  return floats(bytes);
}

/** The bytes that store these values as `dtype`; a view of the same memory for f32. */
export function fromFloat32(dtype: StorageType, values: Float32Array): Uint8Array {
  const typed = dtype === 'f16' ? float32ToF16(values) : dtype === 'bf16' ? float32ToBf16(values) : values;
  return new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength);
}

/** Index of the first element that is NaN or infinite, or -1. */
export function firstNonFinite(dtype: StorageType, bytes: Uint8Array): number {
  if (dtype === 'f32') {
    const bits = bitsOf(floats(bytes));
    for (let i = 0; i < bits.length; i++) if (((bits[i] as number) & 0x7f800000) === 0x7f800000) return i;
    return -1;
  }
  const mask = dtype === 'f16' ? 0x7c00 : 0x7f80;
  const codes = words(bytes);
  for (let i = 0; i < codes.length; i++) if (((codes[i] as number) & mask) === mask) return i;
  return -1;
}
