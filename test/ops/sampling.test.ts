import assert from 'node:assert/strict';
import { run } from '../helpers/ops.js';
import { philox, uniform } from './reference/philox.js';
import { logSumExp, range } from './reference/router.js';
import { candidates, penalised, type SamplingRow } from './reference/sampling.js';
import { close, matrix, onDevices, Random, row, sameBits } from './support.js';

/** The set of tokens below `count` for which `has` holds. */
function tokenSet(count: number, has: (id: number) => boolean): Int32Array {
  const words = new Int32Array(Math.ceil(count / 32));
  for (let id = 0; id < count; id++) if (has(id)) words[id >> 5] = (words[id >> 5] as number) | (1 << (id & 31));
  return words;
}

const rules: SamplingRow[] = [
  { temperature: 1 },
  { temperature: 0.3 },
  { temperature: 2.5, topK: 1 },
  { temperature: 1.5, topK: 7 },
  { temperature: 1, topP: 0.6 },
  { temperature: 1, topP: 0.01 },
  { temperature: 3, minP: 0.2 },
  { temperature: 2, topK: 9, topP: 0.8, minP: 0.05 },
  { temperature: 1, repetitionPenalty: 1.7, history: Int32Array.of(3, 3, 0, 11), banned: Int32Array.of(1, 2) },
];

onDevices('sampling: the drawn token is where the draw falls among the candidates', (device) => {
  const random = new Random(1);
  for (const vocabulary of [12, 1003]) {
    for (const rule of rules) {
      const logits = random.matrix(25, vocabulary, 3);
      const rows = range(0, 25).map((n) => ({ ...rule, seed: 77, draw: n }));
      const out = run('sampling', device, { logits, rows, pad: 3 });
      rows.forEach((own, n) => {
        const kept = candidates(row(logits, n), rule);
        const u = uniform(philox(77n, 0n, BigInt(own.draw))[0]);
        let sum = 0;
        const near = kept.filter(([, p]) => {
          const before = sum;
          sum += p;
          return u >= before - 1e-5 && u < sum + 1e-5;
        });
        const token = out.tokens[n] as number;
        assert.ok(
          near.some(([id]) => id === token),
          `${JSON.stringify(rule)}: ${token} is not where ${u} falls`,
        );
        close(
          [out.logProbs[n]],
          [logits.data[n * vocabulary + token]! - logSumExp(row(logits, n))],
          1e-5,
          'log probability',
        );
      });
    }
  }
});

onDevices('sampling: greedy, ties, penalties and bans', (device) => {
  const logits = matrix(4, 5, [1, 7, 7, 0, 7, 1, 7, 7, 0, 7, 4, 3, -1, -2, -3, -1, -2, -3, -4, -5]);
  const rows: SamplingRow[] = [
    { temperature: 0 },
    { temperature: 0, banned: Int32Array.of(1) },
    { temperature: 0, repetitionPenalty: 2, history: Int32Array.of(0) },
    { temperature: 0, repetitionPenalty: 3, history: Int32Array.of(0) },
  ];
  const { tokens } = run('sampling', device, { logits, rows });
  assert.deepEqual([...tokens], [1, 2, 1, 1]);
  rows.forEach((own, n) => {
    const scores = penalised(row(logits, n), own);
    assert.equal(scores[tokens[n]], Math.max(...scores));
  });
  const tied = run('sampling', device, {
    logits: matrix(60, 4, new Float32Array(240)),
    rows: range(0, 60).map((draw) => ({ temperature: 1, topK: 2, seed: 5, draw })),
  });
  assert.deepEqual([...new Set(tied.tokens as Int32Array)].sort(), [0, 1], 'top-k of equal logits keeps the lower ids');
});

onDevices('sampling: only allowed tokens are drawn, and log-probabilities are of all', (device) => {
  const random = new Random(11);
  for (const vocabulary of [3, 64, 1003]) {
    const logits = random.matrix(rules.length + 2, vocabulary, 3);
    const settings: SamplingRow[] = [{ temperature: 0 }, ...rules, { temperature: 0.5, topK: 3, minP: 0.1 }];
    for (const keep of [1, 5, 50]) {
      const chosen = new Set(range(0, keep).map(() => random.integer(vocabulary)));
      const free = [...chosen].some((id) => id > 2);
      const rows = settings.map((rule, n) => ({
        ...rule,
        ...(rule.history && { history: rule.history.filter((id) => id < vocabulary) }),
        ...(rule.banned && { banned: free ? rule.banned : new Int32Array() }),
        seed: 5,
        draw: 100 * keep + n,
        allowed: tokenSet(vocabulary, (id) => chosen.has(id)),
      }));
      const out = run('sampling', device, { logits, rows, pad: 3 });
      rows.forEach((own, n) => {
        const token = out.tokens[n] as number;
        const kept = candidates(row(logits, n), own.temperature === 0 ? { ...own, temperature: 1, topK: 1 } : own);
        assert.ok(chosen.has(token), `${token} is not allowed`);
        assert.ok(
          kept.some(([id]) => id === token),
          `${token} is no candidate`,
        );
        close(
          [out.logProbs[n]],
          [logits.data[n * vocabulary + token]! - logSumExp(row(logits, n))],
          1e-5,
          'log probability',
        );
      });
    }
  }
});

