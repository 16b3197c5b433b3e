import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { joinSignals } from './abort.js';
import { Adapter } from './adapter.js';
import { freshAdapter } from './adapter-tensors.js';
import { checkArgument, checkFolder } from './arguments.js';
import type { ExampleSource } from './data/rows.js';
import type { ModelConfig, WeightFormat } from './descriptors.js';
import { type Device, deviceSchema } from './device.js';
import { fileVersions } from './formats/file-version.js';
import { fromFloat32 } from './formats/float-types.js';
import type { LoraOptions } from './formats/lora-options.js';
import { readMixture } from './formats/mixture-folder.js';
import { checkModelFolder, modelDescriptor, readCompanions, tensorKey, writeModel } from './formats/model-folder.js';
import { readAdapter } from './formats/peft.js';
import { plainConfig } from './formats/q8.js';
import type { RequestRouting } from './generation.js';
import { type DownloadProgress, resolveModel } from './hub.js';
import { estimateMemory, type MemoryEstimate, type MemoryOptions } from './memory.js';
import { Mixture } from './mixture.js';
import type { MixtureOptions } from './mixture-data.js';
import { ModelCore } from './model-core.js';
import { createEngine } from './native.js';
import type { EngineStats, MemoryStatement } from './native-types.js';
import { openPackedCache } from './packed-cache.js';
import type { CompiledResponseFormat, ResponseFormat } from './response-format.js';
import type { RoutingControls } from './routing-controls.js';
import { Tokenizer } from './text/tokenizer.js';
import { TextGenerator } from './text-generator.js';
import { threadsSchema } from './threads.js';
import type { EvaluationOptions, TrainingOptions } from './training/options.js';
import { type EvaluationResult, evaluateLoss, runTraining, type TrainingProgress } from './training/run.js';

export interface LoadModelOptions {
  /** Default 'auto': a GPU when there is one, else the CPU. */
  device?: Device;
  /**
   * Storage of the linear weights and the head. 'auto' (default): as in the checkpoint. 'q8': 8 bits, in blocks of 32
   * inputs with one scale; the embedding and adapters keep their types, and a GPU computes in bf16.
   */
  weights?: 'auto' | WeightFormat;
  /**
   * Storage of the experts of all mixtures and adapters. 'auto' (default): as they are stored. 'q8' (on the CPU alone, else
   * ERR_AT_MOE_UNSUPPORTED): 8 bits, so that beside a base of 8 bits their products are of its kind.
   */
  expertWeights?: 'auto' | WeightFormat;
  /**
   * CPU threads, at most 4 for each logical processor; default: the physical cores, within the process's affinity and the quotas
   * of its control groups.
   */
  threads?: number;
  /**
   * Processors to bind the CPU threads to, one each, round about; without `threads`, as many threads as processors. On Linux
   * alone: elsewhere, and for a processor this process may not run on, ERR_AT_MOE_UNSUPPORTED. Default 'none'.
   */
  affinity?: 'none' | number[];
  /** Most sequences worked on at once; default 16. */
  maxBatch?: number;
  /**
   * Longest sequence; default: what the model was made for (max_position_embeddings), as far as the KV cache holds it. A larger
   * one is lowered to it, with a process warning of the code AT_MOE_CONTEXT_LENGTH.
   */
  contextLength?: number;
  /** Tokens of the KV cache, all sequences together. */
  kvTokens?: number;
  /**
   * Most texts that may wait for a place in the batch; default: no bound. Each of `n`, each prompt and each score is one; a call
   * for which there is no room as a whole rejects with ERR_AT_MOE_QUEUE_FULL, and none of it runs.
   */
  maxQueue?: number;
  /** Keep the keys of ended sequences for prompts that begin alike, while their room is not needed; default true. */
  prefixCache?: boolean;
  /**
   * Bytes of host memory for the keys of requests that gave way to others, which are computed again beyond it; default 1 GiB
   * on a GPU, 0 on the CPU.
   */
  hostKvBytes?: number;
  /**
   * Bytes of device memory for the experts and routers of mixtures and adapters. Those beyond it wait in host memory and are
   * loaded when they are asked for, in the place of what has been unused for longest; default: no bound.
   */
  adapterBytes?: number;
  /** Most tokens of a step: long prompts are cut to fit, so that others wait for no more than a step. Default: by the device. */
  stepTokens?: number;
  /**
   * Keeps the packed weights in a file and maps it from the next load on: true, in the model's folder
   * (`packed-<weights>.safetensors`), or the path of the file. Processes that map it share its memory. It follows the
   * checkpoint's files, and is written anew when they changed. On the CPU alone, and not with `trainable`.
   */
  packedCache?: boolean | string;
  /** Keep f32 parameters, so that the base itself can be trained. */
  trainable?: boolean;
  /** Of a model by Hub name. */
  revision?: string;
  cacheDir?: string;
  offline?: boolean;
  token?: string;
  onDownload?: (progress: DownloadProgress) => void;
  onLoad?: (bytesDone: number, bytesTotal: number) => void;
  signal?: AbortSignal;
}

