import { AtMoeError } from '../../lib/errors.js';
import type {
  MicroBatch,
  MicroBatchResult,
  NamedTensor,
  TrainerState,
  TrainOptions,
} from '../../lib/native-training-types.js';
import type { NativeEngine } from '../../lib/native-types.js';
import type { TrainingContext } from '../../lib/training/context.js';

const vocabulary = 16;

/** A sequence that holds this id has a loss that is not finite. */
export const poison = 15;

/** A trainer of a bigram model: logits[next] = parameters[previous, next], learnt by AdamW without decay. */
class FakeTrainer {
  readonly options: TrainOptions;
  step = 0;
  readonly parameters = new Float32Array(vocabulary ** 2);
  readonly moment1 = new Float32Array(vocabulary ** 2);
  readonly moment2 = new Float32Array(vocabulary ** 2);
  readonly gradient = new Float32Array(vocabulary ** 2);

  constructor(options: TrainOptions) {
    this.options = options;
  }

  run(batch: MicroBatch, learn: boolean): MicroBatchResult {
    const result: MicroBatchResult = {
      loss: 0,
      kl: (batch.stepKlRows ?? 0) / 10,
      routerLosses: { groupBalance: 1, expertBalance: 2, zLoss: 3, entropy: 4, supervision: 5 },
      auxiliary: 0.25,
      badSequence: -1,
    };
    for (const [row, label] of batch.labels.entries()) {
      const previous = batch.ids[row] as number;
      if (previous === poison && result.badSequence < 0) {
        result.badSequence = batch.offsets.findIndex((offset) => offset > row) - 1;
      }
      if (label < 0) continue;
      const weight = ((batch.lossWeights as Float32Array)[row] as number) / batch.stepLossWeight;
      const logits = this.parameters.subarray(previous * vocabulary, (previous + 1) * vocabulary);
      const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
      result.loss += weight * (Math.log(sum) - (logits[label] as number));
      for (let v = 0; learn && v < vocabulary; v++) {
        const probability = Math.exp(logits[v] as number) / sum;
        (this.gradient[previous * vocabulary + v] as number) += weight * (probability - (v === label ? 1 : 0));
      }
    }
    return result;
  }

  update(learningRate: number): number {
    const { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 } = this.options;
    this.step++;
    let squares = 0;
    for (const [i, g] of this.gradient.entries()) {
      squares += g * g;
      this.moment1[i] = beta1 * (this.moment1[i] as number) + (1 - beta1) * g;
      this.moment2[i] = beta2 * (this.moment2[i] as number) + (1 - beta2) * g * g;
      const mean = (this.moment1[i] as number) / (1 - beta1 ** this.step);
      const root = Math.sqrt((this.moment2[i] as number) / (1 - beta2 ** this.step));
      (this.parameters[i] as number) -= (learningRate * mean) / (root + epsilon);
    }
    this.gradient.fill(0);
    return Math.sqrt(squares);
  }

  state(): TrainerState {
    const { parameters, moment1, moment2 } = this;
    const tensors = Object.entries({ parameters, moment1, moment2 }).map(([name, values]): NamedTensor => {
      return { name: `adapters.${name}`, shape: [values.length], values: values.slice() };
    });
    return { step: this.step, tensors };
  }

  restore({ step, tensors }: TrainerState): void {
    this.step = step;
    for (const name of ['parameters', 'moment1', 'moment2'] as const) {
      this[name].set(tensors.find((tensor) => tensor.name === `adapters.${name}`)?.values as Float32Array);
    }
  }
}

/** The training part of an engine, with a record of what it was asked for. */
export class FakeEngine {
  readonly trainers = new Map<number, FakeTrainer>();
  /** Micro-batches trained, in order. */
  readonly batches: MicroBatch[] = [];
  readonly rates: number[] = [];
  options: TrainOptions | undefined;
  evaluations = 0;
  discards = 0;
  ended = 0;
  /** Called at the start of each micro-batch; an AbortSignal that aborts here stops it. */
  onBatch: (number: number) => void = () => undefined;

  async beginTraining(_mixture: number | null, options: TrainOptions): Promise<number> {
    this.options = options;
    const id = this.trainers.size + this.ended + 1;
    this.trainers.set(id, new FakeTrainer(options));
    return id;
  }

  async microBatch(trainer: number, batch: MicroBatch, job?: { signal?: AbortSignal }): Promise<MicroBatchResult> {
    this.batches.push(batch);
    this.onBatch(this.batches.length);
    await new Promise(setImmediate);
    if (job?.signal?.aborted) throw new AtMoeError('ERR_AT_MOE_ABORTED', 'aborted');
    return this.#at(trainer).run(batch, true);
  }

  async evaluate(trainer: number, batch: MicroBatch): Promise<MicroBatchResult> {
    this.evaluations++;
    return this.#at(trainer).run(batch, false);
  }

  async score({ ids, first }: { ids: Int32Array; first: number }): Promise<Float32Array> {
    return new Float32Array(ids.length - first).fill(-2);
  }

  async finishStep(trainer: number, learningRate: number): Promise<number> {
    this.rates.push(learningRate);
    return this.#at(trainer).update(learningRate);
  }

  async discardGradients(trainer: number): Promise<void> {
    this.discards++;
    this.#at(trainer).gradient.fill(0);
  }

  async trainerState(trainer: number): Promise<TrainerState> {
    return this.#at(trainer).state();
  }

  async restoreTrainer(trainer: number, state: TrainerState): Promise<void> {
    this.#at(trainer).restore(state);
  }

  async endTraining(trainer: number): Promise<void> {
    this.#at(trainer);
    this.trainers.delete(trainer);
    this.ended++;
  }

  #at(trainer: number): FakeTrainer {
    const found = this.trainers.get(trainer);
    if (!found) throw new AtMoeError('ERR_AT_MOE_DISPOSED', 'the training has ended');
    return found;
  }
}

/** A context around a fake engine; `parameters` are the trained ones once the trainer has ended. */
export function fakeContext(over: Partial<TrainingContext> = {}): TrainingContext & {
  fake: FakeEngine;
  parameters: Float32Array;
} {
  const fake = new FakeEngine();
  const context: TrainingContext & { fake: FakeEngine; parameters: Float32Array } = {
    fake,
    engine: fake as unknown as NativeEngine,
    mixture: 1,
    target: 'adapter',
    contextLength: 64,
    fingerprint: 'tiny',
    parameters: new Float32Array(0),
    onEnd: async (trainer: number) => {
      context.parameters = fake.trainers.get(trainer)?.parameters.slice() as Float32Array;
    },
    ...over,
  };
  return context;
}

/** Rows of ids that a bigram model can learn, of 3 to 7 tokens. */
export function rows(count: number): { prompt: number[]; completion: number[] }[] {
  return Array.from({ length: count }, (_, i) => ({
    prompt: Array.from({ length: 1 + (i % 3) }, (_, t) => (i + t) % 14),
    completion: Array.from({ length: 2 + (i % 3) }, (_, t) => (i + 3 * t) % 14),
  }));
}
