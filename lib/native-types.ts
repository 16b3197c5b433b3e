/**
 * What lib sees of native code: plain data and the `NativeEngine` interface (lib/native.ts makes one). Arguments are checked
 * by lib before they get here; native code refuses bad types with TypeError. Failures reject with AtMoeError.
 */

import type { AdapterModule, ModelDescriptor, TensorSource, WeightFormat, WeightSource } from './descriptors.js';
import type { Device } from './device.js';
import type { AtMoeErrorCode } from './errors.js';
import type { BenchRequest, BenchResult, FileCopy, ProbeResult } from './native-bench-types.js';
import type { MixtureDescriptor, MixtureHandle, MixtureInfo, RoutingRequest } from './native-mixture-types.js';
import type { MicroBatch, MicroBatchResult, NamedTensor, TrainerState, TrainOptions } from './native-training-types.js';

export interface DeviceDescription {
  /** 'cpu', 'cuda:0' … */
  name: string;
  description: string;
  memoryBytes: number;
  available: boolean;
  /** Why it is not available, else ''. */
  reason: string;
}

export interface EngineOptions {
  device: Device;
  /** CPU threads; 0 = physical cores. */
  threads?: number;
  /** Processors that CPU threads are bound to, round about; on Linux alone. */
  affinity?: number[];
}

export interface LoadOptions {
  /** Storage of the linear weights and the head. */
  weights: WeightFormat;
  /** Storage of the experts of all mixtures; default: of each the widest of its tensors. q8 on the CPU alone. */
  expertWeights?: WeightFormat;
  /** Keeps f32 parameters so that the base itself can be trained; needs `weights: 'f32'`. */
  trainable?: boolean;
  /** Most sequences that are worked on at once. Default 16. */
  maxBatch?: number;
  /** Longest sequence. Default and upper bound: what the model was made for, and what the KV cache holds. */
  contextLength?: number;
  /** Tokens the KV cache holds, all sequences together. Default: maxBatch contexts, at most 2 GiB, at least one context or 2 GiB. */
  kvTokens?: number;
  /**
   * Most rows of a step: a row for each sequence that decodes, the rest for prompts, which are cut to fit. A prompt that is
   * routed as a whole is read in units beside the steps. Default: by the speed of the device.
   */
  stepTokens?: number;
  /** Most sequences that may wait for a place in the batch. Default: no bound. */
  maxQueue?: number;
  /**
   * Host memory for the keys of sequences that gave way to others, which are computed again beyond it. Default: 1 GiB, and 0
   * where the device's memory is the host's.
   */
  hostKvBytes?: number;
  /**
   * Device memory for the experts and routers of mixtures: those beyond it wait in host memory and are loaded when they are
   * asked for, in the place of what has been unused for longest. Default: no bound.
   */
  adapterBytes?: number;
  /** Keep the keys of ended sequences while their room is not needed. Default true. */
  prefixCache?: boolean;
  /** Rows of one uninterruptible unit. Default: about 30 ms of work. */
  chunkRows?: number;
  /** Weights and embedding, read from a mapped file instead of the tensors'; on the CPU, and not with `trainable`. */
  packed?: PackedSource;
}

/** Bytes of packed weights in a file, by name. */
export interface PackedSource {
  file: string;
  sections: { name: string; offset: number; byteLength: number }[];
}

export interface ModelInfo {
  device: string;
  /** Whether weights are mapped from a file of packed weights. */
  mapped: boolean;
  weights: WeightFormat;
  /** If it was given. */
  expertWeights?: WeightFormat;
  contextLength: number;
  kvTokens: number;
  maxBatch: number;
}

export interface SamplingOptions {
  /** 0 = greedy. */
  temperature: number;
  /** 0 = off. */
  topK: number;
  /** 1 = off. */
  topP: number;
  /** 0 = off. */
  minP: number;
  /** 1 = off. */
  repetitionPenalty: number;
  seed: number | bigint;
}

