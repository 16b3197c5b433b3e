import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Tokenizer } from '../../lib/text/tokenizer.js';
import { readShared, sharedData, unlessPresent } from './shared-data.js';

interface Case {
  text: string;
  ids: number[];
  ids_plain?: number[];
  decoded: string;
  decoded_with_special?: string;
}

const folders = [
  'models/stories260K',
  'models/babyllama-tok105',
  'tokenizers/gpt2',
  'tokenizers/llama2',
  'tokenizers/llama3',
  'tokenizers/qwen2',
  'tokenizers/phi3-mini',
  'tokenizers/phi2',
];

for (const folder of folders) {
  test(`ids and text of the reference library: ${folder}`, { skip: unlessPresent(folder) }, async () => {
    const tokenizer = await Tokenizer.load(join(sharedData, folder));
    // The reference obeys the truncation stored in tokenizer.json; this package, like transformers, does not.
    const { truncation } = readShared<{ truncation?: { max_length: number } }>(`${folder}/tokenizer.json`);
    const limit = truncation?.max_length ?? Number.POSITIVE_INFINITY;
    const { cases } = readShared<{ cases: Case[] }>(`${folder}/cases.json`);
    assert.equal(cases.length, 219);
    for (const { text, ids, ids_plain = ids, decoded, decoded_with_special = decoded } of cases) {
      const label = JSON.stringify(text);
      assert.deepEqual(tokenizer.encode(text).slice(0, limit), ids, label);
      assert.deepEqual(tokenizer.encode(text, { addSpecialTokens: false }).slice(0, limit), ids_plain, label);
      assert.equal(tokenizer.decode(ids), decoded, label);
      assert.equal(tokenizer.decode(ids, { skipSpecialTokens: false }), decoded_with_special, label);
    }
  });

  test(`a continuation decodes to the text itself: ${folder}`, { skip: unlessPresent(folder) }, async () => {
    const tokenizer = await Tokenizer.load(join(sharedData, folder));
    for (const completion of ['chien', ' chien', 'a b\n c', '€ 5']) {
      const prompt = tokenizer.encode('English: dog. French:');
      const whole = [...prompt, ...tokenizer.encodeContinuation(completion, prompt)];
      const known = tokenizer.encode(completion).every((id) => tokenizer.idToToken(id) !== '<unk>');
      if (known) assert.equal(tokenizer.decode(whole), `English: dog. French:${completion}`);
    }
    const start = tokenizer.encode('');
    assert.deepEqual([...start, ...tokenizer.encodeContinuation('Once upon', start)], tokenizer.encode('Once upon'));
  });
}

test('special ids come from all the files that name them', { skip: unlessPresent('models/stories260K') }, async () => {
  const stories = await Tokenizer.load(join(sharedData, 'models/stories260K'));
  assert.equal(stories.bosId, 1);
  assert.equal(stories.eosId, 2);
  assert.equal(stories.padId, undefined);
  assert.deepEqual(stories.eosIds, [2]);
  assert.equal(stories.vocabSize, 512);
  assert.equal(stories.chatTemplate, undefined);
  const qwen = await Tokenizer.load(join(sharedData, 'tokenizers/qwen2'));
  assert.equal(qwen.eosId, qwen.tokenToId('<|im_end|>'));
  assert.equal(typeof qwen.chatTemplate, 'string');
});

const tiny = {
  added_tokens: [
    { id: 0, content: '<s>', special: true },
    { id: 1, content: '</s>', special: true },
    { id: 2, content: '<end>', special: true },
  ],
  model: { type: 'BPE', vocab: { '<s>': 0, '</s>': 1, '<end>': 2, a: 3, b: 4 }, merges: [] },
  decoder: { type: 'Fuse' },
};

test('lists of end ids, BOS switches and unknown characters', () => {
  const config = { bos_token: { content: '<s>' }, eos_token: '</s>', add_bos_token: true };
  const ids = { bosId: undefined, padId: undefined, eosIds: [2, 1] };
  const tokenizer = new Tokenizer({ tokenizer: tiny, config, ids });
  assert.deepEqual(tokenizer.eosIds, [2, 1]);
  assert.equal(tokenizer.eosId, 1);
  assert.deepEqual(tokenizer.encode('ab'), [0, 3, 4]);
  assert.deepEqual(tokenizer.encode('ab', { addSpecialTokens: false }), [3, 4]);
  assert.deepEqual(tokenizer.encode('aéb', { addSpecialTokens: false }), [3, 4]);
  assert.equal(tokenizer.decode([0, 3, 99, 4]), 'ab');
  assert.equal(tokenizer.decode([]), '');
});

test('a folder without tokenizer.json, and damaged ones', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'at-moe-tokenizer-'));
  try {
    assert.equal(await Tokenizer.loadIfPresent(folder), undefined);
    await assert.rejects(Tokenizer.load(folder), { code: 'ERR_AT_MOE_NOT_FOUND' });
    await writeFile(join(folder, 'tokenizer.json'), '{"model":');
    await assert.rejects(Tokenizer.load(folder), { code: 'ERR_AT_MOE_BAD_FILE', message: /tokenizer\.json/ });
    await writeFile(join(folder, 'tokenizer.json'), '{"model": {"type": "Mystery"}}');
    await assert.rejects(Tokenizer.load(folder), { code: 'ERR_AT_MOE_BAD_FILE' });
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tiny));
    await writeFile(join(folder, 'generation_config.json'), '{"eos_token_id": "two"}');
    await assert.rejects(Tokenizer.load(folder), { code: 'ERR_AT_MOE_BAD_FILE', message: /eos_token_id/ });
  } finally {
    await rm(folder, { recursive: true });
  }
});
