import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { devices } from '../helpers/devices.js';
import { bits, loadCase } from '../model/support.js';
import { emulated, prompt } from './support.js';

const options = { temperature: 1, ignoreEos: true, logProbs: true } as const;

for (const device of devices) {
  describe(`keys in host memory on ${device}`, () => {
    const names = ['llama-token-dense', 'llama-sequence-dense'];
    for (const name of emulated(device) ? names.slice(0, 1) : names) {
      const maxTokens = emulated(device) ? 18 : 40;
      it(`${name}: they come back within the budget, and are computed again beyond it`, async (t) => {
        const results = [];
        // A page holds 16 tokens of 2 layers, keys and values of 2 heads of 16, f32: 16 KiB.
        for (const [hostKvBytes, kvTokens] of [
          [0, 1024],
          [1 << 20, 80],
          [5 * 16384, 80],
          [0, 80],
        ].slice(0, emulated(device) ? 2 : 4) as [number, number][]) {
          const settings = { kvTokens, contextLength: 64, hostKvBytes, prefixCache: false };
          const { model, mixture } = await loadCase(t, name, device, settings);
          const { choices } = await mixture.complete(prompt(17, 1), { ...options, maxTokens, n: 4, seed: 1 });
          results.push(choices.map(bits));
          const { restoredTokens, promptTokens, preemptions, pagesOnHost, pagesUsed } = await model.stats();
          assert.deepEqual({ pagesOnHost, pagesUsed }, { pagesOnHost: 0, pagesUsed: 0 });
          assert.equal(preemptions > 0, kvTokens === 80);
          assert.equal(restoredTokens > 0, hostKvBytes > 0);
          if (hostKvBytes === 1 << 20 || kvTokens === 1024) assert.equal(promptTokens, 17, 'nothing is read twice');
          if (hostKvBytes === 0 && kvTokens === 80) assert.ok(promptTokens > 17);
        }
        for (const texts of results) assert.deepEqual(texts, results[0]);
      });
    }

    it('an idle session gives its pages away and goes on with them later', async (t) => {
      const turns = [];
      for (const hostKvBytes of [0, 1 << 20]) {
        const settings = { kvTokens: 64, contextLength: 64, hostKvBytes, prefixCache: false };
        const { model } = await loadCase(t, 'llama-token-dense', device, settings);
        const { engine } = model.core;
        const turn = (ids: Int32Array) =>
          new Promise<number[]>((resolve) => {
            const tokens: number[] = [];
            const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };
            const request = { ids, maxTokens: 8, stopTokens: new Int32Array(), sampling, session: { id: 1 } };
            engine.generate({ ...request, routing: { kind: 'base' } }, (event) => {
              if (event.type === 'token') tokens.push(event.token);
              if (event.type === 'done') resolve(tokens);
            });
          });
        const first = await turn(prompt(20, 1));
        await model.complete(prompt(55, 2), { maxTokens: 2 });
        assert.equal((await model.stats()).pagesOnHost, hostKvBytes > 0 ? 2 : 0);
        turns.push([first, await turn(prompt(5, 3))]);
        assert.equal((await model.stats()).restoredTokens, hostKvBytes > 0 ? 27 : 0);
        engine.releaseSession(1);
      }
      assert.deepEqual(turns[1], turns[0]);
    });
  });
}