const callback = z.custom<(...values: never[]) => void>((value) => typeof value === 'function').optional();
const format = z.enum(['auto', 'f32', 'f16', 'bf16', 'q8']);
const schema = z.strictObject({
  device: deviceSchema.default('auto'),
  weights: format.default('auto'),
  expertWeights: format.default('auto'),
  threads: threadsSchema.optional(),
  affinity: z.union([z.literal('none'), z.array(z.int().min(0).max(65535)).min(1)]).default('none'),
  maxBatch: z.int().min(1).max(1024).optional(),
  contextLength: z.int().min(1).optional(),
  kvTokens: z.int().min(16).optional(),
  maxQueue: z.int().min(0).optional(),
  prefixCache: z.boolean().default(true),
  hostKvBytes: z.int().min(0).optional(),
  adapterBytes: z.int().min(1).optional(),
  stepTokens: z.int().min(1).max(65536).optional(),
  packedCache: z.union([z.boolean(), z.string().min(1)]).default(false),
  trainable: z.boolean().default(false),
  revision: z.string().optional(),
  cacheDir: z.string().optional(),
  offline: z.boolean().optional(),
  token: z.string().optional(),
  onDownload: callback,
  onLoad: callback,
  signal: z.instanceof(AbortSignal).optional(),
});

/**
 * Loads a base model from a Hugging Face folder, or by name ("owner/model") from the Hub's cache or the Hub.
 * @throws TypeError, RangeError; AtMoeError ERR_AT_MOE_NOT_FOUND, ERR_AT_MOE_BAD_FILE, ERR_AT_MOE_UNSUPPORTED,
 * ERR_AT_MOE_MISMATCH, ERR_AT_MOE_NOT_FINITE, ERR_AT_MOE_OUT_OF_MEMORY, ERR_AT_MOE_DEVICE_UNAVAILABLE, ERR_AT_MOE_OFFLINE;
 * the signal's reason; what onLoad throws.
 */
export async function loadModel(pathOrId: string, options: LoadModelOptions = {}): Promise<Model> {
  if (typeof pathOrId !== 'string' || pathOrId === '') throw new TypeError('loadModel needs a folder or a model name');
  const checked = checkArgument('loadModel', schema, options);
  const { device, threads, signal, onLoad, trainable, maxBatch, contextLength, kvTokens, maxQueue, stepTokens } =
    options;
  const { packedCache } = checked;
  if (packedCache !== false && trainable)
    throw new TypeError('loadModel: packedCache is not for weights to be trained');
  signal?.throwIfAborted();
  const path = await resolveModel(pathOrId, {
    ...(options.revision && { revision: options.revision }),
    ...(options.cacheDir && { cacheDir: options.cacheDir }),
    ...(options.offline !== undefined && { offline: options.offline }),
    ...(options.token && { token: options.token }),
    ...(options.onDownload && { onProgress: options.onDownload }),
    ...(signal && { signal }),
  });
  const [base, tokenizer] = await Promise.all([modelDescriptor(path), Tokenizer.loadIfPresent(path)]);
  const chosen = checked.weights === 'auto' ? base.descriptor.config.storedType : checked.weights;
  const files = await fileVersions([...new Set(base.descriptor.tensors.flatMap(({ file }) => file ?? []))]);
  const place = { path, descriptor: base.descriptor, weights: chosen, device: device ?? 'auto' };
  const cache = packedCache === false ? undefined : await openPackedCache(packedCache, place);
  const engine = createEngine({
    device: device ?? 'auto',
    ...(threads && { threads }),
    ...(checked.affinity !== 'none' && { affinity: checked.affinity }),
  });
  const end = joinSignals(signal);
  const onProgress = onLoad && abortingOnError(onLoad, end.abort);
  try {
    const info = await engine.loadModel(
      base.descriptor,
      {
        weights: trainable ? 'f32' : chosen,
        ...(checked.expertWeights !== 'auto' && { expertWeights: checked.expertWeights }),
        ...(trainable && { trainable }),
        ...(maxBatch && { maxBatch }),
        ...(contextLength && { contextLength }),
        ...(kvTokens && { kvTokens }),
        ...(maxQueue !== undefined && { maxQueue }),
        ...(stepTokens && { stepTokens }),
        prefixCache: checked.prefixCache,
        ...(cache?.found && { packed: cache.found }),
        ...(options.hostKvBytes !== undefined && { hostKvBytes: options.hostKvBytes }),
        ...(options.adapterBytes !== undefined && { adapterBytes: options.adapterBytes }),
      },
      { signal: end.signal, ...(onProgress && { onProgress }) },
    );
    end.signal.throwIfAborted();
    await cache?.save(engine);
    warnOfContext(contextLength, base.descriptor.config);
    return new Model(new ModelCore(engine, info, { path, ...base, files }, tokenizer));
  } catch (error) {
    await engine.dispose();
    end.signal.throwIfAborted();
    throw error;
  } finally {
    end.release();
  }
}

