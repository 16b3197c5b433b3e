// Engines that schedule, played by objects: what is asked of them, and what is made of their answers.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GenerateOptions, GenerateResult, Model, Piece, Prompt, TextGenerator } from '../../lib/index.js';
import { toApiError } from '../../lib/server/errors.js';
import { Metrics } from '../../lib/server/metrics.js';
import { generateTexts, type TextStep } from '../../lib/server/scheduling.js';

const memory = async () => ({ kvTokens: 64, kvFreeTokens: 16 });
const stats = async () => ({
  running: 3,
  queued: 2,
  stalled: 1,
  batchSize: 4,
  lookedUpTokens: 100,
  hitTokens: 60,
  preemptions: 5,
});
const plain = { memory } as Model;
const scheduling = { memory, stats } as unknown as Model;
const usage = { promptTokens: 4, completionTokens: 2, totalTokens: 6, cachedTokens: 1 };
const choice = (text: string, seed: number) => ({ text, tokens: [seed], finishReason: 'stop' as const, seed });

async function collect(steps: ReturnType<typeof generateTexts>) {
  const found: TextStep[] = [];
  for (;;) {
    const step = await steps.next();
    if (step.done) return { found, usage: step.value };
    found.push(step.value);
  }
}

test('n, priority and a deadline go to an engine that schedules, in one call', async () => {
  const calls: GenerateOptions[] = [];
  async function* generate(_prompt: Prompt, options: GenerateOptions): AsyncGenerator<Piece, GenerateResult> {
    calls.push(options);
    yield { text: 'b', tokens: [8], index: 1 } as Piece;
    yield { text: 'a', tokens: [7], index: 0 } as Piece;
    return { ...choice('a', 7), usage, choices: [choice('a', 7), choice('b', 8)] } as GenerateResult;
  }
  const generator = { generate } as unknown as TextGenerator;
  const asked = { n: 2, priority: 3, timeoutMs: 50 };
  const { found, usage: counted } = await collect(generateTexts(scheduling, generator, 'a', { seed: 7 }, asked));
  assert.deepEqual(calls, [{ seed: 7, ...asked }]);
  assert.deepEqual(
    found.map((step) => [step.index, 'piece' in step ? step.piece.text : step.text.seed]),
    [
      [1, 'b'],
      [0, 'a'],
      [0, 7],
      [1, 8],
    ],
  );
  assert.deepEqual(counted, usage);
});

test('an engine that does not schedule gets n calls, and refuses a priority', async () => {
  const calls: GenerateOptions[] = [];
  async function* generate(_prompt: Prompt, options: GenerateOptions): AsyncGenerator<Piece, GenerateResult> {
    calls.push(options);
    yield { text: 'a', tokens: [1] };
    return { ...choice('a', options.seed ?? 0), usage };
  }
  const generator = { generate } as unknown as TextGenerator;
  const { usage: counted } = await collect(generateTexts(plain, generator, 'a', { seed: 7 }, { n: 2 }));
  assert.deepEqual(calls, [{ seed: 7 }, { seed: 8 }]);
  assert.deepEqual(counted, { promptTokens: 4, completionTokens: 4, totalTokens: 8, cachedTokens: 1 });
  assert.throws(() => generateTexts(plain, generator, 'a', {}, { n: 1, priority: 1 }), {
    status: 400,
    param: 'priority',
  });
});

test('a full queue is 429 with a time to come back, a deadline 504, a lost device a fault without details', () => {
  const of = (code: string) => toApiError(Object.assign(new Error('said'), { code }));
  const full = of('ERR_AT_MOE_QUEUE_FULL');
  assert.deepEqual([full.status, full.code, full.headers], [429, 'queue_full', { 'retry-after': '1' }]);
  assert.deepEqual([of('ERR_AT_MOE_DEADLINE').status, of('ERR_AT_MOE_DEADLINE').code], [504, 'deadline_exceeded']);
  const lost = of('ERR_AT_MOE_DEVICE_LOST');
  assert.deepEqual([lost.status, lost.message], [500, 'internal error']);
});

test('metrics of an engine: as far as it counts, and none when it has failed', async () => {
  const read = async (model: Model) => {
    const text = await new Metrics(model, 'base', () => 0).registry.metrics();
    const names = /^at_moe_(?:kv|sequences|batch|prefix|preemptions)/;
    return text.split('\n').filter((line) => names.test(line));
  };
  const kv = ['at_moe_kv_tokens{state="free"} 16', 'at_moe_kv_tokens{state="used"} 48'];
  assert.deepEqual(await read(scheduling), [
    ...kv,
    'at_moe_sequences{state="running"} 3',
    'at_moe_sequences{state="queued"} 2',
    'at_moe_sequences{state="stalled"} 1',
    'at_moe_batch_size 4',
    'at_moe_prefix_cache_tokens_total{result="looked_up"} 100',
    'at_moe_prefix_cache_tokens_total{result="hit"} 60',
    'at_moe_preemptions_total 5',
  ]);
  assert.deepEqual((await read(plain)).slice(0, 2), kv);
  const failed = { memory: () => Promise.reject(new Error('lost')) } as unknown as Model;
  assert.ok((await read(failed)).every((line) => line.endsWith(' 0')));
});
