import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, it, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { loadModel } from '../../lib/index.js';
import { loadAddon } from '../../lib/native.js';
import type { NativeEngine } from '../../lib/native-types.js';
import { golden } from '../formats/support.js';
import { loadBase, temporary } from '../model/support.js';

const base = join(golden, 'llama-token-dense', 'base');

/** A tree of /proc and /sys with these files. */
function tree(t: TestContext, files: Record<string, string>): string {
  const root = temporary(t);
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(join(root, dirname(path)), { recursive: true });
    writeFileSync(join(root, path), content);
  }
  return root;
}

describe('control groups', () => {
  const groups = (t: TestContext, files: Record<string, string>) => loadAddon().controlGroups(tree(t, files));
  const unified = 'sys/fs/cgroup';

  it('no tree, no limit', (t) => {
    assert.deepEqual(groups(t, {}), { cores: 0, memory: [] });
  });

  it('version 2: the least of the own group and of those around it', (t) => {
    const files = {
      'proc/self/cgroup': '0::/pod/service/worker\n',
      [`${unified}/pod/cpu.max`]: '350000 100000\n',
      [`${unified}/pod/service/cpu.max`]: 'max 100000\n',
      [`${unified}/pod/service/worker/cpu.max`]: '800000 100000\n',
      [`${unified}/pod/memory.max`]: '4096\n',
      [`${unified}/pod/memory.current`]: '1024\n',
      [`${unified}/pod/service/worker/memory.max`]: 'max\n',
    };
    assert.deepEqual(groups(t, files), { cores: 3, memory: [{ limit: 4096, used: 1024 }] });
  });

  it('version 2: a path that is not mounted, as from within a namespace', (t) => {
    const files = { 'proc/self/cgroup': '0::/../../outside\n', [`${unified}/cpu.max`]: '50000 100000\n' };
    assert.equal(groups(t, files).cores, 1);
    const host = { 'proc/self/cgroup': '0::/docker/1234\n', [`${unified}/cpu.max`]: '200000 100000\n' };
    assert.equal(groups(t, host).cores, 2);
  });

  it('version 1: quota over period, nested, under joined and single names', (t) => {
    const files = {
      'proc/self/cgroup': '7:memory:/a/b\n4:cpu,cpuacct:/a/b\n1:name=systemd:/x\n',
      [`${unified}/cpu,cpuacct/a/b/cpu.cfs_quota_us`]: '-1\n',
      [`${unified}/cpu,cpuacct/a/b/cpu.cfs_period_us`]: '100000\n',
      [`${unified}/cpu/a/cpu.cfs_quota_us`]: '500000\n',
      [`${unified}/cpu/a/cpu.cfs_period_us`]: '200000\n',
      [`${unified}/memory/a/b/memory.limit_in_bytes`]: '9223372036854771712\n',
      [`${unified}/memory/a/memory.limit_in_bytes`]: '8192\n',
      [`${unified}/memory/a/memory.usage_in_bytes`]: '100\n',
    };
    assert.deepEqual(groups(t, files), { cores: 2, memory: [{ limit: 8192, used: 100 }] });
  });
});

const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 37 + 5) % 90);

const logits = (engine: NativeEngine) => engine.logits({ ids, first: ids.length, routing: { kind: 'base' } });

async function steps(engine: NativeEngine, count: number, signal?: AbortSignal): Promise<void> {
  const routings = [{ kind: 'base' as const }];
  await engine.bench({ kind: 'decode', rows: 1, context: 4, steps: count, routings, interleave: false }, { signal });
}

const census = () => loadAddon().threadCensus();

