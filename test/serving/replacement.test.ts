import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { bits, exact, expertDir, loadCase, temporary } from '../model/support.js';
import { prompt } from './support.js';

describe('a mixture is replaced while it serves', () => {
  for (const name of ['llama-token-dense', 'llama-sequence-dense']) {
    it(`${name}: requests in flight keep the old content, later ones get the new`, async (t) => {
      const { model, mixture, golden } = await loadCase(t, name, 'cpu');
      const group = golden.mixture.groups[0];
      const path = `${group?.name}/${group?.experts[0]?.name}`;
      const other = await model.createMixture({ groups: { g: { e: { adapter: expertDir(name, path) } } } });
      const dir = join(temporary(t), 'other');
      await other.save(dir);
      const options = { ...exact, maxTokens: 60 };
      const ids = prompt(30, 1);
      const [old, next] = [bits(await mixture.complete(ids, options)), bits(await other.complete(ids, options))];
      assert.notDeepEqual(next, old);
      assert.equal(mixture.version, 1);

      const stable = await model.createMixture({ groups: { g: { e: {} } } });
      await stable.replace(mixture);
      const inFlight = stable.generate(ids, options);
      await inFlight.next();
      const asked = stable.generate(ids, options);
      const concurrent = Array.from({ length: 8 }, () => stable.complete(ids, options));
      await stable.replace(dir);
      assert.equal(stable.version, 3);
      assert.deepEqual(stable.groups, other.groups);
      for (const result of await Promise.all(concurrent)) assert.deepEqual(bits(result), old);
      const end = async (pieces: typeof inFlight) => {
        for (;;) {
          const step = await pieces.next();
          if (step.done) return bits(step.value);
        }
      };
      assert.deepEqual(await end(inFlight), old);
      assert.deepEqual(await end(asked), next, 'what is asked for and not begun is served by the new content');
      assert.deepEqual(bits(await stable.complete(ids, options)), next);
      const { mixtures } = await model.memory();
      for (const each of [stable, other, mixture]) each.dispose();
      assert.ok(mixtures > 0);
      assert.equal((await model.memory()).mixtures, 0);
      await assert.rejects(stable.replace(dir), { code: 'ERR_AT_MOE_DISPOSED' });
    });
  }

  it('a replacement that fails leaves the mixture as it was', async (t) => {
    const { mixture } = await loadCase(t, 'llama-token-dense', 'cpu');
    const before = bits(await mixture.complete(prompt(9, 1), exact));
    await assert.rejects(mixture.replace('/nowhere'), { code: 'ERR_AT_MOE_NOT_FOUND' });
    await assert.rejects(mixture.replace(5 as unknown as string), TypeError);
    const { mixture: foreign } = await loadCase(t, 'llama-token-dense', 'cpu');
    await assert.rejects(mixture.replace(foreign), TypeError);
    assert.equal(mixture.version, 1);
    assert.deepEqual(bits(await mixture.complete(prompt(9, 1), exact)), before);
  });
});
