import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { TokenizedExample } from '../../lib/data/examples.js';
import { buildMicroBatch } from '../../lib/data/micro-batch.js';
import { PackedExamples, type PackingOptions, streamSteps, type TrainingStep } from '../../lib/data/packing.js';
import { permutation } from '../../lib/data/random.js';

function example(index: number, length: number): TokenizedExample {
  const tokenWeights = new Float32Array(length).fill(1, 1);
  return {
    ids: Int32Array.from({ length }, (_, t) => index * 1000 + t),
    promptLength: 1,
    tokenWeights,
    zeroWeight: new Uint8Array(length),
    source: `row ${index + 1}`,
  };
}

const lengths = fc.array(fc.integer({ min: 2, max: 30 }), { minLength: 1, maxLength: 60 });
const options = fc
  .record({
    batchTokens: fc.integer({ min: 30, max: 90 }),
    accumulate: fc.option(fc.integer({ min: 1, max: 4 }), { nil: undefined }),
    batchExamples: fc.option(fc.integer({ min: 1, max: 9 }), { nil: undefined }),
    epochs: fc.integer({ min: 1, max: 3 }),
    shuffle: fc.boolean(),
    seed: fc.maxSafeNat(),
  })
  .map((o): PackingOptions => (o.accumulate === undefined ? o : { ...o, batchExamples: undefined }));

const sourcesOf = (steps: TrainingStep[]): string[] => steps.flatMap((s) => s.microBatches.flatMap((b) => b.sources));

test('every epoch holds each example once, whole, within the limits', () => {
  fc.assert(
    fc.property(lengths, options, (sizes, o) => {
      const examples = sizes.map((length, i) => example(i, length));
      const packed = new PackedExamples(examples, o);
      const steps = [...packed.steps()];
      assert.equal(steps.length, packed.totalSteps());
      for (let epoch = 0; epoch < o.epochs!; epoch++) {
        const own = steps.filter((step) => step.epoch === epoch);
        const expected = examples.map(({ source }) => source);
        assert.deepEqual(sourcesOf(own).sort(), expected.sort());
        for (const [i, { microBatches }] of own.entries()) {
          for (const { ids, offsets, sources } of microBatches) {
            assert.ok(ids.length <= o.batchTokens && ids.length > 0);
            assert.equal(offsets.at(-1), ids.length);
            for (const [b, source] of sources.entries()) {
              const row = examples[Number(source.slice(4)) - 1]!;
              assert.deepEqual(ids.subarray(offsets[b], offsets[b + 1]), row.ids);
            }
          }
          const last = i === own.length - 1;
          const count = sourcesOf([own[i]!]).length;
          if (o.batchExamples !== undefined) assert.ok(last ? count <= o.batchExamples : count === o.batchExamples);
          else if (!last) assert.equal(microBatches.length, o.accumulate ?? 1);
          else assert.ok(microBatches.length <= (o.accumulate ?? 1));
        }
      }
    }),
  );
});

test('a resumed run sees exactly the remaining steps', () => {
  fc.assert(
    fc.property(lengths, options, fc.nat(), (sizes, o, cut) => {
      const examples = sizes.map((length, i) => example(i, length));
      const all = [...new PackedExamples(examples, o).steps()];
      const at = cut % all.length;
      assert.deepEqual([...new PackedExamples(examples, o).steps(all[at]!.next)], all.slice(at + 1));
    }),
    { numRuns: 50 },
  );
});

test('a stream gives the steps of an unshuffled epoch', async () => {
  async function* stream(examples: TokenizedExample[]) {
    yield* examples;
  }
  await fc.assert(
    fc.asyncProperty(lengths, options, fc.nat(5), async (sizes, o, index) => {
      const examples = sizes.map((length, i) => example(i, length));
      const once = { ...o, epochs: 1, shuffle: false };
      const streamed: TrainingStep[] = [];
      for await (const step of streamSteps(stream(examples), once, { epoch: 0, index })) streamed.push(step);
      const expected = [...new PackedExamples(examples, once).steps()].slice(index);
      assert.deepEqual(
        streamed.map((s) => s.microBatches),
        expected.map((s) => s.microBatches),
      );
    }),
    { numRuns: 40 },
  );
});

test('the order depends on seed and epoch and is a fair shuffle', () => {
  assert.deepEqual(permutation(50, 7, 0), permutation(50, 7, 0));
  assert.notDeepEqual(permutation(50, 7, 0), permutation(50, 7, 1));
  assert.notDeepEqual(permutation(50, 7, 0), permutation(50, 8, 0));
  assert.notDeepEqual(permutation(50, 7, 0), permutation(50, 7 + 2 ** 32, 0));
  const counts = Array.from({ length: 5 }, () => new Array<number>(5).fill(0));
  for (let seed = 0; seed < 5000; seed++) {
    for (const [place, value] of permutation(5, seed, 0).entries()) counts[place]![value]! += 1;
  }
  for (const count of counts.flat()) assert.ok(Math.abs(count - 1000) < 150, `${count} of about 1000`);
});

test('labels are shifted inside each sequence; weight 0 is no label but a KL position', () => {
  const first: TokenizedExample = {
    ids: Int32Array.of(10, 11, 12, 13),
    promptLength: 2,
    tokenWeights: Float32Array.of(0, 0, 0.5, 0),
    zeroWeight: Uint8Array.of(0, 0, 0, 1),
    source: 'a:1',
    groups: Int32Array.of(1),
    experts: Int32Array.of(2, 3),
  };
  const batch = buildMicroBatch([first, example(2, 3)]);
  assert.deepEqual(batch, {
    ids: Int32Array.of(10, 11, 12, 13, 2000, 2001, 2002),
    offsets: Int32Array.of(0, 4, 7),
    promptLengths: Int32Array.of(2, 1),
    labels: Int32Array.of(-100, 12, -100, -100, 2001, 2002, -100),
    lossWeights: Float32Array.of(0, 0.5, 0, 0, 1, 1, 0),
    klMask: Uint8Array.of(0, 0, 1, 0, 0, 0, 0),
    groupLabels: [Int32Array.of(1), new Int32Array(0)],
    expertLabels: [Int32Array.of(2, 3), new Int32Array(0)],
    sources: ['a:1', 'row 3'],
  });
});

test('wrong options and examples that do not fit', () => {
  const pack = (o: PackingOptions) => new PackedExamples([example(0, 8), example(1, 40)], o);
  assert.throws(() => pack({ batchTokens: 39 }), { code: 'ERR_AT_MOE_BAD_DATA', message: /row 2: the example has 40/ });
  assert.throws(() => pack({ batchTokens: 0 }), RangeError);
  assert.throws(() => pack({ batchTokens: 64, epochs: 1.5 }), RangeError);
  assert.throws(() => pack({ batchTokens: 64, seed: -1 }), RangeError);
  assert.throws(() => pack({ batchTokens: 64, accumulate: 2, batchExamples: 2 }), TypeError);
  assert.throws(() => pack({} as PackingOptions), TypeError);
  assert.throws(() => new PackedExamples([], { batchTokens: 64 }), { code: 'ERR_AT_MOE_BAD_DATA' });
});
