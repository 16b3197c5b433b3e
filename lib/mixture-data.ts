import { freshRouter } from './adapter-tensors.js';
import { checkSeed } from './arguments.js';
import { type ExpertSpec, makeAdapter } from './expert-spec.js';
import { type MixtureData, nameProblem } from './formats/mixture-folder.js';
import type { ModelCore } from './model-core.js';
import type { MixtureDescriptor } from './native-mixture-types.js';
import { routerOptions } from './routing-controls.js';
import { parseRoutingOptions, type RoutingOptions } from './routing-options.js';

export interface MixtureOptions {
  /** group name -> expert name -> expert. */
  groups: Record<string, Record<string, ExpertSpec>>;
  /** A general adapter beside the mixture. */
  general?: ExpertSpec;
  /** Keys as in mixture.json. */
  routing?: Partial<RoutingOptions>;
  /** Of fresh experts; default 0. */
  seed?: number;
}

/** The contents of a new mixture. Errors: TypeError, RangeError; those of makeAdapter. */
export async function freshMixture(core: ModelCore, options: MixtureOptions): Promise<MixtureData> {
  const unknown = Object.keys(options).find((key) => !['groups', 'general', 'routing', 'seed'].includes(key));
  if (unknown) throw new TypeError(`createMixture: Unrecognized key: ${JSON.stringify(unknown)}`);
  checkSeed(options.seed ?? 0);
  const general = options.general;
  const routing = parseRoutingOptions(options.routing ?? {}, general !== undefined);
  const specs = Object.entries(options.groups).map(([name, experts]) => ({ name, experts: Object.entries(experts) }));
  const problem = nameProblem({
    groups: specs.map(({ name, experts }) => ({ name, experts: experts.map(([expert]) => expert) })),
    general: general ? 'general' : null,
  });
  if (problem) throw new RangeError(problem);
  let seed = (options.seed ?? 0) * 65536;
  const groups: MixtureData['groups'] = [];
  for (const { name, experts } of specs) {
    const made = [];
    for (const [expert, spec] of experts) made.push({ name: expert, adapter: await makeAdapter(core, spec, seed++) });
    groups.push({ name, experts: made });
  }
  const generalAdapter = general ? { name: 'general', adapter: await makeAdapter(core, general, seed) } : null;
  const sizes = groups.map(({ experts }) => experts.length);
  return {
    groups,
    general: generalAdapter,
    routing,
    router: freshRouter(sizes, routing, core.descriptor.config),
  };
}

/** The engine's form of a mixture. */
export function mixtureDescriptor(data: MixtureData): MixtureDescriptor {
  return {
    groups: data.groups.map(({ experts }) => experts.length),
    experts: data.groups.flatMap(({ experts }) => experts.map(({ adapter }) => adapter.modules)),
    ...(data.general && { general: data.general.adapter.modules }),
    scope: data.routing.scope,
    options: routerOptions(data.routing),
    balance: data.routing.general_balance,
    scale: data.routing.output_scale,
    router: data.router,
  };
}
