import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { loadModel } from '../lib/index.js';

const base = fileURLToPath(new URL('../../test/fixtures/golden/llama-token-dense/base', import.meta.url));
const prompts = [[1], [2, 3], [4, 5, 6], [7]];

test('an abort of several prompts rejects once, and leaves no rejection behind', async () => {
  const model = await loadModel(base, { device: 'cpu' });
  const controller = new AbortController();
  const reason = new Error('enough');
  const run = async () => {
    const options = { maxTokens: 400, ignoreEos: true, signal: controller.signal };
    for await (const { tokens } of model.generateAll(prompts, options)) {
      if (tokens.length > 0) controller.abort(reason);
    }
  };
  await assert.rejects(run, reason);
  await new Promise((resolve) => setTimeout(resolve, 50));
  await model.dispose();
});

test('several prompts give what each gives alone', async () => {
  const model = await loadModel(base, { device: 'cpu' });
  const together = await model.completeAll(prompts, { maxTokens: 12 });
  for (const [i, prompt] of prompts.entries()) {
    const alone = await model.complete(prompt, { maxTokens: 12 });
    assert.deepEqual(together[i]?.tokens, alone.tokens);
  }
  await model.dispose();
});
