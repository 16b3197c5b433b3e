import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { access } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { cli } from '../helpers/cli.js';
import { writeTextModel } from '../model/support.js';

const base = fileURLToPath(new URL('../../../test/fixtures/golden/llama-token-dense/base', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'at-moe-cli-'));
const data = join(folder, 'rows.jsonl');
const mixture = join(folder, 'mixture');
after(() => rmSync(folder, { recursive: true, force: true }));

const onModel = ['--model', base];
const onMixture = [...onModel, '--mixture', mixture];

interface Step {
  step: number;
  loss: number;
  losses: Record<string, number>;
  evaluation?: { loss: number };
}

function jsonLines(text: string): Step[] {
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Step);
}

before(async () => {
  // Counting: the completion goes on where the prompt ends.
  const rows = Array.from({ length: 24 }, (_, i) => {
    const start = 5 + 4 * i;
    return { prompt: [start, start + 1, start + 2], completion: [start + 3, start + 4, 2] };
  });
  writeFileSync(data, rows.map((row) => JSON.stringify(row)).join('\n'));
  const groups = ['--group', 'function=diagnosis,triage', '--group', 'style=brief'];
  const learning = ['--rank', '4', '--learning-rate', '0.01', '--epochs', '15', '--batch-tokens', '64'];
  const args = ['train', 'expert', ...onMixture, ...groups, '--expert', 'triage', '--data', data, ...learning];
  const { status, stderr, stdout } = await cli(args);
  assert.equal(status, 0, stderr);
  assert.match(stderr, /^step 1\/\d+ {2}loss .* lr .* tok\/s {2}ETA /);
  assert.match(stdout, /^saved .* after \d+ steps, loss /);
});

test('training an expert lowers the loss of that expert', async () => {
  const of = async (args: string[]) => {
    const { stdout } = await cli(['evaluate', ...onModel, ...args, '--data', data, '--json']);
    return (JSON.parse(stdout) as { loss: number }).loss;
  };
  const trained = await of(['--adapter', join(mixture, 'experts', 'function', 'triage')]);
  const untouched = await of(['--adapter', join(mixture, 'experts', 'style', 'brief')]);
  assert.ok(trained < untouched - 1, `${trained} against ${untouched}`);
  assert.ok(Math.abs(untouched - (await of([]))) < 1e-5, 'a fresh expert changes nothing');
});

