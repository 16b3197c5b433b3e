import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type LinearModule,
  linearModules,
  type ModelConfig,
  type ModelDescriptor,
  type StorageType,
  type TensorSource,
  type WeightSource,
} from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import { checkReplaceable, replaceFolder } from './atomic.js';
import { type CheckpointTensor, readCheckpoint } from './checkpoint.js';
import { type ModelConfigFile, readModelConfig } from './model-config.js';
import { packedName } from './packed-file.js';
import { isQuantizable, scaleName, scaleShape } from './q8.js';
import {
  type SafetensorsDtype,
  type SafetensorsEntry,
  storageType,
  type WritableTensor,
  writeSafetensors,
} from './safetensors.js';

export interface BaseModel {
  descriptor: ModelDescriptor;
  /** sha256 of config.json, in hex; a mixture remembers it. */
  sha256: string;
}

type ModelShapes = Pick<ModelConfigFile, 'path' | 'config' | 'attentionBias' | 'mlpBias'>;

/** Path of a linear module inside its decoder layer: `self_attn.q_proj`, `mlp.up_proj`. */
export function modulePath(module: LinearModule): string {
  return module === 'gate_proj' || module === 'up_proj' || module === 'down_proj'
    ? `mlp.${module}`
    : `self_attn.${module}`;
}

/** Rows and columns of a linear module's weight [out, in]. */
export function moduleShape(config: ModelConfig, module: LinearModule): { outFeatures: number; inFeatures: number } {
  const { hiddenSize, intermediateSize, headDim, numHeads, numKvHeads } = config;
  switch (module) {
    case 'q_proj':
      return { outFeatures: numHeads * headDim, inFeatures: hiddenSize };
    case 'k_proj':
    case 'v_proj':
      return { outFeatures: numKvHeads * headDim, inFeatures: hiddenSize };
    case 'o_proj':
      return { outFeatures: hiddenSize, inFeatures: numHeads * headDim };
    case 'down_proj':
      return { outFeatures: hiddenSize, inFeatures: intermediateSize };
    default:
      return { outFeatures: intermediateSize, inFeatures: hiddenSize };
  }
}

function hasBias(file: ModelShapes, module: LinearModule): boolean {
  if (modulePath(module).startsWith('mlp.')) return file.mlpBias;
  return file.attentionBias === 'qkvo' || (file.attentionBias === 'qkv' && module !== 'o_proj');
}

/** Every tensor the decoder needs, by its name without "model.", with its shape. */
export function expectedTensors(file: ModelShapes): Map<string, number[]> {
  const { config } = file;
  const shapes = new Map<string, number[]>([['embed_tokens.weight', [config.vocabSize, config.hiddenSize]]]);
  for (let layer = 0; layer < config.numLayers; layer++) {
    const prefix = `layers.${layer}`;
    shapes.set(`${prefix}.input_layernorm.weight`, [config.hiddenSize]);
    shapes.set(`${prefix}.post_attention_layernorm.weight`, [config.hiddenSize]);
    for (const module of linearModules) {
      const { outFeatures, inFeatures } = moduleShape(config, module);
      shapes.set(`${prefix}.${modulePath(module)}.weight`, [outFeatures, inFeatures]);
      if (hasBias(file, module)) shapes.set(`${prefix}.${modulePath(module)}.bias`, [outFeatures]);
    }
    if (config.qkNorm) {
      shapes.set(`${prefix}.self_attn.q_norm.weight`, [config.headDim]);
      shapes.set(`${prefix}.self_attn.k_norm.weight`, [config.headDim]);
    }
  }
  shapes.set('norm.weight', [config.hiddenSize]);
  if (!config.tieWordEmbeddings) shapes.set('lm_head.weight', [config.vocabSize, config.hiddenSize]);
  return shapes;
}

function isIgnored(config: ModelConfig, name: string): boolean {
  return name.endsWith('.rotary_emb.inv_freq') || (config.tieWordEmbeddings && name === 'lm_head.weight');
}

function mismatch(message: string): AtMoeError {
  return new AtMoeError('ERR_AT_MOE_MISMATCH', message);
}

/** The key of a tensor in a checkpoint. */
export function tensorKey(name: string): string {
  return name.startsWith('lm_head.') ? name : `model.${name}`;
}

/** A tensor of a checkpoint: its shape, and its dtype where only one will do. */
interface Wanted {
  shape: number[];
  dtype?: SafetensorsDtype;
}

function wantedTensors(file: ModelConfigFile): Map<string, Wanted> {
  const wanted = new Map<string, Wanted>();
  for (const [name, shape] of expectedTensors(file)) {
    const blocks = file.quantized && isQuantizable(name);
    wanted.set(name, { shape, ...(blocks && { dtype: 'I8' }) });
    if (blocks) wanted.set(scaleName(name), { shape: scaleShape(shape), dtype: 'F16' });
  }
  return wanted;
}