/** The bytes of every id's token: those of id i are [offsets[i], offsets[i + 1]); none for what is no part of a text. */
export interface VocabularyDescription {
  bytes: Uint8Array;
  offsets: Int32Array;
}

/** A handle of a grammar in an engine. Requests in flight keep theirs after `releaseGrammar`. */
export type GrammarHandle = number;

/** A language of JSON texts, as native/grammar/grammar.h reads it. */
export interface GrammarDescription {
  /** [end of edges, end of empty, end of calls, kind (0, 1 accepts, 2 string), least, most, target] each. */
  nodes: Int32Array;
  /** [low, high, target] each. */
  edges: Int32Array;
  empty: Int32Array;
  /** [rule, target] each. */
  calls: Int32Array;
  /** First nodes; the first rule is the root. */
  rules: Int32Array;
  /** [set, first, last character] each: sets of characters, in the order of their numbers, then of their ranges. */
  sets: Int32Array;
  /** [node, set, most] each: from the node every text of up to `most` (-1: any number) of the set's characters goes on. */
  spans: Int32Array;
}

export interface SessionRequest {
  /** Chosen by the caller; its context (tokens, keys, routing) outlives the request until `releaseSession`. */
  id: number;
  /** Tokens of the context to keep before the new ids are appended. Default: all. */
  keep?: number;
  /** The new ids get a routing of their own from this request's `routing`. Default: the session's first routing goes on. */
  reroute?: boolean;
}

/** When a request is served. */
export interface Scheduling {
  /** Higher ones first; default 0. */
  priority?: number;
  /** Milliseconds from the call after which it ends with ERR_AT_MOE_DEADLINE. Default: none. */
  timeoutMs?: number;
}

export interface GenerateRequest extends Scheduling {
  /** Prompt; with a session only the ids that are new. */
  ids: Int32Array;
  /** Sequences that go on from the prompt, the i-th one with the seed + i; default 1. Not with a session. */
  n?: number;
  /** Tokens that may be unread (`read`) before the sequence waits for its reader. Default: no bound. */
  maxUnread?: number;
  /** New tokens at most; 0 = routing trace alone. The context length is a bound of its own. */
  maxTokens: number;
  /** Ids that end the sequence; they are not emitted and not kept in a session. Empty: never (ignore_eos). */
  stopTokens: Int32Array;
  /** Ids that are never sampled. */
  bannedTokens?: Int32Array;
  sampling: SamplingOptions;
  /** Holds the text to a grammar: it ends ('stop') when it is complete and nothing can follow. */
  grammar?: GrammarHandle;
  routing: RoutingRequest;
  trace?: boolean;
  logProbs?: boolean;
  session?: SessionRequest;
}

export interface Usage {
  /** Ids of the request. */
  promptTokens: number;
  completionTokens: number;
  /** Tokens whose keys were there: of the session, or of the prefix cache. */
  cachedTokens: number;
  /** Tokens the context holds at the end: what `keep` of the next request counts. */
  contextTokens: number;
}

export type SequenceEvent =
  | { type: 'token'; token: number /** NaN unless asked for. */; logProb: number }
  /**
   * Routing records of rows [position, position + rows): [layers, rows, width], a record being
   * [α⁰ G | β⁰ E | α G | w E | gate E+1]. Routing that holds for the whole sequence comes once, with rows = 1.
   */
  | { type: 'trace'; position: number; layers: number; rows: number; width: number; records: Float32Array }
  | { type: 'done'; reason: 'stop'; stopToken: number; usage: Usage }
  | { type: 'done'; reason: 'length' | 'cancelled'; usage: Usage }
  | { type: 'done'; reason: 'error'; code: AtMoeErrorCode; message: string; usage: Usage };

/** A request with who hears of its sequences, by their index. */
export interface EngineCall {
  request: GenerateRequest;
  listener: (event: SequenceEvent, index: number) => void;
}

export interface ScoreRequest extends Scheduling {
  ids: Int32Array;
  /** Index of the first id to be scored, at least 1; the ids before it are the prompt (the routing's instruction). */
  first: number;
  routing: RoutingRequest;
}

