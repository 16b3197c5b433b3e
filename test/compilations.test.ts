import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Compilations } from '../lib/compilations.js';
import { runInTurns, type Steps } from '../lib/turns.js';

const nextTurn = () => new Promise((resolve) => setImmediate(resolve));

/** Work that fills so many slices; `log` hears what it came to. */
function* work(name: string, slices: number, log: string[]): Steps<string> {
  try {
    for (let i = 0; i < slices; i++) {
      const until = performance.now() + 5;
      while (performance.now() < until);
      log.push(`${name} ${i}`);
      yield;
    }
    return name;
  } finally {
    log.push(`${name} left`);
  }
}

describe('work in turns', () => {
  it('takes turns with the event loop and with other work', async () => {
    const log: string[] = [];
    let turns = 0;
    const count = () => {
      turns++;
      if (!log.includes('a left')) setImmediate(count);
    };
    setImmediate(count);
    const made = await Promise.all([runInTurns(work('a', 4, log)), runInTurns(work('b', 2, log))]);
    assert.deepEqual(made, ['a', 'b']);
    assert.deepEqual(log.slice(0, 4), ['a 0', 'b 0', 'a 1', 'b 1']);
    assert.ok(turns >= 5, `${turns} turns`);
  });

  it('ends between two steps when its signal aborts, and fails with its own errors', async () => {
    const log: string[] = [];
    const controller = new AbortController();
    const running = runInTurns(work('a', 100, log), controller.signal);
    await nextTurn();
    controller.abort(new Error('enough'));
    await assert.rejects(running, /enough/);
    const done = log.length;
    assert.ok(done < 20 && log.at(-1) === 'a left', log.join());
    for (let i = 0; i < 3; i++) await nextTurn();
    assert.equal(log.length, done);
    await assert.rejects(runInTurns(work('b', 1, log), controller.signal), /enough/);
    assert.equal(log.length, done);
    const failing = (function* (): Steps<void> {
      yield;
      throw new RangeError('too large');
    })();
    await assert.rejects(runInTurns(failing), RangeError);
  });
});

describe('compilations', () => {
  it('are shared while they run, kept afterwards, and made again when others took their place', async () => {
    const log: string[] = [];
    const made = new Compilations(2, (text) => work(text, 2, log));
    assert.deepEqual(await Promise.all([made.get('a'), made.get('a'), made.get('b')]), ['a', 'a', 'b']);
    assert.equal(made.started, 2);
    await made.get('a');
    assert.equal(made.getNow('a'), 'a');
    assert.equal(made.started, 2);
    assert.equal(made.getNow('c'), 'c');
    await made.get('a');
    assert.equal(made.started, 3);
    await made.get('b');
    assert.equal(made.started, 4);
  });

  it('run on while one still waits, and end with the last', async () => {
    const log: string[] = [];
    const made = new Compilations(2, (text) => work(text, 6, log));
    const [one, two] = [new AbortController(), new AbortController()];
    const left = made.get('a', one.signal);
    const stays = made.get('a', two.signal);
    await nextTurn();
    one.abort(new Error('one'));
    await assert.rejects(left, /one/);
    assert.equal(await stays, 'a');
    const both = [made.get('b', two.signal)];
    await nextTurn();
    two.abort(new Error('two'));
    await assert.rejects(Promise.all(both), /two/);
    const steps = log.length;
    await nextTurn();
    assert.equal(log.length, steps);
    assert.equal(log.at(-1), 'b left');
    assert.equal(await made.get('b'), 'b');
    assert.equal(made.started, 3);
    await assert.rejects(made.get('a', two.signal), /two/);
  });

  it('that fail are not kept', async () => {
    let calls = 0;
    const made = new Compilations(2, function* (text): Steps<string> {
      yield;
      if (++calls === 1) throw new TypeError(text);
      return text;
    });
    await assert.rejects(Promise.all([made.get('a'), made.get('a')]), TypeError);
    assert.equal(await made.get('a'), 'a');
    assert.equal(calls, 2);
  });
});
