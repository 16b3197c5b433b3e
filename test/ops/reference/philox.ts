/** Philox 4x32-10 on BigInt, written from the paper. */
const mask = 0xffffffffn;

export function philox(key: bigint, high: bigint, low: bigint): [number, number, number, number] {
  let k0 = key & mask;
  let k1 = key >> 32n;
  let c = [low & mask, low >> 32n, high & mask, high >> 32n] as [bigint, bigint, bigint, bigint];
  for (let round = 0; round < 10; ++round) {
    const p0 = 0xd2511f53n * c[0];
    const p1 = 0xcd9e8d57n * c[2];
    c = [(p1 >> 32n) ^ c[1] ^ k0, p1 & mask, (p0 >> 32n) ^ c[3] ^ k1, p0 & mask];
    k0 = (k0 + 0x9e3779b9n) & mask;
    k1 = (k1 + 0xbb67ae85n) & mask;
  }
  return c.map(Number) as [number, number, number, number];
}

export const uniform = (bits: number): number => (bits >>> 8) * 2 ** -24;
