import { AtMoeError } from '../errors.js';

/** The groups of a mixture in order, each with its experts in order; an expert's index counts through all groups. */
export interface GroupNames {
  name: string;
  experts: readonly string[];
}

export interface LabelIndices {
  /** Indices of the labelled groups, ascending. */
  groups?: Int32Array;
  /** Indices of the labelled experts over all groups, ascending. */
  experts?: Int32Array;
}

interface ExpertPlace {
  expert: number;
  group: number;
  path: string;
}

/** Turns names of groups and experts into indices; names are compared exactly. */
export class LabelResolver {
  readonly #groups = new Map<string, number>();
  readonly #byPath = new Map<string, ExpertPlace>();
  readonly #byName = new Map<string, ExpertPlace[]>();

  constructor(groups: readonly GroupNames[]) {
    let expert = 0;
    for (const [group, { name, experts }] of groups.entries()) {
      this.#groups.set(name, group);
      for (const expertName of experts) {
        const place = { expert: expert++, group, path: `${name}/${expertName}` };
        this.#byPath.set(place.path, place);
        this.#byName.set(expertName, [...(this.#byName.get(expertName) ?? []), place]);
      }
    }
  }

  /**
   * Indices of the labels of one row. Labelled experts label their groups too where the row has no `groups`.
   * @throws AtMoeError ERR_AT_MOE_BAD_DATA naming `source` for a name that is unknown, ambiguous, or an expert of a
   * group that `groups` leaves out.
   */
  resolve(row: { groups?: readonly string[]; experts?: readonly string[] }, source: string): LabelIndices {
    const bad = (message: string): never => {
      throw new AtMoeError('ERR_AT_MOE_BAD_DATA', `${source}: ${message}`);
    };
    const experts = (row.experts ?? []).map((name) => this.#expert(name, bad));
    const groups = (row.groups ?? []).map((name) => {
      const known = [...this.#groups.keys()].join(', ');
      return this.#groups.get(name) ?? bad(`unknown group "${name}"; the mixture has ${known}`);
    });
    for (const { group, path } of experts) {
      if (groups.length > 0 && !groups.includes(group)) bad(`expert "${path}" is labelled but its group is not`);
    }
    const groupIndices = groups.length > 0 ? groups : experts.map(({ group }) => group);
    return {
      ...(groupIndices.length > 0 && { groups: ascending(groupIndices) }),
      ...(experts.length > 0 && { experts: ascending(experts.map(({ expert }) => expert)) }),
    };
  }

  #expert(name: string, bad: (message: string) => never): ExpertPlace {
    const exact = this.#byPath.get(name);
    if (exact) return exact;
    const places = this.#byName.get(name) ?? [];
    if (places.length === 0) bad(`unknown expert "${name}"; the mixture has ${[...this.#byPath.keys()].join(', ')}`);
    if (places.length > 1) bad(`expert "${name}" is ambiguous: ${places.map(({ path }) => path).join(' or ')}`);
    return places[0] as ExpertPlace;
  }
}

function ascending(values: readonly number[]): Int32Array {
  return Int32Array.from(new Set(values)).sort();
}
