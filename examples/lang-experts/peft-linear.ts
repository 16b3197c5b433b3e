import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const weightsFile = 'adapter_model.safetensors';

/**
 * Writes the adapter that PEFT's `add_weighted_adapter` makes of adapters of one shape with equal weights and
 * `combination_type: 'linear'`: it adds A to A and B to B, each times the square root of the weight, so that every B also
 * meets the A of the other adapters.
 */
export async function writePeftLinear(sources: string[], target: string): Promise<void> {
  const files = await Promise.all(sources.map((source) => readFile(join(source, weightsFile))));
  const [sum, ...others] = files.map(splitSafetensors);
  if (!sum) throw new Error('no adapters to average');
  for (const other of others) {
    if (!sum.header.equals(other.header)) throw new Error('the adapters differ in shape');
    for (const [i, value] of other.values.entries()) sum.values[i] = (sum.values[i] ?? 0) + value;
  }
  const factor = Math.sqrt(1 / sources.length);
  for (const [i, value] of sum.values.entries()) sum.values[i] = value * factor;
  await mkdir(target, { recursive: true });
  await writeFile(join(target, weightsFile), Buffer.concat([sum.header, new Uint8Array(sum.values.buffer)]));
  await copyFile(join(sources[0] as string, 'adapter_config.json'), join(target, 'adapter_config.json'));
}

/** The header with its length, and all values of a file that holds f32 alone. */
function splitSafetensors(file: Buffer): { header: Buffer; values: Float32Array } {
  const end = 8 + Number(file.readBigUInt64LE(0));
  if (/"dtype":"(?!F32")/.test(file.toString('utf8', 8, end))) throw new Error('only f32 adapters are averaged here');
  return { header: file.subarray(0, end), values: new Float32Array(new Uint8Array(file.subarray(end)).buffer) };
}
