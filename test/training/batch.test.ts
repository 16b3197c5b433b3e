import assert from 'node:assert/strict';
import { test } from 'node:test';
import { tokenizeExamples } from '../../lib/data/examples.js';
import { buildMicroBatch, type MicroBatch } from '../../lib/data/micro-batch.js';
import type { ExampleRow } from '../../lib/data/rows.js';
import { batchTotals, engineBatch, supervisionTargets } from '../../lib/training/batch.js';

const groups = [
  { name: 'function', experts: ['diagnosis', 'triage', 'report'] },
  { name: 'style', experts: ['plain', 'formal'] },
];

async function pack(rows: ExampleRow[]): Promise<MicroBatch> {
  const examples = [];
  for await (const example of tokenizeExamples(rows, { groups })) examples.push(example);
  return buildMicroBatch(examples);
}

test('labelled groups share equally, and so do labelled experts of a group', async () => {
  const ids = { prompt: [1], completion: [2] };
  const batch = await pack([
    ids,
    { ...ids, groups: ['style'] },
    { ...ids, groups: ['function', 'style'], experts: ['diagnosis', 'report', 'formal'] },
    { ...ids, experts: ['triage'] },
  ]);
  const { groupTarget, expertTarget } = supervisionTargets(batch, groups);
  assert.deepEqual([...groupTarget], [0, 0, 0, 1, 0.5, 0.5, 1, 0]);
  const expected = [
    [0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0],
    [0.5, 0, 0.5, 0, 1],
    [0, 1, 0, 0, 0],
  ];
  assert.deepEqual([...expertTarget], expected.flat());
});

test('totals run over all micro-batches of the step', async () => {
  const weight = [{ start: 0, end: 1, weight: 0 }];
  const first = await pack([{ prompt: [1, 2], completion: [3, 4, 5], weight }]);
  const second = await pack([{ prompt: [1], completion: [6], weight: [{ start: 0, end: 1, weight: 0.5 }] }]);
  const totals = batchTotals([first, second]);
  assert.deepEqual(totals, { lossWeight: 2.5, labelled: 3, klRows: 1, tokens: 7 });
  const plain = engineBatch(first, totals, { baseKl: false });
  assert.deepEqual(
    [plain.stepLossWeight, plain.stepTokens, plain.stepKlRows, plain.klMask],
    [2.5, 7, undefined, undefined],
  );
  assert.equal(plain.groupTarget, undefined);
  assert.deepEqual([...plain.labels], [-100, -100, 4, 5, -100]);
  const full = engineBatch(first, totals, { baseKl: true, groups });
  assert.equal(full.stepKlRows, 1);
  assert.deepEqual([...(full.klMask as Uint8Array)], [0, 1, 0, 0, 0]);
  assert.deepEqual([full.groupTarget?.length, full.expertTarget?.length], [2, 5]);
});
