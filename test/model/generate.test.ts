import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { GenerateResult } from '../../lib/generation.js';
import { devices } from '../helpers/devices.js';
import { bits, loadCase, textModel } from './support.js';

const prompt = 'Bring the blue box to the old house.';

const hasCode = (code: string) => (error: unknown) => (error as { code?: string }).code === code;

for (const device of devices) {
  describe(`generation on ${device}`, () => {
    it('the same seed gives the same text, another seed another', async (t) => {
      const model = await textModel(t, device);
      const options = { maxTokens: 24, temperature: 1.5, ignoreEos: true };
      const first = await model.complete(prompt, { ...options, seed: 7 });
      const again = await model.complete(prompt, { ...options, seed: 7 });
      const other = await model.complete(prompt, { ...options, seed: 8 });
      // The second time the prompt's keys are in the cache.
      const text = ({ usage, ...rest }: GenerateResult) => rest;
      assert.deepEqual(text(again), text(first));
      assert.notDeepEqual(other.tokens, first.tokens);
      const drawn = await model.complete(prompt, options);
      assert.deepEqual(text(await model.complete(prompt, { ...options, seed: drawn.seed })), text(drawn));
    });

    it('a seed belongs to its request, not to the place in the batch', async (t) => {
      const model = await textModel(t, device);
      const options = { maxTokens: 12, temperature: 1, topK: 20, ignoreEos: true, logProbs: true, seed: 3 };
      const alone = await model.complete(prompt, options);
      const batch = await model.completeAll(['one', prompt, 'and two more'], options);
      assert.deepEqual(bits(batch[1] as GenerateResult), bits(alone));
    });

    it('pieces add up to the text', async (t) => {
      const model = await textModel(t, device);
      const options = { maxTokens: 30, ignoreEos: true };
      const whole = await model.complete(prompt, options);
      let text = '';
      const tokens: number[] = [];
      for await (const piece of model.generate(prompt, options)) {
        text += piece.text;
        tokens.push(...piece.tokens);
      }
      assert.equal(text, whole.text);
      assert.deepEqual(tokens, whole.tokens);
      assert.equal(whole.finishReason, 'length');
      assert.equal(whole.usage.completionTokens, 30);
      assert.equal(whole.usage.totalTokens, whole.usage.promptTokens + 30);
    });

    it("a trace is of the text's own tokens, wherever a stop string ended it", async (t) => {
      const model = await textModel(t, device);
      const mixture = await model.createMixture({ groups: { a: { x: { rank: 2 }, y: { rank: 2 } } } });
      const options = { maxTokens: 40, ignoreEos: true, temperature: 0, trace: true };
      const whole = await mixture.complete(prompt, options);
      const stop = whole.text.slice(2, 4);
      const stopped = await mixture.complete(prompt, { ...options, stop });
      assert.ok(stopped.tokens.length < whole.tokens.length);
      const rows = stopped.usage.promptTokens + stopped.tokens.length - 1;
      assert.equal(stopped.routing?.tokens?.length, rows);
      assert.deepEqual(stopped.routing?.tokens, whole.routing?.tokens?.slice(0, rows));
    });

    it('a stop string ends the text before itself', async (t) => {
      const model = await textModel(t, device);
      const options = { maxTokens: 30, ignoreEos: true };
      const whole = await model.complete(prompt, options);
      const stop = whole.text.slice(10, 13);
      const stopped = await model.complete(prompt, { ...options, stop: [stop, 'never said'] });
      assert.equal(stopped.finishReason, 'stop');
      assert.equal(stopped.stop, stop);
      assert.equal(stopped.text, whole.text.slice(0, whole.text.indexOf(stop)));
      assert.ok(stopped.tokens.length <= whole.tokens.length);
    });

    it('maxTokens 0 and 1, and leaving the iterator early', async (t) => {
      const model = await textModel(t, device);
      const none = await model.complete(prompt, { maxTokens: 0 });
      assert.deepEqual([none.text, none.tokens, none.finishReason], ['', [], 'length']);
      assert.equal((await model.complete(prompt, { maxTokens: 1, ignoreEos: true })).tokens.length, 1);
      for await (const _ of model.generate(prompt, { maxTokens: 100, ignoreEos: true })) break;
      const { kvFreeTokens, kvTokens } = await model.memory();
      assert.equal(kvFreeTokens, kvTokens);
    });

    it('the context bounds prompt and answer', async (t) => {
      const { model, mixture } = await loadCase(t, 'llama-token-dense', device, { contextLength: 20 });
      assert.equal(model.contextLength, 20);
      const ids = (length: number) => Array.from({ length }, (_, i) => i + 1);
      const filled = await mixture.complete(ids(12), { maxTokens: 100, ignoreEos: true });
      assert.equal(filled.tokens.length, 8);
      assert.equal(filled.finishReason, 'length');
      await assert.rejects(mixture.complete(ids(21)), hasCode('ERR_AT_MOE_CONTEXT_LENGTH'));
      await assert.rejects(mixture.complete(ids(20)), hasCode('ERR_AT_MOE_CONTEXT_LENGTH'));
      const trace = await mixture.explain(ids(20));
      assert.equal(trace.tokens?.length, 20);
      assert.equal((await mixture.complete(ids(19), { ignoreEos: true })).tokens.length, 1);
    });

    it('an empty prompt and ids outside the vocabulary are refused', async (t) => {
      const model = await textModel(t, device);
      await assert.rejects(model.complete([]), hasCode('ERR_AT_MOE_EMPTY_PROMPT'));
      await assert.rejects(model.complete(''), hasCode('ERR_AT_MOE_EMPTY_PROMPT'));
      await assert.rejects(model.complete([1, 100000]), RangeError);
      await assert.rejects(model.complete([1, 2.5]), RangeError);
      await assert.rejects(model.complete(prompt, { maxTokens: -1 }), RangeError);
      await assert.rejects(model.complete(prompt, { topP: 0 }), RangeError);
      await assert.rejects(model.complete(prompt, { unknown: 1 } as object), TypeError);
      await assert.rejects(model.score(prompt, ''), RangeError);
    });

    it('an abort rejects with its reason', async (t) => {
      const model = await textModel(t, device);
      const controller = new AbortController();
      const reason = new Error('enough');
      const run = async () => {
        for await (const _ of model.generate(prompt, { ignoreEos: true, signal: controller.signal })) {
          controller.abort(reason);
        }
      };
      await assert.rejects(run(), reason);
      await assert.rejects(model.complete(prompt, { signal: AbortSignal.abort(reason) }), reason);
    });

    it('after an abort no piece comes, even those that were made before', async (t) => {
      const model = await textModel(t, device);
      const controller = new AbortController();
      const reason = new Error('enough');
      const pieces = model.generate(prompt, { ignoreEos: true, maxTokens: 30, signal: controller.signal });
      await pieces.next();
      await model.complete(prompt, { ignoreEos: true, maxTokens: 30 }); // by now the first one is done as well
      controller.abort(reason);
      await assert.rejects(pieces.next(), reason);
      const scored = model.score(prompt, 'the rest', { signal: AbortSignal.abort(reason) });
      await assert.rejects(scored, reason);
      const late = new AbortController();
      const scoring = model.score(prompt, 'the rest', { signal: late.signal });
      late.abort(reason);
      await assert.rejects(scoring, reason);
    });
  });
}
