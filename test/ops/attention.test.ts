import { run } from '../helpers/ops.js';
import { attention, attentionBackward, type Heads } from './reference/attention.js';
import { rope } from './reference/elementwise.js';
import { range } from './reference/router.js';
import { close, dot, doubles, matrix, numericGradient, onDevices, Random, sameBits } from './support.js';

interface Sequence {
  rows: number;
  pages: number[];
}

/** Arguments of one step that runs whole sequences from position 0; `cuts` end the pieces of rows. */
function stepOf(random: Random, heads: Heads, sequences: Sequence[], rotate = false) {
  const rows = sequences.reduce((sum, s) => sum + s.rows, 0);
  const pageStride = Math.max(1, ...sequences.map((s) => s.pages.length));
  return {
    q: random.matrix(rows, heads.heads * heads.headDim),
    k: random.matrix(rows, heads.kvHeads * heads.headDim),
    v: random.matrix(rows, heads.kvHeads * heads.headDim),
    heads: heads.heads,
    window: heads.window,
    layers: 2,
    layer: 1,
    pages: 1 + Math.max(0, ...sequences.flatMap((s) => s.pages)),
    position: Int32Array.from(sequences.flatMap((s) => range(0, s.rows))),
    sequence: Int32Array.from(sequences.flatMap((s, i) => Array(s.rows).fill(i))),
    sequences: sequences.length,
    pageTable: Int32Array.from(sequences.flatMap((s) => [...s.pages, ...Array(pageStride - s.pages.length).fill(-1)])),
    pageStride,
    cuts: Int32Array.of(rows),
    invFreq: Float64Array.from({ length: heads.headDim / 2 }, (_, i) => (rotate ? 100 ** (-i / heads.headDim) : 0)),
    wantLse: true,
  };
}

/** Pages for `rows` tokens, taken from the far end down so that no table is in order. */
const pagesFor = (rows: number, from: number) => range(0, Math.ceil(rows / 16)).map((i) => from - i);

const headsList: Heads[] = [
  { heads: 1, kvHeads: 1, headDim: 2, window: 0 },
  { heads: 4, kvHeads: 2, headDim: 16, window: 0 },
  { heads: 6, kvHeads: 1, headDim: 20, window: 5 },
  { heads: 2, kvHeads: 2, headDim: 64, window: 33 },
];

onDevices('attention: ragged sequences over scattered pages, windows, rotation', (device, tolerance) => {
  const random = new Random(1);
  for (const heads of headsList) {
    for (const lengths of [[1], [17, 1, 40], [0, 3], []]) {
      const sequences = lengths.map((rows, i) => ({ rows, pages: pagesFor(rows, 5 + 4 * i) }));
      const step = stepOf(random, heads, sequences, true);
      const out = run('attentionForward', device, { ...step, pad: 3 });
      const q = rope(step.q.data, step.q.cols, step.position, step.invFreq);
      const k = rope(step.k.data, step.k.cols, step.position, step.invFreq);
      let first = 0;
      for (const { rows } of sequences) {
        const own = (values: ArrayLike<number>, cols: number) =>
          Array.from(values).slice(first * cols, (first + rows) * cols);
        const expected = attention(
          own(q, step.q.cols),
          own(k, step.k.cols),
          own(step.v.data, step.v.cols),
          rows,
          heads,
        );
        close(own(out.out, step.q.cols), expected.out, 2 * tolerance, `out of ${rows} rows, ${JSON.stringify(heads)}`);
        close(own(out.lse, heads.heads), expected.lse, 2 * tolerance, 'lse');
        first += rows;
      }
    }
  }
});

