import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { GenerateOptions, Model, ResponseFormat } from '../../lib/index.js';
import { greedy } from '../helpers/engine.js';
import { bits, textModel } from '../model/support.js';
import { prompt as ids, withEngine } from './support.js';

const responseFormat: ResponseFormat = {
  type: 'json_schema',
  schema: { type: 'array', items: { enum: [true, false, 'a', 'b'] }, minItems: 8, maxItems: 12 },
};
const options = { responseFormat, temperature: 2, maxTokens: 100, seed: 20, logProbs: true } satisfies GenerateOptions;
const prompt = 'Describe the patient.'.repeat(3);

async function choices(model: Model, n: number) {
  const { choices } = await model.complete(prompt, { ...options, n });
  for (const { text, finishReason } of choices) {
    assert.equal(finishReason, 'stop');
    assert.ok(Array.isArray(JSON.parse(text)), text);
  }
  return choices.map(bits);
}

describe('response formats under scheduling', () => {
  it('each of n texts follows the grammar by itself, as a request with its seed alone does', async (t) => {
    const model = await textModel(t, 'cpu');
    const alone = [];
    for (let i = 0; i < 6; i++) alone.push(bits(await model.complete(prompt, { ...options, seed: 20 + i })));
    assert.ok((await model.stats()).hitTokens > 0, 'the prompt is read once');
    assert.deepEqual(await choices(model, 6), alone);
    assert.ok(new Set(alone.map((one) => JSON.stringify(one))).size > 1);
  });

  for (const hostKvBytes of [0, 2 ** 20]) {
    it(`a text that gives way goes on where it was, ${hostKvBytes ? 'from host memory' : 'computed again'}`, async (t) => {
      const expected = await choices(await textModel(t, 'cpu'), 6);
      const tight = await textModel(t, 'cpu', { kvTokens: 256, contextLength: 256, prefixCache: false, hostKvBytes });
      assert.deepEqual(await choices(tight, 6), expected);
      assert.ok((await tight.stats()).preemptions > 0);
    });
  }

  it('every one of n sequences is told that there is no such grammar', async () => {
    await withEngine({}, async (engine) => {
      const ends: string[] = [];
      await new Promise<void>((resolve) => {
        const request = { ids: ids(5, 1), n: 3, maxTokens: 1, stopTokens: new Int32Array(), sampling: greedy };
        engine.generate({ ...request, routing: { kind: 'base' }, grammar: 99 }, (event, index) => {
          if (event.type === 'done') ends[index] = event.reason;
          if (ends.filter(Boolean).length === 3) resolve();
        });
      });
      assert.deepEqual(ends, ['error', 'error', 'error']);
    });
  });
});
