import { z } from 'zod';
import { checkSchema, unsupported } from './json.js';
import type { LoraConfig } from './lora-targets.js';

const names = z.union([z.string(), z.array(z.string())]).nullish();
const layerNumber = z.int().min(0);
// Far beyond use, and finite in f32 whatever it scales.
const alpha = z.number().min(-1e6).max(1e6);

const configSchema = z.looseObject({
  r: z.int().min(1).max(65536).default(8),
  lora_alpha: alpha.default(8),
  lora_dropout: z.number().min(0).max(1).default(0),
  use_rslora: z.boolean().default(false),
  base_model_name_or_path: z.string().nullish(),
  target_modules: names,
  exclude_modules: names,
  rank_pattern: z.record(z.string(), z.int().min(1).max(65536)).nullish(),
  alpha_pattern: z.record(z.string(), alpha).nullish(),
  layers_to_transform: z.union([layerNumber, z.array(layerNumber)]).nullish(),
  layers_pattern: names,
  init_lora_weights: z.union([z.boolean(), z.string()]).nullish(),
  task_type: z.string().nullish(),
  bias: z.string().default('none'),
});

/** What reading follows. */
const followed = new Set([...Object.keys(configSchema.shape), 'peft_type']);

/** Fields that may hold anything: they steer training or the making of the adapter, not what its saved weights mean. */
const harmless = new Set([
  'auto_mapping',
  'corda_config',
  'ensure_weight_tying',
  'eva_config',
  'fan_in_fan_out',
  'inference_mode',
  'loftq_config',
  'lora_ga_config',
  'megatron_core',
  'peft_version',
  'qalora_group_size',
  'revision',
]);

/** These change the base's weights when PEFT loads the adapter, so that the saved pairs alone do not say what it computes. */
const changesBase = /^(pissa|corda|olora|loftq|lora_ga)/i;

function isUnset(value: unknown): boolean {
  if (value === null || value === undefined || value === false) return true;
  return typeof value === 'object' && Object.keys(value).length === 0;
}

function list(value: string | string[] | null | undefined): string[] {
  return typeof value === 'string' ? [value] : (value ?? []);
}

/**
 * Reads a parsed adapter_config.json the way PEFT does. `path` names it in errors.
 * Errors: UNSUPPORTED naming the method or field that this package does not compute; BAD_FILE.
 */
export function parseAdapterConfig(path: string, value: unknown): LoraConfig {
  const { peft_type: type } = checkSchema(path, z.looseObject({ peft_type: z.string() }), value);
  if (type !== 'LORA') throw unsupported(path, `peft_type ${JSON.stringify(type)}; supported is LORA`);
  const raw = checkSchema(path, configSchema, value);
  if (raw.bias !== 'none') throw unsupported(path, `bias ${JSON.stringify(raw.bias)}; supported is "none"`);
  if (typeof raw.task_type === 'string' && raw.task_type !== 'CAUSAL_LM') {
    throw unsupported(path, `task_type ${JSON.stringify(raw.task_type)}; supported is CAUSAL_LM`);
  }
  const init = raw.init_lora_weights;
  if (typeof init === 'string' && changesBase.test(init)) {
    throw unsupported(
      path,
      `init_lora_weights ${JSON.stringify(init)} changes the base model; convert the adapter to plain LoRA with PEFT`,
    );
  }
  for (const [field, setting] of Object.entries(raw)) {
    if (!followed.has(field) && !harmless.has(field) && !isUnset(setting)) {
      throw unsupported(path, `${field} ${JSON.stringify(setting)} is not supported`);
    }
  }
  const targets = raw.target_modules;
  const layers = raw.layers_to_transform ?? null;
  if (typeof targets === 'string' && targets.toLowerCase() !== 'all-linear' && layers !== null) {
    throw unsupported(
      path,
      'layers_to_transform with a regular expression in target_modules, which PEFT refuses as well',
    );
  }
  return {
    baseModel: raw.base_model_name_or_path ?? null,
    rank: raw.r,
    alpha: raw.lora_alpha,
    rslora: raw.use_rslora,
    dropout: raw.lora_dropout,
    // PEFT's choice for llama, mistral, qwen2 and qwen3 when nothing is named.
    targetModules: typeof targets === 'string' ? targets : [...(targets ?? ['q_proj', 'v_proj'])].sort(),
    excludeModules: raw.exclude_modules || null,
    rankPattern: raw.rank_pattern ?? {},
    alphaPattern: raw.alpha_pattern ?? {},
    layers: typeof layers === 'number' ? [layers] : layers,
    layersPattern: list(raw.layers_pattern),
  };
}

/** The adapter_config.json of a config: the fields that every PEFT since 0.8 knows, and `exclude_modules` (0.14) only if it is set. */
export function formatAdapterConfig(config: LoraConfig): Record<string, unknown> {
  const { targetModules } = config;
  return {
    alpha_pattern: config.alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: config.baseModel,
    bias: 'none',
    ...(config.excludeModules === null ? {} : { exclude_modules: config.excludeModules }),
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    layers_pattern: config.layersPattern.length > 0 ? config.layersPattern : null,
    layers_to_transform: config.layers,
    lora_alpha: config.alpha,
    lora_dropout: config.dropout,
    modules_to_save: null,
    peft_type: 'LORA',
    r: config.rank,
    rank_pattern: config.rankPattern,
    revision: null,
    target_modules: targetModules,
    task_type: 'CAUSAL_LM',
    use_dora: false,
    use_rslora: config.rslora,
  };
}
