import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { modelDescriptor } from '../lib/formats/model-folder.js';
import type { MixtureHandle, RoutingRequest } from '../lib/native-mixture-types.js';
import type { GenerateRequest, LoadOptions, NativeEngine } from '../lib/native-types.js';
import { goldenBase, microBatch, mixtureDescriptor, openEngine, startGeneration } from './helpers/engine.js';

type Scope = 'token' | 'sequence';

async function withEngine(options: Partial<LoadOptions>, body: (engine: NativeEngine) => Promise<void>): Promise<void> {
  const engine = await openEngine(options);
  try {
    await body(engine);
    const memory = await engine.memory();
    assert.equal(memory.kvFreeTokens, memory.kvTokens, 'KV pages are lost');
  } finally {
    await engine.dispose();
  }
}

async function createMixture(engine: NativeEngine, scope: Scope, router = true): Promise<MixtureHandle> {
  return (await engine.createMixture(await mixtureDescriptor(scope, router))).mixture;
}

async function generate(engine: NativeEngine, request: Partial<GenerateRequest>) {
  const generation = startGeneration(engine, request);
  return { ...generation, done: await generation.done };
}

const prompt = (length: number, seed: number) => Int32Array.from({ length }, (_, i) => (i * 31 + seed * 17 + 3) % 90);

