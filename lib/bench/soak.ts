import { setTimeout as sleep } from 'node:timers/promises';
import { randomBits } from '../data/random.js';
import { AtMoeError } from '../errors.js';
import { drain, type GenerateResult, type Piece, type RequestRouting, runSequence } from '../generation.js';
import { type CheckedOptions, checkGenerateOptions, type GenerateOptions } from '../generation-options.js';
import { ModelCore } from '../model-core.js';
import { createEngine } from '../native.js';
import type { MixtureDescriptor } from '../native-mixture-types.js';
import type { EngineStats, LoadOptions, NativeEngine } from '../native-types.js';
import { type BenchOptions, mixtureOf } from './setup.js';

export interface SoakReport {
  kind: 'soak';
  shape: string;
  device: string;
  threads: number;
  seconds: number;
  requests: number;
  completed: number;
  aborted: number;
  expired: number;
  tokens: number;
  /** Texts that differ from those of the same requests alone. */
  wrong: number;
  replacements: number;
  preemptions: number;
  /** Mixtures that gave their room on the device to others. */
  evictions: number;
  /** Of the tokens looked up in the prefix cache. */
  hitRate: number;
  /** Held after the last request. */
  leakedPages: number;
  /** Bytes per minute, fitted to the second half of the run. */
  rssSlope: number;
}

/** A request of the catalogue. */
interface Call {
  ids: Int32Array;
  routing: 'base' | 'token' | 'sequence' | 'fixed';
  options: GenerateOptions;
}

const callers = 24;
const calls = 32;
const replaceEveryMs = 150;

class Random {
  #count = 0;
  constructor(readonly stream: number) {}
  below(bound: number): number {
    return randomBits(11, this.stream, this.#count++) % bound;
  }
}

/** Prompts that partly begin alike, greedy and drawn, one text and several, under all kinds of routing. */
function catalogue(vocabSize: number, context: number): Call[] {
  const random = new Random(0);
  const kinds = ['base', 'token', 'sequence', 'fixed'] as const;
  return Array.from({ length: calls }, (_, i) => {
    const length = 2 + random.below(Math.floor(context / 2));
    const family = random.below(3);
    const own = random.below(length);
    return {
      ids: Int32Array.from({ length }, (_, t) => randomBits(5, t < length - own ? family : 100 + i, t) % vocabSize),
      routing: kinds[i % kinds.length] as Call['routing'],
      options: {
        maxTokens: 1 + random.below(Math.floor(context / 3)),
        temperature: i % 3 === 0 ? 0 : 1,
        seed: i,
        ignoreEos: true,
        ...(i % 5 === 0 && { n: 1 + random.below(3) }),
      },
    };
  });
}

type Content = Record<'token' | 'sequence', MixtureDescriptor>;

/** What is served: a model, and mixtures whose content is exchanged between two. */
class Service {
  readonly core: ModelCore;
  readonly #contents: Content[];
  readonly #engine: NativeEngine;
  #handles = { token: 0, sequence: 0 };
  content = 0;

  private constructor(core: ModelCore, engine: NativeEngine, contents: Content[]) {
    this.core = core;
    this.#engine = engine;
    this.#contents = contents;
  }

  static async open(options: BenchOptions, limits: Partial<LoadOptions>): Promise<Service> {
    const { config, shape, weights, expertWeights, device, threads } = options;
    const engine = createEngine({ device, threads });
    const storage = { weights, ...(expertWeights && { expertWeights }) };
    const load = { ...storage, contextLength: options.context, ...limits };
    const info = await engine.loadRandom(config, 1, load).catch(async (error) => {
      await engine.dispose();
      throw error;
    });
    const base = { path: shape, sha256: '', descriptor: { config, tensors: [] } };
    const contents = [options.rank, 2 * options.rank].map((rank) => {
      const token = mixtureOf({ ...options, rank });
      return { token, sequence: { ...token, scope: 'sequence' as const } };
    });
    const service = new Service(new ModelCore(engine, info, base, undefined), engine, contents);
    await service.serve(0);
    return service;
  }