export interface MergeRequest {
  mixture: MixtureHandle;
  /** The base weight. */
  base: WeightSource;
  layer: number;
  module: AdapterModule['module'];
  weights: Float32Array;
  alone: boolean;
}

/** Bytes of a weight of 8 bits: int8 [rows, cols] and f16 [rows, ceil(cols / 32)]. */
export interface QuantizedTensor {
  values: Uint8Array;
  scales: Uint8Array;
}

export interface MemoryStatement {
  model: number;
  /** Bytes of `model` in a mapped file of packed weights, which processes share. */
  mapped: number;
  kv: number;
  workspaces: number;
  mixtures: number;
  trainers: number;
  /** Free and all tokens of the KV cache. */
  kvFreeTokens: number;
  kvTokens: number;
}

/** Counts since the load, and what is so now. */
export interface EngineStats {
  /** Sequences in the batch, waiting for a place in it, waiting for their reader. */
  running: number;
  queued: number;
  stalled: number;
  /** Steps, and sequences that took part in the last one. */
  steps: number;
  batchSize: number;
  /** KV pages of 16 tokens: held by sequences and sessions; kept for reuse; never used or given back; in host memory. */
  pagesUsed: number;
  pagesCached: number;
  pagesFree: number;
  pagesOnHost: number;
  /** Tokens of prompts that were looked up in the prefix cache, and those found. */
  lookedUpTokens: number;
  hitTokens: number;
  /** Tokens of prompts whose keys were computed, with those computed again; tokens sampled. */
  promptTokens: number;
  completionTokens: number;
  /** Sequences that lost their keys, or their place in the batch, to another one. */
  preemptions: number;
  /** Tokens whose keys came back from host memory. */
  restoredTokens: number;
  /** Device memory for mixtures: the budget (0: none), what is held, and the most that was. */
  adapterBudget: number;
  adapterBytes: number;
  adapterPeakBytes: number;
  /** Mixtures, and adapters alone, on the device, and those that are pinned. */
  adaptersResident: number;
  adaptersPinned: number;
  /** Requests that found their mixture on the device, and that waited for it. */
  adapterHits: number;
  adapterMisses: number;
  adapterLoads: number;
  adapterEvictions: number;
  /** Requests taken, refused with QUEUE_FULL, ended by DEADLINE. */
  requests: number;
  refused: number;
  expired: number;
}

export interface JobOptions {
  /** Rejects with ERR_AT_MOE_ABORTED within one unit of work. */
  signal?: AbortSignal;
}

/**
 * One device with one model and one thread. Jobs of one trainer run in the order of the calls, all others side by side:
 * generation goes on between the units of training, loading and scoring.
 */
export interface NativeEngine {
  /** Once per engine, before anything else. */
  loadModel(
    descriptor: ModelDescriptor,
    options: LoadOptions,
    job?: JobOptions & { onProgress?: (bytesDone: number, bytesTotal: number) => void },
  ): Promise<ModelInfo>;
  /** A model of this shape with random weights, for benchmarks. */
  loadRandom(
    config: ModelDescriptor['config'],
    seed: number,
    options: LoadOptions,
    job?: JobOptions,
  ): Promise<ModelInfo>;

  /**
   * Rejects with OUT_OF_MEMORY a mixture that is larger than `adapterBytes`. One that is to replace another shares its place:
   * the pin of neither stands against the other, and it is rejected as well when it has no place beside what else is pinned.
   */
  createMixture(descriptor: MixtureDescriptor, replaced?: MixtureHandle): Promise<MixtureInfo>;
  /** Resolves when it is on the device, to stay there; OUT_OF_MEMORY when it has no place beside what is pinned. */
  pinMixture(mixture: MixtureHandle): Promise<void>;
  /** Unknown handles are ignored. */
  unpinMixture(mixture: MixtureHandle): void;
  /** Unknown handles are ignored. */
  releaseMixture(mixture: MixtureHandle): void;
  /** Current values of the tensors whose name starts with `prefix`: 'experts.3.', 'general.', 'router.', '' … */
  readMixture(mixture: MixtureHandle, prefix: string): Promise<NamedTensor[]>;

