/**
 * The one way to native code. The addon is loaded at the first use; loading it starts no thread and touches no device.
 * Native code never calls into the caller's code: results settle promises, events come through one dispatcher.
 */
import { onAbort } from './abort.js';
import type { ModelDescriptor, TensorSource } from './descriptors.js';
import { AtMoeError, type AtMoeErrorCode } from './errors.js';
import type { BenchRequest } from './native-bench-types.js';
import { loadBinary } from './native-binary.js';
import type { MixtureDescriptor } from './native-mixture-types.js';
import type { MicroBatch, TrainerState, TrainOptions } from './native-training-types.js';
import type {
  DeviceDescription,
  EngineCall,
  EngineOptions,
  GenerateRequest,
  GrammarDescription,
  JobOptions,
  LoadOptions,
  MergeRequest,
  NativeEngine,
  ScoreRequest,
  SequenceEvent,
  VocabularyDescription,
} from './native-types.js';

/** The methods of the native class: those of NativeEngine with a number, chosen here, in front of each job's arguments. */
type NativeMethod = (number: number, ...args: unknown[]) => Promise<unknown>;
type Effect =
  | 'submit'
  | 'generate'
  | 'hold'
  | 'letGo'
  | 'cancel'
  | 'read'
  | 'createGrammar'
  | 'releaseGrammar'
  | 'unpinMixture'
  | 'releaseMixture'
  | 'releaseSession';
type JobName = Exclude<keyof NativeEngine, Effect>;
type RawEngine = Record<JobName, NativeMethod> & {
  generate(sequence: number, requests: readonly GenerateRequest[]): void;
  cancelSequence(sequence: number): void;
  readTokens(sequence: number, tokens: number): void;
  cancelJob(job: number): void;
  createGrammar(grammar: number, description: GrammarDescription): void;
  releaseGrammar(grammar: number): void;
  unpinMixture(mixture: number): void;
  releaseMixture(mixture: number): void;
  releaseSession(session: number): void;
};

type Result<Name extends JobName> = Awaited<ReturnType<NativeEngine[Name]>>;
type RunOptions = JobOptions & { onProgress?: (bytesDone: number, bytesTotal: number) => void };

type RawEvent = { id: number } & (SequenceEvent | { type: 'progress'; done: number; total: number });

/** State of the addon in this thread, kept with the addon: the ESM and the CommonJS build of this file share it. */
interface Hub {
  next: number;
  sequences: Map<number, (event: SequenceEvent) => void>;
  progress: Map<number, (done: number, total: number) => void>;
}

export interface Addon {
  devices(): DeviceDescription[];
  /** For tests: what the control groups of a tree below `root` allow; 0 cores for no quota. */
  controlGroups(root: string): { cores: number; memory: { limit: number; used: number }[] };
  /**
   * Threads of this process's CPU engines that work or spin; how often one parked because processors were too few, and was
   * woken; tasks that one did of another's share.
   */
  threadCensus(): { awake: number; processors: number; madeRoom: number; woken: number; taken: number };
  /** Names the form of packed weights in files. */
  packedLayout: string;
  setDispatcher(dispatcher: (events: RawEvent[]) => void): void;
  hold(): void;
  letGo(): void;
  Engine: new (options: EngineOptions) => RawEngine;
  /** Single ops, for tests. */
  ops: Record<string, (...args: unknown[]) => Record<string, unknown>>;
  hub?: Hub;
}

let addon: Addon | undefined;

/** Throws ERR_AT_MOE_NATIVE_MISSING when there is no binary that fits. */
export function loadAddon(): Addon {
  addon ??= loadBinary() as Addon;
  return addon;
}

export function devices(): DeviceDescription[] {
  return loadAddon().devices();
}

function hubOf(loaded: Addon): Hub {
  if (loaded.hub) return loaded.hub;
  const hub: Hub = { next: 1, sequences: new Map(), progress: new Map() };
  loaded.setDispatcher((events) => {
    for (const { id, ...event } of events) {
      if (event.type === 'progress') {
        hub.progress.get(id)?.(event.done, event.total);
        continue;
      }
      const listener = hub.sequences.get(id);
      if (event.type === 'done') hub.sequences.delete(id);
      listener?.(event as SequenceEvent);
    }
  });
  loaded.hub = hub;
  return hub;
}

/** Errors of native code carry their code; wrong arguments stay TypeErrors. */
function wrapError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof TypeError) return error;
  const { code } = error as NodeJS.ErrnoException;
  return code?.startsWith('ERR_AT_MOE_')
    ? new AtMoeError(code as AtMoeErrorCode, error.message, { cause: error })
    : error;
}

class Engine implements NativeEngine {
  readonly #addon: Addon;
  readonly #raw: RawEngine;
  readonly #hub: Hub;
  #disposed: Promise<void> | undefined;

  constructor(options: EngineOptions) {
    this.#addon = loadAddon();
    this.#hub = hubOf(this.#addon);
    try {
      this.#raw = new this.#addon.Engine(options);
    } catch (error) {
      throw wrapError(error);
    }
  }

