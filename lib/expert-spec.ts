import { freshAdapter } from './adapter-tensors.js';
import type { LoraOptions } from './formats/lora-options.js';
import { type Adapter, readAdapter } from './formats/peft.js';
import type { ModelCore } from './model-core.js';

/** An expert to be: LoRA options for a fresh one, or the folder of a PEFT adapter. */
export type ExpertSpec = LoraOptions | { adapter: string };

/** The adapter of an expert. Errors: TypeError; those of readAdapter and of LoRA options. */
export async function makeAdapter(core: ModelCore, spec: ExpertSpec, seed: number): Promise<Adapter> {
  const { config } = core.descriptor;
  if (typeof spec !== 'object' || spec === null)
    throw new TypeError('an expert is made from LoRA options or { adapter: folder }');
  if ('adapter' in spec) {
    if (typeof spec.adapter !== 'string' || spec.adapter === '')
      throw new TypeError('adapter must be the folder of a PEFT adapter');
    const other = Object.keys(spec).find((key) => key !== 'adapter');
    if (other) throw new TypeError(`an expert read from a folder takes no LoRA options, and ${other} is given`);
    return await readAdapter(spec.adapter, config);
  }
  return freshAdapter(spec, config, seed, core.path);
}
