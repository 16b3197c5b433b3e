/** Mixes 32 bits so that every input bit reaches every output bit (the finaliser of MurmurHash3). */
function mix(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** A counter-based generator: 32 random bits as a function of (seed, stream, counter) and nothing else. */
export function randomBits(seed: number, stream: number, counter: number): number {
  let h = mix((seed >>> 0) ^ 0x9e3779b9);
  h = mix(h + Math.imul(Math.floor(seed / 2 ** 32), 0x85157af5));
  h = mix(h + Math.imul(stream + 1, 0x9e3779b1));
  return mix(h + Math.imul(counter + 1, 0xb5297a4d));
}

/** The numbers 0 … n-1 in an order that depends on (n, seed, stream) alone. */
export function permutation(n: number, seed: number, stream: number): Uint32Array {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor((randomBits(seed, stream, i) / 2 ** 32) * (i + 1));
    const swapped = order[i] as number;
    order[i] = order[j] as number;
    order[j] = swapped;
  }
  return order;
}
