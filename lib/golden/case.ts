import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { AtMoeError } from '../errors.js';
import { badFile, checkSchema, ioError, readJson } from '../formats/json.js';
import type { MixtureData } from '../formats/mixture-folder.js';
import { type BaseModel, modelDescriptor } from '../formats/model-folder.js';
import { readAdapter } from '../formats/peft.js';
import { readRouter } from '../formats/router-file.js';
import { readSafetensorsHeader, readTensor } from '../formats/safetensors.js';
import type { RouterCoefficients } from '../native-training-types.js';
import { parseRoutingOptions } from '../routing-options.js';

const caseSchema = z.strictObject({
  name: z.string(),
  groups: z.array(z.strictObject({ name: z.string(), experts: z.array(z.string()) })),
  general: z.string().nullable(),
  routing: z.unknown(),
  prompt_lengths: z.array(z.int().min(1)),
  aux_coefficients: z.strictObject({
    group_balance: z.number().optional(),
    expert_balance: z.number().optional(),
    z_loss: z.number().optional(),
    entropy: z.number().optional(),
  }),
  optimiser: z.strictObject({
    lr: z.number(),
    betas: z.tuple([z.number(), z.number()]),
    eps: z.number(),
    weight_decay: z.number(),
    max_grad_norm: z.number(),
    steps: z.int().min(1),
  }),
});

export interface ExpectedTensor {
  name: string;
  shape: number[];
  values: Float64Array;
}

/** A case folder in memory. The same sequences serve all its checks. */
export interface GoldenCase {
  name: string;
  dir: string;
  base: BaseModel;
  mixture: MixtureData;
  /** Token ids of each sequence, without padding. */
  sequences: Int32Array[];
  /** Per sequence: the id that stands at a position where it is to be predicted, -100 elsewhere. */
  labels: Int32Array[];
  promptLengths: number[];
  /** Tokens of a padded row; rows of expected tensors are sequences of this length. */
  paddedLength: number;
  coefficients: RouterCoefficients;
  optimiser: z.infer<typeof caseSchema>['optimiser'];
  expected: Map<string, ExpectedTensor>;
}

async function readExpected(path: string): Promise<Map<string, ExpectedTensor>> {
  const file = await readSafetensorsHeader(path);
  const expected = new Map<string, ExpectedTensor>();
  for (const { name, shape, dtype } of file.tensors.values()) {
    if (dtype === 'F16' || dtype === 'BF16') throw badFile(path, `tensor ${JSON.stringify(name)}: ${dtype}`);
    expected.set(name, { name, shape, values: Float64Array.from(await readTensor(file, name), Number) });
  }
  return expected;
}

/** Takes a tensor that is input rather than expectation. */
function takeRows(path: string, expected: Map<string, ExpectedTensor>, name: string): Int32Array[] {
  const tensor = expected.get(name);
  if (tensor?.shape.length !== 2) throw badFile(path, `no tensor ${JSON.stringify(name)} of two dimensions`);
  expected.delete(name);
  const [rows, columns] = tensor.shape as [number, number];
  return Array.from({ length: rows }, (_, row) =>
    Int32Array.from(tensor.values.subarray(row * columns, (row + 1) * columns)),
  );
}

/** Real tokens of a row: padding, at the end, is neither prompt nor predicted. */
function realLength(promptMask: Int32Array, labels: Int32Array): number {
  let length = promptMask.length;
  while (length > 0 && promptMask[length - 1] === 0 && (labels[length - 1] as number) < 0) length--;
  return length;
}

/**
 * Reads a case: base/, experts/<group>/<expert>/, general/, router.safetensors, case.json, expected.safetensors.
 * Errors: NOT_FOUND, IO, BAD_FILE, MISMATCH, those of the base and the adapters.
 */
export async function readCase(dir: string): Promise<GoldenCase> {
  const casePath = join(dir, 'case.json');
  const description = checkSchema(casePath, caseSchema, await readJson(casePath));
  const base = await modelDescriptor(join(dir, 'base'));
  const { config } = base.descriptor;
  const routing = parseRoutingOptions(description.routing, description.general !== null, casePath);
  const groups: MixtureData['groups'] = [];
  for (const { name, experts } of description.groups) {
    const own = [];
    for (const expert of experts) {
      own.push({ name: expert, adapter: await readAdapter(join(dir, 'experts', name, expert), config) });
    }
    groups.push({ name, experts: own });
  }
  const general = description.general !== null && {
    name: description.general,
    adapter: await readAdapter(join(dir, 'general'), config),
  };
  const sizes = groups.map(({ experts }) => experts.length);
  const router = await readRouter(join(dir, 'router.safetensors'), sizes, routing, config);

  const expectedPath = join(dir, 'expected.safetensors');
  const expected = await readExpected(expectedPath);
  const ids = takeRows(expectedPath, expected, 'input_ids');
  const labels = takeRows(expectedPath, expected, 'labels');
  const masks = takeRows(expectedPath, expected, 'prompt_mask');
  const { prompt_lengths: promptLengths, aux_coefficients: coefficients, optimiser } = description;
  for (const [b, mask] of masks.entries()) {
    const prompt = promptLengths[b] ?? 0;
    if (mask.some((value, t) => (value === 1) !== t < prompt)) {
      throw badFile(expectedPath, `prompt_mask of sequence ${b} is not its first ${prompt} tokens, as in ${casePath}`);
    }
  }
  const lengths = ids.map((_, b) => realLength(masks[b] as Int32Array, labels[b] as Int32Array));
  return {
    name: description.name,
    dir,
    base,
    mixture: { groups, general: general || null, routing, router },
    sequences: ids.map((row, b) => row.subarray(0, lengths[b])),
    labels: labels.map((row, b) => row.subarray(0, lengths[b])),
    promptLengths,
    paddedLength: ids[0]?.length ?? 0,
    coefficients: {
      groupBalance: coefficients.group_balance ?? 0,
      expertBalance: coefficients.expert_balance ?? 0,
      zLoss: coefficients.z_loss ?? 0,
      entropy: coefficients.entropy ?? 0,
    },
    optimiser,
    expected,
  };
}

async function names(dir: string): Promise<string[]> {
  try {
    return await readdir(dir);
  } catch (cause) {
    throw ioError(dir, 'listing', cause);
  }
}

/** The case folders among `dirs` and directly inside them, in order. Errors: NOT_FOUND for a folder without a case; IO. */
export async function findCases(dirs: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  for (const dir of dirs) {
    const own = await names(dir);
    if (own.includes('case.json')) {
      found.push(dir);
      continue;
    }
    const inside: string[] = [];
    for (const name of own.sort()) {
      const folder = join(dir, name);
      const isCase = await readdir(folder).then(
        (entries) => entries.includes('case.json'),
        () => false,
      );
      if (isCase) inside.push(folder);
    }
    if (inside.length === 0) throw new AtMoeError('ERR_AT_MOE_NOT_FOUND', `${dir}: holds no case.json`);
    found.push(...inside);
  }
  return found;
}

/** A name for messages when a case cannot be read. */
export function caseName(dir: string): string {
  return basename(dir);
}
