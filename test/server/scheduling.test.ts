// What the engine offers many requests at once, through the server.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Model } from '../../lib/index.js';
import { toApiError } from '../../lib/server/errors.js';
import { Metrics } from '../../lib/server/metrics.js';
import { errorOf, idle, openModel, start, until } from './support.js';

const text = 'note: cough\n';
const long = { model: 'base', prompt: text, max_tokens: 3500, ignore_eos: true, stream: true };
const room = { contextLength: 65536, kvTokens: 131072 };

/** A prompt that is being read, up to `end`. No text: one that is read more slowly than it is written makes room for others. */
async function occupy(model: Model, url: string) {
  const controller = new AbortController();
  const answer = fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...long, prompt: text.repeat(8000), max_tokens: 1, stream: false }),
    signal: controller.signal,
  });
  await until(async () => (await model.stats()).running === 1);
  return {
    async end() {
      controller.abort();
      await assert.rejects(answer, { name: 'AbortError' });
    },
  };
}

test('a full queue is 429 with a time to come back', async () => {
  const model = await openModel({ ...room, maxBatch: 1, maxQueue: 0 });
  const { url, post, metric } = await start(model);
  const busy = await occupy(model, url);
  for (const stream of [false, true]) {
    const refused = await post('/v1/completions', { ...long, stream });
    assert.equal(refused.status, 429);
    assert.equal(refused.headers.get('retry-after'), '1');
    const { code, type } = await errorOf(refused);
    assert.deepEqual([code, type], ['queue_full', 'rate_limit_error']);
  }
  assert.equal(await metric('at_moe_engine_requests_total{result="refused"}'), 2);
  await busy.end();
  await idle(model);
});

test('several prompts of which the queue has no room for all are refused before a stream begins', async () => {
  const model = await openModel({ maxBatch: 2, maxQueue: 1 });
  const { post } = await start(model);
  for (const stream of [false, true]) {
    for (const more of [{ prompt: [text, text, text, text] }, { n: 4 }, { prompt: [text, text], n: 2 }]) {
      const refused = await post('/v1/completions', { ...long, ...more, max_tokens: 5, stream });
      assert.equal(refused.status, 429);
      assert.equal((await errorOf(refused)).code, 'queue_full');
    }
    const taken = await post('/v1/completions', { ...long, prompt: [text, text, text], max_tokens: 5, stream });
    assert.equal(taken.status, 200);
    await taken.text();
  }
  await idle(model);
});

test('a higher priority goes first', async () => {
  const model = await openModel({ ...room, maxBatch: 1 });
  const { url, post } = await start(model);
  const busy = await occupy(model, url);
  const order: number[] = [];
  const short = { model: 'base', prompt: text, max_tokens: 2, ignore_eos: true };
  const waiting = [-2, -1].map(async (priority) => {
    const { status } = await post('/v1/completions', { ...short, priority });
    assert.equal(status, 200);
    order.push(priority);
  });
  await until(async () => (await model.stats()).queued === 2);
  await busy.end();
  await Promise.all(waiting);
  assert.deepEqual(order, [-1, -2]);
});

test('a deadline ends a request that still waits', async () => {
  const model = await openModel({ ...room, maxBatch: 1 });
  const { url, post, metric } = await start(model);
  const busy = await occupy(model, url);
  const late = await post('/v1/completions', { model: 'base', prompt: text, timeout_ms: 20 });
  assert.deepEqual([late.status, (await errorOf(late)).code], [504, 'deadline_exceeded']);
  assert.equal(await metric('at_moe_engine_requests_total{result="expired"}'), 1);
  await busy.end();
  await idle(model);
});

test('a prompt that begins as one before says so in its usage and in the metrics', async () => {
  const model = await openModel();
  const { client, metric } = await start(model);
  const body = { model: 'base', prompt: text.repeat(20), max_tokens: 4, temperature: 0 };
  const first = await client.completions.create(body);
  const again = await client.completions.create(body);
  assert.equal(again.choices[0]?.text, first.choices[0]?.text);
  assert.equal(first.usage?.prompt_tokens_details?.cached_tokens, 0);
  const cached = again.usage?.prompt_tokens_details?.cached_tokens ?? 0;
  assert.ok(cached >= 16 && cached < (again.usage?.prompt_tokens ?? 0), `${cached}`);
  assert.equal(await metric('at_moe_cached_prompt_tokens_total{model="base"}'), cached);
  assert.equal(await metric('at_moe_prefix_cache_tokens_total{result="hit"}'), cached);
});

test('errors of the engine: a deadline is 504, a lost device a fault without details', () => {
  const of = (code: string) => toApiError(Object.assign(new Error('said'), { code }));
  assert.deepEqual([of('ERR_AT_MOE_DEADLINE').status, of('ERR_AT_MOE_DEADLINE').code], [504, 'deadline_exceeded']);
  const lost = of('ERR_AT_MOE_DEVICE_LOST');
  assert.deepEqual([lost.status, lost.message], [500, 'internal error']);
});

test('metrics of an engine, and none when it has failed', async () => {
  const read = async (model: Model) => {
    const text = await new Metrics(model, 'base', () => 0).registry.metrics();
    const names = /^at_moe_(?:kv|sequences|batch|engine|prefix|adapter|preemptions)/;
    return text.split('\n').filter((line) => names.test(line));
  };
  const counts = {
    running: 3,
    queued: 2,
    stalled: 1,
    batchSize: 4,
    lookedUpTokens: 100,
    hitTokens: 60,
    preemptions: 5,
    adapterBudget: 4096,
    adapterBytes: 1024,
    adaptersResident: 2,
    adaptersPinned: 1,
    adapterHits: 30,
    adapterMisses: 12,
    adapterLoads: 11,
    adapterEvictions: 8,
  };
  const played = {
    memory: async () => ({ kvTokens: 64, kvFreeTokens: 16 }),
    stats: async () => ({ ...counts, requests: 9, refused: 7, expired: 6 }),
  };
  assert.deepEqual(await read(played as unknown as Model), [
    'at_moe_kv_tokens{state="free"} 16',
    'at_moe_kv_tokens{state="used"} 48',
    'at_moe_sequences{state="running"} 3',
    'at_moe_sequences{state="queued"} 2',
    'at_moe_sequences{state="stalled"} 1',
    'at_moe_batch_size 4',
    'at_moe_engine_requests_total{result="taken"} 9',
    'at_moe_engine_requests_total{result="refused"} 7',
    'at_moe_engine_requests_total{result="expired"} 6',
    'at_moe_prefix_cache_tokens_total{result="looked_up"} 100',
    'at_moe_prefix_cache_tokens_total{result="hit"} 60',
    'at_moe_adapter_bytes{kind="held"} 1024',
    'at_moe_adapter_bytes{kind="budget"} 4096',
    'at_moe_adapters{state="resident"} 2',
    'at_moe_adapters{state="pinned"} 1',
    'at_moe_adapter_requests_total{result="hit"} 30',
    'at_moe_adapter_requests_total{result="miss"} 12',
    'at_moe_adapter_loads_total 11',
    'at_moe_adapter_evictions_total 8',
    'at_moe_preemptions_total 5',
  ]);
  const failed = { ...played, memory: () => Promise.reject(new Error('lost')) } as unknown as Model;
  assert.ok((await read(failed)).every((line) => line.endsWith(' 0')));
});
