import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  decodeBytes,
  expertWeights,
  linearWeights,
  prefillProducts,
  routerWeights,
  trainLiveBytes,
  trainProducts,
} from '../../lib/bench/floors.js';
import { loadSpeed } from '../../lib/bench/load.js';
import type { SpeedReport } from '../../lib/bench/report.js';
import { type RouterCost, routerCost } from '../../lib/bench/router-cost.js';
import type { StreamLoad } from '../../lib/bench/serve.js';
import { groupSizes } from '../../lib/bench/setup.js';
import { checkFits, shapes } from '../../lib/bench/shapes.js';
import { median, medianInterval, percentile, timing } from '../../lib/bench/statistics.js';
import type { ModelConfig } from '../../lib/descriptors.js';
import { cli } from '../helpers/cli.js';

const base = fileURLToPath(new URL('../../../test/fixtures/golden/llama-token-dense/base', import.meta.url));

// q 4x4, k and v 2x4, o 4x4, gate and up 6x4, down 4x6: 120 weights; the sums of in and out are 58.
const tiny: ModelConfig = {
  ...(shapes['llama-160m'] as ModelConfig),
  hiddenSize: 4,
  numLayers: 1,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 2,
  intermediateSize: 6,
  vocabSize: 10,
  windows: [0],
};
const mixture = { experts: 2, groups: 1, rank: 3 };

test('floors of a shape counted by hand', () => {
  assert.equal(linearWeights(tiny), 120);
  assert.equal(expertWeights(tiny, mixture), 2 * 3 * 58);
  assert.equal(routerWeights(tiny, mixture), 3 * 4);
  const decode = decodeBytes(tiny, 'bf16', mixture, { batch: 2, context: 5 }, 4);
  assert.deepEqual(decode, { base: (120 + 40) * 2 + 2 * 6 * 2 * 2 * 4, added: 348 * 2 + 12 * 4 });
  // Each linear has blocks of 32 inputs in A, but none has 32 ranks.
  const wide = { ...tiny, hiddenSize: 64, headDim: 32, intermediateSize: 64 };
  const experts = (more: object) => decodeBytes(wide, 'q8', { ...mixture, ...more }, { batch: 1, context: 5 }, 4).added;
  const sums = { in: 7 * 64, out: 5 * 64 + 2 * 32 };
  const router = routerWeights(wide, mixture) * 4;
  assert.equal(experts({}), 6 * (sums.in + sums.out) * 2 + router);
  assert.equal(experts({ expertWeights: 'q8' }), 6 * ((sums.in / 32) * 34 + sums.out * 2) + router);
  assert.equal(experts({ rank: 16, expertWeights: 'q8' }), (sums.in + sums.out) * 34 + router);
  const prefill = prefillProducts(tiny, mixture, { batch: 1, context: 3 });
  assert.deepEqual(prefill, { base: 3 * 120 + 2 * (1 + 2 + 3) * 2 * 2 + 40, added: 3 * (348 + 12) });
  const shared = 3 * (2 * 120 - 32) + 3 * 48 + 2 * 2 * 40;
  assert.deepEqual(trainProducts(tiny, mixture, { batch: 1, context: 3 }, 2), {
    expert: shared + 3 * (3 * 174 - 3 * 12),
    router: shared + 3 * (2 * 348 - 2 * 3 * 12 + 3 * 12 - 12),
  });
});

test('what training needs at once, counted by hand', () => {
  // Base: 120 weights and the head of 40 in bf16, the embedding too, three norms of 4. A row: in and mid 8, q and attention 8,
  // k and v 4, two log-sums, gate and up 12, and the last hidden 4.
  const kept = 2 * (120 + 40 + 40) + 4 * 3 * 4 + 4 * 3 * (8 + 8 + 4 + 2 + 12 + 4);
  assert.deepEqual(trainLiveBytes(tiny, 'bf16', mixture, { batch: 1, context: 3 }), {
    expert: kept + 174 * 18 + 4 * 3 * 7 * 3,
    router: kept + 348 * 2 + 12 * 20 + 4 * 3 * (7 * 2 * 3 + 3),
  });
});

test('a load is set against the copies before and after it, the first load against none', () => {
  const round = (seconds: number, copied: number) => ({
    seconds,
    processor_seconds: 2 * seconds,
    copy: { bytes: 100, seconds: copied, processorSeconds: copied },
  });
  assert.deepEqual(loadSpeed([round(50, 1), round(4, 3), round(8, 1)], 80), {
    seconds: 4,
    processor_seconds: 8,
    bytes_per_second: 20,
    limit: 100,
    limit_fraction: 0.25,
    limit_fraction_processor: 0.125,
  });
});

test('a sliding window bounds the keys that are read', () => {
  const windowed = { ...tiny, windows: [3] };
  const cache = (config: ModelConfig) =>
    decodeBytes(config, 'f32', mixture, { batch: 1, context: 9 }, 4).base - (120 + 40) * 4;
  assert.equal(cache(tiny), 10 * 2 * 2 * 4);
  assert.equal(cache(windowed), 3 * 2 * 2 * 4);
});

test('known shapes have the sizes of their models', () => {
  const llama3 = shapes['llama-3-8b'] as ModelConfig;
  assert.equal(linearWeights(llama3), 6_979_321_856);
  assert.equal(expertWeights(llama3, { experts: 8, groups: 2, rank: 16 }), 335_544_320);
  assert.equal(linearWeights(shapes['tinyllama-1.1b'] as ModelConfig), 968_884_224);
  assert.equal((shapes['qwen2.5-0.5b'] as ModelConfig).headDim, 64);
});