onDevices('attention: wide heads, groups that divide no tile, groups larger than a tile', (device, tolerance) => {
  const random = new Random(5);
  for (const [heads, lengths] of [
    [{ heads: 3, kvHeads: 1, headDim: 80, window: 0 }, [70, 1]],
    [{ heads: 8, kvHeads: 2, headDim: 128, window: 50 }, [3, 67]],
    [{ heads: 2, kvHeads: 1, headDim: 250, window: 0 }, [35]],
    [{ heads: 7, kvHeads: 1, headDim: 256, window: 0 }, [1, 18]],
    [{ heads: 20, kvHeads: 1, headDim: 16, window: 0 }, [1, 1, 1]],
    [{ heads: 80, kvHeads: 2, headDim: 6, window: 4 }, [2, 9]],
    [{ heads: 40, kvHeads: 1, headDim: 132, window: 0 }, [1, 3]],
  ] as [Heads, number[]][]) {
    const sequences = lengths.map((rows, i) => ({ rows, pages: pagesFor(rows, 4 + 5 * i) }));
    const step = stepOf(random, heads, sequences);
    const out = run('attentionForward', device, step);
    let first = 0;
    for (const { rows } of sequences) {
      const own = (values: ArrayLike<number>, cols: number) =>
        Array.from(values).slice(first * cols, (first + rows) * cols);
      const [q, k, v] = [step.q, step.k, step.v].map((m) => own(m.data, m.cols));
      const expected = attention(q!, k!, v!, rows, heads);
      close(own(out.out, step.q.cols), expected.out, 2 * tolerance, `out of ${rows} rows, ${JSON.stringify(heads)}`);
      close(own(out.lse, heads.heads), expected.lse, 2 * tolerance, 'lse');
      first += rows;
    }
  }
});

onDevices('attention: same bits wherever pages lie, in runs of neighbours or at uneven distances', (device) => {
  const heads = { heads: 4, kvHeads: 2, headDim: 16, window: 0 };
  const placed = (rows: number, place: (page: number) => number) => {
    const pages = range(0, Math.ceil(rows / 16)).map(place);
    return run('attentionForward', device, stepOf(new Random(6), heads, [{ rows, pages }]));
  };
  for (const rows of [100, 300]) {
    const neighbours = placed(rows, (page) => page);
    for (const place of [
      (page: number) => 2 * page,
      (page: number) => (page * 7) % 19,
      (page: number) => page + 3 * Math.floor(page / 5),
      (page: number) => page ** 2,
    ]) {
      sameBits(placed(rows, place).out, neighbours.out, `${rows} rows, pages ${range(0, 7).map(place)}`);
    }
  }
});

onDevices('attention: longer than a run of keys, with large scores', (device, tolerance) => {
  const random = new Random(2);
  for (const window of [0, 300]) {
    const heads = { heads: 2, kvHeads: 1, headDim: 8, window };
    const step = stepOf(random, heads, [{ rows: 600, pages: pagesFor(600, 40) }]);
    step.q.data.forEach((value, i) => {
      step.q.data[i] = value * 8;
    });
    const out = run('attentionForward', device, step);
    const expected = attention(step.q.data, step.k.data, step.v.data, 600, heads);
    close(out.out, expected.out, 4 * tolerance, 'out');
    close(out.lse, expected.lse, 4 * tolerance, 'lse');
  }
});

onDevices('attention: same bits cut in pieces, token by token, alone, in a batch, and on two threads', (device) => {
  const random = new Random(3);
  for (const window of [0, 20]) {
    const heads = { heads: 4, kvHeads: 2, headDim: 16, window };
    const step = stepOf(random, heads, [{ rows: 300, pages: pagesFor(300, 30) }], true);
    const whole = run('attentionForward', device, step);
    sameBits(run('attentionForward', device, step, 2).out, whole.out, 'two threads');
    for (const cuts of [[1, 299, 300], [255, 257, 300], [37, 100, 163, 256, 300], range(1, 301)]) {
      const cut = run('attentionForward', device, { ...step, cuts: Int32Array.from(cuts) });
      sameBits(cut.out, whole.out, `cut at ${cuts.slice(0, 4)}`);
      sameBits(cut.lse, whole.lse, `lse cut at ${cuts.slice(0, 4)}`);
    }
    const twice = (m: { cols: number; data: Float32Array }, other: Float32Array) =>
      matrix((other.length + m.data.length) / m.cols, m.cols, [...other, ...m.data]);
    const other = stepOf(random, heads, [{ rows: 21, pages: [0, 1] }], true);
    const batch = run('attentionForward', device, {
      ...stepOf(
        random,
        heads,
        [
          { rows: 21, pages: [0, 1] },
          { rows: 300, pages: pagesFor(300, 30) },
        ],
        true,
      ),
      q: twice(step.q, other.q.data),
      k: twice(step.k, other.k.data),
      v: twice(step.v, other.v.data),
    });
    sameBits(batch.out.slice(21 * 64), whole.out, 'in a batch');
  }
});