function warnOfContext(asked: number | undefined, { maxPositionEmbeddings: most }: ModelConfig): void {
  if (asked === undefined || asked <= most) return;
  const message = `contextLength ${asked} is beyond the model's max_position_embeddings: it is taken as ${most}`;
  process.emitWarning(message, { code: 'AT_MOE_CONTEXT_LENGTH' });
}

/** An error of a caller's callback would be lost in native code: it becomes the reason of an abort. */
function abortingOnError<T extends unknown[]>(callback: (...values: T) => void, abort: (reason: unknown) => void) {
  return (...values: T): void => {
    try {
      callback(...values);
    } catch (error) {
      abort(error);
    }
  };
}

async function pinned<T extends Mixture | Adapter>(loaded: T, pin = false): Promise<T> {
  if (!pin) return loaded;
  try {
    await loaded.pin();
  } catch (error) {
    loaded.dispose();
    throw error;
  }
  return loaded;
}

/** A base model on its device. */
export class Model extends TextGenerator {
  readonly #core: ModelCore;

  /** @internal */
  constructor(core: ModelCore) {
    super();
    this.#core = core;
  }

  /** @internal */
  get core(): ModelCore {
    this.#core.check();
    return this.#core;
  }

  /** @internal */
  requestRouting(controls: RoutingControls): RequestRouting {
    if (Object.keys(controls).length > 0) throw new TypeError('a base model has no routing to control');
    return { request: { kind: 'base' }, perToken: false };
  }

  /** Folder of the model. */
  get path(): string {
    return this.#core.path;
  }

  get config(): Readonly<ModelConfig> {
    return this.#core.descriptor.config;
  }

  /** 'cpu', 'cuda' … */
  get device(): string {
    return this.#core.info.device;
  }

  /** Most tokens of a sequence, prompt and answer together. */
  get contextLength(): number {
    return this.#core.info.contextLength;
  }

  /** Absent for a folder without tokenizer.json: prompts are token ids then. */
  get tokenizer(): Tokenizer | undefined {
    return this.#core.tokenizer;
  }

