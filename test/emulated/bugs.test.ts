// The proof of the emulated device, compiled here with g++ from its own sources: planted bugs are found, the same kernels
// without them pass, and single instructions do what the PTX manual says.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, it } from 'node:test';

const root = path.join(import.meta.dirname, '..', '..', '..');
const folder = mkdtempSync(path.join(tmpdir(), 'at-moe-emulated-'));
after(() => rmSync(folder, { recursive: true }));

const sources = ['bugs', 'hopper', 'instructions', 'main']
  .map((name) => `test/emulated/${name}.${name === 'main' ? 'cc' : 'cu'}`)
  .concat(['barrier', 'fiber', 'simt', 'tensor_copy', 'wgmma'].map((name) => `cuda/emulated/${name}.cc`));
const flags = ['-std=c++20', '-O1', '-g', '-ffp-contract=off', '-pthread', '-DAT_MOE_EMULATED', '-I.', '-Inative'];

/** Why the program cannot be built here; false when it can. */
function missing(sanitizer = ''): string | false {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'the emulated device exists on Linux x86-64 only';
  const args = [...(sanitizer ? [sanitizer] : []), '-x', 'c++', '-', '-o', path.join(folder, 'probe')];
  const { status } = spawnSync('g++', args, { input: 'int main() {}' });
  return status === 0 ? false : `g++ ${sanitizer} does not work here`;
}

