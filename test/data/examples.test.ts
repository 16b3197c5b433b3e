import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { type TokenizedExample, type TokenizeOptions, tokenizeExamples } from '../../lib/data/examples.js';
import type { ExampleRow, ExampleSource } from '../../lib/data/rows.js';
import { ChatTemplate } from '../../lib/text/chat-template.js';
import { Tokenizer } from '../../lib/text/tokenizer.js';
import { sharedData, unlessPresent } from '../text/shared-data.js';

/** One token per character of "a-z", space, newline, "<" … with <s> = 0, </s> = 1, <end> = 2. */
function characterTokenizer(config: Record<string, unknown> = {}): Tokenizer {
  const characters = [...'abcdefghijklmnopqrstuvwxyz \n.:<>/'];
  const special = ['<s>', '</s>', '<end>'];
  const vocab = Object.fromEntries([...special, ...characters].map((token, id) => [token, id]));
  return new Tokenizer({
    tokenizer: {
      added_tokens: special.map((content, id) => ({ id, content, special: true })),
      model: { type: 'BPE', vocab, merges: [] },
      decoder: { type: 'Fuse' },
    },
    config: { bos_token: '<s>', eos_token: '</s>', add_bos_token: true, ...config },
    ids: { bosId: 0, padId: undefined, eosIds: [1, 2] },
  });
}

const tokenizer = characterTokenizer();
const groups = [
  { name: 'function', experts: ['diagnosis', 'triage'] },
  { name: 'style', experts: ['short', 'triage'] },
];

async function read(source: ExampleSource, options: Partial<TokenizeOptions> = {}): Promise<TokenizedExample[]> {
  const examples: TokenizedExample[] = [];
  for await (const example of tokenizeExamples(source, { tokenizer, ...options })) examples.push(example);
  return examples;
}

const text = (ids: Int32Array): string => tokenizer.decode(ids, { skipSpecialTokens: false });

test('prompt with BOS, completion with EOS, weights on the completion', async () => {
  const [example] = await read([{ prompt: 'ab', completion: 'cd' }]);
  assert.equal(text(example!.ids), '<s>abcd</s>');
  assert.equal(example!.promptLength, 3);
  assert.deepEqual([...example!.tokenWeights], [0, 0, 0, 1, 1, 1]);
  assert.deepEqual([...example!.zeroWeight], [0, 0, 0, 0, 0, 0]);
  assert.equal(example!.source, 'row 1');
  const [all] = await read([{ prompt: 'ab', completion: 'cd' }], { lossOn: 'all', appendEos: false });
  assert.deepEqual([...all!.tokenWeights], [0, 1, 1, 1, 1]);
});

test('weight spans, the EOS of a part that is not learnt, KL positions', async () => {
  const weight = [
    { start: 1, end: 2, weight: 0.5 },
    { start: 3, end: 5, weight: 0 },
  ];
  const [example] = await read([{ prompt: 'x', completion: 'abcde', weight }]);
  assert.deepEqual([...example!.tokenWeights], [0, 0, 1, 0.5, 1, 0, 0, 0]);
  assert.deepEqual([...example!.zeroWeight], [0, 0, 0, 0, 0, 1, 1, 1]);
});

test('rows of ids are taken as they are', async () => {
  const row = { prompt: [5, 6], completion: [7, 8, 9], weight: [{ start: 0, end: 1, weight: 0 }] };
  const [example] = await read([row], { tokenizer: undefined });
  assert.deepEqual([...example!.ids], [5, 6, 7, 8, 9]);
  assert.deepEqual([...example!.tokenWeights], [0, 0, 0, 1, 1]);
});

const template =
  "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ ('<end>' if m.role == 'assistant' else '\n') }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";

