import { Adapter as AdapterModel } from './adapter.js';
import { routerValues, withValues } from './adapter-tensors.js';
import { checkFolder } from './arguments.js';
import type { ExampleSource } from './data/rows.js';
import { AtMoeError } from './errors.js';
import { type ExpertSpec, makeAdapter } from './expert-spec.js';
import { checkExportOptions, type ExportOptions, exportAdapter, exportMerged } from './export.js';
import type { LoraConfig } from './formats/lora-targets.js';
import {
  type MixtureData,
  type NamedAdapter,
  nameProblem,
  readMixture,
  writeMixture,
} from './formats/mixture-folder.js';
import type { RequestRouting } from './generation.js';
import { Lifetime } from './lifetime.js';
import { freshMixture, type MixtureOptions, mixtureDescriptor } from './mixture-data.js';
import type { ModelCore } from './model-core.js';
import type { MixtureHandle } from './native-mixture-types.js';
import { Pinning } from './pinning.js';
import { addRouterRows, dropRouterRows } from './router-rows.js';
import {
  expertWeights,
  type RoutingControls,
  RoutingNames,
  routerControls,
  routerOptions,
} from './routing-controls.js';
import type { RoutingOptions } from './routing-options.js';
import { TextGenerator } from './text-generator.js';
import type { TrainingContext } from './training/context.js';
import { finishing } from './training/finishing.js';
import type { EvaluationOptions, TrainingOptions } from './training/options.js';
import { parseTrainingOptions } from './training/options.js';
import { type EvaluationResult, evaluateLoss, runTraining, type TrainingProgress } from './training/run.js';

/** Groups of LoRA experts over a base model, and the router that weighs them in every layer. */
export class Mixture extends TextGenerator {
  readonly #core: ModelCore;
  #data: MixtureData;
  #names: RoutingNames;
  #handle: MixtureHandle;
  readonly #pinning: Pinning;
  #version = 1;
  #training = false;
  /** An expert that is trained alone. */
  #alone: AdapterModel | undefined;
  readonly #life: Lifetime;

  private constructor(core: ModelCore, data: MixtureData, handle: MixtureHandle) {
    super();
    this.#core = core;
    this.#life = new Lifetime('the mixture', core.life);
    this.#data = data;
    this.#handle = handle;
    this.#pinning = new Pinning(core.engine, () => this.#handle);
    this.#names = namesOf(data);
  }

  /** @internal */
  static async create(core: ModelCore, options: MixtureOptions): Promise<Mixture> {
    return await Mixture.from(core, await freshMixture(core, options));
  }

  /** @internal */
  static async from(core: ModelCore, data: MixtureData): Promise<Mixture> {
    const { mixture } = await core.engine.createMixture(mixtureDescriptor(data));
    return new Mixture(core, data, mixture);
  }

  /** @internal */
  get core(): ModelCore {
    this.#life.check();
    return this.#core;
  }

  /** Group names with their experts' names, in order. */
  get groups(): { name: string; experts: string[] }[] {
    return this.#names.groups.map(({ name, experts }) => ({ name, experts: [...experts] }));
  }

  /** Counts the contents of this mixture from 1: training, `replace` and changes of experts make a new one. */
  get version(): number {
    return this.#version;
  }

  get routing(): Readonly<RoutingOptions> {
    return this.#data.routing;
  }

  get hasGeneral(): boolean {
    return this.#data.general !== null;
  }

  /** By "group/expert", that of the general adapter as "general". @internal */
  get adapterConfigs(): Map<string, LoraConfig> {
    const { groups, general } = this.#data;
    const entries = groups.flatMap(({ name, experts }) =>
      experts.map((expert) => [`${name}/${expert.name}`, expert.adapter.config] as const),
    );
    return new Map(general ? [...entries, ['general', general.adapter.config]] : entries);
  }

