import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { AtMoeError } from '../errors.js';
import { checkReplaceable, readStable, replaceFolder } from '../formats/atomic.js';
import { badFile, checkSchema, readJson, unsupported } from '../formats/json.js';
import { checkFinite, readSafetensorsHeader, readWeights, writeSafetensors } from '../formats/safetensors.js';
import type { NamedTensor, TrainerState } from '../native-training-types.js';

const version = 1;
const descriptionFile = 'checkpoint.json';
const stateFile = 'state.safetensors';
const files = [descriptionFile, stateFile];

const count = z.int().min(0);
const schema = z.strictObject({
  format: z.literal('at-moe-checkpoint'),
  version: z.int(),
  target: z.enum(['adapter', 'router', 'joint', 'base']),
  fingerprint: z.string(),
  data: z.string().nullable(),
  options: z.record(z.string(), z.json()),
  step: count,
  tokens: count,
  next: z.strictObject({ epoch: count, index: count }),
});

type Description = z.infer<typeof schema>;

/** What must be the same for a run to go on as if it had never stopped. */
export type RunIdentity = Pick<Description, 'target' | 'fingerprint' | 'data' | 'options'>;

/** Where a run stands: updates done, tokens seen, the place of the next step. */
export type RunPosition = Pick<Description, 'step' | 'tokens' | 'next'>;

export interface Checkpoint extends RunIdentity, RunPosition {
  state: TrainerState;
}

/** Says before the training what saving would say after hours of it. Error: IO. */
export async function checkCheckpointFolder(dir: string): Promise<void> {
  await checkReplaceable(dir, files);
}

/** Writes a checkpoint folder: a crash leaves the one before or this one. Errors: IO. */
export async function saveCheckpoint(dir: string, checkpoint: Checkpoint): Promise<void> {
  const { state, ...description } = checkpoint;
  const text = `${JSON.stringify({ format: 'at-moe-checkpoint', version, ...description }, null, 2)}\n`;
  const tensors = state.tensors.map(({ name, shape, values }) => {
    return {
      name,
      shape,
      dtype: 'f32' as const,
      data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
    };
  });
  await replaceFolder(dir, files, async (folder) => {
    await writeSafetensors(join(folder, stateFile), tensors);
    await writeFile(join(folder, descriptionFile), text);
  });
}

/** Errors: NOT_FOUND, IO, BAD_FILE, NOT_FINITE naming the tensor; UNSUPPORTED for a newer version. */
export async function loadCheckpoint(dir: string): Promise<Checkpoint> {
  return await readStable(dir, async () => {
    const path = join(dir, descriptionFile);
    const value = await readJson(path);
    const found = (value as { version?: unknown } | null)?.version;
    if (typeof found === 'number' && found > version) throw unsupported(path, `version ${found}; this is ${version}`);
    const { format: _, version: __, ...description } = checkSchema(path, schema, value);
    const statePath = join(dir, stateFile);
    const sources = await readWeights(await readSafetensorsHeader(statePath));
    const tensors = sources.map((source): NamedTensor => {
      const { name, shape, dtype, data } = source;
      if (dtype !== 'f32') throw badFile(statePath, `tensor ${JSON.stringify(name)}: ${dtype}, the state is f32`);
      checkFinite(statePath, source);
      return { name, shape, values: new Float32Array((data as Uint8Array).buffer as ArrayBuffer) };
    });
    return { ...description, state: { step: description.step, tensors } };
  });
}

/** Error: MISMATCH listing what differs between the checkpoint and the run that was asked for. */
export function checkResumable(dir: string, saved: RunIdentity, run: RunIdentity): void {
  const differences: string[] = [];
  const compare = (name: string, before: unknown, now: unknown): void => {
    if (isDeepStrictEqual(before, now)) return;
    differences.push(`${name} is ${JSON.stringify(before)} in the checkpoint and ${JSON.stringify(now)} now`);
  };
  compare('target', saved.target, run.target);
  if (saved.fingerprint !== run.fingerprint) differences.push('it is of another model or mixture');
  if (saved.data !== run.data) differences.push('it was trained on other data');
  for (const name of new Set([...Object.keys(saved.options), ...Object.keys(run.options)])) {
    compare(name, saved.options[name], run.options[name]);
  }
  if (differences.length === 0) return;
  throw new AtMoeError('ERR_AT_MOE_MISMATCH', `${dir}: cannot go on from this checkpoint: ${differences.join('; ')}`);
}