  async serve(content: number): Promise<void> {
    const { token, sequence } = this.#contents[content] as Content;
    const [a, b] = await Promise.all([this.#engine.createMixture(token), this.#engine.createMixture(sequence)]);
    const old = this.#handles;
    this.#handles = { token: a.mixture, sequence: b.mixture };
    this.content = content;
    for (const handle of Object.values(old)) this.#engine.releaseMixture(handle);
  }

  route(kind: Call['routing']): RequestRouting {
    if (kind === 'base') return { request: { kind }, perToken: false };
    const experts = this.#contents[0]?.token.experts.length ?? 0;
    const weights = Float32Array.from({ length: experts }, (_, e) => 1 / (e + 1));
    return kind === 'fixed'
      ? { request: { kind, mixture: this.#handles.token, weights, alone: false }, perToken: false }
      : { request: { kind: 'mixture', mixture: this.#handles[kind] }, perToken: kind === 'token' };
  }

  run({ ids, routing }: Call, options: CheckedOptions, whole: boolean): AsyncGenerator<Piece, GenerateResult> {
    return runSequence(this.core, { ids, context: [], whole }, () => this.route(routing), options);
  }
}

const textsOf = ({ choices, tokens }: GenerateResult) => (choices ?? [{ tokens }]).map((choice) => choice.tokens);

/** The tokens of every call alone, for each content of the mixtures. */
async function alone(options: BenchOptions, list: Call[]): Promise<number[][][][]> {
  const service = await Service.open(options, { prefixCache: false, maxBatch: 4, kvTokens: 4 * options.context });
  try {
    const texts: number[][][][] = [];
    for (const content of [0, 1]) {
      await service.serve(content);
      const made: number[][][] = [];
      for (const call of list) {
        options.signal?.throwIfAborted();
        const checked = checkGenerateOptions(call.options, service.core.formats);
        made.push(textsOf(await drain(service.run(call, checked, true))));
      }
      texts.push(made);
    }
    return texts;
  } finally {
    await service.core.dispose();
  }
}

/** Reads the pieces at a pace; leaves after `most` of them. The tokens so far by text, and whether they are all. */
async function read(pieces: AsyncGenerator<Piece, GenerateResult>, pauseMs: number, most: number) {
  const texts: number[][] = [];
  for (let count = 0; ; count++) {
    if (count >= most) {
      await pieces.return(undefined as never);
      return { texts, whole: false };
    }
    const step = await pieces.next();
    if (step.done) return { texts: textsOf(step.value), whole: true };
    const { index = 0, tokens } = step.value;
    texts[index] = [...(texts[index] ?? []), ...tokens];
    if (pauseMs > 0 && count % 8 === 0) await sleep(pauseMs);
  }
}

/** Bytes per minute: the slope of the least squares line. */
function slope(samples: { at: number; bytes: number }[]): number {
  const mean = (value: (sample: (typeof samples)[number]) => number) =>
    samples.reduce((sum, sample) => sum + value(sample), 0) / Math.max(samples.length, 1);
  const at = mean((sample) => sample.at);
  const bytes = mean((sample) => sample.bytes);
  const spread = mean((sample) => (sample.at - at) ** 2);
  return spread > 0 ? (60_000 * mean((sample) => (sample.at - at) * (sample.bytes - bytes))) / spread : 0;
}

/**
 * Random traffic for a while: fast and slow readers, aborts, deadlines, priorities, mixtures that are replaced, and a KV
 * cache so small that sequences lose their keys; with `adapterBytes`, mixtures that take turns on the device. Every text is
 * compared with that of the same request alone.
 */
export async function benchSoak(
  options: BenchOptions & { seconds: number; adapterBytes?: number },
): Promise<SoakReport> {
  const { context, seconds, shape, threads, signal, adapterBytes } = options;
  const list = catalogue(options.config.vocabSize, context);
  const expected = await alone(options, list);
  const limits = { maxBatch: 8, kvTokens: 3 * context, stepTokens: 32, hostKvBytes: 1e6 };
  const service = await Service.open(options, { ...limits, ...(adapterBytes !== undefined && { adapterBytes }) });
  const end = performance.now() + seconds * 1000;
  const running = () => performance.now() < end && !signal?.aborted;
  const count = { requests: 0, completed: 0, aborted: 0, expired: 0, tokens: 0, wrong: 0, replacements: 0 };
  const failures: unknown[] = [];

  const caller = async (number: number) => {
    const random = new Random(number + 1);
    while (running()) {
      const index = random.below(list.length);
      const call = list[index] as Call;
      const manner = random.below(8);
      const scheduling = { priority: random.below(3), ...(manner === 0 && { timeoutMs: 1 + random.below(20) }) };
      const checked = checkGenerateOptions({ ...call.options, ...scheduling }, service.core.formats);
      const pieces = service.run(call, checked, manner > 5);
      const texts = expected[call.routing === 'base' ? 0 : service.content]?.[index] as number[][];
      const most = manner === 1 ? random.below(20) : Number.POSITIVE_INFINITY;
      count.requests++;
      try {
        const got = await read(pieces, manner === 2 ? 4 : 0, most);
        const right = got.texts.every((tokens, i) => {
          const same = got.whole ? tokens.length === texts[i]?.length : true;
          return same && tokens.every((token, t) => token === texts[i]?.[t]);
        });
        count[got.whole ? 'completed' : 'aborted']++;
        count.tokens += got.texts.flat().length;
        if (!right) count.wrong++;
      } catch (error) {
        if (!(error instanceof AtMoeError) || error.code !== 'ERR_AT_MOE_DEADLINE') throw error;
        count.expired++;
      }
    }
  };
  const replacer = async () => {
    for (; running(); count.replacements++) {
      await sleep(replaceEveryMs);
      await service.serve(1 - service.content);
    }
  };
  const memory: { at: number; bytes: number }[] = [];
  const sampler = async () => {
    for (; running(); await sleep(100)) memory.push({ at: performance.now(), bytes: process.memoryUsage.rss() });
  };
  const guarded = async (work: Promise<void>) => {
    await work.catch((error) => failures.push(error));
  };
  try {
    const work = [...Array.from({ length: callers }, (_, number) => caller(number)), replacer(), sampler()];
    await Promise.all(work.map(guarded));
    if (failures.length > 0) throw failures[0];
    signal?.throwIfAborted();
    const stats: EngineStats = await service.core.engine.stats();
    return {
      kind: 'soak',
      shape,
      device: service.core.info.device,
      threads,
      seconds,
      ...count,
      preemptions: stats.preemptions,
      evictions: stats.adapterEvictions,
      hitRate: stats.hitTokens / Math.max(stats.lookedUpTokens, 1),
      leakedPages: stats.pagesUsed,
      rssSlope: slope(memory.slice(Math.floor(memory.length / 2))),
    };
  } finally {
    await service.core.dispose();
  }
}

export function soakText(report: SoakReport): string {
  const { requests, completed, aborted, expired, tokens, wrong, replacements, preemptions, leakedPages } = report;
  const share = (100 * report.hitRate).toFixed(0);
  return [
    `soak ${report.shape}, ${report.device}, ${report.threads} threads, ${report.seconds} s`,
    `${requests} requests: ${completed} whole, ${aborted} aborted, ${expired} past their deadline; ${tokens} tokens`,
    `${wrong} wrong texts, ${leakedPages} leaked pages, memory ${(report.rssSlope / 1e6).toFixed(1)} MB a minute`,
    `${preemptions} preemptions, ${replacements} replacements, ${report.evictions} evictions, ${share} % of prompt tokens from the prefix cache`,
    '',
  ].join('\n');
}