  /**
   * Compiles a response format once for many requests, in turns of a few milliseconds with the event loop. Formats given as
   * they are to `generate` are compiled in the same way; the last 64 are kept by their JSON, and who asks for one that is
   * being compiled waits for it.
   * @throws TypeError, RangeError with `code` ERR_AT_MOE_SCHEMA and the `pointer` of what is wrong or not supported;
   * AtMoeError ERR_AT_MOE_UNSUPPORTED without a tokenizer that spells bytes; the signal's reason.
   */
  async compileResponseFormat(
    format: ResponseFormat,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<CompiledResponseFormat> {
    this.#core.check();
    return await this.#core.formats.compile(format, signal);
  }

  /** The same at once: nothing else runs meanwhile, up to a few tenths of a second for a schema at the limits. */
  compileResponseFormatSync(format: ResponseFormat): CompiledResponseFormat {
    this.#core.check();
    return this.#core.formats.compileSync(format);
  }

  /** A new mixture: fresh experts (B = 0) or PEFT adapters in groups, and a router that weighs all groups alike. */
  async createMixture(options: MixtureOptions): Promise<Mixture> {
    this.#core.check();
    if (typeof options?.groups !== 'object' || options.groups === null)
      throw new TypeError('createMixture needs groups');
    return await Mixture.create(this.#core, options);
  }

  /**
   * A saved mixture. `onWarning` hears of a base that is not quite the one it was made for; `pin`: as Mixture.pin().
   * @throws AtMoeError ERR_AT_MOE_OUT_OF_MEMORY for one that is larger than `adapterBytes`.
   */
  async loadMixture(
    dir: string,
    options: { onWarning?: (message: string) => void; pin?: boolean } = {},
  ): Promise<Mixture> {
    checkFolder(dir, 'loadMixture needs a folder');
    this.#core.check();
    const { warnings, ...data } = await readMixture(dir, { config: this.config, sha256: this.#core.sha256 });
    for (const warning of warnings) (options.onWarning ?? process.emitWarning)(warning);
    return await pinned(await Mixture.from(this.#core, data), options.pin);
  }

  /** A PEFT LoRA adapter. Options and errors as loadMixture(). */
  async loadAdapter(dir: string, options: { pin?: boolean } = {}): Promise<Adapter> {
    checkFolder(dir, 'loadAdapter needs a folder');
    this.#core.check();
    return await pinned(await Adapter.from(this.#core, await readAdapter(dir, this.config)), options.pin);
  }

  /** A fresh LoRA adapter (B = 0), to be trained. */
  async createAdapter(options: LoraOptions = {}, seed = 0): Promise<Adapter> {
    this.#core.check();
    return await Adapter.from(this.#core, freshAdapter(options, this.config, seed, this.#core.path));
  }

  /**
   * Trains all parameters of the base; the model must be loaded with `trainable`. `saveTo` is written at the end, as a
   * model folder in f32, and looked at before the training.
   * @throws AtMoeError ERR_AT_MOE_UNSUPPORTED when it was not loaded with `trainable`; as Mixture.trainExpert.
   */
  async *train(
    data: ExampleSource,
    options: TrainingOptions & { saveTo?: string } = {},
  ): AsyncGenerator<TrainingProgress> {
    const { saveTo, ...training } = options;
    const context = {
      ...this.#core.trainingContext('base', null),
      ...(saveTo !== undefined && { onEnd: (trainer: number) => this.#saveBase(trainer, saveTo) }),
    };
    if (saveTo !== undefined) await checkModelFolder(saveTo, await readCompanions(this.path));
    yield* runTraining(context, data, training);
  }

  /**
   * The loss of the base on data, in nats per token; it need not be trainable.
   * @throws TypeError, RangeError; AtMoeError ERR_AT_MOE_BAD_DATA, ERR_AT_MOE_NOT_FINITE; the signal's reason.
   */
  async evaluate(data: ExampleSource, options: EvaluationOptions = {}): Promise<EvaluationResult> {
    this.#core.check();
    return await evaluateLoss(this.#core.trainingContext('base', null), data, options);
  }

  async #saveBase(trainer: number, dir: string): Promise<void> {
    const values = new Map((await this.#core.engine.baseValues(trainer)).map((tensor) => [tensor.name, tensor.values]));
    const tensors = this.#core.descriptor.tensors.map(({ name, shape }) => ({
      name: tensorKey(name),
      dtype: 'f32' as const,
      shape,
      data: fromFloat32('f32', values.get(name) ?? new Float32Array(0)),
    }));
    const config = JSON.parse(await readFile(join(this.path, 'config.json'), 'utf8')) as Record<string, unknown>;
    await writeModel(dir, { ...plainConfig(config), torch_dtype: 'float32' }, tensors, await readCompanions(this.path));
  }

  /** Bytes that a use of this model takes, from its shapes. */
  estimateMemory(options: MemoryOptions = {}): MemoryEstimate {
    const { weights, expertWeights, kvTokens, mapped } = this.#core.info;
    return estimateMemory(this.config, {
      weights,
      ...(expertWeights && { expertWeights }),
      kvTokens,
      packedCache: mapped,
      ...options,
    });
  }

  /** Bytes in use on the device now. */
  async memory(): Promise<MemoryStatement> {
    this.#core.check();
    return await this.#core.engine.memory();
  }

  /** What the engine does now, and counts since the load. */
  async stats(): Promise<EngineStats> {
    this.#core.check();
    return await this.#core.engine.stats();
  }

  /** Cancels what runs and frees everything; may be called again. */
  async dispose(): Promise<void> {
    await this.#core.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}
