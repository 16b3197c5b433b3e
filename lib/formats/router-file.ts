import type { ModelConfig, TensorSource } from '../descriptors.js';
import { AtMoeError } from '../errors.js';
import type { RoutingOptions } from '../routing-options.js';
import { checkFinite, readSafetensorsHeader, readWeights, writeSafetensors } from './safetensors.js';

/**
 * Names and shapes of the router's tensors, all f32. `groupSizes`: experts of each group; E is their sum.
 * group.weight [G, d], group.bias [G], expert.weight [E, d] and expert.bias [E] or (static) expert.score [E], balance [1], scale [1].
 */
export function routerShapes(groupSizes: number[], routing: RoutingOptions, model: ModelConfig): Map<string, number[]> {
  const groups = groupSizes.length;
  const experts = groupSizes.reduce((sum, size) => sum + size, 0);
  const shapes = new Map<string, number[]>();
  for (let layer = 0; layer < model.numLayers; layer++) {
    const prefix = `layers.${layer}`;
    shapes.set(`${prefix}.group.weight`, [groups, model.hiddenSize]);
    shapes.set(`${prefix}.group.bias`, [groups]);
    if (routing.within_group === 'static') {
      shapes.set(`${prefix}.expert.score`, [experts]);
    } else {
      shapes.set(`${prefix}.expert.weight`, [experts, model.hiddenSize]);
      shapes.set(`${prefix}.expert.bias`, [experts]);
    }
    if (routing.general_balance === 'learned') shapes.set(`${prefix}.balance`, [1]);
    if (routing.output_scale === 'learned') shapes.set(`${prefix}.scale`, [1]);
  }
  return shapes;
}

type TensorHead = { name: string; dtype: string; shape: number[] };

function checkTensors(path: string, tensors: TensorHead[], shapes: Map<string, number[]>): void {
  const mismatch = (problem: string) => new AtMoeError('ERR_AT_MOE_MISMATCH', `${path}: ${problem}`);
  const missing = new Map(shapes);
  for (const { name, dtype, shape } of tensors) {
    const wanted = missing.get(name);
    if (!wanted) throw mismatch(`tensor ${JSON.stringify(name)} has no place in this router`);
    if (dtype.toUpperCase() !== 'F32') throw mismatch(`tensor ${JSON.stringify(name)} is ${dtype}, a router is F32`);
    if (shape.join() !== wanted.join()) {
      throw mismatch(
        `tensor ${JSON.stringify(name)} has shape [${shape}], by the mixture and its base it is [${wanted}]`,
      );
    }
    missing.delete(name);
  }
  for (const [name, shape] of missing) throw mismatch(`no tensor ${JSON.stringify(name)} of shape [${shape}]`);
}

/** Reads a router, exactly the tensors of routerShapes, into memory. Errors: NOT_FOUND, IO, BAD_FILE, MISMATCH, NOT_FINITE. */
export async function readRouter(
  path: string,
  groupSizes: number[],
  routing: RoutingOptions,
  model: ModelConfig,
): Promise<TensorSource[]> {
  const file = await readSafetensorsHeader(path);
  checkTensors(path, [...file.tensors.values()], routerShapes(groupSizes, routing, model));
  const tensors = await readWeights(file);
  for (const tensor of tensors) checkFinite(path, tensor);
  return tensors;
}

/** Writes a router, exactly the tensors of routerShapes. Errors: IO, MISMATCH, NOT_FINITE. */
export async function writeRouter(
  path: string,
  tensors: TensorSource[],
  groupSizes: number[],
  routing: RoutingOptions,
  model: ModelConfig,
): Promise<void> {
  checkTensors(path, tensors, routerShapes(groupSizes, routing, model));
  for (const tensor of tensors) checkFinite(path, tensor);
  await writeSafetensors(path, tensors);
}