  /** @internal */
  requestRouting(controls: RoutingControls): RequestRouting {
    this.#life.check();
    const names = this.#names;
    const { scope } = this.#data.routing;
    if (controls.only !== undefined || controls.experts) {
      const alone = controls.only !== undefined;
      const weights = expertWeights(names, alone ? { [controls.only as string]: 1 } : (controls.experts ?? {}));
      return { request: { kind: 'fixed', mixture: this.#handle, weights, alone }, names, perToken: false, scope };
    }
    const request = {
      kind: 'mixture' as const,
      mixture: this.#handle,
      options: routerOptions(this.#data.routing, controls),
      controls: routerControls(names, controls),
    };
    return { request, names, perToken: scope === 'token', scope };
  }

  /**
   * Trains one expert alone at weight 1, the base frozen. Steps done stay when it is aborted or left early.
   * @throws AtMoeError ERR_AT_MOE_UNKNOWN_NAME, ERR_AT_MOE_BUSY, ERR_AT_MOE_BAD_DATA, ERR_AT_MOE_NOT_FINITE …; the
   * signal's reason.
   */
  trainExpert(name: string, data: ExampleSource, options: TrainingOptions = {}): AsyncGenerator<TrainingProgress> {
    this.#life.check();
    this.#names.expert(name);
    parseTrainingOptions(options, 'adapter');
    return this.#trainAlone(() => this.#find(this.#names.expert(name)), data, options);
  }

  /** Trains the general adapter alone at weight 1. Errors as trainExpert(). */
  trainGeneral(data: ExampleSource, options: TrainingOptions = {}): AsyncGenerator<TrainingProgress> {
    this.#life.check();
    if (!this.#data.general) throw new AtMoeError('ERR_AT_MOE_UNKNOWN_NAME', 'the mixture has no general adapter');
    parseTrainingOptions(options, 'adapter');
    return this.#trainAlone(() => this.#data.general as NamedAdapter, data, options);
  }

  /** Trains the router, and λ and ρ where they are learned; base and experts are frozen. Errors as trainExpert(). */
  trainRouter(data: ExampleSource, options: TrainingOptions = {}): AsyncGenerator<TrainingProgress> {
    this.#life.check();
    parseTrainingOptions(options, 'router');
    return this.#trainWhole('router', data, options);
  }

  /** Trains router, experts and the general adapter together. Errors as trainExpert(). */
  trainJoint(data: ExampleSource, options: TrainingOptions = {}): AsyncGenerator<TrainingProgress> {
    this.#life.check();
    parseTrainingOptions(options, 'joint');
    return this.#trainWhole('joint', data, options);
  }

  /** `find` is called when the training begins: since the call the mixture may have been trained or changed. */
  async *#trainAlone(
    find: () => NamedAdapter,
    data: ExampleSource,
    options: TrainingOptions,
  ): AsyncGenerator<TrainingProgress> {
    const { core } = this;
    const place = find();
    this.#begin();
    const { groups } = this.#names;
    const within = { groups, name: place.name, life: this.#life };
    const alone = await AdapterModel.from(core, place.adapter, within).catch((error) => {
      this.#training = false;
      throw error;
    });
    this.#alone = alone;
    yield* finishing(alone.train(data, options), async () => {
      try {
        if (this.#life.ended) return;
        place.adapter = alone.adapter;
        await this.#reload(this.#data);
      } finally {
        alone.dispose();
        this.#alone = undefined;
        this.#training = false;
      }
    });
  }

  async *#trainWhole(
    target: 'router' | 'joint',
    data: ExampleSource,
    options: TrainingOptions,
  ): AsyncGenerator<TrainingProgress> {
    const context = this.#trainingContext(target);
    this.#begin();
    const handle = this.#handle;
    yield* finishing(runTraining(context, data, options), async () => {
      try {
        if (!this.#life.ended) await this.#reload(await this.#read(handle));
      } finally {
        this.#training = false;
      }
    });
  }

  /**
   * The loss on data as the router weighs the experts, in nats per token.
   * @throws TypeError, RangeError; AtMoeError ERR_AT_MOE_BAD_DATA, ERR_AT_MOE_NOT_FINITE; the signal's reason.
   */
  async evaluate(data: ExampleSource, options: EvaluationOptions = {}): Promise<EvaluationResult> {
    return await evaluateLoss(this.#trainingContext('router'), data, options);
  }

  #trainingContext(target: 'router' | 'joint'): TrainingContext {
    const structure = [this.groups, this.hasGeneral, this.#data.routing];
    return {
      ...this.core.trainingContext(target, this.#handle, structure),
      groups: this.#names.groups,
      life: this.#life,
    };
  }

  /** The mixture's data with the values the engine holds. */
  async #read(handle: MixtureHandle): Promise<MixtureData> {
    const tensors = await this.#core.engine.readMixture(handle, '');
    let index = 0;
    const groups = this.#data.groups.map(({ name, experts }) => ({
      name,
      experts: experts.map((expert) => ({
        name: expert.name,
        adapter: withValues(expert.adapter, `experts.${index++}.`, tensors),
      })),
    }));
    const general = this.#data.general && {
      name: this.#data.general.name,
      adapter: withValues(this.#data.general.adapter, 'general.', tensors),
    };
    return { groups, general, routing: this.#data.routing, router: routerValues(this.#data.router, tensors) };
  }

  async #reload(data: MixtureData): Promise<void> {
    const { engine } = this.#core;
    const { mixture } = await engine.createMixture(mixtureDescriptor(data), this.#handle);
    const exchange = () => {
      if (this.#life.ended) {
        engine.releaseMixture(mixture);
        return;
      }
      engine.releaseMixture(this.#handle);
      this.#handle = mixture;
      this.#data = data;
      this.#names = namesOf(data);
      this.#version++;
    };
    await this.#pinning.move(mixture, exchange).catch((error) => {
      engine.releaseMixture(mixture);
      throw error;
    });
  }

  /**
   * Puts a saved mixture, or the content of another one of this model, in this one's place while it serves: requests in
   * flight go on with what they have, those that start later get the new content. Of a pinned one that is on the device
   * first. @throws AtMoeError as loadMixture(); ERR_AT_MOE_BUSY while it is trained or changed; ERR_AT_MOE_OUT_OF_MEMORY when
   * the new content has no place beside what else is pinned.
   */
  async replace(source: string | Mixture, options: { onWarning?: (message: string) => void } = {}): Promise<void> {
    const { descriptor, sha256 } = this.core;
    if (source instanceof Mixture) {
      if (source.core !== this.#core) throw new TypeError('replace: the mixture is of another model');
      await this.#exchange(source.#data);
      return;
    }
    checkFolder(source, 'replace needs a folder or a mixture');
    const { warnings, ...data } = await readMixture(source, { config: descriptor.config, sha256 });
    for (const warning of warnings) (options.onWarning ?? process.emitWarning)(warning);
    await this.#exchange(data);
  }

  /**
   * Adds an expert, to a new group if there is none of that name. Its router rows start at zero; requests in flight go on
   * with what they have. @throws RangeError for a name that cannot be used; AtMoeError of reading an adapter.
   */
  async addExpert(group: string, name: string, spec: ExpertSpec, seed = 0): Promise<void> {
    const adapter = await makeAdapter(this.core, spec, seed);
    const groups = this.#data.groups.map((own) => ({ ...own, experts: [...own.experts] }));
    const found = groups.find((own) => own.name === group);
    if (found) found.experts.push({ name, adapter });
    else groups.push({ name: group, experts: [{ name, adapter }] });
    const problem = nameProblem({
      groups: groups.map((own) => ({ name: own.name, experts: own.experts.map((expert) => expert.name) })),
      general: null,
    });
    if (problem) throw new RangeError(problem);
    const at = groups.findIndex((own) => own.name === group);
    const router = addRouterRows(this.#data.router, this.#sizes(), at);
    await this.#exchange({ ...this.#data, groups, router });
  }

  /** Removes an expert with its router rows; its group goes with its last expert. @throws AtMoeError ERR_AT_MOE_UNKNOWN_NAME. */
  async removeExpert(name: string): Promise<void> {
    this.#life.check();
    const index = this.#names.expert(name);
    if (this.#names.experts.length === 1) throw new RangeError('a mixture needs at least one expert');
    const router = dropRouterRows(this.#data.router, this.#sizes(), index);
    const gone = this.#find(index);
    const groups = this.#data.groups
      .map((group) => ({ ...group, experts: group.experts.filter((expert) => expert !== gone) }))
      .filter(({ experts }) => experts.length > 0);
    await this.#exchange({ ...this.#data, groups, router });
  }

  /** Puts another adapter in an expert's place; its router rows stay. Errors as addExpert(). */
  async replaceExpert(name: string, spec: ExpertSpec, seed = 0): Promise<void> {
    const { core } = this;
    const old = this.#find(this.#names.expert(name));
    const adapter = await makeAdapter(core, spec, seed);
    const groups = this.#data.groups.map((group) => ({
      ...group,
      experts: group.experts.map((expert) => (expert === old ? { name: expert.name, adapter } : expert)),
    }));
    await this.#exchange({ ...this.#data, groups });
  }

  async #exchange(data: MixtureData): Promise<void> {
    this.#life.check();
    this.#begin();
    try {
      await this.#reload(data);
      this.#life.check();
    } finally {
      this.#training = false;
    }
  }

  /** Saves to a folder; a crash leaves the old mixture or the new one. @throws AtMoeError ERR_AT_MOE_IO. */
  async save(dir: string): Promise<void> {
    const { path, sha256, descriptor } = this.core;
    await writeMixture(dir, { nameOrPath: path, config: descriptor.config, sha256 }, this.#data);
  }

  /**
   * Writes the mixture at fixed weights as one plain model ('merged') or one PEFT adapter of the ranks' sum ('peft').
   * @throws TypeError, RangeError; AtMoeError ERR_AT_MOE_UNKNOWN_NAME, ERR_AT_MOE_IO.
   */
  async export(dir: string, options: ExportOptions): Promise<void> {
    const { core } = this;
    checkFolder(dir, 'export needs a folder');
    const { as, weights: named } = checkExportOptions(options);
    const weights = expertWeights(this.#names, named);
    if (as === 'peft') await exportAdapter(dir, core, this.#data, weights);
    else await exportMerged(dir, core, this.#data, this.#handle, weights);
  }

  /**
   * Keeps the mixture, and what replaces it, on the device, whatever else needs the room (`adapterBytes` of loadModel).
   * Resolves when it is there. @throws AtMoeError ERR_AT_MOE_OUT_OF_MEMORY when it has no place beside what is pinned.
   */
  async pin(): Promise<void> {
    this.#life.check();
    await this.#pinning.pin();
  }

  unpin(): void {
    this.#life.check();
    this.#pinning.unpin();
  }

  /** Ends its training and evaluation, and frees the engine's memory of it; requests in flight finish. May be called again. */
  dispose(): void {
    if (!this.#life.end()) return;
    this.#alone?.dispose();
    this.#core.engine.releaseMixture(this.#handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #begin(): void {
    if (this.#training) throw new AtMoeError('ERR_AT_MOE_BUSY', 'the mixture is being trained or changed');
    this.#training = true;
  }

  #sizes(): number[] {
    return this.#data.groups.map(({ experts }) => experts.length);
  }

  #find(index: number): NamedAdapter {
    return this.#data.groups.flatMap(({ experts }) => experts)[index] as NamedAdapter;
  }
}

function namesOf(data: MixtureData): RoutingNames {
  return new RoutingNames(
    data.groups.map(({ name, experts }) => ({ name, experts: experts.map((expert) => expert.name) })),
  );
}
