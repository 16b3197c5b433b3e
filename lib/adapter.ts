import { withValues } from './adapter-tensors.js';
import type { GroupNames } from './data/labels.js';
import type { ExampleSource } from './data/rows.js';
import { type Adapter as AdapterData, writeAdapter } from './formats/peft.js';
import type { RequestRouting } from './generation.js';
import { Lifetime } from './lifetime.js';
import type { ModelCore } from './model-core.js';
import type { MixtureHandle } from './native-mixture-types.js';
import { Pinning } from './pinning.js';
import { defaultRouterOptions, type RoutingControls, RoutingNames } from './routing-controls.js';
import { TextGenerator } from './text-generator.js';
import type { TrainingContext } from './training/context.js';
import { finishing } from './training/finishing.js';
import type { EvaluationOptions, TrainingOptions } from './training/options.js';
import { type EvaluationResult, evaluateLoss, runTraining, type TrainingProgress } from './training/run.js';

/** Where in a mixture an adapter is trained: with the groups whose labels its data may carry, and at most as long. */
interface Place {
  groups: readonly GroupNames[];
  name: string;
  life: Lifetime;
}

/** One LoRA adapter over a base model, at weight 1. */
export class Adapter extends TextGenerator {
  readonly #core: ModelCore;
  readonly #handle: MixtureHandle;
  #adapter: AdapterData;
  readonly #pinning: Pinning;
  readonly #place: Place | undefined;
  readonly #life: Lifetime;

  private constructor(core: ModelCore, adapter: AdapterData, handle: MixtureHandle, place?: Place) {
    super();
    this.#life = new Lifetime('the adapter', place?.life ?? core.life);
    this.#place = place;
    this.#core = core;
    this.#adapter = adapter;
    this.#handle = handle;
    this.#pinning = new Pinning(core.engine, () => handle);
  }

  /** `place`: in the mixture the adapter is trained for. @internal */
  static async from(core: ModelCore, adapter: AdapterData, place?: Place): Promise<Adapter> {
    const descriptor = {
      groups: [1],
      experts: [adapter.modules],
      scope: 'token' as const,
      options: defaultRouterOptions,
      balance: 1,
      scale: 1,
    };
    const { mixture } = await core.engine.createMixture(descriptor);
    return new Adapter(core, adapter, mixture, place);
  }

  /** @internal */
  get core(): ModelCore {
    this.#life.check();
    return this.#core;
  }

  /** @internal */
  get adapter(): AdapterData {
    return this.#adapter;
  }

  /** @internal */
  requestRouting(controls: RoutingControls): RequestRouting {
    if (Object.keys(controls).length > 0) throw new TypeError('an adapter alone has no routing to control');
    const names = new RoutingNames([{ name: 'adapter', experts: ['adapter'] }]);
    return {
      request: { kind: 'fixed', mixture: this.#handle, weights: Float32Array.of(1), alone: true },
      names,
      perToken: false,
    };
  }

  /**
   * Trains the adapter, the base frozen. Steps done stay when it is aborted or left early.
   * @throws AtMoeError ERR_AT_MOE_BAD_DATA, ERR_AT_MOE_NOT_FINITE …; the signal's reason.
   */
  train(data: ExampleSource, trainingOptions: TrainingOptions = {}): AsyncGenerator<TrainingProgress> {
    const { engine } = this.core;
    return finishing(runTraining(this.#trainingContext(), data, trainingOptions), async () => {
      if (this.#life.ended) return;
      this.#adapter = withValues(this.#adapter, 'experts.0.', await engine.readMixture(this.#handle, 'experts.0.'));
    });
  }

  /**
   * The loss of the adapter on data, in nats per token, without dropout.
   * @throws TypeError, RangeError; AtMoeError ERR_AT_MOE_BAD_DATA, ERR_AT_MOE_NOT_FINITE; the signal's reason.
   */
  async evaluate(data: ExampleSource, evaluationOptions: EvaluationOptions = {}): Promise<EvaluationResult> {
    return await evaluateLoss(this.#trainingContext(), data, evaluationOptions);
  }

  /** Writes the adapter as PEFT does. @throws AtMoeError ERR_AT_MOE_IO. */
  async save(dir: string): Promise<void> {
    await writeAdapter(dir, this.#adapter, this.core.descriptor.config);
  }

  /**
   * Keeps the adapter on the device, whatever else needs the room (`adapterBytes` of loadModel). Resolves when it is there.
   * @throws AtMoeError ERR_AT_MOE_OUT_OF_MEMORY when it has no place beside what is pinned.
   */
  async pin(): Promise<void> {
    this.core.check();
    await this.#pinning.pin();
  }

  unpin(): void {
    this.core.check();
    this.#pinning.unpin();
  }

  /** Ends its training and evaluation, and frees the engine's memory of it; requests in flight finish. May be called again. */
  dispose(): void {
    if (this.#life.end()) this.#core.engine.releaseMixture(this.#handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #trainingContext(): TrainingContext {
    const { config, modules } = this.#adapter;
    // Of the pairs, not of the configuration: that of an adapter read from a folder is worded as PEFT does.
    const pairs = modules.map(({ layer, module, rank, scaling }) => `${layer} ${module} ${rank} ${scaling}`).sort();
    return {
      ...this.core.trainingContext('adapter', this.#handle, [this.#place?.name ?? null, pairs]),
      dropout: config.dropout,
      life: this.#life,
      ...(this.#place && { groups: this.#place.groups }),
    };
  }
}
