import assert from 'node:assert/strict';
import { run } from '../helpers/ops.js';
import { logSumExp } from './reference/router.js';
import { close, doubles, matrix, numericGradient, onDevices, Random, row, sameBits } from './support.js';

const rowLoss = (l: number[], label: number) => (label === -100 ? 0 : logSumExp(l) - l[label]!);
const rowKl = (l: number[], base: number[]) => {
  const lse = logSumExp(l);
  const baseLse = logSumExp(base);
  return base.reduce((sum, b, i) => sum + Math.exp(b - baseLse) * (b - baseLse - (l[i]! - lse)), 0);
};

onDevices('cross_entropy: losses and gradient, labels and none, with and without divergence', (device) => {
  const random = new Random(1);
  for (const [rows, vocabulary] of [
    [1, 1],
    [1, 2],
    [4, 37],
    [2, 1030],
    [0, 8],
  ] as const) {
    const logits = random.matrix(rows, vocabulary, 4);
    const baseLogits = random.matrix(rows, vocabulary, 4);
    const labels = Int32Array.from({ length: rows }, (_, n) => (n % 3 === 1 ? -100 : random.integer(vocabulary)));
    const weight = Float32Array.from({ length: rows }, () => random.uniform());
    const klWeight = Float32Array.from({ length: rows }, (_, n) => (n % 2 === 0 ? 0 : random.uniform()));
    const losses = [...labels].map((label, n) => rowLoss(row(logits, n), label));
    const kls = [...labels].map((_, n) => rowKl(row(logits, n), row(baseLogits, n)));

    const forward = run('crossEntropy', device, { logits, labels, pad: 3 });
    close(forward.loss, losses, 2e-6, 'loss', 1);
    sameBits(forward.logits, logits.data, 'logits of a forward only');

    const withBase = run('crossEntropy', device, { logits, labels, weight, baseLogits, klWeight, pad: 3 });
    close(withBase.kl, kls, 2e-6, 'kl', 1);
    const sampled = Math.min(logits.data.length, 60);
    const total = (at: ArrayLike<number>, base: boolean) => {
      const m = { cols: vocabulary, data: at };
      return [...labels].reduce(
        (sum, label, n) =>
          sum +
          weight[n]! * rowLoss(row(m, n), label) +
          (base ? klWeight[n]! * rowKl(row(m, n), row(baseLogits, n)) : 0),
        0,
      );
    };
    for (const base of [false, true]) {
      const numeric = numericGradient(doubles(logits.data).subarray(0, sampled), (at) =>
        total(Float64Array.from([...at, ...logits.data.subarray(sampled)]), base),
      );
      const out = base ? withBase : run('crossEntropy', device, { logits, labels, weight, pad: 3 });
      close(out.logits.subarray(0, sampled), numeric, 1e-5, `gradient, base ${base}`, 0.1);
    }
  }
});

onDevices('cross_entropy: a large vocabulary, extreme logits, NaN, bad labels, two threads', (device) => {
  const random = new Random(2);
  const logits = random.matrix(3, 32003, 6);
  const labels = Int32Array.of(0, 32002, 17);
  const weight = Float32Array.of(1, 0.5, 0);
  const one = run('crossEntropy', device, { logits, labels, weight });
  const two = run('crossEntropy', device, { logits, labels, weight }, 2);
  close(
    one.loss,
    [...labels].map((label, n) => rowLoss(row(logits, n), label)),
    1e-6,
    'loss',
  );
  sameBits(two.loss, one.loss, 'loss');
  sameBits(two.logits, one.logits, 'gradient');
  const extreme = run('crossEntropy', device, {
    logits: matrix(1, 3, [1e4, -1e4, 0]),
    labels: Int32Array.of(1),
    weight: Float32Array.of(1),
  });
  close(extreme.loss, [2e4], 1e-6, 'extreme loss');
  close(extreme.logits, [1, -1, 0], 1e-6, 'extreme gradient');
  const nan = run('crossEntropy', device, { logits: matrix(1, 3, [0, Number.NaN, 0]), labels: Int32Array.of(0) });
  assert.ok(Number.isNaN(nan.loss[0]), 'a NaN was lost');
  const badLabels = () => run('crossEntropy', device, { logits, labels: Int32Array.of(0, 32003, -1) });
  if (device === 'cpu') assert.throws(badLabels, { code: 'ERR_AT_MOE_INTERNAL' });
  else assert.deepEqual([...badLabels().loss].map(Number.isNaN), [false, true, true], 'labels outside');
});

onDevices('cross_entropy: same bits for a row alone and at any place of a batch', (device) => {
  const random = new Random(3);
  const vocabulary = 2051;
  const logits = random.matrix(4, vocabulary, 4);
  const baseLogits = random.matrix(4, vocabulary, 4);
  const labels = Int32Array.of(2050, 0, -100, 1027);
  const weight = Float32Array.of(0.5, 1, 1, 0.25);
  const klWeight = Float32Array.of(0.5, 0, 1, 0.1);
  const all = run('crossEntropy', device, { logits, labels, weight, baseLogits, klWeight });
  for (let n = 0; n < 4; ++n) {
    const alone = run('crossEntropy', device, {
      logits: matrix(1, vocabulary, row(logits, n)),
      labels: labels.slice(n, n + 1),
      weight: weight.slice(n, n + 1),
      baseLogits: matrix(1, vocabulary, row(baseLogits, n)),
      klWeight: klWeight.slice(n, n + 1),
    });
    sameBits(alone.loss, all.loss.slice(n, n + 1), `loss ${n}`);
    sameBits(alone.kl, all.kl.slice(n, n + 1), `kl ${n}`);
    sameBits(alone.logits, all.logits.slice(n * vocabulary, (n + 1) * vocabulary), `gradient ${n}`);
  }
});
