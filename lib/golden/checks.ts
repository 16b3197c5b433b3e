import { f32Source } from '../adapter-tensors.js';
import type { AdapterModule } from '../descriptors.js';
import { mixtureDescriptor } from '../mixture-data.js';
import type { MixtureHandle, RoutingRequest } from '../native-mixture-types.js';
import type { TrainTarget } from '../native-training-types.js';
import type { NativeEngine } from '../native-types.js';
import { routerOptions } from '../routing-controls.js';
import type { ExpectedTensor, GoldenCase } from './case.js';
import { cosineError, ParameterErrors, relativeError, type Tolerances } from './compare.js';
import { EngineValues } from './engine-values.js';
import { selectionOf } from './selection.js';

export interface CheckResult {
  /** Name of the expected tensor, or of a family of them: its worst member counts. */
  check: string;
  /** Relative to the tensor's largest value unless the check says otherwise. */
  error: number;
  tolerance: number;
  pass: boolean;
  /** The worst of a family. */
  worst?: string;
}

function result(check: string, error: number, tolerance: number, worst?: string): CheckResult {
  return { check, error, tolerance, pass: error <= tolerance, ...(worst !== undefined && { worst }) };
}

/** The expected values of the first steps. */
function firstOf(expected: ExpectedTensor, steps: number): ExpectedTensor {
  return { ...expected, shape: [steps], values: expected.values.subarray(0, steps) };
}

/** The adapter as training starts it: A as it is, B zero. */
function withoutB(modules: AdapterModule[]): AdapterModule[] {
  return modules.map((module) => {
    const { name, shape } = module.b;
    return { ...module, b: f32Source(name, shape, new Float32Array(shape.reduce((count, size) => count * size, 1))) };
  });
}

/** All checks that a case's expected tensors call for, on an engine that holds its base. */
export class CaseChecks {
  readonly #engine: NativeEngine;
  readonly #values: EngineValues;
  readonly #case: GoldenCase;
  readonly #tolerances: Tolerances;
  readonly #left: Map<string, ExpectedTensor>;

  constructor(engine: NativeEngine, golden: GoldenCase, tolerances: Tolerances) {
    this.#engine = engine;
    this.#values = new EngineValues(engine, golden, tolerances.rounds ? selectionOf(golden) : undefined);
    this.#case = golden;
    this.#tolerances = tolerances;
    this.#left = new Map(golden.expected);
  }

  /** Errors: those of the engine; Error for an expected tensor that no check knows. */
  async *run(): AsyncGenerator<CheckResult> {
    yield* this.#base();
    yield* this.#expertAlone();
    yield* this.#mixture();
    const [unknown] = this.#left.keys();
    if (unknown !== undefined) throw new Error(`no check knows the expected tensor ${JSON.stringify(unknown)}`);
  }

