import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { GenerateOptions, GenerateResult, Piece } from '../../lib/index.js';
import { Mixture } from '../../lib/mixture.js';
import { devices } from '../helpers/devices.js';
import { bits, type EngineSettings, expertDir, loadCase } from '../model/support.js';
import { emulated, prompt } from './support.js';

const name = 'llama-token-dense';

/** 32 requests over a base and four mixtures: all kinds of routing and sampling, prompts of many lengths. */
async function service(t: Parameters<typeof loadCase>[0], device: string, settings: EngineSettings) {
  const { model, mixture, golden } = await loadCase(t, name, device, settings);
  const group = golden.mixture.groups[0];
  const expert = group?.experts[0]?.name as string;
  const { routing } = golden.mixture;
  const sequence = await Mixture.from(model.core, { ...golden.mixture, routing: { ...routing, scope: 'sequence' } });
  const sharp = { ...routing, group_temperature: 0.25, expert_top_k: 1 };
  const selective = await Mixture.from(model.core, { ...golden.mixture, routing: sharp });
  const adapter = expertDir(name, `${group?.name}/${expert}`);
  const single = await model.createMixture({ groups: { g: { e: { adapter } } } });
  const routed: [Mixture | typeof model, GenerateOptions['routing']][] = [
    [model, undefined],
    [mixture, undefined],
    [sequence, undefined],
    [mixture, { only: expert }],
    [sequence, { experts: { [expert]: 0.5 } }],
    [selective, { bias: { [expert]: 1 } }],
    [sequence, { expert_temperature: 0.5 }],
    [single, undefined],
  ];
  const requests = Array.from({ length: 32 }, (_, i) => {
    const [generator, controls] = routed[i % routed.length] as (typeof routed)[number];
    const options: GenerateOptions = {
      maxTokens: 10 + ((i * 7) % 30),
      ignoreEos: true,
      logProbs: true,
      priority: i % 3,
      ...(controls && { routing: controls }),
      ...(i % 2 === 1 && { temperature: 0.9, topP: 0.95, repetitionPenalty: 1.1, seed: i }),
    };
    return { generator, ids: prompt(1 + ((i * 11) % 50), i % 5), options };
  });
  return { model, requests };
}

async function readSlowly(pieces: AsyncGenerator<Piece, GenerateResult>): Promise<GenerateResult> {
  for (;;) {
    const step = await pieces.next();
    if (step.done) return step.value;
    for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
  }
}

// An emulated device would take an hour for it.
for (const device of devices.filter((name) => !emulated(name))) {
  describe(`texts under concurrency on ${device}`, () => {
    const cases: Record<string, EngineSettings> = {
      'room for all': { maxBatch: 32 },
      'few places': { maxBatch: 5 },
      'few pages and small steps': { maxBatch: 8, kvTokens: 176, contextLength: 96, stepTokens: 12, chunkRows: 7 },
      'keys in host memory': { kvTokens: 176, contextLength: 96, hostKvBytes: 200_000 },
      'few pages without a prefix cache': { kvTokens: 176, contextLength: 96, prefixCache: false },
    };
    for (const [what, settings] of Object.entries(cases)) {
      it(`equal the texts alone: ${what}`, async (t) => {
        const { model, requests } = await service(t, device, settings);
        const alone = [];
        for (const { generator, ids, options } of requests) alone.push(bits(await generator.complete(ids, options)));
        const together = requests.map(async ({ generator, ids, options }, i) => {
          // Some come later, when others have left; some readers are slow; some requests are given up.
          for (let turn = 0; turn < (i % 4) * 20; turn++) await new Promise((resolve) => setImmediate(resolve));
          const given = new AbortController();
          const lost = generator.complete(ids, { ...options, signal: given.signal });
          const kept = i % 5 === 0 ? readSlowly(generator.generate(ids, options)) : generator.complete(ids, options);
          await new Promise((resolve) => setImmediate(resolve));
          given.abort();
          await assert.rejects(lost.then(() => Promise.reject(given.signal.reason)));
          return bits(await kept);
        });
        assert.deepEqual(await Promise.all(together), alone);
        const { running, queued, stalled, pagesUsed, preemptions } = await model.stats();
        assert.deepEqual({ running, queued, stalled, pagesUsed }, { running: 0, queued: 0, stalled: 0, pagesUsed: 0 });
        t.diagnostic(`${preemptions} preemptions`);
      });
    }
  });
}