describe('threads of engines of one process', { timeout: 120_000 }, () => {
  const { processors } = census();

  it('beyond the processors they leave their tasks to the others, and compute the same', async (t) => {
    const alone = await loadBase(t, base, 'cpu', { threads: 1 });
    const expected = await logits(alone.core.engine);
    const { taken } = census();
    const models = await Promise.all(
      Array.from({ length: 3 }, () => loadBase(t, base, 'cpu', { threads: processors + 1 })),
    );
    await Promise.all(models.map((model) => steps(model.core.engine, 200)));
    assert.ok(census().taken > taken);
    for (const model of models) assert.deepEqual(await logits(model.core.engine), expected);
  });

  it('none is woken while the engines themselves have all processors', {
    skip: processors > 16 ? 'an engine for each processor would be too many' : false,
  }, async (t) => {
    const models = await Promise.all(
      Array.from({ length: processors }, () => loadBase(t, base, 'cpu', { threads: 2 })),
    );
    const stop = new AbortController();
    const jobs = models.map(({ core }) => steps(core.engine, 1e9, stop.signal));
    const ended = Promise.allSettled(jobs);
    const someSteps = async () => {
      for (let i = 0; i < 30; i++) await Promise.all(models.map((model) => model.stats())); // a step lies between two
    };
    await someSteps();
    const { woken } = census();
    await someSteps();
    assert.equal(census().woken, woken);
    stop.abort();
    await ended;
  });

  it('one that spins parks when another engine needs its processor', {
    skip: processors === 1 ? 'there is one processor' : false,
  }, async (t) => {
    const wide = await loadBase(t, base, 'cpu', { threads: processors });
    const late = await loadBase(t, base, 'cpu', { threads: 1 });
    const { madeRoom } = census();
    const stop = new AbortController();
    const ended = steps(wide.core.engine, 1e9, stop.signal).catch(() => undefined);
    while (census().madeRoom === madeRoom) await steps(late.core.engine, 1);
    stop.abort();
    await ended;
  });

  it('they are parked when nothing runs', async (t) => {
    const { awake } = census();
    const model = await loadBase(t, base, 'cpu', { threads: processors + 1 });
    await steps(model.core.engine, 20);
    while (census().awake > awake) await sleep(1);
  });

  it('an engine that fits keeps its threads', async (t) => {
    const model = await loadBase(t, base, 'cpu', { threads: processors });
    const before = census().madeRoom;
    await steps(model.core.engine, 200);
    assert.equal(census().madeRoom, before);
  });

  it('none is awake after engines are disposed of', async (t) => {
    const { awake } = census();
    const model = await loadBase(t, base, 'cpu', { threads: 3 });
    await steps(model.core.engine, 5);
    await model.dispose();
    assert.ok(census().awake <= awake);
  });
});

describe('affinity', { skip: process.platform === 'linux' ? false : 'threads are bound on Linux alone' }, () => {
  /** The processors that each thread of this process may run on. */
  const bindings = () =>
    readdirSync('/proc/self/task').map((id) => {
      const status = readFileSync(`/proc/self/task/${id}/status`, 'utf8');
      return /^Cpus_allowed_list:\s+(.*)$/m.exec(status)?.[1] ?? '';
    });
  const own = (/^Cpus_allowed_list:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [])[1] ?? '0';

  it('binds the engine and its workers, and nothing else', async () => {
    const before = bindings().filter((list) => list === own).length;
    await using model = await loadModel(base, { device: 'cpu', threads: 3, affinity: [Number(own)] });
    await model.createMixture({ groups: { g: { e: {} } } }); // by a thread that the engine's starts
    const all = availableParallelism() === 1 ? before + 4 : 3;
    assert.equal(bindings().filter((list) => list === own).length, all);
    assert.equal(model.device, 'cpu');
  });

  it('a thread does the tasks of one that has no processor, and computes the same', async (t) => {
    const alone = await loadBase(t, base, 'cpu', { threads: 1 });
    const model = await loadBase(t, base, 'cpu', { threads: 2, affinity: [Number(own)] });
    const { taken } = census();
    await steps(model.core.engine, 100);
    assert.ok(census().taken > taken);
    assert.deepEqual(await logits(model.core.engine), await logits(alone.core.engine));
  });

  it('takes the numbers of processors alone', async () => {
    for (const affinity of [[], [-1], [0.5], ['0'], 0, 'all', [65536]] as unknown as number[][]) {
      await assert.rejects(loadModel(base, { device: 'cpu', affinity }), { name: /TypeError|RangeError/ });
    }
  });

  it('refuses a processor that this process has not', async () => {
    const refused = loadModel(base, { device: 'cpu', affinity: [65535] });
    await assert.rejects(refused, { code: 'ERR_AT_MOE_UNSUPPORTED', message: /processor 65535/ });
  });
});

test('affinity elsewhere than on Linux says so', {
  skip: process.platform === 'linux' ? 'this is Linux' : false,
}, async () => {
  await assert.rejects(loadModel(base, { device: 'cpu', affinity: [0] }), /Linux alone/);
});
