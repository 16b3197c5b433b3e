import assert from 'node:assert/strict';
import { it } from 'node:test';
import { shapeOf } from '../../lib/bench/shapes.js';
import { benchSoak, soakText } from '../../lib/bench/soak.js';
import { goldenBase } from '../helpers/engine.js';

it('half a minute of traffic loses no token and no page', async (t) => {
  const report = await benchSoak({
    shape: 'tiny',
    config: await shapeOf(goldenBase),
    weights: 'f32',
    experts: 4,
    groups: 2,
    rank: 4,
    batch: 1,
    context: 128,
    steps: 1,
    threads: 1,
    device: 'cpu',
    seconds: 30,
  });
  t.diagnostic(soakText(report));
  assert.equal(report.wrong, 0);
  assert.equal(report.leakedPages, 0);
  for (const part of ['completed', 'aborted', 'expired', 'replacements', 'preemptions', 'hitRate'] as const)
    assert.ok(report[part] > 0, part);
});