  async #run<Name extends JobName>(
    name: Name,
    args: unknown[],
    { signal, onProgress }: RunOptions = {},
  ): Promise<Result<Name>> {
    if (signal?.aborted) throw new AtMoeError('ERR_AT_MOE_ABORTED', 'the job was aborted', { cause: signal.reason });
    const number = this.#hub.next++;
    if (onProgress) this.#hub.progress.set(number, onProgress);
    const leave = onAbort(signal, () => this.#raw.cancelJob(number));
    try {
      return (await this.#raw[name](number, ...args)) as Result<Name>;
    } catch (error) {
      throw wrapError(error);
    } finally {
      leave();
      this.#hub.progress.delete(number);
    }
  }

  loadModel(descriptor: ModelDescriptor, options: LoadOptions, job?: RunOptions) {
    return this.#run('loadModel', [descriptor, options], job);
  }

  loadRandom(config: ModelDescriptor['config'], seed: number, options: LoadOptions, job?: JobOptions) {
    return this.#run('loadRandom', [config, seed, options], job);
  }

  createMixture(descriptor: MixtureDescriptor, replaced = 0) {
    return this.#run('createMixture', [descriptor, replaced]);
  }

  pinMixture(mixture: number) {
    return this.#run('pinMixture', [mixture]);
  }

  unpinMixture(mixture: number) {
    this.#raw.unpinMixture(mixture);
  }

  releaseMixture(mixture: number) {
    this.#raw.releaseMixture(mixture);
  }

  readMixture(mixture: number, prefix: string) {
    return this.#run('readMixture', [mixture, prefix]);
  }

  loadVocabulary(vocabulary: VocabularyDescription) {
    return this.#run('loadVocabulary', [vocabulary]);
  }

  createGrammar(description: GrammarDescription): number {
    const number = this.#hub.next++;
    try {
      this.#raw.createGrammar(number, description);
    } catch (error) {
      throw wrapError(error);
    }
    return number;
  }

  releaseGrammar(grammar: number) {
    this.#raw.releaseGrammar(grammar);
  }

  submit(calls: readonly EngineCall[]): number[] {
    const { sequences, next } = this.#hub;
    const firsts = calls.map(({ request: { n = 1 }, listener }) => {
      const first = this.#hub.next;
      this.#hub.next += n;
      for (let i = 0; i < n; i++) sequences.set(first + i, (event) => listener(event, i));
      return first;
    });
    try {
      const requests = calls.map(({ request }) => request);
      this.#raw.generate(next, requests);
    } catch (error) {
      for (let number = next; number < this.#hub.next; number++) sequences.delete(number);
      throw wrapError(error);
    }
    return firsts;
  }

  generate(request: GenerateRequest, listener: EngineCall['listener']): number {
    let open = request.n ?? 1;
    const hear: typeof listener = (event, index) => {
      if (event.type === 'done' && --open === 0) this.letGo();
      listener(event, index);
    };
    const [first] = this.submit([{ request, listener: hear }]);
    this.hold();
    return first as number;
  }

  hold() {
    this.#addon.hold();
  }

  letGo() {
    this.#addon.letGo();
  }

  cancel(sequence: number) {
    this.#raw.cancelSequence(sequence);
  }

  read(sequence: number, tokens: number) {
    this.#raw.readTokens(sequence, tokens);
  }

  releaseSession(session: number) {
    this.#raw.releaseSession(session);
  }

  score(request: ScoreRequest, job?: JobOptions) {
    return this.#run('score', [request], job);
  }

  logits(request: ScoreRequest) {
    return this.#run('logits', [request]);
  }

  beginTraining(mixture: number | null, options: TrainOptions) {
    return this.#run('beginTraining', [mixture, options]);
  }

  microBatch(trainer: number, batch: MicroBatch, job?: JobOptions) {
    return this.#run('microBatch', [trainer, batch], job);
  }

  evaluate(trainer: number, batch: MicroBatch, job?: JobOptions) {
    return this.#run('evaluate', [trainer, batch], job);
  }

  finishStep(trainer: number, learningRate: number) {
    return this.#run('finishStep', [trainer, learningRate]);
  }

  discardGradients(trainer: number) {
    return this.#run('discardGradients', [trainer]);
  }

  trainerState(trainer: number) {
    return this.#run('trainerState', [trainer]);
  }

  restoreTrainer(trainer: number, state: TrainerState) {
    return this.#run('restoreTrainer', [trainer, state]);
  }

  gradients(trainer: number) {
    return this.#run('gradients', [trainer]);
  }

  baseValues(trainer: number) {
    return this.#run('baseValues', [trainer]);
  }

  endTraining(trainer: number) {
    return this.#run('endTraining', [trainer]);
  }

  merged(request: MergeRequest) {
    return this.#run('merged', [request]);
  }

  quantize(tensor: TensorSource, job?: JobOptions) {
    return this.#run('quantize', [tensor], job);
  }

  packedSections() {
    return this.#run('packedSections', []);
  }

  packedSection(name: string) {
    return this.#run('packedSection', [{ name }]);
  }

  memory() {
    return this.#run('memory', []);
  }

  bench(request: BenchRequest, job?: JobOptions) {
    return this.#run('bench', [request], job);
  }

  stats() {
    return this.#run('stats', []);
  }

  probe() {
    return this.#run('probe', []);
  }

  copyFiles(files: string[]) {
    return this.#run('copyFiles', [{ files }]);
  }

  dispose() {
    this.#disposed ??= this.#run('dispose', []);
    return this.#disposed;
  }
}

/** Starts the engine's thread; the device is opened by the first load. */
export function createEngine(options: EngineOptions): NativeEngine {
  return new Engine(options);
}