onDevices('attention: same bits for each of several sequences, prefilled or decoded together', (device) => {
  const random = new Random(6);
  const heads = { heads: 6, kvHeads: 2, headDim: 72, window: 0 };
  const lengths = [261, 40, 5];
  const sequences = lengths.map((rows, i) => ({ rows, pages: pagesFor(rows, 16 + 4 * i) }));
  const step = stepOf(random, heads, sequences, true);
  const whole = run('attentionForward', device, step);
  // All but the last 2 rows of each sequence, then one row of each, twice.
  const starts = [0, 261, 301];
  const order = [
    ...lengths.flatMap((length, i) => range(starts[i]!, starts[i]! + length - 2)),
    ...[2, 1].flatMap((back) => lengths.map((length, i) => starts[i]! + length - back)),
  ];
  const picked = (values: ArrayLike<number>, cols: number) =>
    Float32Array.from(order.flatMap((n) => Array.from(values).slice(n * cols, (n + 1) * cols)));
  const rows = order.length;
  const take = (m: { cols: number; data: Float32Array }) => matrix(rows, m.cols, picked(m.data, m.cols));
  const decoded = run('attentionForward', device, {
    ...step,
    q: take(step.q),
    k: take(step.k),
    v: take(step.v),
    position: Int32Array.from(order, (n) => step.position[n]!),
    sequence: Int32Array.from(order, (n) => step.sequence[n]!),
    cuts: Int32Array.of(rows - 6, rows - 3, rows),
  });
  sameBits(decoded.out, picked(whole.out, step.q.cols), 'out');
  sameBits(decoded.lse, picked(whole.lse, heads.heads), 'lse');
});

onDevices('attention backward: against finite differences, two sequences', (device, tolerance) => {
  const random = new Random(4);
  for (const [heads, lengths] of [
    [{ heads: 1, kvHeads: 1, headDim: 2, window: 0 }, [1]],
    [{ heads: 4, kvHeads: 2, headDim: 4, window: 0 }, [5, 2]],
    [{ heads: 3, kvHeads: 1, headDim: 6, window: 3 }, [7]],
  ] as [Heads, number[]][]) {
    const rows = lengths.reduce((sum, length) => sum + length, 0);
    const ends = lengths.map((_, i) => lengths.slice(0, i + 1).reduce((sum, length) => sum + length, 0));
    const [q, k, v] = [heads.heads, heads.kvHeads, heads.kvHeads].map((count) =>
      random.matrix(rows, count * heads.headDim),
    );
    const dout = random.matrix(rows, heads.heads * heads.headDim);
    const all = (a: ArrayLike<number>, b: ArrayLike<number>, c: ArrayLike<number>) => {
      const parts = ends.map((end, i) => {
        const own = (values: ArrayLike<number>, cols: number) =>
          Array.from(values).slice((end - lengths[i]!) * cols, end * cols);
        return attention(own(a, q!.cols), own(b, k!.cols), own(c, v!.cols), lengths[i]!, heads);
      });
      return { out: parts.flatMap((p) => [...p.out]), lse: parts.flatMap((p) => [...p.lse]) };
    };
    const forward = all(q!.data, k!.data, v!.data);
    const args = {
      q,
      k,
      v,
      dout,
      out: matrix(rows, q!.cols, forward.out),
      lse: matrix(rows, heads.heads, forward.lse),
      heads: heads.heads,
      kvHeads: heads.kvHeads,
      window: heads.window,
      sequenceEnds: Int32Array.from(ends),
      pad: 3,
    };
    const back = run('attentionBackward', device, args);
    const loss = (a: ArrayLike<number>, b: ArrayLike<number>, c: ArrayLike<number>) => dot(all(a, b, c).out, dout.data);
    close(
      back.dq,
      numericGradient(doubles(q!.data), (at) => loss(at, k!.data, v!.data)),
      2 * tolerance,
      'dq',
      0.5,
    );
    close(
      back.dk,
      numericGradient(doubles(k!.data), (at) => loss(q!.data, at, v!.data)),
      2 * tolerance,
      'dk',
      0.5,
    );
    close(
      back.dv,
      numericGradient(doubles(v!.data), (at) => loss(q!.data, k!.data, at)),
      2 * tolerance,
      'dv',
      0.5,
    );
    for (const name of ['dq', 'dk', 'dv'])
      sameBits(run('attentionBackward', device, args, 2)[name], back[name], `${name} on two threads`);
  }
});