  /** Before the first sequence with a grammar. */
  loadVocabulary(vocabulary: VocabularyDescription): Promise<void>;
  createGrammar(description: GrammarDescription): GrammarHandle;
  /** Unknown handles are ignored. */
  releaseGrammar(grammar: GrammarHandle): void;

  /**
   * Starts the n sequences of each request; its `listener` gets the events of each, the last one being 'done'. Returns the
   * number of each request's first; those of the others follow it. When the queue has no room for all sequences of all
   * requests, all are refused. They do not hold the event loop.
   */
  submit(calls: readonly EngineCall[]): number[];
  /** Submits one, and holds the event loop until it ends. */
  generate(request: GenerateRequest, listener: EngineCall['listener']): number;
  /** The event loop goes on until it was let go as often. */
  hold(): void;
  letGo(): void;
  /** Ends a sequence with 'done' / 'cancelled' within one step. Ended ones are ignored. */
  cancel(sequence: number): void;
  /** So many more tokens of a sequence with `maxUnread` were read. */
  read(sequence: number, tokens: number): void;
  releaseSession(session: number): void;
  /** Log-probability of each id from `first` on. */
  score(request: ScoreRequest, job?: JobOptions): Promise<Float32Array>;
  /** Logits [ids, vocabulary] of every id, for tests: those before `first` are the instruction, and may be all. */
  logits(request: ScoreRequest): Promise<Float32Array>;

  /** `mixture` is null for the base. */
  beginTraining(mixture: MixtureHandle | null, options: TrainOptions): Promise<number>;
  /** Aborting discards the gradients accumulated so far. */
  microBatch(trainer: number, batch: MicroBatch, job?: JobOptions): Promise<MicroBatchResult>;
  evaluate(trainer: number, batch: MicroBatch, job?: JobOptions): Promise<MicroBatchResult>;
  /** Rejects a gradient norm that is not finite with ERR_AT_MOE_NOT_FINITE, before the update. Resolves with the norm. */
  finishStep(trainer: number, learningRate: number): Promise<number>;
  discardGradients(trainer: number): Promise<void>;
  trainerState(trainer: number): Promise<TrainerState>;
  restoreTrainer(trainer: number, state: TrainerState): Promise<void>;
  gradients(trainer: number): Promise<NamedTensor[]>;
  /** The parameters of a base that is trained, by Hugging Face name. */
  baseValues(trainer: number): Promise<NamedTensor[]>;
  endTraining(trainer: number): Promise<void>;

  /** W + Σ λρ w_e s_e B_e A_e (+ the general adapter's share) of one module, row-major f32. */
  merged(request: MergeRequest): Promise<Float32Array>;
  /** A matrix as 8-bit blocks; no model is needed. Rejects values that are not finite or too large (ERR_AT_MOE_UNSUPPORTED). */
  quantize(tensor: TensorSource, job?: JobOptions): Promise<QuantizedTensor>;
  /** Bytes of each packed weight, by name. Rejects with ERR_AT_MOE_UNSUPPORTED off the CPU. */
  packedSections(): Promise<Record<string, number>>;
  packedSection(name: string): Promise<Uint8Array>;
  memory(): Promise<MemoryStatement>;
  /** Told between two steps; waits for no job. */
  stats(): Promise<EngineStats>;
  /** Each step is one unit of work. */
  bench(request: BenchRequest, job?: JobOptions): Promise<BenchResult>;
  /** What the CPU does at best; a few hundred milliseconds. */
  probe(): Promise<ProbeResult>;
  /** Reads files once into fresh memory, with as many threads as the engine has. */
  copyFiles(files: string[]): Promise<FileCopy>;

  /** Cancels what runs, frees the device's memory and ends the thread. May be called again. */
  dispose(): Promise<void>;
}