test('statistics: medians, spread, percentiles, groups', () => {
  assert.deepEqual(timing([4, 2, 1, 3, 5]), { median: 3, best: 1, spread: 4 / 3 });
  assert.equal(percentile([1, 2, 3, 4], 0.999), 4);
  assert.deepEqual(groupSizes({ experts: 8, groups: 3 }), [2, 3, 3]);
});

test('the interval of a median: all of few values, the middle of many', () => {
  const values = (count: number) => Array.from({ length: count }, (_, i) => (i * 7) % count);
  assert.equal(median(values(25)), 12);
  assert.deepEqual(medianInterval([3, 1, 2]), [1, 3]);
  assert.deepEqual(medianInterval(values(10)), [1, 8]); // P(fewer than 2 of 10 below the median) = 1.1 %
  assert.deepEqual(medianInterval(values(100)), [39, 60]);
});

test('the cost of a router comes out of pairs of steps that were slowed together', () => {
  const busy = [0, 0, 7, 3, 0, 5, 0, 0, 2];
  const mixture = busy.map((slower) => 10 + slower);
  const fixed = busy.map((slower, turn) => 9.9 + slower + (turn === 4 ? 1 : 0));
  const { share, paired_share, paired_interval, fixed_seconds } = routerCost(mixture, fixed);
  assert.equal(fixed_seconds.median, 10.9);
  assert.ok(Math.abs(paired_share - 0.01) < 1e-12);
  assert.ok(share < 0 && paired_interval[0] <= paired_share && paired_share <= paired_interval[1]);
});

test('a shape that does not fit is refused with the bytes needed and free', () => {
  assert.throws(() => checkFits('it', 2000, 1000), {
    code: 'ERR_AT_MOE_OUT_OF_MEMORY',
    message: /2000 bytes.*1000 bytes/,
  });
  checkFits('it', 1000, 1000);
});

const keys = ['base_tokens_per_second', 'mixture_tokens_per_second', 'overhead', 'floor', 'limit', 'limit_fraction'];

for (const kind of ['decode', 'prefill', 'train']) {
  test(`bench ${kind} on a tiny shape gives every figure`, async () => {
    const sizes = [
      '--shape',
      base,
      '--experts',
      '3',
      '--groups',
      '2',
      '--rank',
      '4',
      '--context',
      '24',
      '--batch',
      '2',
    ];
    const { status, stdout, stderr } = await cli([
      'bench',
      kind,
      ...sizes,
      '--steps',
      '2',
      '--weights',
      'bf16',
      '--json',
    ]);
    assert.equal(status, 0, stderr);
    const report = JSON.parse(stdout) as Record<string, number>;
    for (const key of keys) assert.ok((report[key] as number) > 0, `${key} is ${report[key]}`);
    assert.equal(report.experts, 3);
    const { router } = report as { router?: RouterCost };
    if (kind === 'train') {
      const { memory } = report as { memory?: SpeedReport['memory'] };
      for (const part of [memory?.expert, memory?.router]) {
        assert.ok(part && part.live_bytes > 0 && part.peak_bytes > part.live_bytes);
        assert.equal(part.ratio, part.peak_bytes / part.live_bytes);
      }
      return assert.equal(router, undefined);
    }
    assert.ok(router && router.fixed_seconds.median > 0);
    assert.ok(router.paired_interval[0] <= router.paired_share && router.paired_share <= router.paired_interval[1]);
  });
}

test('bench load states the peak of a process of its own', async () => {
  const args = ['bench', 'load', '--shape', base, '--weights', 'f32', '--steps', '2', '--packed-cache', '--json'];
  const { status, stdout, stderr } = await cli(args);
  assert.equal(status, 0, stderr);
  const report = JSON.parse(stdout) as Record<string, number>;
  assert.ok((report.peak_bytes as number) > (report.packed_bytes as number));
  for (const key of ['bytes_per_second', 'limit', 'limit_fraction', 'limit_fraction_processor'])
    assert.ok((report[key] as number) > 0, key);
  assert.equal(report.steps, 2);
  assert.ok((report.packed as unknown as { mapped_bytes: number }).mapped_bytes > 0);
  assert.equal(report.peak_over_packed, (report.peak_bytes as number) / (report.packed_bytes as number));
});

test('bench event-loop measures three phases', async () => {
  const args = ['bench', 'event-loop', '--shape', base, '--seconds', '0.3', '--context', '32', '--json'];
  const { status, stdout, stderr } = await cli(args);
  assert.equal(status, 0, stderr);
  const report = JSON.parse(stdout) as Record<string, { timers: number; max: number }>;
  for (const phase of ['idle', 'generate', 'train']) assert.ok((report[phase]?.timers ?? 0) > 0, phase);
});

test('bench serve measures one stream and several', async () => {
  const sizes = ['--context', '24', '--batch', '3', '--steps', '2', '--experts', '2', '--rank', '2'];
  const { status, stdout, stderr } = await cli(['bench', 'serve', '--shape', base, ...sizes, '--json']);
  assert.equal(status, 0, stderr);
  const report = JSON.parse(stdout) as Record<'one' | 'many', StreamLoad> & { ratio: number };
  assert.deepEqual([report.one.streams, report.one.tokens], [1, 2 * 18]);
  assert.deepEqual([report.many.streams, report.many.tokens], [3, 3 * 2 * 18]);
  assert.equal(report.ratio, report.many.tokens_per_second / report.one.tokens_per_second);
  for (const { time_to_first_token, inter_token, event_loop_busy } of [report.one, report.many]) {
    assert.ok(time_to_first_token.p50 > 0 && inter_token.p99 >= inter_token.p50);
    assert.ok(event_loop_busy > 0 && event_loop_busy <= 1);
  }
});