onDevices('attention backward: longer than a tile, windows, grouped and wide heads', (device, tolerance) => {
  const random = new Random(7);
  for (const [heads, lengths] of [
    [{ heads: 4, kvHeads: 2, headDim: 64, window: 0 }, [100]],
    [{ heads: 3, kvHeads: 1, headDim: 80, window: 33 }, [9, 75]],
    [{ heads: 2, kvHeads: 1, headDim: 128, window: 0 }, [70]],
    [{ heads: 2, kvHeads: 2, headDim: 256, window: 0 }, [37]],
    [{ heads: 70, kvHeads: 1, headDim: 6, window: 0 }, [5, 0, 3]],
  ] as [Heads, number[]][]) {
    const parts = lengths.map((rows) => {
      const [q, k, v] = [heads.heads, heads.kvHeads, heads.kvHeads].map((n) => random.array(rows * n * heads.headDim));
      const dout = random.array(rows * heads.heads * heads.headDim);
      return {
        given: { q: q!, k: k!, v: v!, dout, ...attention(q!, k!, v!, rows, heads) },
        expected: attentionBackward(q!, k!, v!, dout, rows, heads),
      };
    });
    const backward = (which: typeof parts, ends: number[]) => {
      const whole = (name: keyof (typeof parts)[0]['given'], cols: number) =>
        matrix(
          ends.at(-1)!,
          cols,
          which.flatMap((part) => Array.from(part.given[name])),
        );
      const [queries, keys] = [heads.heads * heads.headDim, heads.kvHeads * heads.headDim];
      return run('attentionBackward', device, {
        q: whole('q', queries),
        k: whole('k', keys),
        v: whole('v', keys),
        out: whole('out', queries),
        dout: whole('dout', queries),
        lse: whole('lse', heads.heads),
        heads: heads.heads,
        kvHeads: heads.kvHeads,
        window: heads.window,
        sequenceEnds: Int32Array.from(ends),
      });
    };
    const ends = lengths.map((_, i) => lengths.slice(0, i + 1).reduce((sum, length) => sum + length, 0));
    const back = backward(parts, ends);
    const alone = backward(parts.slice(-1), lengths.slice(-1));
    for (const name of ['dq', 'dk', 'dv'] as const) {
      const expected = parts.flatMap((part) => Array.from(part.expected[name]));
      close(back[name], expected, 2 * tolerance, `${name}, ${JSON.stringify(heads)}`);
      sameBits(back[name].slice(back[name].length - alone[name].length), alone[name], `${name} alone`);
    }
  }
});
