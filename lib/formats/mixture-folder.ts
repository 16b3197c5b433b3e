import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { ModelConfig, TensorSource } from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import { parseRoutingOptions, type RoutingOptions } from '../routing-options.js';
import { checkReplaceable, readStable, replaceFolder } from './atomic.js';
import { listFolder } from './checkpoint.js';
import { badFile, checkSchema, readJson, unsupported } from './json.js';
import { type Adapter, readAdapter, writeAdapterFiles } from './peft.js';
import { readRouter, writeRouter } from './router-file.js';

const version = 1;
const jsonName = 'mixture.json';
const routerName = 'router.safetensors';
const entries = [jsonName, routerName, 'experts', 'general'];

export interface NamedAdapter {
  name: string;
  adapter: Adapter;
}

export interface MixtureGroup {
  name: string;
  experts: NamedAdapter[];
}

/** A whole mixture in memory. Experts are numbered in group order; the router's tensors are those of routerShapes. */
export interface MixtureData {
  groups: MixtureGroup[];
  general: NamedAdapter | null;
  routing: RoutingOptions;
  router: TensorSource[];
}

/** The base model a mixture belongs to; `sha256` is that of its config.json. */
export interface MixtureBase {
  nameOrPath: string;
  config: ModelConfig;
  sha256: string;
}

export interface MixtureNames {
  groups: { name: string; experts: string[] }[];
  general: string | null;
}

/** mixture.json, checked. */
export interface MixtureFile extends MixtureNames {
  base: { nameOrPath: string; hiddenSize: number; numLayers: number; sha256: string };
  routing: RoutingOptions;
}

const fileSchema = z.strictObject({
  format: z.literal('at-moe'),
  version: z.literal(version),
  base: z.strictObject({
    name_or_path: z.string(),
    hidden_size: z.int().positive(),
    num_hidden_layers: z.int().positive(),
    sha256: z.string().regex(/^[0-9a-f]{64}$/),
  }),
  groups: z.array(z.strictObject({ name: z.string(), experts: z.array(z.string()) })),
  general: z.string().nullable(),
  routing: z.unknown(),
});

function listProblem(kind: string, names: string[]): string | undefined {
  const seen = new Set<string>();
  for (const name of names) {
    if (typeof name !== 'string' || !/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) {
      return `${kind} name ${JSON.stringify(name)}: 1 to 64 letters, digits, ".", "_", "-", starting with a letter or digit`;
    }
    if (seen.has(name.toLowerCase())) return `${kind} name ${JSON.stringify(name)} is used twice (case does not count)`;
    seen.add(name.toLowerCase());
  }
  return undefined;
}

/** What is wrong with the names of a mixture, if anything: each must be usable as a path and unique ignoring case, experts across groups too. */
export function nameProblem({ groups, general }: MixtureNames): string | undefined {
  if (groups.length === 0) return 'a mixture needs a group';
  const empty = groups.find(({ experts }) => experts.length === 0);
  if (empty) return `group ${JSON.stringify(empty.name)} has no expert`;
  const experts = groups.flatMap((group) => group.experts);
  const names = groups.map(({ name }) => name);
  return (
    listProblem('group', names) ??
    listProblem('expert', experts) ??
    listProblem('general adapter', general === null ? [] : [general])
  );
}

/** Checks a parsed mixture.json. `path` names it in errors. Errors: BAD_FILE; UNSUPPORTED for a later version. */
export function parseMixtureFile(path: string, value: unknown): MixtureFile {
  const head = checkSchema(path, z.looseObject({ format: z.literal('at-moe'), version: z.int().min(1) }), value);
  if (head.version > version)
    throw unsupported(path, `version ${head.version}; this release reads versions up to ${version}`);
  const { base, groups, general, routing } = checkSchema(path, fileSchema, value);
  const problem = nameProblem({ groups, general });
  if (problem) throw badFile(path, problem);
  return {
    base: {
      nameOrPath: base.name_or_path,
      hiddenSize: base.hidden_size,
      numLayers: base.num_hidden_layers,
      sha256: base.sha256,
    },
    groups,
    general,
    routing: parseRoutingOptions(routing, general !== null, path),
  };
}

/** Reads only mixture.json of a mixture's folder. Errors: NOT_FOUND, IO, BAD_FILE, UNSUPPORTED. */
export async function readMixtureFile(dir: string): Promise<MixtureFile> {
  const path = join(dir, jsonName);
  return await readStable(dir, async () => parseMixtureFile(path, await readJson(path)));
}

