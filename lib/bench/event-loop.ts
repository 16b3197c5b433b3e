import { setTimeout as sleep } from 'node:timers/promises';
import { randomBits } from '../data/random.js';
import { type BenchOptions, checkMemory, modelOf, withRandomModel } from './setup.js';
import { percentile } from './statistics.js';

/** How late a 10 ms timer fired, in ms. */
export interface Lateness {
  timers: number;
  p50: number;
  p99: number;
  p999: number;
  max: number;
}

export interface EventLoopReport {
  kind: 'event-loop';
  shape: string;
  device: string;
  weights: string;
  threads: number;
  seconds: number;
  /** Nothing runs. */
  idle: Lateness;
  /** Four streams of text. */
  generate: Lateness;
  /** An adapter learns. */
  train: Lateness;
}

const intervalMs = 10;
const streams = 4;

async function measureTimers(seconds: number, signal?: AbortSignal): Promise<Lateness> {
  const late: number[] = [];
  const end = performance.now() + seconds * 1000;
  for (let set = performance.now(); set < end; set = performance.now()) {
    await sleep(intervalMs, undefined, { signal });
    late.push(performance.now() - set - intervalMs);
  }
  late.sort((a, b) => a - b);
  return {
    timers: late.length,
    p50: percentile(late, 0.5),
    p99: percentile(late, 0.99),
    p999: percentile(late, 0.999),
    max: late.at(-1) as number,
  };
}

/** Lateness while `work` goes on, which ends by its signal. */
async function during(
  work: (signal: AbortSignal) => Promise<void>,
  seconds: number,
  signal?: AbortSignal,
): Promise<Lateness> {
  const controller = new AbortController();
  const stop = controller.signal;
  const running = work(signal ? AbortSignal.any([signal, stop]) : stop);
  const settled = running.catch((error: unknown) => {
    if (!stop.aborted) throw error;
  });
  try {
    const [lateness] = await Promise.all([
      measureTimers(seconds, signal).finally(() => controller.abort()),
      settled.catch((error: unknown) => {
        controller.abort();
        throw error;
      }),
    ]);
    return lateness;
  } finally {
    await settled.catch(() => undefined);
  }
}

/** The event loop's timers while this package works, through the public interface. */
export async function benchEventLoop(options: BenchOptions & { seconds: number }): Promise<EventLoopReport> {
  const { shape, config, weights, threads, context, seconds, signal } = options;
  const sizes = { ...options, batch: streams };
  checkMemory(sizes, streams * context);
  return await withRandomModel(sizes, async (engine, info) => {
    const model = modelOf(options, engine, info);
    const ids = (stream: number, count: number) =>
      Array.from({ length: count }, (_, i) => randomBits(3, stream, i) % config.vocabSize);
    const generate = async (stop: AbortSignal) => {
      const prompts = Array.from({ length: streams }, (_, stream) => ids(stream, Math.ceil(context / 4)));
      for (;;) {
        const pieces = model.generateAll(prompts, { maxTokens: context, temperature: 1, signal: stop });
        for await (const _ of pieces) stop.throwIfAborted();
      }
    };
    const adapter = await model.createAdapter({ rank: options.rank });
    const rows = Array.from({ length: streams }, (_, i) => ({
      prompt: ids(i, Math.ceil(context / 4)),
      completion: ids(i + streams, context - Math.ceil(context / 4)),
    }));
    const train = async (stop: AbortSignal) => {
      const run = adapter.train(rows, { steps: 1_000_000, batchTokens: streams * context, signal: stop });
      for await (const _ of run) stop.throwIfAborted();
    };
    return {
      kind: 'event-loop',
      shape,
      device: info.device,
      weights,
      threads,
      seconds,
      idle: await measureTimers(seconds, signal),
      generate: await during(generate, seconds, signal),
      train: await during(train, seconds, signal),
    };
  });
}

export function eventLoopText(report: EventLoopReport): string {
  const row = (name: string, { timers, p50, p99, p999, max }: Lateness) =>
    `${name.padEnd(9)} p50 ${p50.toFixed(2)}  p99 ${p99.toFixed(2)}  p99.9 ${p999.toFixed(2)}  max ${max.toFixed(2)}  (${timers} timers)`;
  return [
    `event-loop ${report.shape} ${report.weights}, ${report.device}, ${report.threads} threads: lateness of a 10 ms timer in ms`,
    row('idle', report.idle),
    row('generate', report.generate),
    row('train', report.train),
    '',
  ].join('\n');
}
