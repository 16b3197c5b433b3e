// Readers that go away without a word: their iterator is dropped in the middle, without return().
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { getEventListeners, once } from 'node:events';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Model } from '../../lib/model.js';
import { textModel } from '../model/support.js';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const long = { maxTokens: 400, ignoreEos: true };

/** Reads a few pieces, and forgets the iterator. */
async function readSome(pieces: AsyncGenerator<unknown>): Promise<void> {
  for (let i = 0; i < 3; i++) assert.equal((await pieces.next()).done, false);
}

/** Until the collector has found what was dropped, and the engine is done with it. */
async function untilFree(model: Model, pagesUsed = 0): Promise<void> {
  for (;;) {
    const { running, queued, stalled, ...stats } = await model.stats();
    if (running + queued + stalled === 0 && stats.pagesUsed <= pagesUsed) return;
    collectGarbage();
    await turn();
  }
}

test('a text that is dropped in the middle ends when its iterator is collected', { timeout: 60_000 }, async (t) => {
  const model = await textModel(t, 'cpu', { maxBatch: 2 });
  const { signal } = new AbortController();
  await readSome(model.generate('Where is the cat?', { ...long, signal }));
  await readSome(model.generate('Where is the cat?', { ...long, n: 3, signal }));
  await readSome(model.generateAll(['Where is the cat?', 'And the dog?', 'Why?'], { ...long, signal }));
  await untilFree(model);
  assert.equal(getEventListeners(signal, 'abort').length, 0);
});

test('a dropped turn ends, and its session takes the next one', { timeout: 60_000 }, async (t) => {
  const model = await textModel(t, 'cpu');
  const session = model.createSession();
  await readSome(session.generate('Where is the cat?', long));
  await assert.rejects(session.complete('And the dog?'), { code: 'ERR_AT_MOE_BUSY' });
  await untilFree(model, Number.POSITIVE_INFINITY);
  const { tokens } = await session.complete('And the dog?', { maxTokens: 4, ignoreEos: true });
  assert.equal(tokens.length, 4);
  session.dispose();
  await untilFree(model);
});

test('an iterator that is kept goes on after a collection', async (t) => {
  const model = await textModel(t, 'cpu');
  const pieces = model.generate('Where is the cat?', { ...long, maxTokens: 100 });
  let tokens = 0;
  for await (const piece of pieces) {
    tokens += piece.tokens.length;
    if (tokens % 10 === 0) collectGarbage();
  }
  assert.equal(tokens, 100);
});

test('a text that waits for its reader keeps no process alive', async () => {
  const script = fileURLToPath(new URL('../helpers/unread.js', import.meta.url));
  const child = spawn(process.execPath, [script], { stdio: ['ignore', 'ignore', 'inherit'], timeout: 60_000 });
  assert.deepEqual(await once(child, 'close'), [0, null]);
});