/** Error: BAD_FILE when the folders of experts are not those that mixture.json names. */
async function checkFolders(dir: string, file: MixtureFile): Promise<void> {
  const refuse = (path: string) => badFile(path, `not named by ${join(dir, jsonName)}`);
  const extra = (found: string[], known: string[]) =>
    found.find((name) => !known.includes(name) && !name.startsWith('.'));
  const experts = join(dir, 'experts');
  const group = extra(
    await listFolder(experts),
    file.groups.map(({ name }) => name),
  );
  if (group !== undefined) throw refuse(join(experts, group));
  for (const { name, experts: known } of file.groups) {
    const expert = extra(await listFolder(join(experts, name)), known);
    if (expert !== undefined) throw refuse(join(experts, name, expert));
  }
  if (file.general === null && (await listFolder(dir)).includes('general')) throw refuse(join(dir, 'general'));
}

async function readFolder(
  dir: string,
  base: Omit<MixtureBase, 'nameOrPath'>,
): Promise<MixtureData & { warnings: string[] }> {
  const path = join(dir, jsonName);
  const file = parseMixtureFile(path, await readJson(path));
  const { hiddenSize, numLayers } = base.config;
  if (file.base.hiddenSize !== hiddenSize || file.base.numLayers !== numLayers) {
    const made = `hidden_size ${file.base.hiddenSize} and ${file.base.numLayers} layers`;
    const message = `${path}: made for a base model of ${made}, this one has ${hiddenSize} and ${numLayers}`;
    throw new AtMoeError('ERR_AT_MOE_MISMATCH', message);
  }
  await checkFolders(dir, file);
  const warnings: string[] = [];
  if (file.base.sha256 !== base.sha256) {
    warnings.push(`${path}: made for ${file.base.nameOrPath}, whose config.json differs from this base model's`);
  }
  const groups: MixtureGroup[] = [];
  for (const { name, experts } of file.groups) {
    const group: MixtureGroup = { name, experts: [] };
    for (const expert of experts) {
      group.experts.push({ name: expert, adapter: await readAdapter(join(dir, 'experts', name, expert), base.config) });
    }
    groups.push(group);
  }
  const general =
    file.general === null
      ? null
      : { name: file.general, adapter: await readAdapter(join(dir, 'general'), base.config) };
  const sizes = file.groups.map(({ experts }) => experts.length);
  const router = await readRouter(join(dir, routerName), sizes, file.routing, base.config);
  return { groups, general, routing: file.routing, router, warnings };
}

/**
 * Reads a mixture for a base model; `warnings` says when the base's config.json is not the one it was made for.
 * Errors: NOT_FOUND, IO, BAD_FILE, UNSUPPORTED, NOT_FINITE; MISMATCH naming file, tensor and both shapes.
 */
export async function readMixture(
  dir: string,
  base: Omit<MixtureBase, 'nameOrPath'>,
): Promise<MixtureData & { warnings: string[] }> {
  return await readStable(dir, () => readFolder(dir, base));
}

/** Says before a training whether writeMixture could write there. Errors: those of checkReplaceable. */
export async function checkMixtureFolder(dir: string): Promise<void> {
  await checkReplaceable(dir, entries);
}

/**
 * Saves a mixture; the folder is exchanged at once, so that a crash leaves the old mixture or the new one.
 * Errors: RangeError (names); IO, NOT_FINITE; MISMATCH when tensors do not fit the base or the routing.
 */
export async function writeMixture(dir: string, base: MixtureBase, mixture: MixtureData): Promise<void> {
  const { groups, general, routing, router } = mixture;
  const names: MixtureNames = {
    groups: groups.map(({ name, experts }) => ({ name, experts: experts.map((expert) => expert.name) })),
    general: general?.name ?? null,
  };
  const problem = nameProblem(names);
  if (problem) throw new RangeError(problem);
  const json = {
    format: 'at-moe',
    version,
    base: {
      name_or_path: base.nameOrPath,
      hidden_size: base.config.hiddenSize,
      num_hidden_layers: base.config.numLayers,
      sha256: base.sha256,
    },
    ...names,
    routing: parseRoutingOptions(routing, general !== null),
  };
  await replaceFolder(dir, entries, async (folder) => {
    await writeFile(join(folder, jsonName), `${JSON.stringify(json, null, 2)}\n`);
    const sizes = groups.map(({ experts }) => experts.length);
    await writeRouter(join(folder, routerName), router, sizes, routing, base.config);
    const adapters = groups.flatMap(({ name, experts }) =>
      experts.map((expert) => ({ path: join(folder, 'experts', name, expert.name), adapter: expert.adapter })),
    );
    if (general) adapters.push({ path: join(folder, 'general'), adapter: general.adapter });
    for (const { path, adapter } of adapters) {
      await mkdir(path, { recursive: true });
      await writeAdapterFiles(path, adapter, base.config);
    }
  });
}
