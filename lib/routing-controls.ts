import { z } from 'zod';
import type { GroupNames } from './data/labels.js';
import { AtMoeError } from './errors.js';
import { formatIssues } from './formats/json.js';
import type { RouterControls, RouterOptions } from './native-mixture-types.js';
import { parseRoutingOptions, type RoutingOptions, temperatureSchema } from './routing-options.js';

/**
 * What a request may change about the routing. Names are those of groups ("style"), experts ("triage") or both
 * ("function/triage"). Order at each stage: bias, deny and allow, temperature, softmax, selection, rescaling, weight.
 */
export interface RoutingControls {
  /** Bypasses the router: exactly these expert weights in every layer, 0 for experts not named. */
  experts?: Record<string, number>;
  /** One expert alone: its adapter at weight 1, without output scale and general adapter. */
  only?: string;
  /** Added to the scores of groups or experts before the softmax. */
  bias?: Record<string, number>;
  /** These groups and experts get weight 0. */
  deny?: string[];
  /** Only these groups and experts may be chosen; an expert allows its group. */
  allow?: string[];
  /** Sets α of a group, or β of an expert inside its group, in [0, 1]; the others share the rest in their proportion. */
  weight?: Record<string, number>;
  group_top_k?: number;
  expert_top_k?: number;
  group_top_p?: number;
  expert_top_p?: number;
  group_temperature?: number;
  expert_temperature?: number;
  renormalize?: boolean;
}

/** Far beyond use, and within what f32 can add, multiply and divide. */
export const weightSchema = z.number().min(-1e6).max(1e6);
const weights = z.record(z.string(), weightSchema);
const names = z.array(z.string());
const overrides = {
  group_top_k: z.int().min(0).optional(),
  expert_top_k: z.int().min(0).optional(),
  group_top_p: z.number().min(0).optional(),
  expert_top_p: z.number().min(0).optional(),
  group_temperature: temperatureSchema.optional(),
  expert_temperature: temperatureSchema.optional(),
  renormalize: z.boolean().optional(),
};
const schema = z.strictObject({
  experts: weights.optional(),
  only: z.string().optional(),
  bias: weights.optional(),
  deny: names.optional(),
  allow: names.optional(),
  weight: weights.optional(),
  ...overrides,
});

type Place = { group: number } | { expert: number };

/** Finds groups and experts by name. */
export class RoutingNames {
  readonly groups: readonly GroupNames[];
  readonly experts: readonly { group: number; path: string }[];
  readonly #places = new Map<string, Place[]>();

  constructor(groups: readonly GroupNames[]) {
    this.groups = groups;
    const add = (name: string, place: Place) => this.#places.set(name, [...(this.#places.get(name) ?? []), place]);
    const experts: { group: number; path: string }[] = [];
    for (const [group, { name, experts: own }] of groups.entries()) {
      add(name, { group });
      for (const expert of own) {
        add(expert, { expert: experts.length });
        add(`${name}/${expert}`, { expert: experts.length });
        experts.push({ group, path: `${name}/${expert}` });
      }
    }
    this.experts = experts;
  }

  /** @throws AtMoeError ERR_AT_MOE_UNKNOWN_NAME for a name that is unknown or means two things. */
  place(name: string): Place {
    const places = this.#places.get(name) ?? [];
    if (places.length === 1) return places[0] as Place;
    const known = `groups ${this.groups.map((group) => group.name).join(', ')}; experts ${this.experts.map(({ path }) => path).join(', ')}`;
    const problem =
      places.length === 0 ? 'is neither a group nor an expert' : 'names a group and an expert: write group/expert';
    throw new AtMoeError('ERR_AT_MOE_UNKNOWN_NAME', `${JSON.stringify(name)} ${problem} (${known})`);
  }

  /** Index of an expert. Errors as place(). */
  expert(name: string): number {
    const place = this.place(name);
    if ('expert' in place) return place.expert;
    throw new AtMoeError('ERR_AT_MOE_UNKNOWN_NAME', `${JSON.stringify(name)} is a group, not an expert`);
  }
}

/** Checks the form of controls. Errors: TypeError, RangeError. */
export function checkControls(controls: RoutingControls): void {
  const result = schema.safeParse(controls);
  if (!result.success) {
    const range = result.error.issues.every(({ code }) => code === 'too_small' || code === 'too_big');
    throw new (range ? RangeError : TypeError)(`routing: ${formatIssues(result.error)}`);
  }
  const bypass = controls.experts ? 'experts' : controls.only !== undefined ? 'only' : undefined;
  const others = Object.keys(controls).filter(
    (key) => key !== bypass && controls[key as keyof RoutingControls] !== undefined,
  );
  if (bypass && others.length > 0)
    throw new TypeError(`routing: "${bypass}" bypasses the router, so ${others.join(', ')} cannot be given with it`);
}

/** The engine's options of a mixture's routing, with a request's overrides. */
export function routerOptions(routing: RoutingOptions, controls: RoutingControls = {}): RouterOptions {
  return {
    withinGroup: routing.within_group,
    groupTopK: controls.group_top_k ?? routing.group_top_k,
    expertTopK: controls.expert_top_k ?? routing.expert_top_k,
    groupTopP: controls.group_top_p ?? routing.group_top_p,
    expertTopP: controls.expert_top_p ?? routing.expert_top_p,
    groupTemperature: controls.group_temperature ?? routing.group_temperature,
    expertTemperature: controls.expert_temperature ?? routing.expert_temperature,
    renormalize: controls.renormalize ?? routing.renormalize,
  };
}

