import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { AdapterModule, ModelConfig, TensorSource } from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import { checkReplaceable, readStable, replaceFolder } from './atomic.js';
import { listFolder, missingWeights } from './checkpoint.js';
import { readJson, unsupported } from './json.js';
import { adapterTensorName, type LoraConfig, resolveTargets } from './lora-targets.js';
import { formatAdapterConfig, parseAdapterConfig } from './peft-config.js';
import { checkFinite, readSafetensorsHeader, readWeights, writeSafetensors } from './safetensors.js';

/** A LoRA adapter; the tensors of its modules are in memory. */
export interface Adapter {
  config: LoraConfig;
  modules: AdapterModule[];
}

const configName = 'adapter_config.json';
const weightsName = 'adapter_model.safetensors';
const files = [configName, weightsName];

function checkShape(path: string, tensor: Pick<TensorSource, 'name' | 'shape'>, wanted: number[], why: string): void {
  if (tensor.shape.join() !== wanted.join()) {
    const message = `${path}: tensor ${JSON.stringify(tensor.name)} has shape [${tensor.shape}], ${why} it is [${wanted}]`;
    throw new AtMoeError('ERR_AT_MOE_MISMATCH', message);
  }
}

async function readFolder(dir: string, model: ModelConfig): Promise<Adapter> {
  const configPath = join(dir, configName);
  const config = parseAdapterConfig(configPath, await readJson(configPath));
  const targets = resolveTargets(config, model, (problem) => unsupported(configPath, problem));
  const path = join(dir, weightsName);
  const names = await listFolder(dir);
  if (!names.includes(weightsName)) throw missingWeights(dir, names, weightsName);

  const file = await readSafetensorsHeader(path);
  const unused = new Set(file.tensors.keys());
  for (const { layer, module, rank, inFeatures, outFeatures } of targets) {
    const shapes = { A: [rank, inFeatures], B: [outFeatures, rank] };
    for (const side of ['A', 'B'] as const) {
      const name = adapterTensorName(layer, module, side);
      const entry = file.tensors.get(name);
      if (!entry) {
        const message = `${path}: no tensor ${JSON.stringify(name)} of shape [${shapes[side]}], which ${configPath} asks for`;
        throw new AtMoeError('ERR_AT_MOE_MISMATCH', message);
      }
      checkShape(path, entry, shapes[side], `by ${configPath} and the base model`);
      unused.delete(name);
    }
  }
  for (const name of unused) {
    const message = `${path}: tensor ${JSON.stringify(name)} belongs to no module that ${configPath} targets in the base model`;
    throw new AtMoeError('ERR_AT_MOE_MISMATCH', message);
  }

  const sources = new Map<string, TensorSource>();
  for (const source of await readWeights(file)) {
    checkFinite(path, source);
    sources.set(source.name, source);
  }
  const modules = targets.map(({ layer, module, rank, scaling }) => {
    const source = (side: 'A' | 'B') => sources.get(adapterTensorName(layer, module, side)) as TensorSource;
    return { layer, module, rank, scaling, a: source('A'), b: source('B') };
  });
  return { config, modules };
}

/**
 * Reads a LoRA adapter as PEFT saves it, for a base model of these shapes. Every tensor must be used, none may be missing.
 * Errors: NOT_FOUND, IO, BAD_FILE; UNSUPPORTED naming what is not computed; MISMATCH naming file, tensor and both shapes; NOT_FINITE.
 */
export async function readAdapter(dir: string, model: ModelConfig): Promise<Adapter> {
  return await readStable(dir, () => readFolder(dir, model));
}

/** Writes the two files of an adapter into an existing folder. Errors: IO, NOT_FINITE; MISMATCH when a module does not follow the config. */
export async function writeAdapterFiles(dir: string, adapter: Adapter, model: ModelConfig): Promise<void> {
  const path = join(dir, weightsName);
  const mismatch = (problem: string) => new AtMoeError('ERR_AT_MOE_MISMATCH', `${path}: ${problem}`);
  const targets = resolveTargets(adapter.config, model, mismatch);
  const modules = new Map(
    adapter.modules.map((module) => [adapterTensorName(module.layer, module.module, 'A'), module]),
  );
  if (modules.size !== targets.length || adapter.modules.length !== targets.length) {
    throw mismatch(`${adapter.modules.length} modules given, the adapter's configuration targets ${targets.length}`);
  }
  const tensors: TensorSource[] = [];
  for (const { layer, module, rank, scaling, inFeatures, outFeatures } of targets) {
    const given = modules.get(adapterTensorName(layer, module, 'A'));
    if (!given) throw mismatch(`no module ${module} of layer ${layer}, which the adapter's configuration targets`);
    if (given.scaling !== scaling)
      throw mismatch(`${module} of layer ${layer}: scaling ${given.scaling}, by its configuration ${scaling}`);
    const pair = [
      { ...given.a, name: adapterTensorName(layer, module, 'A') },
      { ...given.b, name: adapterTensorName(layer, module, 'B') },
    ] as const;
    checkShape(path, pair[0], [rank, inFeatures], 'by its configuration');
    checkShape(path, pair[1], [outFeatures, rank], 'by its configuration');
    for (const tensor of pair) checkFinite(path, tensor);
    tensors.push(...pair);
  }
  await writeFile(join(dir, configName), `${JSON.stringify(formatAdapterConfig(adapter.config), null, 2)}\n`);
  await writeSafetensors(path, tensors);
}

/** Says before a training whether writeAdapter could write there. Errors: those of checkReplaceable. */
export async function checkAdapterFolder(dir: string): Promise<void> {
  await checkReplaceable(dir, files);
}

/** Writes an adapter that PEFT reads; the folder is exchanged at once. Errors: those of writeAdapterFiles. */
export async function writeAdapter(dir: string, adapter: Adapter, model: ModelConfig): Promise<void> {
  await replaceFolder(dir, files, (folder) => writeAdapterFiles(folder, adapter, model));
}