/** Errors as modelDescriptor's: of one tensor. */
function checkTensor(file: ModelConfigFile, label: string, entry: SafetensorsEntry, wanted: Wanted): void {
  if (wanted.shape.join() !== entry.shape.join()) {
    throw mismatch(`${label} has shape [${entry.shape}], by ${file.path} it is [${wanted.shape}]`);
  }
  if (wanted.dtype !== undefined && wanted.dtype !== entry.dtype) {
    throw mismatch(`${label} is ${entry.dtype}, by ${file.path} it is ${wanted.dtype}`);
  }
  if (wanted.dtype === undefined && !storageType(entry.dtype)) {
    const message = `${label} is ${entry.dtype}; supported are F32, F16, BF16`;
    throw new AtMoeError('ERR_AT_MOE_UNSUPPORTED', message);
  }
}

function weightSource(name: string, found: ReadonlyMap<string, CheckpointTensor>): WeightSource {
  const { dtype, shape, file, offset } = found.get(name) as CheckpointTensor;
  const place = { name, shape, file, offset };
  if (dtype !== 'I8') return { ...place, dtype: storageType(dtype) as StorageType };
  return { ...place, dtype: 'q8', scale: weightSource(scaleName(name), found) as TensorSource };
}

/**
 * The descriptor of a base model in Hugging Face layout: config.json and exactly the tensors it implies, each by file and offset.
 * Errors: those of readModelConfig and readCheckpoint; MISMATCH naming file, tensor and both shapes or types.
 */
export async function modelDescriptor(dir: string): Promise<BaseModel> {
  const file = await readModelConfig(dir);
  const wanted = wantedTensors(file);
  const found = new Map<string, CheckpointTensor>();
  for (const [key, entry] of await readCheckpoint(dir)) {
    const name = key.startsWith('model.') ? key.slice('model.'.length) : key;
    if (isIgnored(file.config, name)) continue;
    const label = `${entry.file}: tensor ${JSON.stringify(key)}`;
    const own = wanted.get(name);
    if (!own || key !== tensorKey(name)) throw mismatch(`${label} has no place in the model of ${file.path}`);
    checkTensor(file, label, entry, own);
    found.set(name, entry);
  }
  for (const [name, { shape }] of wanted) {
    if (found.has(name)) continue;
    const key = JSON.stringify(tensorKey(name));
    throw mismatch(`${dir}: no tensor ${key} of shape [${shape}], which ${file.path} asks for`);
  }
  const scales = new Set([...found.keys()].map(scaleName));
  const tensors = [...found.keys()].filter((name) => !scales.has(name)).map((name) => weightSource(name, found));
  const linear = tensors.filter(({ name }) => name.endsWith('_proj.weight')).map(({ dtype }) => dtype);
  const types = new Set(linear);
  const storedType = types.size === 1 ? (linear[0] ?? 'f32') : 'f32';
  return { descriptor: { config: { ...file.config, storedType }, tensors }, sha256: file.sha256 };
}

/** Packed weights go with the model they were made of. */
const modelFiles = [
  'config.json',
  'model.safetensors',
  ...(['f32', 'f16', 'bf16', 'q8'] as const).map((weights) => packedName(weights)),
];

/** Says before a training whether writeModel could write there. Errors: those of checkReplaceable. */
export async function checkModelFolder(dir: string, files: Record<string, string | Uint8Array>): Promise<void> {
  await checkReplaceable(dir, [...modelFiles, ...Object.keys(files)]);
}

/**
 * Writes a base model: `config` as config.json, `tensors` (names with "model.") as model.safetensors, and `files` (tokenizer and the
 * like) beside them; the folder is exchanged at once. Error: IO.
 */
export async function writeModel(
  dir: string,
  config: Record<string, unknown>,
  tensors: WritableTensor[],
  files: Record<string, string | Uint8Array> = {},
): Promise<void> {
  await replaceFolder(dir, [...modelFiles, ...Object.keys(files)], async (folder) => {
    await writeFile(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
    for (const [name, content] of Object.entries(files)) await writeFile(join(folder, name), content);
    await writeSafetensors(join(folder, 'model.safetensors'), tensors);
  });
}

/** Files beside the weights that a model derived from this one keeps. */
const companions = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
  'chat_template.json',
];

/** The companions that a folder has, by name. */
export async function readCompanions(dir: string): Promise<Record<string, Uint8Array>> {
  const files: Record<string, Uint8Array> = {};
  for (const name of companions) {
    const content = await readFile(join(dir, name)).catch(() => undefined);
    if (content) files[name] = content;
  }
  return files;
}
