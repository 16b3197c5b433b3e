import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { randomBits } from '../data/random.js';
import { createServer } from '../server/index.js';
import type { Setting } from './report.js';
import { type BenchOptions, checkMemory, groupSizes, modelOf, withRandomModel } from './setup.js';
import { percentile } from './statistics.js';

/** Median and 99th percentile, in ms. */
interface Quantiles {
  p50: number;
  p99: number;
}

/** Some streams at once, seen by their readers. */
export interface StreamLoad {
  streams: number;
  tokens: number;
  tokens_per_second: number;
  time_to_first_token: Quantiles;
  inter_token: Quantiles;
  /** Share of the time in which the event loop was not waiting. */
  event_loop_busy: number;
  /** How late the event loop came to a timer of 1 ms, in ms. */
  event_loop_delay: Quantiles & { max: number };
}

export interface ServeReport extends Setting {
  kind: 'serve';
  prompt_tokens: number;
  new_tokens: number;
  requests_per_stream: number;
  one: StreamLoad;
  many: StreamLoad;
  /** Tokens per second of many streams over those of one. */
  ratio: number;
}

interface Request {
  url: string;
  prompt: number[];
  newTokens: number;
  signal?: AbortSignal;
}

/** Times in ms at which the events with tokens came, the first one being that of the request. */
async function readStream({ url, prompt, newTokens, signal }: Request): Promise<number[]> {
  const body = {
    model: 'mixture',
    prompt,
    max_tokens: newTokens,
    ignore_eos: true,
    return_token_ids: true,
    stream: true,
  };
  const times = [performance.now()];
  const headers = { 'content-type': 'application/json' };
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers,
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok || !response.body)
    throw new Error(`the server answered ${response.status}: ${await response.text()}`);
  let rest = '';
  for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
    const now = performance.now();
    const events = (rest + bytes).split('\n\n');
    rest = events.pop() ?? '';
    for (const event of events) if (/"token_ids":\[\d/.test(event)) times.push(now);
  }
  return times;
}

function quantiles(values: number[]): Quantiles {
  const sorted = values.sort((a, b) => a - b);
  return { p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99) };
}

/** `streams` readers, each with `requests` requests one after the other. */
async function measure(streams: number, requests: number, request: (stream: number) => Request): Promise<StreamLoad> {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const before = performance.eventLoopUtilization();
  delay.enable();
  const started = performance.now();
  const reader = async (stream: number) => {
    const read: number[][] = [];
    for (let i = 0; i < requests; i++) read.push(await readStream(request(stream)));
    return read;
  };
  const read = (await Promise.all(Array.from({ length: streams }, (_, stream) => reader(stream)))).flat();
  const seconds = (performance.now() - started) / 1000;
  delay.disable();
  const tokens = read.reduce((sum, times) => sum + times.length - 1, 0);
  const gaps = read.flatMap((times) => times.slice(2).map((time, i) => time - (times[i + 1] as number)));
  const ms = (nanoseconds: number) => nanoseconds / 1e6;
  return {
    streams,
    tokens,
    tokens_per_second: tokens / seconds,
    time_to_first_token: quantiles(read.map(([sent, first]) => (first as number) - (sent as number))),
    inter_token: quantiles(gaps),
    event_loop_busy: performance.eventLoopUtilization(before).utilization,
    event_loop_delay: { p50: ms(delay.percentile(50)), p99: ms(delay.percentile(99)), max: ms(delay.max) },
  };
}

function mixtureGroups({ experts, groups, rank }: BenchOptions) {
  return Object.fromEntries(
    groupSizes({ experts, groups }).map((size, g) => [
      `g${g}`,
      Object.fromEntries(Array.from({ length: size }, (_, e) => [`g${g}e${e}`, { rank }])),
    ]),
  );
}

/** One stream and `batch` streams of a routed mixture, served over loopback; server and readers share the event loop. */
export async function benchServe(options: BenchOptions): Promise<ServeReport> {
  const { shape, config, weights, threads, experts, groups, rank, batch, context, steps, signal } = options;
  checkMemory(options);
  const promptTokens = Math.max(1, Math.floor(context / 4));
  const newTokens = Math.max(2, context - promptTokens);
  return await withRandomModel(options, async (engine, info) => {
    const model = modelOf(options, engine, info);
    const mixture = await model.createMixture({ groups: mixtureGroups(options) });
    const server = await createServer(model, { adapters: { mixture } });
    try {
      const url = await server.listen({ port: 0 });
      const request = (stream: number): Request => ({
        url,
        prompt: Array.from({ length: promptTokens }, (_, i) => randomBits(3, stream, i) % config.vocabSize),
        newTokens,
        ...(signal && { signal }),
      });
      await measure(batch, 1, request);
      const one = await measure(1, steps, request);
      const many = await measure(batch, steps, request);
      return {
        kind: 'serve',
        shape,
        device: info.device,
        weights,
        threads,
        experts,
        groups,
        rank,
        prompt_tokens: promptTokens,
        new_tokens: newTokens,
        requests_per_stream: steps,
        one,
        many,
        ratio: many.tokens_per_second / one.tokens_per_second,
      };
    } finally {
      await server.close({ graceMs: 0 });
    }
  });
}

export function serveText(report: ServeReport): string {
  const { shape, weights, device, threads, experts, groups, rank, one, many, ratio } = report;
  const pair = ({ p50, p99 }: Quantiles) => `p50 ${p50.toFixed(2)} p99 ${p99.toFixed(2)}`;
  const row = (load: StreamLoad) =>
    `${load.streams} stream${load.streams > 1 ? 's' : ''}`.padEnd(11) +
    `${load.tokens_per_second.toFixed(1)} tokens/s  first token ${pair(load.time_to_first_token)} ms  ` +
    `between tokens ${pair(load.inter_token)} ms  event loop ${(100 * load.event_loop_busy).toFixed(1)} % busy, ` +
    `late ${pair(load.event_loop_delay)} max ${load.event_loop_delay.max.toFixed(2)} ms`;
  return [
    `serve ${shape} ${weights}, ${experts} experts of rank ${rank} in ${groups} groups, ${device}, ${threads} threads; ` +
      `prompts of ${report.prompt_tokens} tokens, ${report.new_tokens} new ones, ${report.requests_per_stream} requests per stream`,
    row(one),
    row(many),
    `ratio      ${ratio.toFixed(2)}`,
    '',
  ].join('\n');
}
