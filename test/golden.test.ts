import assert from 'node:assert/strict';
import { basename } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { findCases } from '../lib/golden/case.js';
import type { CheckResult } from '../lib/golden/checks.js';
import { runCase } from '../lib/golden/run.js';
import type { EngineOptions } from '../lib/native-types.js';
import { devices } from './helpers/devices.js';

const fixtures = fileURLToPath(new URL('../../test/fixtures/golden', import.meta.url));

/** AT_MOE_TEST_GOLDEN: the names of some cases, comma-separated, instead of all. */
const wanted = process.env.AT_MOE_TEST_GOLDEN?.split(',');

type Weights = 'f32' | 'f16' | 'bf16';

const runs: { device: string; weights?: Weights }[] = devices.flatMap((device) =>
  device === 'cpu' ? [{ device }] : (['f32', 'f16', 'bf16'] as const).map((weights) => ({ device, weights })),
);

const isCosine = ({ check }: CheckResult) => /\.grad(\.|$)/.test(check);

/**
 * bf16 goes through the kernels of f16 with 8 bits instead of 11: to first order its errors are 2³ times as large, and
 * 1 - cosine 2⁶ times. No arithmetic on 8-bit inputs meets all tolerances on cases this small: rounding no more than what
 * products read costs up to 0.1 on gradients, and rounding the weights alone 0.08. So a check that bf16 misses must have
 * met its tolerance in f16, and its error be what that law makes of the one in f16, within the spread of such ratios.
 */
const growth = (result: CheckResult) => (isCosine(result) ? 2 ** 6 : 2 ** 3);
const spread = (result: CheckResult) => (isCosine(result) ? 5 ** 2 : 5);

const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

for (const device of new Set(runs.map((run) => run.device))) {
  /** Errors in f16, by case and check. */
  const inF16 = new Map<string, number>();
  const ratios: { cosine: number[]; relative: number[] } = { cosine: [], relative: [] };

  const passes = (name: string, weights: Weights | undefined, result: CheckResult) => {
    const key = `${name} ${result.check}`;
    if (weights === 'f16') inF16.set(key, result.error);
    const before = inF16.get(key);
    if (weights !== 'bf16' || before === undefined || result.check.includes('.parameters')) return result.pass;
    if (before > 0) ratios[isCosine(result) ? 'cosine' : 'relative'].push(result.error / before / growth(result));
    return result.pass || result.error <= growth(result) * spread(result) * before;
  };

  for (const { weights } of runs.filter((run) => run.device === device)) {
    test(`golden cases on ${device}${weights ? ` in ${weights}` : ''}`, async (t) => {
      const cases = await findCases([fixtures]);
      assert.equal(cases.length, 11);
      for (const dir of cases.filter((dir) => wanted?.includes(basename(dir)) ?? true)) {
        await t.test(basename(dir), async () => {
          let checks = 0;
          const failed: string[] = [];
          for await (const result of runCase(dir, device as EngineOptions['device'], weights)) {
            checks++;
            if (!passes(basename(dir), weights, result))
              failed.push(`${result.check} ${result.error} > ${result.tolerance} ${result.worst ?? ''}`);
          }
          assert.deepEqual(failed, []);
          assert.ok(checks >= 20, `only ${checks} checks`);
        });
      }
      if (weights !== 'bf16' || wanted) return;
      for (const [kind, values] of Object.entries(ratios)) {
        const typical = median(values);
        assert.ok(typical > 0.5 && typical < 2, `${kind} errors are ${typical} times what 3 bits less explain`);
      }
    });
  }
}