test('every assistant turn of a conversation is an example', async () => {
  const chatTemplate = new ChatTemplate(template);
  const messages = [
    { role: 'user', content: 'hi' },
    { role: 'assistant', content: 'yes' },
    { role: 'user', content: 'ok' },
    { role: 'assistant', content: 'bye' },
  ];
  const examples = await read([{ messages }], { chatTemplate });
  assert.deepEqual(
    examples.map(({ ids, source }) => [text(ids), source]),
    [
      ['user:hi\nassistant:yes<end>', 'row 1 (message 1)'],
      ['user:hi\nassistant:yes<end>user:ok\nassistant:bye<end>', 'row 1 (message 3)'],
    ],
  );
  const weight = [{ start: 0, end: 2, weight: 0 }];
  const [weighted] = await read([{ messages: messages.slice(0, 2), weight }], { chatTemplate });
  assert.deepEqual([...weighted!.tokenWeights.slice(weighted!.promptLength)], [0, 0, 1, 1]);
  await assert.rejects(read([{ messages, weight }], { chatTemplate }), { message: /row 1: .*one assistant turn/ });
  await assert.rejects(read([{ messages }]), { code: 'ERR_AT_MOE_UNSUPPORTED' });
});

test('labels become indices and are checked', async () => {
  const labelled = async (labels: Partial<ExampleRow>, options: object = { groups }) => {
    const [example] = await read([{ prompt: 'a', completion: 'b', ...labels } as ExampleRow], options);
    return [example!.groups && [...example!.groups], example!.experts && [...example!.experts]];
  };
  assert.deepEqual(await labelled({}), [undefined, undefined]);
  assert.deepEqual(await labelled({ groups: ['style', 'function'] }), [[0, 1], undefined]);
  assert.deepEqual(await labelled({ experts: ['style/triage', 'diagnosis'] }), [
    [0, 1],
    [0, 3],
  ]);
  assert.deepEqual(await labelled({ groups: ['style', 'function'], experts: ['short'] }), [[0, 1], [2]]);
  const bad = (labels: Partial<ExampleRow>, message: RegExp, options?: object) =>
    assert.rejects(labelled(labels, options), { code: 'ERR_AT_MOE_BAD_DATA', message });
  await bad({ groups: ['tone'] }, /row 1: unknown group "tone"/);
  await bad({ experts: ['function/short'] }, /row 1: unknown expert "function\/short"/);
  await bad({ experts: ['triage'] }, /ambiguous: function\/triage or style\/triage/);
  await bad({ groups: ['style'], experts: ['diagnosis'] }, /its group is not/);
});

test('ids outside the vocabulary name their row', async () => {
  const ids = (prompt: number[], completion: number[]) => read([{ prompt, completion }], { vocabSize: 10 });
  assert.equal((await ids([9], [0])).length, 1);
  for (const [prompt, completion] of [
    [[10], [1]],
    [[1], [2, 10]],
  ] as const) {
    await assert.rejects(ids([...prompt], [...completion]), {
      code: 'ERR_AT_MOE_BAD_DATA',
      message: /row 1: token id 10 is outside the vocabulary of 10/,
    });
  }
});

test('too long: error, truncate, skip', async () => {
  const rows = [
    { prompt: 'abc', completion: 'defg' },
    { prompt: 'a', completion: 'b' },
  ];
  await assert.rejects(read(rows, { maxLength: 6 }), {
    code: 'ERR_AT_MOE_CONTEXT_LENGTH',
    message: /row 1: .* 9 tokens/,
  });
  const truncated = await read(rows, { maxLength: 6, tooLong: 'truncate' });
  assert.equal(text(truncated[0]!.ids), '<s>abcde');
  const skipped: unknown[] = [];
  const kept = await read(rows, { maxLength: 6, tooLong: 'skip', onSkip: (...args) => skipped.push(args) });
  assert.deepEqual([kept.length, skipped], [1, [['row 1', 9]]]);
  const promptTooLong = read(rows, { maxLength: 4, tooLong: 'truncate' });
  await assert.rejects(promptTooLong, { code: 'ERR_AT_MOE_CONTEXT_LENGTH', message: /prompt alone 4/ });
  await assert.rejects(read(rows, { maxLength: 0 }), RangeError);
});

test('an empty prompt needs BOS; an empty completion is refused', async () => {
  const [example] = await read([{ prompt: '', completion: 'a' }]);
  assert.equal(text(example!.ids), '<s>a</s>');
  const without = characterTokenizer({ add_bos_token: false });
  const rejected = read([{ prompt: '', completion: 'a' }], { tokenizer: without });
  await assert.rejects(rejected, { code: 'ERR_AT_MOE_EMPTY_PROMPT' });
  await assert.rejects(read([{ prompt: 'a', completion: '' }]), { code: 'ERR_AT_MOE_BAD_DATA' });
});