test('generate: --schema holds the text to a JSON Schema, --json-object to an object', async () => {
  const model = join(folder, 'text-model');
  await writeTextModel(model);
  const schema = join(folder, 'schema.json');
  writeFileSync(schema, JSON.stringify({ type: 'array', items: { enum: ['red', 'blue'] }, minItems: 2, maxItems: 3 }));
  const run = (...args: string[]) => cli(['generate', 'colours:', '--model', model, '--temperature', '2', ...args]);
  const { stdout, stderr } = await run('--schema', schema);
  assert.match(stdout, /^\["(red|blue)"(, ?"(red|blue)"){1,2}\]\n$/, stderr);
  const object = await run('--json-object', '--seed', '1', '--max-tokens', '5');
  assert.match(object.stdout, /^\{/, object.stderr);
  writeFileSync(schema, JSON.stringify({ type: 'array', contains: {} }));
  const refused = await run('--schema', schema);
  assert.match(refused.stderr, /schema at #\/contains: "contains" is not supported/);
  assert.notEqual(refused.status, 0);
  assert.equal((await run('--schema', schema, '--json-object')).status, 2);
  assert.match((await run('--schema', join(folder, 'none.json'))).stderr, /none\.json: no such file/);
});

test('router training reports each loss and evaluates; the mixture is saved elsewhere', async () => {
  const output = join(folder, 'routed');
  const losses = ['--group-balance', '0.01', '--eval', data, '--eval-every', '2'];
  const args = [
    'train',
    'router',
    ...onMixture,
    '--data',
    data,
    '--steps',
    '4',
    ...losses,
    '--output',
    output,
    '--json',
  ];
  const { status, stdout, stderr } = await cli(args);
  assert.equal(status, 0, stderr);
  const steps = jsonLines(stdout);
  assert.deepEqual(
    steps.slice(0, 4).map(({ step, evaluation }) => [step, evaluation !== undefined]),
    [
      [1, false],
      [2, true],
      [3, false],
      [4, true],
    ],
  );
  assert.ok('groupBalance' in (steps[0] as Step).losses);
  const { stdout: result } = await cli(['evaluate', ...onModel, '--mixture', output, '--data', data, '--json']);
  const { expertWeights, tokens } = JSON.parse(result) as { expertWeights: Record<string, number>; tokens: number };
  assert.deepEqual(Object.keys(expertWeights), ['function/diagnosis', 'function/triage', 'style/brief']);
  const sum = Object.values(expertWeights).reduce((total, weight) => total + weight, 0);
  assert.ok(Math.abs(sum - 1) < 1e-5);
  assert.equal(tokens, 72);
});

test('a different --group for a mixture that is there is refused', async () => {
  const args = ['train', 'router', ...onMixture, '--group', 'style=long', '--data', data];
  const { status, stderr } = await cli(args);
  assert.equal(status, 2);
  assert.match(stderr, /--group differs/);
});

test('routing options and a general adapter that a mixture there has not are refused', async () => {
  const args = ['train', 'router', ...onMixture, '--data', data];
  const routing = await cli([...args, '--routing', 'group_top_k=1']);
  assert.deepEqual(
    [routing.status, /--routing group_top_k=1: .* has 0/.test(routing.stderr)],
    [2, true],
    routing.stderr,
  );
  const general = await cli([...args, '--general']);
  assert.deepEqual([general.status, /has no general adapter/.test(general.stderr)], [2, true], general.stderr);
});

test('another shape than that of the pairs that are there is refused', async () => {
  for (const [flag, value] of [
    ['--rank', '2'],
    ['--alpha', '3'],
    ['--target-modules', 'q_proj'],
  ] as const) {
    const args = ['train', 'expert', ...onMixture, '--expert', 'triage', '--data', data, '--steps', '1', flag, value];
    const { status, stderr } = await cli(args);
    assert.deepEqual([status, stderr.includes(`${flag}: function/triage`)], [2, true], stderr);
  }
  const joint = await cli(['train', 'joint', ...onMixture, '--data', data, '--steps', '1', '--rank', '2']);
  assert.deepEqual([joint.status, /--rank: .* has rank 4/.test(joint.stderr)], [2, true], joint.stderr);
});

test('an output that cannot be written is refused before the first step', async () => {
  for (const output of [mixture, join(data, 'below')]) {
    const args = ['train', 'adapter', ...onModel, '--data', data, '--steps', '1', '--output', output, '--json'];
    const { status, stdout, stderr } = await cli(args);
    assert.deepEqual([status, stdout, /ERR_AT_MOE_IO/.test(stderr)], [1, '', true], stderr);
  }
});

test('a negative coefficient may be given with a space', async () => {
  const args = ['train', 'router', ...onMixture, '--data', data, '--steps', '1', '--output', join(folder, 'spread')];
  const { status, stdout, stderr } = await cli([...args, '--entropy', '-0.01', '--json']);
  assert.equal(status, 0, stderr);
  assert.ok('entropy' in (jsonLines(stdout)[0] as Step).losses);
});

test('an interrupt saves the steps done and exits 130', async () => {
  const output = join(folder, 'interrupted');
  const args = ['train', 'joint', ...onMixture, '--data', data, '--epochs', '5000', '--output', output, '--json'];
  const { status, stdout, stderr } = await cli(args, { interruptAt: /"step":3,/ });
  assert.equal(status, 130, stderr);
  assert.equal(stderr, 'aborted\n');
  const last = stdout.trim().split('\n').at(-1) as string;
  assert.equal((JSON.parse(last) as { saved: string }).saved, output);
  await access(join(output, 'mixture.json'));
  assert.equal((await cli(['inspect', output])).status, 0);
});

test('generation: an expert alone counts on, controls change the routing, seeds repeat', async () => {
  const prompt = ['--ids', '21,22,23'];
  const alone = await cli(['generate', ...onMixture, ...prompt, '--expert', 'triage', '--max-tokens', '2', '--json']);
  assert.deepEqual((JSON.parse(alone.stdout) as { tokens: number[] }).tokens, [24, 25]);
  const text = await cli([
    'generate',
    ...onMixture,
    ...prompt,
    '--weights',
    'triage=1',
    '--max-tokens',
    '2',
    '--trace',
  ]);
  assert.match(text.stdout, /^24 25 \n\n/);
  assert.match(text.stdout, /^ {2}triage +1\.000/m);
  const drawn = () =>
    cli(['generate', ...onModel, ...prompt, '--temperature', '1', '--seed', '7', '--max-tokens', '9', '--top-k', '40']);
  assert.equal((await drawn()).stdout, (await drawn()).stdout);
  const unknown = await cli(['generate', ...onMixture, ...prompt, '--deny', 'nobody']);
  assert.equal(unknown.status, 1);
  assert.match(unknown.stderr, /\[ERR_AT_MOE_UNKNOWN_NAME\]/);
  const range = await cli(['generate', ...onMixture, ...prompt, '--top-p', '3']);
  assert.equal(range.status, 2);
});

test('inspect renders the routing of a prompt, per token, and as JSON', async () => {
  const args = ['inspect', ...onMixture, '--ids', '21,22,23', '--deny', 'style'];
  const { stdout, status, stderr } = await cli(args);
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^function +1\.000/m);
  assert.match(stdout, /^ {2}brief +0\.000/m);
  assert.match(stdout, /^token +function +style$/m);
  assert.match(stdout, /^22 /m);
  const json = JSON.parse((await cli([...args, '--json'])).stdout) as { layers: unknown[]; tokens: { id: number }[] };
  assert.equal(json.layers.length, 2);
  assert.deepEqual(
    json.tokens.map(({ id }) => id),
    [21, 22, 23],
  );
  const text = await cli(['inspect', 'hello', ...onMixture]);
  assert.equal(text.status, 1);
  assert.match(text.stderr, /tokenizer\.json.*\[ERR_AT_MOE_UNSUPPORTED\]/);
});

test('inspect describes folders of all kinds', async () => {
  const model = JSON.parse((await cli(['inspect', base, '--json'])).stdout) as {
    kind: string;
    config: { numLayers: number };
  };
  assert.equal(model.kind, 'model');
  assert.equal(model.config.numLayers, 2);
  const both = await cli(['inspect', ...onMixture]);
  assert.match(both.stdout, /^architecture +llama$/m);
  assert.match(both.stdout, /^function\/triage +4 +4 /m);
  assert.match(both.stdout, /^routing +scope=token /m);
  const adapter = await cli(['inspect', join(mixture, 'experts', 'style', 'brief')]);
  assert.match(adapter.stdout, /^rank +4, alpha 4$/m);
});

test('a base in 8 bits, made at load or before, answers alike', async () => {
  const small = join(folder, 'q8');
  const made = await cli(['quantize', base, small]);
  assert.deepEqual([made.status, made.stdout, made.stderr], [0, '', '']);
  const loss = async (...model: string[]) => {
    const { stdout } = await cli(['evaluate', '--model', ...model, '--data', data, '--json']);
    return (JSON.parse(stdout) as { loss: number }).loss;
  };
  const before = await loss(small);
  assert.equal(before, await loss(base, '--storage', 'q8'));
  assert.ok(Math.abs(before - (await loss(base))) < 0.02 * before);
  assert.match((await cli(['inspect', small])).stdout, /^stored .* in q8, /m);
  const again = await cli(['quantize', small, join(folder, 'again')]);
  assert.equal(again.status, 1);
  assert.match(again.stderr, /8 bits already \[ERR_AT_MOE_UNSUPPORTED\]/);
});

test('experts in 8 bits are scored alike', async () => {
  const loss = async (...storage: string[]) => {
    const target = ['--mixture', mixture, ...storage, '--data', data, '--json'];
    const { stdout, stderr, status } = await cli(['evaluate', ...onModel, ...target]);
    assert.equal(status, 0, stderr);
    return (JSON.parse(stdout) as { loss: number }).loss;
  };
  const [stored, blocks] = [await loss(), await loss('--expert-storage', 'q8')];
  assert.ok(stored !== blocks && Math.abs(stored - blocks) < 0.02 * stored, `${stored} ${blocks}`);
});

test('one adapter and a base are trained without a mixture', async () => {
  const adapter = join(folder, 'adapter');
  const steps = ['--data', data, '--steps', '2'];
  assert.equal((await cli(['train', 'adapter', ...onModel, ...steps, '--output', adapter])).status, 0);
  assert.equal((await cli(['train', 'adapter', ...onModel, ...steps, '--adapter', adapter])).status, 0);
  const trained = join(folder, 'base');
  assert.equal((await cli(['train', 'base', ...onModel, ...steps, '--output', trained])).status, 0);
  const { stdout } = await cli([
    'generate',
    '--model',
    trained,
    '--ids',
    '5',
    '--max-tokens',
    '2',
    '--adapter',
    adapter,
  ]);
  assert.match(stdout, /^\d+ /);
});

test('a run goes on from its checkpoint', async () => {
  const state = join(folder, 'state');
  const run = ['train', 'adapter', ...onModel, '--data', data, '--epochs', '2', '--batch-tokens', '64', '--json'];
  const whole = jsonLines((await cli([...run, '--output', join(folder, 'whole')])).stdout);
  const output = ['--output', join(folder, 'parts'), '--checkpoint', state, '--checkpoint-every', '1'];
  const first = await cli([...run, ...output], { interruptAt: /"step":2,/ });
  const done = jsonLines(first.stdout).filter(({ losses }) => losses).length;
  const rest = jsonLines((await cli([...run, ...output, '--resume', state])).stdout);
  if (first.status === 130) assert.equal(rest[0]?.step, done + 1);
  assert.equal(rest.at(-1)?.loss, whole.at(-1)?.loss);
});
