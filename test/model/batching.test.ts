import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Mixture } from '../../lib/mixture.js';
import { devices } from '../helpers/devices.js';
import { bits, difference, type EngineSettings, exact, expertDir, loadCase } from './support.js';

/** Prompts of odd and even lengths from ids of a small vocabulary. */
const prompts = [1, 2, 7, 16, 33].map((length, i) =>
  Array.from({ length }, (_, t) => (i * 31 + t * t * 7 + 3 * t) % 90),
);

for (const device of devices) {
  describe(`same bits on ${device}`, () => {
    for (const name of ['llama-token-dense', 'qwen2-token-topk', 'llama-sequence-dense', 'scale-learned']) {
      it(`${name}: tokens and log-probabilities do not depend on the neighbours in a batch`, async (t) => {
        const { model, mixture, golden } = await loadCase(t, name, device, { threads: 2 });
        const first = golden.mixture.groups[0]?.experts[0]?.name as string;
        const path = `${golden.mixture.groups[0]?.name}/${first}`;
        const other = await model.createMixture({ groups: { g: { e: { adapter: expertDir(name, path) } } } });
        const requests = prompts.flatMap((prompt) => [
          () => mixture.complete(prompt, exact),
          () => model.complete(prompt, exact),
          () => mixture.complete(prompt, { ...exact, routing: { experts: { [first]: 0.5 } } }),
          () => mixture.complete(prompt, { ...exact, routing: { only: first } }),
          () => other.complete(prompt, exact),
        ]);
        const alone = [];
        for (const request of requests) alone.push(bits(await request()));
        const together = await Promise.all(requests.map((request) => request()));
        assert.deepEqual(together.map(bits), alone);
      });
    }

    it('64 experts of which tokens select four: one prefill, or in units of rows', async (t) => {
      const results = [];
      for (const settings of [{}, { chunkRows: 50 }]) {
        const { model, golden } = await loadCase(t, 'llama-token-dense', device, settings);
        const adapters = golden.mixture.groups.flatMap(({ name, experts }) =>
          experts.map((expert) => ({ adapter: expertDir('llama-token-dense', `${name}/${expert.name}`) })),
        );
        const mixture = await model.createMixture({
          groups: {
            all: Object.fromEntries(Array.from({ length: 64 }, (_, e) => [`e${e}`, adapters[e % adapters.length]!])),
          },
          routing: { scope: 'token', expert_top_k: 4 },
        });
        const prompt = Array.from({ length: 150 }, (_, i) => (i * i * 7 + 3 * i) % 90);
        results.push(bits(await mixture.complete(prompt, { ...exact, maxTokens: 3 })));
      }
      assert.deepEqual(results[1], results[0]);
    });

    const cuts: Record<string, EngineSettings> = {
      'units of 1 row': { chunkRows: 1 },
      'units of 5 rows': { chunkRows: 5 },
      'steps of 4 rows': { stepTokens: 4 },
      'steps of 7 rows in units of 3': { stepTokens: 7, chunkRows: 3 },
    };
    for (const name of ['llama3-rope-topp', 'mistral-window', 'atmoe-paper-general', 'llama-sequence-dense']) {
      it(`${name}: how a prefill is cut changes nothing`, async (t) => {
        const whole = await loadCase(t, name, device, { threads: 1 });
        const ids = whole.golden.sequences[0] as Int32Array;
        const trace = { ...exact, trace: true };
        const expected = await whole.mixture.complete(ids, trace);
        const score = await whole.mixture.score([...ids.subarray(0, 5)], [...ids.subarray(5)]);
        for (const [cut, settings] of Object.entries(cuts)) {
          const { mixture } = await loadCase(t, name, device, { threads: 1, ...settings });
          const result = await mixture.complete(ids, trace);
          assert.deepEqual(bits(result), bits(expected), cut);
          assert.deepEqual(result.routing, expected.routing, cut);
          assert.deepEqual(await mixture.score([...ids.subarray(0, 5)], [...ids.subarray(5)]), score, cut);
        }
      });
    }

    it('the number of threads changes nothing', async (t) => {
      for (const name of ['atmoe-paper-general', 'qwen3-headdim']) {
        const one = await loadCase(t, name, device, { threads: 1 });
        const two = await loadCase(t, name, device, { threads: 2 });
        const ids = one.golden.sequences[0] as Int32Array;
        assert.deepEqual(bits(await two.mixture.complete(ids, exact)), bits(await one.mixture.complete(ids, exact)));
      }
    });

    it('a prompt read at once equals the same ids generated one by one', async (t) => {
      const { mixture } = await loadCase(t, 'qwen2-token-topk', device, { threads: 1 });
      const prompt = prompts[2] as number[];
      const { tokens, logProbs } = await mixture.complete(prompt, exact);
      for (const [i, token] of tokens.entries()) {
        const next = await mixture.complete([...prompt, ...tokens.slice(0, i)], { ...exact, maxTokens: 1 });
        assert.deepEqual(bits(next), { tokens: [token], logProbs: [logProbs?.[i]] });
      }
      const scored = await mixture.score(prompt, tokens);
      assert.ok(difference(scored.logProbs, logProbs as number[]) < 1e-5);
    });

    it('a second handle of the same mixture gives the same bits', async (t) => {
      const { model, mixture, golden } = await loadCase(t, 'atmoe-static-scores', device, { threads: 1 });
      const again = await Mixture.from(model.core, golden.mixture);
      const prompt = prompts[3] as number[];
      const [a, b] = await Promise.all([mixture.complete(prompt, exact), again.complete(prompt, exact)]);
      assert.deepEqual(bits(a), bits(b));
    });
  });
}
