import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Model } from '../../lib/model.js';
import { devices } from '../helpers/devices.js';
import { bits, exact, textModel } from './support.js';

const hasCode = (code: string) => (error: unknown) => (error as { code?: string }).code === code;

/** Two groups that a trained router would tell apart; here their weights come from controls. */
async function twoGroups(model: Model, scope: 'token' | 'sequence') {
  const lora = { rank: 2 };
  return await model.createMixture({ groups: { a: { x: lora, y: lora }, b: { z: lora } }, routing: { scope } });
}

for (const device of devices) {
  describe(`sessions on ${device}`, () => {
    it('keys kept between turns give what computing anew gives', async (t) => {
      const model = await textModel(t, device);
      const lora = { rank: 2 };
      const mixture = await model.createMixture({ groups: { a: { x: lora, y: lora }, b: { z: lora } } });
      for (const generator of [model, mixture]) {
        const session = generator.createSession({ system: 'Answer briefly.' });
        for (const [i, text] of ['Where is the cat?', 'And the dog?', 'Thanks.'].entries()) {
          const history = [...session.messages, { role: 'user', content: text }];
          const options = { ...exact, maxTokens: 8 };
          const anew = await generator.complete(history, options);
          const turn = await session.complete(text, options);
          assert.deepEqual(bits(turn), bits(anew));
          assert.equal(turn.text, anew.text);
          if (i > 0) assert.ok(turn.usage.cachedTokens > 0, 'nothing was kept');
          assert.equal(session.messages.at(-1)?.content, turn.text);
        }
        session.dispose();
        session.dispose();
        await assert.rejects(session.complete('more'), hasCode('ERR_AT_MOE_DISPOSED'));
      }
      const { kvFreeTokens, kvTokens } = await model.memory();
      assert.equal(kvFreeTokens, kvTokens);
    });

    it("traces of later turns name the first turn's experts, also when the mixture has lost some", async (t) => {
      const model = await textModel(t, device);
      const mixture = await twoGroups(model, 'sequence');
      const session = mixture.createSession();
      const options = { ...exact, maxTokens: 4, trace: true };
      const first = await session.complete('Where is the cat?', options);
      await mixture.removeExpert('a/y');
      const later = await session.complete('And now?', options);
      assert.deepEqual(later.routing?.experts, ['a/x', 'a/y', 'b/z']);
      assert.deepEqual(later.routing?.layers, first.routing?.layers);
    });

    it('a turn left early is not part of the conversation; one turn runs at a time', async (t) => {
      const model = await textModel(t, device);
      const session = model.createSession();
      const options = { maxTokens: 20, ignoreEos: true };
      for await (const _ of session.generate('Where is the cat?', options)) {
        await assert.rejects(session.complete('What?'), hasCode('ERR_AT_MOE_BUSY'));
        break;
      }
      assert.deepEqual(session.messages, []);
      const anew = await model.complete([{ role: 'user', content: 'Where is the dog?' }], { ...exact });
      assert.deepEqual(bits(await session.complete('Where is the dog?', { ...exact })), bits(anew));
      session.dispose();
    });

    it('without a chat template an abandoned or aborted turn leaves no trace either', async (t) => {
      const model = await textModel(t, device, { plain: true });
      const session = model.createSession();
      const clean = model.createSession();
      for (const each of [session, clean]) await each.complete('Where is the cat?', exact);
      for await (const _ of session.generate(' The dog', { maxTokens: 20, ignoreEos: true })) break;
      const controller = new AbortController();
      const options = { maxTokens: 20, ignoreEos: true, signal: controller.signal };
      const aborted = async () => {
        for await (const _ of session.generate(' The bird', options)) controller.abort();
      };
      await assert.rejects(aborted());
      assert.equal(session.messages.length, 2);
      assert.deepEqual(bits(await session.complete(' And now', exact)), bits(await clean.complete(' And now', exact)));
    });

    it('a stop string is not part of the conversation', async (t) => {
      const model = await textModel(t, device, { plain: true });
      const whole = await model.complete('Where is the cat?', { ...exact, maxTokens: 20 });
      const stop = whole.text.slice(8, 14);
      const session = model.createSession();
      const first = await session.complete('Where is the cat?', { ...exact, maxTokens: 20, stop: [stop] });
      assert.equal(first.stop, stop);
      const before = model.tokenizer?.encode('Where is the cat?') ?? [];
      const answer = model.tokenizer?.encodeContinuation(first.text, before) ?? [];
      const next = model.tokenizer?.encodeContinuation(' And now', [...before, ...answer]) ?? [];
      const anew = await model.complete([...before, ...answer, ...next], exact);
      assert.deepEqual(bits(await session.complete(' And now', exact)), bits(anew));
    });

    it('an abandoned first turn does not decide the routing', async (t) => {
      const model = await textModel(t, device);
      const mixture = await twoGroups(model, 'sequence');
      const session = mixture.createSession();
      const traced = { ...exact, trace: true };
      for await (const _ of session.generate('Hello', { maxTokens: 9, ignoreEos: true, routing: { deny: ['a'] } }))
        break;
      const { routing } = await session.complete('Hello', traced);
      assert.deepEqual(routing, (await mixture.complete([{ role: 'user', content: 'Hello' }], traced)).routing);
    });

    it('controls of later turns are followed, or refused where the first turn decides', async (t) => {
      const model = await textModel(t, device);
      const deny = { routing: { deny: ['a'] } };
      for (const scope of ['token', 'sequence'] as const) {
        const mixture = await twoGroups(model, scope);
        for (const kind of ['first-turn', 'every-turn'] as const) {
          const session = mixture.createSession({ routing: kind });
          await session.complete('Hello', exact);
          const turn = session.complete('And now', { ...exact, ...deny, trace: true });
          if (scope === 'sequence' && kind === 'first-turn') {
            await assert.rejects(turn, hasCode('ERR_AT_MOE_ROUTING'));
            await session.complete('And now', exact);
            continue;
          }
          const { routing } = await turn;
          for (const layer of routing?.layers ?? []) assert.deepEqual(layer.groupWeights, [0, 1]);
        }
      }
    });

    it("turns without controls keep the first turn's, others than those are refused", async (t) => {
      const model = await textModel(t, device);
      const mixture = await twoGroups(model, 'sequence');
      const routing = { deny: ['a'], bias: { z: 1 } };
      const session = mixture.createSession();
      await session.complete('Hello', { ...exact, routing });
      const same = { bias: { z: 1 }, deny: ['a'], allow: undefined };
      for (const given of [undefined, {}, same]) {
        const turn = await session.complete('And now', { ...exact, trace: true, ...(given && { routing: given }) });
        for (const layer of turn.routing?.layers ?? []) assert.deepEqual(layer.groupWeights, [0, 1]);
      }
      const other = session.complete('And now', { ...exact, routing: { deny: ['a'] } });
      await assert.rejects(other, hasCode('ERR_AT_MOE_ROUTING'));
    });

    it('with token scope fixed weights hold for their turn alone', async (t) => {
      const model = await textModel(t, device);
      const session = (await twoGroups(model, 'token')).createSession();
      await session.complete('Hello', { ...exact, routing: { only: 'z' } });
      const { routing } = await session.complete('And now', { ...exact, trace: true });
      assert.equal(routing?.scope, 'token');
      await session.complete('And then', { ...exact, routing: { only: 'x' } });
    });

    it('dispose ends the turn that runs and frees its keys', async (t) => {
      const model = await textModel(t, device);
      const disposed = hasCode('ERR_AT_MOE_DISPOSED');
      const options = { maxTokens: 60, ignoreEos: true };
      const read = model.createSession();
      const pieces = read.generate('Where is the cat?', options);
      await pieces.next();
      read.dispose();
      await assert.rejects(pieces.next(), disposed);
      const whole = model.createSession();
      await whole.complete('Where is the cat?', exact);
      const turn = whole.complete('And the dog?', options);
      whole.dispose();
      await assert.rejects(turn, disposed);
      await assert.rejects(whole.generate('What?').next(), disposed);
      assert.deepEqual(whole.messages.length, 2);
      const { kvFreeTokens, kvTokens } = await model.memory();
      assert.equal(kvFreeTokens, kvTokens);
    });

    it('a turn goes on when its mixture is disposed, the next one does not', async (t) => {
      const model = await textModel(t, device);
      const mixture = await twoGroups(model, 'sequence');
      const session = mixture.createSession();
      const turn = session.complete('Hello', exact);
      mixture.dispose();
      assert.equal((await turn).tokens.length, exact.maxTokens);
      await assert.rejects(session.complete('And now', exact), hasCode('ERR_AT_MOE_DISPOSED'));
      session.dispose();
    });

    it('an empty turn is refused', async (t) => {
      const session = (await textModel(t, device)).createSession();
      await assert.rejects(session.complete(''), hasCode('ERR_AT_MOE_EMPTY_PROMPT'));
      await assert.rejects(session.complete(5 as unknown as string), TypeError);
    });
  });
}