/** The options of a mixture that says nothing about its routing. */
export const defaultRouterOptions: RouterOptions = routerOptions(parseRoutingOptions({}, false));

/** Expert weights [E] of a bypass. Errors: ERR_AT_MOE_UNKNOWN_NAME. */
export function expertWeights(names: RoutingNames, given: Record<string, number>): Float32Array {
  const weights = new Float32Array(names.experts.length);
  for (const [name, weight] of Object.entries(given)) weights[names.expert(name)] = weight;
  return weights;
}

/**
 * The engine's form of bias, deny, allow and weight.
 * @throws AtMoeError ERR_AT_MOE_UNKNOWN_NAME; ERR_AT_MOE_ROUTING when nothing is left to route to; RangeError for weights
 * outside [0, 1] or above 1 in sum.
 */
export function routerControls(names: RoutingNames, controls: RoutingControls): RouterControls {
  const groups = names.groups.length;
  const experts = names.experts.length;
  const groupDenied = new Uint8Array(groups);
  const expertDenied = new Uint8Array(experts);
  if (controls.allow) allow(names, controls.allow, groupDenied, expertDenied);
  for (const name of controls.deny ?? []) {
    const place = names.place(name);
    if ('group' in place) groupDenied[place.group] = 1;
    else expertDenied[place.expert] = 1;
  }
  const open = names.experts.some(({ group }, expert) => !groupDenied[group] && !expertDenied[expert]);
  if (!open) throw new AtMoeError('ERR_AT_MOE_ROUTING', 'the controls deny every expert');
  const fill = (given: Record<string, number> | undefined, empty: number) => {
    const forGroups = new Float32Array(groups).fill(empty);
    const forExperts = new Float32Array(experts).fill(empty);
    for (const [name, value] of Object.entries(given ?? {})) {
      const place = names.place(name);
      if ('group' in place) forGroups[place.group] = value;
      else forExperts[place.expert] = value;
    }
    return { forGroups, forExperts };
  };
  const bias = fill(controls.bias, 0);
  const set = fill(controls.weight, Number.NaN);
  checkSet(names, set, { groups: groupDenied, experts: expertDenied });
  for (const [name, value] of Object.entries(controls.weight ?? {})) {
    const place = names.place(name);
    const denied = 'group' in place ? groupDenied[place.group] : expertDenied[place.expert];
    if (denied && value > 0)
      throw new AtMoeError('ERR_AT_MOE_ROUTING', `${JSON.stringify(name)} is denied, or not allowed, and has a weight`);
  }
  return {
    groupBias: bias.forGroups,
    expertBias: bias.forExperts,
    groupDenied,
    expertDenied,
    groupWeight: set.forGroups,
    expertWeight: set.forExperts,
  };
}

function allow(names: RoutingNames, allowed: string[], groupDenied: Uint8Array, expertDenied: Uint8Array): void {
  const places = allowed.map((name) => names.place(name));
  const wholeGroups = new Set(places.flatMap((place) => ('group' in place ? [place.group] : [])));
  const single = new Set(places.flatMap((place) => ('expert' in place ? [place.expert] : [])));
  groupDenied.fill(1);
  for (const [expert, { group }] of names.experts.entries()) {
    const open = single.has(expert) || (wholeGroups.has(group) && !hasSingle(names, single, group));
    if (open) groupDenied[group] = 0;
    else expertDenied[expert] = 1;
  }
}

function hasSingle(names: RoutingNames, single: Set<number>, group: number): boolean {
  return [...single].some((expert) => names.experts[expert]?.group === group);
}

/** `denied`: of the groups, then of the experts. */
function checkSet(
  names: RoutingNames,
  set: { forGroups: Float32Array; forExperts: Float32Array },
  denied: { groups: Uint8Array; experts: Uint8Array },
): void {
  const check = (values: number[], isDenied: boolean[], where: string) => {
    const given = values.filter((value) => !Number.isNaN(value));
    if (given.some((value) => value < 0 || value > 1))
      throw new RangeError(`routing: weights of ${where} must lie in [0, 1]`);
    const sum = given.reduce((total, value) => total + value, 0);
    if (sum > 1 + 1e-6) throw new RangeError(`routing: weights of ${where} sum to ${sum}, more than 1`);
    const open = values.filter((_, i) => !isDenied[i]);
    if (open.length > 0 && open.every((value) => value === 0))
      throw new AtMoeError('ERR_AT_MOE_ROUTING', `the weights of ${where} are 0: deny what is not wanted`);
  };
  check(
    [...set.forGroups],
    [...denied.groups].map((flag) => flag !== 0),
    'groups',
  );
  for (const [group, { name }] of names.groups.entries()) {
    const own = [...names.experts.keys()].filter((expert) => names.experts[expert]?.group === group);
    check(
      own.map((expert) => set.forExperts[expert] as number),
      own.map((expert) => denied.experts[expert] !== 0),
      `the experts of ${name}`,
    );
  }
}