describe('engine', () => {
  it('sequences of different lengths and mixtures share steps without changing a token', async () => {
    await withEngine({ maxBatch: 4 }, async (engine) => {
      const routings: RoutingRequest[] = [
        { kind: 'base' },
        { kind: 'mixture', mixture: await createMixture(engine, 'token') },
        { kind: 'mixture', mixture: await createMixture(engine, 'sequence') },
        {
          kind: 'fixed',
          mixture: await createMixture(engine, 'token'),
          weights: Float32Array.of(1, 0, 0.5, 0),
          alone: false,
        },
      ];
      const requests = [3, 20, 7, 33, 12, 18].map((length, i) => ({
        ids: prompt(length, i),
        routing: routings[i % 4] as RoutingRequest,
        maxTokens: 10 + i,
        sampling: { temperature: 0.8, topK: 0, topP: 0.95, minP: 0, repetitionPenalty: 1.1, seed: i },
      }));
      const alone = [];
      for (const request of requests) alone.push((await generate(engine, request)).tokens);
      const together = await Promise.all(requests.map((request) => generate(engine, request)));
      assert.deepEqual(
        together.map(({ tokens }) => tokens),
        alone,
      );
      assert.ok(new Set(alone.map(String)).size > 1);
    });
  });

  it('a full KV cache makes sequences give way and replays them without changing a token', async () => {
    const tokens: number[][][] = [];
    for (const kvTokens of [2048, 64]) {
      await withEngine({ maxBatch: 4, kvTokens, contextLength: 64 }, async (engine) => {
        const mixture = await createMixture(engine, 'sequence');
        const token = await createMixture(engine, 'token');
        const made = await Promise.all(
          [0, 1, 2, 3].map((i) =>
            generate(engine, {
              ids: prompt(10 + i, i),
              maxTokens: 40,
              routing: { kind: 'mixture', mixture: i % 2 ? mixture : token },
              trace: true,
            }),
          ),
        );
        tokens.push(made.map((one) => one.tokens));
        for (const [i, { done, traces }] of made.entries()) {
          assert.equal(done.reason, 'length');
          const rows = traces.reduce((sum, trace) => sum + trace.rows, 0);
          assert.equal(rows, i % 2 ? 1 : 10 + i + 39);
        }
      });
    }
    assert.deepEqual(tokens[1], tokens[0]);
  });

  it('prompts longer than a prefill step are cut without changing a token', async () => {
    const made: number[][] = [];
    for (const stepTokens of [512, 16]) {
      await withEngine({ stepTokens, chunkRows: stepTokens === 16 ? 5 : 512 }, async (engine) => {
        for (const scope of ['token', 'sequence'] as const) {
          const mixture = await createMixture(engine, scope);
          const { tokens } = await generate(engine, { ids: prompt(100, 1), routing: { kind: 'mixture', mixture } });
          made.push(tokens);
        }
      });
    }
    assert.deepEqual(made.slice(2), made.slice(0, 2));
  });

  it('a session goes on where it ended', async () => {
    await withEngine({}, async (engine) => {
      const mixture = await createMixture(engine, 'token');
      const routing = { kind: 'mixture', mixture } as const;
      const first = await generate(engine, { ids: prompt(20, 1), routing, session: { id: 5 } });
      const more = prompt(6, 2);
      const second = await generate(engine, { ids: more, routing, session: { id: 5 } });
      const whole = await generate(engine, { ids: Int32Array.of(...prompt(20, 1), ...first.tokens, ...more), routing });
      assert.deepEqual(second.tokens, whole.tokens);
      assert.equal(second.done.usage.cachedTokens, 27);
      const kept = await generate(engine, { ids: more, routing, session: { id: 5, keep: 28 } });
      assert.deepEqual(kept.tokens, whole.tokens);
      engine.releaseSession(5);
    });
  });

  it('a session that lost its keys computes them again, turn by turn with the routing of each', async () => {
    const turns: number[][][] = [];
    for (const kvTokens of [1024, 96]) {
      await withEngine({ kvTokens, contextLength: 96, maxBatch: 2 }, async (engine) => {
        const mixture = await createMixture(engine, 'sequence');
        const routing = { kind: 'mixture', mixture } as const;
        const made: number[][] = [];
        for (let turn = 0; turn < 3; ++turn) {
          const session = { id: 1, reroute: true };
          made.push((await generate(engine, { ids: prompt(9 + turn, turn), routing, session })).tokens);
          await generate(engine, { ids: prompt(80, 9), maxTokens: 4 });
        }
        engine.releaseSession(1);
        turns.push(made);
      });
    }
    assert.deepEqual(turns[1], turns[0]);
  });

  it('a session takes one request at a time', async () => {
    await withEngine({}, async (engine) => {
      // The first may be done before the second is heard of, but not every time.
      let refused: unknown;
      for (let id = 1; id <= 50 && !refused; id++) {
        const first = startGeneration(engine, { session: { id }, maxTokens: 100 });
        const second = (await generate(engine, { session: { id } })).done;
        if (second.reason === 'error') refused = second.code;
        engine.cancel(first.id);
        await first.done;
        engine.releaseSession(id);
      }
      assert.equal(refused, 'ERR_AT_MOE_BUSY');
    });
  });

  it('scores agree with the log-probabilities of generation, alone and batched', async () => {
    await withEngine({ stepTokens: 24 }, async (engine) => {
      for (const scope of ['token', 'sequence'] as const) {
        const routing = { kind: 'mixture', mixture: await createMixture(engine, scope) } as const;
        const logProbs: number[] = [];
        const ids = prompt(30, 4);
        const tokens: number[] = [];
        await new Promise<void>((resolve) => {
          const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };
          engine.generate(
            { ids, maxTokens: 12, stopTokens: new Int32Array(), sampling, routing, logProbs: true },
            (event) => {
              if (event.type === 'done') return resolve();
              if (event.type !== 'token') return;
              tokens.push(event.token);
              logProbs.push(event.logProb);
            },
          );
        });
        const request = { ids: Int32Array.of(...ids, ...tokens), first: ids.length, routing };
        const [scores, again] = await Promise.all([engine.score(request), engine.score(request)]);
        assert.equal(scores.length, 12);
        assert.deepEqual(again, scores);
        for (const [i, value] of scores.entries()) assert.ok(Math.abs(value - (logProbs[i] ?? NaN)) < 1e-5);
      }
    });
  });

  it('stop tokens end a sequence and are not emitted', async () => {
    await withEngine({}, async (engine) => {
      const { tokens } = await generate(engine, { maxTokens: 12 });
      const stop = tokens[5] as number;
      const ended = await generate(engine, { maxTokens: 12, stopTokens: Int32Array.of(stop) });
      assert.equal(ended.done.reason === 'stop' && ended.done.stopToken, stop);
      assert.deepEqual(ended.tokens, tokens.slice(0, tokens.indexOf(stop)));
    });
  });

  it('what cannot run is refused with its reason', async () => {
    await withEngine({ contextLength: 32 }, async (engine) => {
      const reason = async (request: Partial<GenerateRequest>) => {
        const { done } = await generate(engine, request);
        return done.reason === 'error' ? `${done.code}: ${done.message}` : done.reason;
      };
      assert.match(await reason({ ids: prompt(40, 0) }), /CONTEXT_LENGTH: .*40 tokens.*32/);
      assert.equal(await reason({ ids: prompt(20, 0), maxTokens: 100 }), 'length');
      assert.match(await reason({ ids: new Int32Array() }), /MISMATCH/);
      assert.match(await reason({ ids: Int32Array.of(5, 100000) }), /MISMATCH: .*100000/);
      assert.match(await reason({ ids: Int32Array.of(-1) }), /MISMATCH/);
      assert.match(await reason({ routing: { kind: 'mixture', mixture: 99 } }), /DISPOSED/);
      const adapter = await createMixture(engine, 'token', false);
      assert.match(await reason({ routing: { kind: 'mixture', mixture: adapter } }), /ROUTING/);
      const weights = new Float32Array(3);
      assert.match(await reason({ routing: { kind: 'fixed', mixture: adapter, weights, alone: true } }), /ROUTING/);
      const base = { kind: 'base' } as const;
      await assert.rejects(engine.score({ ids: prompt(4, 0), first: 4, routing: base }), {
        code: 'ERR_AT_MOE_MISMATCH',
      });
    });
  });

  it('a mixture that is released serves the requests in flight', async () => {
    await withEngine({}, async (engine) => {
      const mixture = await createMixture(engine, 'token');
      const request = { routing: { kind: 'mixture', mixture } as const, maxTokens: 50 };
      const expected = (await generate(engine, request)).tokens;
      const running = startGeneration(engine, request, () => engine.releaseMixture(mixture));
      await running.done;
      assert.deepEqual(running.tokens, expected);
      assert.equal((await engine.memory()).mixtures, 0);
    });
  });

  it('cancelling one of several prompts leaves the others alone', async () => {
    await withEngine({ chunkRows: 4 }, async (engine) => {
      const expected = (await generate(engine, { ids: prompt(60, 1) })).tokens;
      const cancelled = [
        startGeneration(engine, { ids: prompt(60, 2), maxTokens: 400 }),
        startGeneration(engine, { ids: prompt(60, 3), maxTokens: 400, session: { id: 1 } }),
      ];
      const kept = startGeneration(engine, { ids: prompt(60, 1) });
      for (const { id } of cancelled) engine.cancel(id);
      for (const { done } of cancelled) assert.equal((await done).reason, 'cancelled');
      await kept.done;
      assert.deepEqual(kept.tokens, expected);
      engine.releaseSession(1);
    });
  });

  it('generation goes on while an adapter trains; readMixture returns what was learnt', async () => {
    await withEngine({}, async (engine) => {
      const mixture = await createMixture(engine, 'token', false);
      const trainer = await engine.beginTraining(mixture, { target: 'adapter' });
      const before = await engine.readMixture(mixture, 'experts.0.');
      let tokensDuring = 0;
      const running = startGeneration(engine, { maxTokens: 400 }, () => ++tokensDuring);
      const losses: number[] = [];
      for (let step = 0; step < 5; ++step) {
        losses.push((await engine.microBatch(trainer, microBatch(8, 24))).loss);
        assert.ok((await engine.finishStep(trainer, 1e-2)) > 0);
      }
      assert.ok(tokensDuring > 0, 'no token came while training');
      engine.cancel(running.id);
      await running.done;
      assert.ok((losses.at(-1) ?? Infinity) < (losses[0] ?? 0), `losses ${losses}`);
      const after = await engine.readMixture(mixture, 'experts.0.');
      assert.equal(after.length, before.length);
      assert.notDeepEqual(after[0]?.values, before[0]?.values);

      const state = await engine.trainerState(trainer);
      assert.equal(state.step, 5);
      const next = async () => {
        const { loss } = await engine.microBatch(trainer, microBatch(8, 24));
        return [loss, await engine.finishStep(trainer, 1e-2)];
      };
      const expected = await next();
      await engine.restoreTrainer(trainer, state);
      assert.deepEqual(await next(), expected);
      await assert.rejects(engine.microBatch(trainer, { ...microBatch(2, 4), labels: new Int32Array(3) }), {
        code: 'ERR_AT_MOE_MISMATCH',
      });
      await engine.endTraining(trainer);
      await assert.rejects(engine.gradients(trainer), { code: 'ERR_AT_MOE_DISPOSED' });
    });
  });

  it('merged weights are W + Σ w s B A', async () => {
    await withEngine({}, async (engine) => {
      const mixture = await createMixture(engine, 'token');
      const { descriptor } = await modelDescriptor(goldenBase);
      const base = descriptor.tensors.find(({ name }) => name === 'layers.1.self_attn.q_proj.weight');
      assert.ok(base);
      const request = { mixture, base, layer: 1, module: 'q_proj', alone: true } as const;
      const plain = await engine.merged({ ...request, weights: new Float32Array(4) });
      const weights = Float32Array.of(0.5, 0, 0, 0.25);
      const merged = await engine.merged({ ...request, weights });
      const expected = Float64Array.from(plain);
      const [outputs, inputs] = base.shape as [number, number];
      for (const [expert, weight] of weights.entries()) {
        const named = await engine.readMixture(mixture, `experts.${expert}.layers.1.`);
        const a = named.find(({ name }) => name.endsWith('lora_A'))?.values ?? new Float32Array();
        const b = named.find(({ name }) => name.endsWith('lora_B'))?.values ?? new Float32Array();
        for (let o = 0; o < outputs; ++o) {
          for (let i = 0; i < inputs; ++i) {
            for (let r = 0; r < 2; ++r) {
              expected[o * inputs + i]! += weight * 2 * (b[o * 2 + r] ?? NaN) * (a[r * inputs + i] ?? NaN);
            }
          }
        }
      }
      for (const [i, value] of expected.entries()) assert.ok(Math.abs(value - (merged[i] ?? NaN)) < 1e-5);
    });
  });

  it('bench times steps of each routing', async () => {
    await withEngine({}, async (engine) => {
      const mixture = await createMixture(engine, 'sequence');
      const routings = [
        { kind: 'base' },
        { kind: 'mixture', mixture },
        { kind: 'fixed', mixture, weights: new Float32Array(4).fill(0.25), alone: false },
      ] as const;
      for (const kind of ['decode', 'prefill'] as const) {
        for (const interleave of [true, false]) {
          const request = { kind, rows: 2, context: 8, steps: 3, routings, interleave };
          const { seconds } = await engine.bench(request);
          assert.deepEqual(
            seconds.map((steps) => steps.length),
            [3, 3, 3],
          );
          assert.ok(seconds.every((steps) => steps.every((one) => one > 0)));
        }
      }
      const none = engine.bench({ kind: 'decode', rows: 1, context: 8, steps: 1, routings: [], interleave: true });
      await assert.rejects(none, /number of routings/);
    });
  });
});