  async *#base(): AsyncGenerator<CheckResult> {
    const routing: RoutingRequest = { kind: 'base' };
    yield* this.#logits('base.logits', routing);
    const loss = this.#take('base.loss');
    if (loss) yield this.#loss(loss, [await this.#values.scoredLoss(routing)]);
  }

  async #createAlone(modules: AdapterModule[]): Promise<MixtureHandle> {
    const { mixture } = await this.#engine.createMixture({
      groups: [1],
      experts: [modules],
      scope: 'token',
      options: routerOptions(this.#case.mixture.routing),
      balance: 1,
      scale: 1,
    });
    return mixture;
  }

  async *#expertAlone(): AsyncGenerator<CheckResult> {
    const modules = mixtureDescriptor(this.#case.mixture).experts[0] ?? [];
    const mixture = await this.#createAlone(modules);
    yield* this.#logits('expert0.logits', { kind: 'fixed', mixture, weights: Float32Array.of(1), alone: true });
    const loss = this.#take('expert0.loss');
    const gradients = this.#takeAll('expert0.grad.');
    if (loss || gradients.size > 0) {
      const step = await this.#values.gradients(mixture, 'adapter');
      if (loss) yield this.#loss(loss, [step.loss]);
      yield* this.#gradients('expert0.grad', gradients, (name) => step.tensors.get(`experts.0.${name}`));
    }
    this.#engine.releaseMixture(mixture);
    yield* this.#adamw('expert0.adamw', await this.#createAlone(withoutB(modules)), 'adapter', 'experts.0.');
  }

  async *#mixture(): AsyncGenerator<CheckResult> {
    const descriptor = mixtureDescriptor(this.#case.mixture);
    const create = async () => (await this.#engine.createMixture(descriptor)).mixture;
    const mixture = await create();
    const routing: RoutingRequest = { kind: 'mixture', mixture };
    yield* this.#logits('mixture.logits', routing);
    yield* this.#routing(routing);
    const greedy = this.#take('greedy.tokens');
    if (greedy && !this.#tolerances.rounds)
      yield this.#greedy(greedy, await this.#values.greedy(greedy.values.length, routing));
    const loss = this.#take('mixture.loss');
    const auxiliary = this.#take('mixture.aux_loss');
    const gradients = this.#takeAll('mixture.grad.');
    if (loss || auxiliary || gradients.size > 0) {
      const step = await this.#values.gradients(mixture, 'joint');
      if (loss) yield this.#loss(loss, [step.loss]);
      if (auxiliary) yield this.#loss(auxiliary, [step.auxiliary]);
      yield* this.#mixtureGradients(gradients, step.tensors);
    }
    this.#engine.releaseMixture(mixture);
    yield* this.#adamw('router.adamw', await create(), 'router', 'router.');
  }

  /** One result per expert, named "group/expert", and for the router and the general adapter. */
  *#mixtureGradients(
    gradients: Map<string, ExpectedTensor>,
    actual: Map<string, Float32Array>,
  ): Generator<CheckResult> {
    const { groups } = this.#case.mixture;
    const paths = groups.flatMap(({ name, experts }) => experts.map((expert) => `${name}/${expert.name}`));
    const families = [
      ...paths.map((path, index) => [path, `experts.${index}.`] as const),
      ['router', 'router.'] as const,
      ['general', 'general.'] as const,
    ];
    for (const [family, prefix] of families) {
      const own = new Map<string, ExpectedTensor>();
      for (const [name, tensor] of gradients) {
        if (!name.startsWith(`${family}.`)) continue;
        own.set(name.slice(family.length + 1), tensor);
        gradients.delete(name);
      }
      yield* this.#gradients(`mixture.grad.${family}`, own, (name) => actual.get(`${prefix}${name}`));
    }
    const [unknown] = gradients.keys();
    if (unknown !== undefined) throw new Error(`mixture.grad.${unknown} belongs to no part of the mixture`);
  }

  /** One result for a family of gradients; a missing tensor is an infinite error. */
  *#gradients(
    family: string,
    expected: Map<string, ExpectedTensor>,
    actual: (name: string) => ArrayLike<number> | undefined,
  ): Generator<CheckResult> {
    const compare = this.#tolerances.cosine ? cosineError : relativeError;
    let worst: [error: number, name: string] | undefined;
    for (const [name, tensor] of expected) {
      const values = actual(name);
      const error = values ? compare(tensor, values) : Number.POSITIVE_INFINITY;
      if (!worst || error > worst[0]) worst = [error, name];
    }
    if (worst) yield result(family, worst[0], this.#tolerances.gradients, worst[1]);
  }

  async *#logits(name: string, routing: RoutingRequest): AsyncGenerator<CheckResult> {
    const expected = this.#take(name);
    if (!expected) return;
    yield result(name, this.#rowsError(expected, await this.#values.logits(routing)), this.#tolerances.logits);
  }

  /** Error of [B, T, n] against the rows of each sequence; rows of padding are left out. */
  #rowsError(expected: ExpectedTensor, rows: readonly ArrayLike<number>[]): number {
    const width = expected.shape[2] as number;
    const real = this.#case.sequences.flatMap((ids, b) => {
      const start = b * this.#case.paddedLength * width;
      return Array.from(expected.values.subarray(start, start + ids.length * width));
    });
    return relativeError(
      { ...expected, values: Float64Array.from(real) },
      rows.flatMap((row) => Array.from(row)),
    );
  }

  /** α and w of every layer. */
  async *#routing(routing: RoutingRequest): AsyncGenerator<CheckResult> {
    const expected = this.#takeAll('mixture.layers.');
    if (expected.size === 0) return;
    const { groups, experts } = mixtureDescriptor(this.#case.mixture);
    const perToken = this.#case.mixture.routing.scope === 'token';
    const traces = await this.#values.traces(routing);
    for (const [name, tensor] of expected) {
      const [layer, what] = name.split('.') as [string, string];
      const ofGroups = what === 'group_weights';
      const start = (ofGroups ? 1 : 2) * groups.length + experts.length;
      const count = ofGroups ? groups.length : experts.length;
      const rows = traces.map(({ records, rows: traced, width }, b) =>
        Array.from(this.#case.sequences[b] as Int32Array, (_, t) => {
          const at = (Number(layer) * traced + (perToken ? t : 0)) * width + start;
          return Array.from(records.subarray(at, at + count));
        }).flat(),
      );
      yield result(tensor.name, this.#rowsError(tensor, rows), this.#tolerances.weights);
    }
  }

  /** The error is the number of tokens that differ. */
  #greedy({ name, values }: ExpectedTensor, actual: number[]): CheckResult {
    return result(name, values.filter((token, i) => token !== actual[i]).length, 0);
  }

  async *#adamw(
    family: string,
    mixture: MixtureHandle,
    target: TrainTarget,
    prefix: string,
  ): AsyncGenerator<CheckResult> {
    const losses = this.#take(`${family}.losses`);
    const norms = this.#take(`${family}.grad_norms`);
    const parameters = this.#takeAll(`${family}.`);
    // The router's updates change what is selected, and a case holds the selection before the first one only.
    const comparable = target === 'adapter' || !this.#values.selected;
    if (losses || norms || parameters.size > 0) {
      const run = await this.#values.adamw(mixture, target, comparable ? undefined : 1);
      if (losses) yield this.#loss(firstOf(losses, run.losses.length), run.losses);
      if (norms) {
        const expected = firstOf(norms, run.norms.length);
        yield result(norms.name, relativeError(expected, run.norms), this.#tolerances.norms);
      }
      if (comparable && parameters.size > 0) {
        const errors = new ParameterErrors(this.#tolerances.parameters);
        for (const [name, tensor] of parameters) errors.add(tensor, run.parameters.get(`${prefix}${name}`) ?? []);
        const { lr, steps } = this.#case.optimiser;
        yield result(`${family}.parameters: share beyond tolerance`, errors.outliers, this.#tolerances.outliers);
        yield result(`${family}.parameters: largest difference`, errors.largest, 2 * lr * steps);
      }
    }
    this.#engine.releaseMixture(mixture);
  }

  #loss(expected: ExpectedTensor, actual: number[]): CheckResult {
    return result(expected.name, relativeError(expected, actual), this.#tolerances.losses);
  }

  #take(name: string): ExpectedTensor | undefined {
    const tensor = this.#left.get(name);
    this.#left.delete(name);
    return tensor;
  }

  /** The tensors of a family, by their names without the prefix. */
  #takeAll(prefix: string): Map<string, ExpectedTensor> {
    const family = new Map<string, ExpectedTensor>();
    for (const name of [...this.#left.keys()]) {
      if (name.startsWith(prefix)) family.set(name.slice(prefix.length), this.#take(name) as ExpectedTensor);
    }
    return family;
  }
}