onDevices("sampling: all tokens allowed is the same as no limit, and a limit is a row's own", (device) => {
  const logits = new Random(12).matrix(4, 2051, 2);
  const rows: SamplingRow[] = range(0, 4).map((n) => ({ ...rules[2 * n]!, seed: 3, draw: n }));
  const free = run('sampling', device, { logits, rows });
  const all = run('sampling', device, {
    logits,
    rows: rows.map((own) => ({ ...own, allowed: tokenSet(2051, () => true) })),
  });
  assert.deepEqual(all.tokens, free.tokens);
  const second = { ...rows[1]!, allowed: tokenSet(2051, (id) => id % 100 === 7) };
  const mixed = run('sampling', device, { logits, rows: [rows[0], second, rows[2], rows[3]] });
  assert.equal(mixed.tokens[1] % 100, 7);
  for (const n of [0, 2, 3]) assert.equal(mixed.tokens[n], free.tokens[n]);
  const alone = run('sampling', device, { logits: matrix(1, 2051, row(logits, 1)), rows: [second] });
  assert.equal(alone.tokens[0], mixed.tokens[1]);
  sameBits(mixed.logProbs.slice(1, 2), alone.logProbs, 'log probability');
});

onDevices('sampling: frequencies follow the probabilities, extreme temperatures stay finite', (device) => {
  const probabilities = [0.5, 0.25, 0.125, 0.125];
  const count = 4000;
  const logits = matrix(
    count,
    4,
    range(0, count).flatMap(() => probabilities.map(Math.log)),
  );
  const { tokens } = run(
    'sampling',
    device,
    { logits, rows: range(0, count).map((draw) => ({ temperature: 1, seed: 9, draw })) },
    2,
  );
  probabilities.forEach((p, id) => {
    const share = (tokens as Int32Array).filter((token) => token === id).length / count;
    assert.ok(Math.abs(share - p) < 0.03, `${id} was drawn with ${share}`);
  });
  const cold = run('sampling', device, { logits: matrix(1, 3, [1, 9, 2]), rows: [{ temperature: 1e-30 }] });
  assert.equal(cold.tokens[0], 1);
});

onDevices('sampling: nothing finite to draw from is an error', (device) => {
  const wrong = [
    { logits: matrix(1, 2, [Number.NaN, 1]), rows: [{ temperature: 1 }] },
    { logits: matrix(1, 2, [Number.NaN, Number.NaN]), rows: [{ temperature: 0 }] },
    { logits: matrix(1, 2, [Infinity, 1]), rows: [{ temperature: 1 }] },
    { logits: matrix(1, 2, [0, 1]), rows: [{ temperature: 1, banned: Int32Array.of(0, 1) }] },
    { logits: matrix(1, 2, [0, 1]), rows: [{ temperature: 0, allowed: Int32Array.of(0) }] },
    { logits: matrix(1, 2, [0, 1]), rows: [{ temperature: 1, allowed: Int32Array.of(2), banned: Int32Array.of(1) }] },
  ];
  for (const args of wrong) assert.throws(() => run('sampling', device, args), { code: 'ERR_AT_MOE_NOT_FINITE' });
});

onDevices('sampling: every device draws the tokens of the CPU', (device) => {
  const random = new Random(2);
  const settings: SamplingRow[] = [
    ...rules,
    { temperature: 0 },
    { temperature: 0.05 },
    { temperature: 0.2, topP: 0.95 },
    { temperature: 1, topK: 50, topP: 0.9 },
    { temperature: 1, topK: 3000 },
    { temperature: 1, topK: 1 << 30, minP: 1e-3 },
    { temperature: 20, topP: 0.999 },
    { temperature: 0.7, topP: 0 },
    { temperature: 1, minP: 1 },
    { temperature: 1, topP: 0.5, repetitionPenalty: 0.6, history: Int32Array.from(range(0, 11)) },
    { temperature: 0.9, topP: 0.9, allowed: tokenSet(20011, (id) => id % 3 === 1) },
    { temperature: 0, repetitionPenalty: 1.5, history: Int32Array.of(4, 5), allowed: tokenSet(20011, (id) => id < 9) },
  ];
  // Spreads from one where a few tokens hold all the mass to one where all are equal: many ties, many in one interval.
  for (const [vocabulary, spread, draws] of [
    [17, 2, 20],
    [1003, 3, 5],
    [5000, 0.01, 2],
    [4099, 0, 2],
    [20011, 6, 1],
    [20011, 0.3, 1],
  ] as const) {
    const own = settings.flatMap((rule) => range(0, draws).map((draw) => ({ ...rule, seed: vocabulary, draw })));
    const rows = own.filter(({ history }) => !history?.some((id) => id >= vocabulary));
    const logits = random.matrix(rows.length, vocabulary, spread);
    const expected = run('sampling', 'cpu', { logits, rows });
    const actual = run('sampling', device, { logits, rows, pad: 1 });
    rows.forEach((rule, n) => {
      assert.equal(actual.tokens[n], expected.tokens[n], `${vocabulary} ${spread} ${JSON.stringify(rule)}`);
    });
    close(actual.logProbs, expected.logProbs, 1e-6, 'log probabilities', 1);
  }
});

onDevices('sampling: a row draws the same alone and in a batch', (device) => {
  const logits = new Random(3).matrix(5, 2050, 2);
  const rows: SamplingRow[] = range(0, 5).map((n) => ({ ...rules[2 * n]!, seed: 3, draw: n }));
  const all = run('sampling', device, { logits, rows });
  rows.forEach((own, n) => {
    const alone = run('sampling', device, { logits: matrix(1, 2050, row(logits, n)), rows: [own] });
    assert.equal(alone.tokens[0], all.tokens[n]);
    sameBits(alone.logProbs, all.logProbs.slice(n, n + 1), 'log probability');
  });
});
