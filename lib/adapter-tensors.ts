import { checkSeed } from './arguments.js';
import { randomBits } from './data/random.js';
import type { AdapterModule, ModelConfig, TensorSource } from './descriptors.js';
import { fromFloat32 } from './formats/float-types.js';
import { type LoraOptions, loraConfig, resolveLora } from './formats/lora-options.js';
import { modulePath } from './formats/model-folder.js';
import type { Adapter } from './formats/peft.js';
import { routerShapes } from './formats/router-file.js';
import type { NamedTensor } from './native-training-types.js';
import type { RoutingOptions } from './routing-options.js';

export function f32Source(name: string, shape: number[], values: Float32Array): TensorSource {
  return { name, dtype: 'f32', shape, data: fromFloat32('f32', values) };
}

/**
 * A fresh adapter as PEFT starts one: A Kaiming-uniform with a = sqrt 5, that is uniform in ±1/sqrt(in), and B = 0.
 * Errors: TypeError, RangeError.
 */
export function freshAdapter(options: LoraOptions, config: ModelConfig, seed: number, baseModel: string): Adapter {
  checkSeed(seed);
  let stream = 0;
  const modules = resolveLora(options, config).map(({ layer, module, rank, scaling, inFeatures, outFeatures }) => {
    const bound = 1 / Math.sqrt(inFeatures);
    const own = stream++;
    const a = Float32Array.from(
      { length: rank * inFeatures },
      (_, i) => (randomBits(seed, own, i) / 2 ** 31 - 1) * bound,
    );
    const b = new Float32Array(outFeatures * rank);
    return {
      layer,
      module,
      rank,
      scaling,
      a: f32Source('a', [rank, inFeatures], a),
      b: f32Source('b', [outFeatures, rank], b),
    };
  });
  return { config: loraConfig(options, baseModel), modules };
}

/** The adapter with the values the engine holds; `prefix` as in the engine's names: 'experts.0.', 'general.'. */
export function withValues(adapter: Adapter, prefix: string, tensors: NamedTensor[]): Adapter {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor.values]));
  const source = (module: AdapterModule, side: 'a' | 'b'): TensorSource => {
    const name = `${prefix}layers.${module.layer}.${modulePath(module.module)}.lora_${side.toUpperCase()}`;
    const values = byName.get(name);
    if (!values) throw new Error(`the engine has no tensor ${name}`);
    return f32Source(module[side].name, module[side].shape, values);
  };
  return {
    config: adapter.config,
    modules: adapter.modules.map((module) => ({ ...module, a: source(module, 'a'), b: source(module, 'b') })),
  };
}

/** A router that weighs all groups alike: every tensor zero. */
export function freshRouter(groupSizes: number[], routing: RoutingOptions, config: ModelConfig): TensorSource[] {
  return [...routerShapes(groupSizes, routing, config)].map(([name, shape]) =>
    f32Source(name, shape, new Float32Array(shape.reduce((n, extent) => n * extent, 1))),
  );
}

/** The router's tensors with the engine's values (names there start with 'router.'). */
export function routerValues(router: TensorSource[], tensors: NamedTensor[]): TensorSource[] {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor.values]));
  return router.map((tensor) =>
    f32Source(tensor.name, tensor.shape, byName.get(`router.${tensor.name}`) ?? new Float32Array(0)),
  );
}
