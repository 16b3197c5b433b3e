import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  bf16ToFloat32,
  f16ToFloat32,
  firstNonFinite,
  float32ToBf16,
  float32ToF16,
  fromFloat32,
  toFloat32,
} from '../../lib/formats/float-types.js';

const codes = Uint16Array.from({ length: 65536 }, (_, code) => code);

/** The value of an f16 code by its definition. */
function f16Value(code: number): number {
  const sign = code & 0x8000 ? -1 : 1;
  const exponent = (code >> 10) & 31;
  const fraction = code & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** NaNs come back quiet, all else bit for bit. */
function assertSameCodes(actual: Uint16Array, quietBit: number, isNaNCode: (code: number) => boolean): void {
  for (let code = 0; code < 65536; code++) {
    assert.equal(actual[code], isNaNCode(code) ? code | quietBit : code, `code ${code}`);
  }
}

test('all f16 codes widen to their values and narrow back', () => {
  const wide = f16ToFloat32(codes);
  for (let code = 0; code < 65536; code++) assert.ok(Object.is(wide[code], f16Value(code)), `code ${code}`);
  assertSameCodes(float32ToF16(wide), 0x200, (code) => (code & 0x7fff) > 0x7c00);
});

test('all bf16 codes widen to their values and narrow back', () => {
  const wide = bf16ToFloat32(codes);
  const bits = new Uint32Array(wide.buffer);
  for (let code = 0; code < 65536; code++) assert.equal(bits[code], code * 65536);
  assertSameCodes(float32ToBf16(wide), 0x40, (code) => (code & 0x7fff) > 0x7f80);
});

test('narrowing rounds to the nearest, ties to even, between all neighbours', () => {
  for (const [widen, narrow, largest] of [
    [f16ToFloat32, float32ToF16, 0x7bff],
    [bf16ToFloat32, float32ToBf16, 0x7f7f],
  ] as const) {
    const finite = widen(codes.slice(0, largest + 1));
    for (let code = 0; code < largest; code++) {
      const middle = ((finite[code] as number) + (finite[code + 1] as number)) / 2;
      const bits = new Uint32Array(new Float32Array([middle]).buffer);
      const around = new Float32Array(
        new Uint32Array([(bits[0] as number) - 1, bits[0] as number, (bits[0] as number) + 1]).buffer,
      );
      // The half of the smallest bf16 is exact, its lower neighbour too: f32 has 16 bits more.
      assert.deepEqual([...narrow(around)], [code, code + (code & 1), code + 1], `code ${code}`);
    }
  }
});

test('overflow gives infinity, tiny values zero, signs stay', () => {
  assert.deepEqual(
    [...float32ToF16(Float32Array.of(65519.99, 65520, 1e30, -1e30, 2 ** -25, -0, -1e-30))],
    [0x7bff, 0x7c00, 0x7c00, 0xfc00, 0, 0x8000, 0x8000],
  );
  assert.deepEqual([...float32ToBf16(Float32Array.of(3.4e38, -0, Number.NaN))], [0x7f80, 0x8000, 0x7fc0]);
});

test('stored bytes are read at any alignment, and non-finite ones are found', () => {
  const values = Float32Array.of(1, -2, 0.5);
  for (const dtype of ['f32', 'f16', 'bf16'] as const) {
    const bytes = fromFloat32(dtype, values);
    const shifted = new Uint8Array(bytes.length + 1).subarray(1);
    shifted.set(bytes);
    assert.deepEqual(toFloat32(dtype, shifted), values);
    assert.equal(firstNonFinite(dtype, shifted), -1);
    assert.equal(firstNonFinite(dtype, fromFloat32(dtype, Float32Array.of(1, Number.NaN, 2))), 1);
    assert.equal(firstNonFinite(dtype, fromFloat32(dtype, Float32Array.of(1, 2, Number.NEGATIVE_INFINITY))), 2);
  }
});
