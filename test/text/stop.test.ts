import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { StopMatcher } from '../../lib/text/stop.js';

function run(stops: string[], pieces: string[]): { text: string; stop: string | undefined } {
  const matcher = new StopMatcher(stops);
  let text = '';
  for (const piece of pieces) {
    const result = matcher.push(piece);
    text += result.text;
    if (result.stop !== undefined) return { text, stop: result.stop };
  }
  return { text: text + matcher.flush(), stop: undefined };
}

const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c') });

test('how the text is cut never changes the result', () => {
  const stops = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 }), {
    maxLength: 4,
  });
  fc.assert(
    fc.property(stops, fc.array(letters, { maxLength: 12 }), (list, pieces) => {
      const whole = pieces.join('');
      const expected = run(list, [...whole]);
      assert.deepEqual(run(list, pieces), expected);
      assert.deepEqual(run(list, [whole]), expected);
      for (const stop of list) assert.ok(!expected.text.includes(stop));
      assert.ok(whole.startsWith(expected.text + (expected.stop ?? '')));
      assert.equal(expected.stop === undefined, !list.some((stop) => whole.includes(stop)));
    }),
  );
});

test('only text that may begin a stop string waits', () => {
  const matcher = new StopMatcher(['\n\nUser:']);
  assert.deepEqual(matcher.push('Hello\n'), { text: 'Hello' });
  assert.deepEqual(matcher.push('World\n\nUs'), { text: '\nWorld' });
  assert.deepEqual(matcher.push('e it\n'), { text: '\n\nUse it' });
  assert.equal(matcher.flush(), '\n');
});

test('after a stop nothing follows; the longest of two that end together wins', () => {
  const matcher = new StopMatcher(['b', 'ab']);
  assert.deepEqual(matcher.push('xabz'), { text: 'x', stop: 'ab' });
  assert.deepEqual(matcher.push('more'), { text: '' });
  assert.equal(matcher.flush(), '');
});

test('no stop strings pass all through; wrong ones are refused', () => {
  assert.deepEqual(new StopMatcher([]).push('text'), { text: 'text' });
  assert.throws(() => new StopMatcher(['']), RangeError);
  assert.throws(() => new StopMatcher([1 as never]), TypeError);
});
