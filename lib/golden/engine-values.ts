import type { MixtureHandle, RoutingRequest } from '../native-mixture-types.js';
import type { MicroBatch, NamedTensor, TrainTarget } from '../native-training-types.js';
import type { NativeEngine, SequenceEvent } from '../native-types.js';
import type { GoldenCase } from './case.js';

export type Trace = SequenceEvent & { type: 'trace' };

/** What the engine makes of a case's sequences. */
export class EngineValues {
  readonly engine: NativeEngine;
  readonly #case: GoldenCase;
  readonly #selection: Uint8Array[] | undefined;

  /** `selection`: what each sequence's rows keep, instead of what the router would. */
  constructor(engine: NativeEngine, golden: GoldenCase, selection?: Uint8Array[]) {
    this.engine = engine;
    this.#case = golden;
    this.#selection = selection;
  }

  /** Whether the selection is prescribed. */
  get selected(): boolean {
    return this.#selection !== undefined;
  }

  #routingOf(routing: RoutingRequest, sequence: number): RoutingRequest {
    const selection = this.#selection?.[sequence];
    return routing.kind === 'mixture' && selection ? { ...routing, selection } : routing;
  }

  /** Logits of every token, one array per sequence. */
  async logits(routing: RoutingRequest): Promise<Float32Array[]> {
    const rows: Float32Array[] = [];
    for (const [b, ids] of this.#case.sequences.entries()) {
      const first = this.#case.promptLengths[b] as number;
      rows.push(await this.engine.logits({ ids, first, routing: this.#routingOf(routing, b) }));
    }
    return rows;
  }

  /** Mean cross-entropy by the scoring call. */
  async scoredLoss(routing: RoutingRequest): Promise<number> {
    let [sum, count] = [0, 0];
    for (const [b, ids] of this.#case.sequences.entries()) {
      const logProbs = await this.engine.score({ ids, first: 1, routing });
      for (const [i, logProb] of logProbs.entries()) {
        if ((this.#case.labels[b]?.[i + 1] ?? -100) < 0) continue;
        sum -= logProb;
        count++;
      }
    }
    return sum / count;
  }

  /** The routing of each sequence taken as one prompt: of all its tokens with token scope, else of its instruction. */
  async traces(routing: RoutingRequest): Promise<Trace[]> {
    const perToken = this.#case.mixture.routing.scope === 'token';
    return await Promise.all(
      this.#case.sequences.map(async (ids, b) => {
        const prompt = perToken ? ids : ids.subarray(0, this.#case.promptLengths[b]);
        const events = await this.#generate(prompt, 0, this.#routingOf(routing, b), true);
        const traces = events.filter((event) => event.type === 'trace');
        const [trace] = traces;
        if (!trace || traces.length > 1) throw new Error(`${traces.length} trace events for one prompt`);
        return trace;
      }),
    );
  }

  /** The first prompt with its greedy continuation. */
  async greedy(maxTokens: number, routing: RoutingRequest): Promise<number[]> {
    const prompt = (this.#case.sequences[0] as Int32Array).subarray(0, this.#case.promptLengths[0]);
    const events = await this.#generate(prompt, maxTokens - prompt.length, routing, false);
    return [...prompt, ...events.flatMap((event) => (event.type === 'token' ? [event.token] : []))];
  }

  async #generate(ids: Int32Array, maxTokens: number, routing: RoutingRequest, trace: boolean) {
    const events: SequenceEvent[] = [];
    const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };
    const request = { ids, maxTokens, stopTokens: new Int32Array(0), sampling, routing, trace };
    await new Promise<void>((resolve, reject) => {
      this.engine.generate(request, (event) => {
        events.push(event);
        if (event.type !== 'done') return;
        if (event.reason === 'error') reject(new Error(`${event.code}: ${event.message}`));
        else resolve();
      });
    });
    return events;
  }

  /** Losses and gradients of one step without an update. */
  async gradients(mixture: MixtureHandle, target: TrainTarget) {
    const trainer = await this.#beginTraining(mixture, target);
    const { loss, auxiliary } = await this.engine.microBatch(trainer, this.#batch(target));
    const tensors = byName(await this.engine.gradients(trainer));
    await this.engine.endTraining(trainer);
    return { loss, auxiliary, tensors };
  }

  /**
   * The case's optimiser steps, or the first few of them: losses before each update, norms before clipping, parameters
   * after the last update.
   */
  async adamw(mixture: MixtureHandle, target: TrainTarget, steps = this.#case.optimiser.steps) {
    const { lr } = this.#case.optimiser;
    const trainer = await this.#beginTraining(mixture, target);
    const losses: number[] = [];
    const norms: number[] = [];
    for (let step = 0; step < steps; step++) {
      const { loss, auxiliary } = await this.engine.microBatch(trainer, this.#batch(target));
      losses.push(loss + auxiliary);
      norms.push(await this.engine.finishStep(trainer, lr));
    }
    await this.engine.endTraining(trainer);
    return { losses, norms, parameters: byName(await this.engine.readMixture(mixture, '')) };
  }

  async #beginTraining(mixture: MixtureHandle, target: TrainTarget): Promise<number> {
    const { betas, eps, weight_decay: weightDecay, max_grad_norm: maxGradNorm } = this.#case.optimiser;
    return await this.engine.beginTraining(mixture, {
      target,
      ...(target !== 'adapter' && { coefficients: this.#case.coefficients }),
      beta1: betas[0],
      beta2: betas[1],
      epsilon: eps,
      weightDecay,
      maxGradNorm,
    });
  }

  /** All sequences as one micro-batch that is a whole step. */
  #batch(target: TrainTarget): MicroBatch {
    const { sequences, labels, promptLengths } = this.#case;
    const offsets = [0];
    for (const ids of sequences) offsets.push((offsets.at(-1) as number) + ids.length);
    const shifted = labels.flatMap((row) => [...row.subarray(1), -100]);
    return {
      ids: Int32Array.from(sequences.flatMap((ids) => [...ids])),
      offsets: Int32Array.from(offsets),
      promptLengths: Int32Array.from(promptLengths),
      labels: Int32Array.from(shifted),
      stepLossWeight: shifted.filter((label) => label >= 0).length,
      stepTokens: offsets.at(-1) as number,
      ...(this.#selection && target !== 'adapter' && { selection: this.#joined(this.#selection) }),
    };
  }

  /** [layers, N, G + E] of all sequences' rows. */
  #joined(selection: Uint8Array[]): Uint8Array {
    const layers = this.#case.base.descriptor.config.numLayers;
    const rows = Array.from({ length: layers }, (_, layer) =>
      selection.map((kept) => kept.subarray((layer * kept.length) / layers, ((layer + 1) * kept.length) / layers)),
    ).flat();
    return Uint8Array.from(rows.flatMap((part) => [...part]));
  }
}

function byName(tensors: NamedTensor[]): Map<string, Float32Array> {
  return new Map(tensors.map(({ name, values }) => [name, values]));
}
