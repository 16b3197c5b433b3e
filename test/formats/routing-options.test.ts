import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseRoutingOptions } from '../../lib/routing-options.js';

test('defaults', () => {
  const defaults = {
    scope: 'token',
    within_group: 'conditional',
    group_top_k: 0,
    expert_top_k: 0,
    group_top_p: 0,
    expert_top_p: 0,
    group_temperature: 1,
    expert_temperature: 1,
    renormalize: true,
    general_balance: 1,
    output_scale: 1,
  };
  assert.deepEqual(parseRoutingOptions({}, false), defaults);
  assert.deepEqual(parseRoutingOptions({}, true), { ...defaults, general_balance: 'learned' });
  const all = { ...defaults, scope: 'sequence', group_top_p: 1.5, general_balance: 0.25, output_scale: 'learned' };
  assert.deepEqual(parseRoutingOptions(all, true), all);
});

const wrong: [unknown, ErrorConstructor, RegExp][] = [
  [null, TypeError, /expected object/],
  [[], TypeError, /expected object/],
  [{ top_k: 1 }, TypeError, /"top_k"/],
  [{ scope: 'word' }, TypeError, /scope/],
  [{ group_top_k: -1 }, RangeError, /group_top_k/],
  [{ group_top_k: 1.5 }, TypeError, /group_top_k/],
  [{ expert_top_p: -0.1 }, RangeError, /expert_top_p/],
  [{ group_temperature: 0 }, RangeError, /group_temperature/],
  [{ expert_temperature: 1e-40 }, RangeError, /expert_temperature/],
  [{ output_scale: 1e300 }, RangeError, /output_scale/],
  [{ expert_temperature: Number.NaN }, TypeError, /expert_temperature/],
  [{ general_balance: 1.5 }, RangeError, /general_balance.*<=1/],
  [{ general_balance: 'auto' }, TypeError, /general_balance.*learned/],
  [{ output_scale: Number.POSITIVE_INFINITY }, RangeError, /output_scale/],
  [{ renormalize: 1 }, TypeError, /renormalize/],
];
for (const [value, type, message] of wrong) {
  test(`wrong options: ${JSON.stringify(value)} ${type.name}`, () => {
    assert.throws(
      () => parseRoutingOptions(value, true),
      (error: Error) => error.constructor === type && message.test(error.message),
    );
    assert.throws(() => parseRoutingOptions(value, true, 'mixture.json'), { code: 'ERR_AT_MOE_BAD_FILE', message });
  });
}

test('a balance without a general adapter is a contradiction', () => {
  assert.equal(parseRoutingOptions({ general_balance: 1 }, false).general_balance, 1);
  assert.throws(() => parseRoutingOptions({ general_balance: 'learned' }, false), RangeError);
  assert.throws(() => parseRoutingOptions({ general_balance: 0.5 }, false, 'f'), { code: 'ERR_AT_MOE_BAD_FILE' });
});
