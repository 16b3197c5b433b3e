import assert from 'node:assert/strict';
import { it } from 'node:test';
import { mixtureOf } from '../../lib/bench/setup.js';
import { shapeOf } from '../../lib/bench/shapes.js';
import { benchSoak, soakText } from '../../lib/bench/soak.js';
import { goldenBase, openEngine } from '../helpers/engine.js';

it('half a minute of traffic loses no token and no page', async (t) => {
  const options = {
    shape: 'tiny',
    config: await shapeOf(goldenBase),
    weights: 'f32' as const,
    experts: 4,
    groups: 2,
    rank: 4,
    batch: 1,
    context: 128,
    steps: 1,
    threads: 1,
    device: 'cpu' as const,
    seconds: 30,
  };
  const engine = await openEngine();
  const { deviceBytes } = await engine.createMixture(mixtureOf({ ...options, rank: 2 * options.rank }));
  await engine.dispose();
  const report = await benchSoak({ ...options, adapterBytes: deviceBytes });
  t.diagnostic(soakText(report));
  assert.equal(report.wrong, 0);
  assert.equal(report.leakedPages, 0);
  for (const part of [
    'completed',
    'aborted',
    'expired',
    'replacements',
    'preemptions',
    'evictions',
    'hitRate',
  ] as const)
    assert.ok(report[part] > 0, part);
});