test('malformed rows are named by file and line', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'at-moe-examples-'));
  try {
    const file = join(folder, 'train.jsonl');
    const bad = async (row: unknown, message: RegExp) => {
      await writeFile(file, `{"prompt":"a","completion":"b","task":"x"}\n\n${JSON.stringify(row)}\n`);
      await assert.rejects(read(file), { code: 'ERR_AT_MOE_BAD_DATA', message });
    };
    await bad([], /train\.jsonl:3: a row must be/);
    await bad({ prompt: 'a' }, /train\.jsonl:3: completion/);
    await bad({ text: 'a' }, /train\.jsonl:3: a row needs/);
    await bad({ prompt: 'a', completion: 'b', messages: [] }, /train\.jsonl:3: a row needs/);
    await bad({ messages: [{ role: 'user' }] }, /train\.jsonl:3: messages\.0\.content/);
    await bad({ prompt: 'a', completion: 'b', groups: 'style' }, /train\.jsonl:3: groups/);
    await bad({ prompt: 'a', completion: 'b', weight: [{ start: 0, end: 9, weight: 1 }] }, /:3: .*ends after 1/);
    await bad({ prompt: 'a', completion: 'b', weight: [{ start: 1, end: 1, weight: 1 }] }, /:3: weight\.0.*greater/);
    await bad({ prompt: 'a', completion: 'b', weight: [{ start: 0, end: 1, weight: -1 }] }, /:3: weight\.0\.weight/);
    const twice = { start: 0, end: 2, weight: 1 };
    await bad({ prompt: 'a', completion: 'bc', weight: [twice, twice] }, /:3: .*overlaps/);
  } finally {
    await rm(folder, { recursive: true });
  }
  await assert.rejects(read(5 as never), TypeError);
});

test('reading stops on abort and leaves the event loop its turns', async () => {
  const aborted = read([{ prompt: 'a', completion: 'b' }], { signal: AbortSignal.abort() });
  await assert.rejects(aborted, { code: 'ERR_AT_MOE_ABORTED' });
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  await read(Array.from({ length: 4000 }, () => ({ prompt: 'abc'.repeat(20), completion: 'def'.repeat(20) })));
  clearInterval(timer);
  assert.ok(ticks > 2, `${ticks} timer calls`);
});

for (const folder of ['models/stories260K', 'models/babyllama-tok105', 'tokenizers/gpt2', 'tokenizers/qwen2']) {
  test(`spans on word borders reach the tokens inside them: ${folder}`, { skip: unlessPresent(folder) }, async () => {
    const real = await Tokenizer.load(join(sharedData, folder));
    // A decomposed character: only the tokenizer with a normal form changes it.
    const normalised = folder.endsWith('qwen2') ? ['e\u0301t'] : [];
    const word = fc.constantFrom('Lily', 'saw', 'a', 'big', 'café', '€5', '😀', 'ball.', '\n', ...normalised);
    await fc.assert(
      fc.asyncProperty(fc.array(word, { minLength: 1, maxLength: 8 }), fc.nat(7), async (words, pick) => {
        const at = pick % words.length;
        const pieces = words.map((w, i) => (i === 0 ? w : ` ${w}`));
        const completion = pieces.join('');
        const start = pieces.slice(0, at).join('').length;
        const weight = [{ start, end: start + pieces[at]!.length, weight: 0 }];
        const options = { tokenizer: real, appendEos: false };
        const [example] = await read([{ prompt: 'One:', completion, weight }], options);
        const { ids, promptLength, tokenWeights, zeroWeight } = example!;
        const chosen = [...ids].filter((_, t) => t >= promptLength && tokenWeights[t] === 0);
        assert.equal(
          zeroWeight.reduce((sum, v) => sum + v, 0),
          chosen.length,
        );
        if ([...ids].some((id) => real.idToToken(id) === '<unk>')) return;
        assert.equal(real.decode(chosen).trim(), pieces[at]!.normalize('NFC').trim());
      }),
      { numRuns: 60 },
    );
  });
}