function build(name: string, ...extra: string[]): string {
  const program = path.join(folder, name);
  const args = [...flags, ...extra, '-x', 'c++', ...sources, '-o', program];
  const { status, stderr } = spawnSync('g++', args, { cwd: root, encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  return program;
}

interface Schedule {
  order?: string;
  seed?: number;
  resident?: number;
}
const orders: Schedule[] = [{ order: 'forward' }, { order: 'reverse' }, { order: 'random', seed: 2 }];

function run(program: string, check: string, broken: boolean, { order = '', seed = 1, resident = 1 }: Schedule) {
  const { status, signal, stdout, stderr } = spawnSync(program, [check, ...(broken ? ['broken'] : [])], {
    encoding: 'utf8',
    env: {
      ...process.env,
      AT_MOE_EMULATED_ORDER: order,
      AT_MOE_EMULATED_SEED: String(seed),
      AT_MOE_EMULATED_RESIDENT: String(resident),
      ASAN_OPTIONS: 'detect_leaks=0',
      LD_PRELOAD: '',
    },
  });
  return { status, signal, output: stdout + stderr };
}

function passes(program: string, check: string, schedules: Schedule[]): void {
  for (const schedule of schedules) {
    const { status, output } = run(program, check, false, schedule);
    assert.equal(status, 0, `${check} ${JSON.stringify(schedule)}: ${output}`);
  }
}

/** What each schedule said about the broken kernel, of those that noticed. */
const findings = (program: string, check: string, schedules: Schedule[]) =>
  schedules.map((schedule) => run(program, check, true, schedule)).filter(({ status }) => status !== 0);

describe('the emulated device', { skip: missing() }, () => {
  let program = '';
  it('compiles', () => {
    program = build('plain');
  });

  for (const check of ['missing_barrier_before_read', 'missing_barrier_before_write']) {
    it(`finds a ${check.replaceAll('_', ' ')}`, () => {
      passes(program, check, orders);
      const found = findings(program, check, orders);
      assert.ok(found.length >= 1);
      for (const { status, output } of found) assert.match(`${status} ${output}`, /^1 .*\[\d+\] is .*, expected/);
    });
  }

  for (const check of ['too_few_copies_waited_for', 'unwritten_shared_memory']) {
    it(`finds ${check.replaceAll('_', ' ')} in every order, as NaN`, () => {
      passes(program, check, orders);
      const found = findings(program, check, orders);
      assert.equal(found.length, orders.length);
      for (const { output } of found) assert.match(output, /is -?nan, expected/);
    });
  }

  it('reports a divergent barrier with its threads, and aborts', () => {
    passes(program, 'divergent_barrier', orders);
    const found = findings(program, 'divergent_barrier', orders);
    assert.equal(found.length, orders.length);
    for (const { signal, output } of found) {
      assert.equal(signal, 'SIGABRT');
      assert.match(output, /deadlock in block \(0, 0, 0\) of \(1, 1, 1\)/);
      assert.match(output, /thread 3 waits at the barrier of .*bugs\.cu:\d+\n/);
      assert.match(output, /thread 20 waits in a warp operation\n/);
    }
  });

  it('reports threads that wait at two barriers', () => {
    passes(program, 'barriers_of_branches', orders);
    const found = findings(program, 'barriers_of_branches', orders);
    assert.equal(found.length, orders.length);
    for (const { signal, output } of found) {
      assert.equal(signal, 'SIGABRT');
      const places = [...output.matchAll(/thread (?:0|127) waits at the barrier of (.*)\n/g)].map(([, place]) => place);
      assert.equal(new Set(places).size, 2, output);
    }
  });

  it('finds a missing wait for another block, with blocks in flight together', () => {
    const resident: Schedule[] = [1, 2, 3, 4, 5, 6].map((seed) => ({ seed, resident: 4 }));
    passes(program, 'missing_wait_for_a_block', [...orders, ...resident]);
    assert.ok(findings(program, 'missing_wait_for_a_block', resident).length >= 1);
    const [seen] = findings(program, 'missing_wait_for_a_block', resident);
    const [again] = findings(program, 'missing_wait_for_a_block', resident);
    assert.equal(again?.output, seen?.output, 'a seed repeats itself');
  });

  it('finds a wait left out of a ring of copies and products, in every order', () => {
    const reports = {
      bytes_not_expected: /asynchronous work at the end in block/,
      missing_wait_for_copies: /more arrivals at a barrier than it was made for/,
      wait_for_the_phase_before: /more arrivals at a barrier than it was made for/,
      stage_filled_while_in_use: /more arrivals at a barrier than it was made for/,
      wait_for_a_phase_that_never_ends: /deadlock in block .*\n {2}thread 0 waits for a phase of a barrier\n/,
      missing_fence_of_accumulators: /a wgmma without a fence after its accumulators were free/,
      missing_wait_for_products: /is -?nan, expected/,
      stage_given_back_before_its_products: /is -?nan, expected/,
    };
    for (const [check, report] of Object.entries(reports)) {
      passes(program, check, orders);
      const found = findings(program, check, orders);
      assert.equal(found.length, orders.length, check);
      for (const { output } of found) assert.match(output, report, check);
    }
  });

  it('runs the instructions of sm_90a as the PTX manual defines them', () => {
    for (const check of ['boxes', 'tensor_map_limits', 'barrier_phases', 'wgmma_bf16', 'wgmma_f16']) {
      passes(program, check, orders);
    }
  });

  it('runs the instructions as the PTX manual defines them', () => {
    const products = ['mma_bf16', 'mma_f16', 'ldmatrix_bf16', 'ldmatrix_f16'];
    for (const check of [...products, 'shuffles', 'ballots', 'copies', 'atomics', 'rounding']) {
      passes(program, check, orders);
    }
  });

  it('finds an overrun of a buffer under AddressSanitizer', { skip: missing('-fsanitize=address') }, () => {
    const sanitized = build('sanitized', '-fsanitize=address', '-fno-omit-frame-pointer');
    passes(sanitized, 'overrun', orders);
    passes(sanitized, 'missing_wait_for_a_block', [{ seed: 1, resident: 4 }]);
    const found = findings(sanitized, 'overrun', orders);
    assert.equal(found.length, orders.length);
    for (const { output } of found) {
      assert.match(output, /heap-buffer-overflow/);
      assert.match(output, /bugs\.cu:\d+/);
    }
  });
});
