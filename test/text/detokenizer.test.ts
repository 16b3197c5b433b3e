import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { Detokenizer } from '../../lib/text/detokenizer.js';
import { Tokenizer } from '../../lib/text/tokenizer.js';
import { readShared, sharedData, unlessPresent } from './shared-data.js';

const folders = [
  'models/stories260K',
  'models/babyllama-tok105',
  'models/shakespeare-gpt2-char',
  'tokenizers/gpt2',
  'tokenizers/phi2',
];

function stream(detokenizer: Detokenizer, ids: readonly number[]): string[] {
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

for (const folder of folders) {
  test(`pieces make up the whole text: ${folder}`, { skip: unlessPresent(folder) }, async () => {
    const tokenizer = await Tokenizer.load(join(sharedData, folder));
    const id = fc.integer({ min: 0, max: tokenizer.vocabSize + 2 });
    const property = fc.property(fc.array(id, { maxLength: 80 }), fc.boolean(), (ids, skipSpecialTokens) => {
      const pieces = stream(new Detokenizer(tokenizer, { skipSpecialTokens }), ids);
      assert.equal(pieces.join(''), tokenizer.decode(ids, { skipSpecialTokens }));
    });
    fc.assert(property, { numRuns: 300 });
  });

  test(`real text never shows a broken character: ${folder}`, { skip: unlessPresent(folder) }, async () => {
    const tokenizer = await Tokenizer.load(join(sharedData, folder));
    for (const { text } of readShared<{ cases: { text: string }[] }>('tokenizers/gpt2/cases.json').cases) {
      const ids = tokenizer.encode(text);
      const pieces = stream(new Detokenizer(tokenizer), ids);
      assert.equal(pieces.join(''), tokenizer.decode(ids));
      if (!text.includes('\uFFFD')) assert.ok(!pieces.slice(0, -1).some((piece) => piece.includes('\uFFFD')), text);
    }
  });

  test(`text after a prompt: ${folder}`, { skip: unlessPresent(folder) }, async () => {
    const tokenizer = await Tokenizer.load(join(sharedData, folder));
    for (const prompt of ['', 'Once upon', 'Once upon a ', 'one two three four five six seven eight nine:']) {
      const promptIds = tokenizer.encode(prompt);
      for (const text of [' a time', 'a time', ' ', '  two']) {
        const ids = tokenizer.encodeContinuation(text, promptIds);
        const whole = tokenizer.decode([...promptIds, ...ids]);
        const pieces = stream(new Detokenizer(tokenizer, { prompt: promptIds }), ids);
        assert.equal(tokenizer.decode(promptIds) + pieces.join(''), whole);
      }
    }
  });
}

test('a character of several tokens comes out whole', { skip: unlessPresent('models/stories260K') }, async () => {
  const tokenizer = await Tokenizer.load(join(sharedData, 'models/stories260K'));
  const ids = tokenizer.encode('😀!', { addSpecialTokens: false });
  const pieces = stream(new Detokenizer(tokenizer), ids).filter((piece) => piece !== '');
  assert.deepEqual(pieces, ['😀', '!']);
  assert.deepEqual(stream(new Detokenizer(tokenizer), ids.slice(0, 3)).join('').trim(), '\uFFFD');
});

test('the cost of a push does not grow with the stream', { skip: unlessPresent('models/stories260K') }, async () => {
  const tokenizer = await Tokenizer.load(join(sharedData, 'models/stories260K'));
  const lengths: number[] = [];
  const counting = Object.create(tokenizer, {
    has: { value: (id: number) => tokenizer.has(id) },
    isSpecial: { value: (id: number) => tokenizer.isSpecial(id) },
    decode: {
      value: (ids: number[], options: object) => {
        lengths.push(ids.length);
        return tokenizer.decode(ids, options);
      },
    },
  });
  const broken = tokenizer.tokenToId('<0x9F>')!;
  for (const ids of [tokenizer.encode('a long story. '.repeat(60)), Array.from({ length: 600 }, () => broken)]) {
    stream(new Detokenizer(counting), ids);
  }
  assert.ok(Math.max(...lengths) < 40, `${Math.max(...lengths)} tokens decoded at once`);
});
