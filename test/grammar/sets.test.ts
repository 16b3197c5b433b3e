import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { Schema } from '../../lib/grammar/keywords.js';
import { compileSchema } from '../../lib/grammar/schema.js';
import { tokenBytes } from '../../lib/text/token-bytes.js';
import { Tokenizer } from '../../lib/text/tokenizer.js';
import { run } from '../helpers/ops.js';
import { Random } from '../ops/support.js';
import { sharedData, unlessPresent } from '../text/shared-data.js';
import { schemas } from './schemas.js';
import { bytesOf, demoVocabulary, read, singleBytes, sizeOf, tokensOf, vocabularyOf } from './support.js';

/** The sets before each token of a text and after the last. */
function setsOf(vocabulary: Awaited<ReturnType<typeof demoVocabulary>>, schema: Schema, text: string): Set<number>[] {
  const grammar = compileSchema(schema, true);
  const { sets } = run('grammarSets', 'cpu', { vocabulary, grammar, tokens: tokensOf(vocabulary, text) });
  const words = Math.ceil(sizeOf(vocabulary) / 32);
  return Array.from({ length: sets.length / words }, (_, n) => {
    const ids = Array.from({ length: sizeOf(vocabulary) }, (_, id) => id);
    return new Set(ids.filter((id) => ((sets[n * words + (id >> 5)] >>> (id & 31)) & 1) === 1));
  });
}

describe('sets of allowed tokens', () => {
  const texts: [schema: string, text: string][] = [
    ['any object', '{"a": [1, {"b":"x\\n\\u00e9é"}], "c":-1.5e3'],
    ['object', '{"name": "x", "tags":["a","b"]}'],
    ['string lengths', '["ab", "abcd'],
    ['exact length', '"aé'],
    ['long string', `"${'x'.repeat(98)}`],
    ['pattern', '"Abc def'],
    ['pattern, unanchored', '"xa1xy'],
    ['pattern, escapes', '"\\n\\"é'],
    ['additional of a type', '{"ab":true,"x":1,"a'],
    ['anyOf', '{"kind":"circle'],
    ['number range, open', '-1.2'],
    ['list', '{"value":1,"next":{"value":2, "next":null'],
  ];
  for (const [name, text] of texts) {
    it(`${name}: a token is allowed exactly when its bytes are`, async () => {
      const vocabulary = await demoVocabulary();
      const grammar = compileSchema(schemas[name] as Schema, true);
      const sets = setsOf(vocabulary, schemas[name] as Schema, text);
      const tokens = tokensOf(vocabulary, text);
      const random = new Random(1);
      let before = Buffer.alloc(0);
      for (const [n, set] of sets.entries()) {
        // Every token at the end, a sample on the way there.
        for (let id = 0; id < sizeOf(vocabulary); id++) {
          const bytes = bytesOf(vocabulary, id);
          if (n < sets.length - 1 && random.uniform() > 0.03) continue;
          const fits = bytes.length > 0 && read(grammar, Buffer.concat([before, bytes])) !== undefined;
          assert.equal(set.has(id), fits, `${before}|${Buffer.from(bytes)}`);
        }
        if (n < tokens.length) before = Buffer.concat([before, bytesOf(vocabulary, tokens[n] as number)]);
      }
    });
  }

  it('long tokens fit as far as a length allows', () => {
    const vocabulary = vocabularyOf([
      ...singleBytes,
      ...[1, 15, 16, 17, 18, 40].map((n) => 'y'.repeat(n)),
      'é'.repeat(17),
      `${'y'.repeat(17)}"`,
    ]);
    for (const [most, expected] of [
      [15, ['15']],
      [16, ['15', '16']],
      [17, ['15', '16', '17', 'é', '"']],
      [18, ['15', '16', '17', '18', 'é', '"']],
      [100, ['15', '16', '17', '18', '40', 'é', '"']],
    ] as const) {
      const [, set] = setsOf(vocabulary, { type: 'string', maxLength: most }, '"') as [Set<number>, Set<number>];
      const names = ['1', '15', '16', '17', '18', '40', 'é', '"'];
      const found = names.filter((_, i) => set.has(256 + i));
      assert.deepEqual(found, ['1', ...expected], `${most}`);
    }
  });

  describe('of broad patterns are those of a naive walk over all tokens', () => {
    const lengths = [2, 3, 5, 9, 15, 16, 17, 33, 253, 254, 255, 256, 300];
    const vocabulary = vocabularyOf([
      ...singleBytes,
      ...lengths.flatMap((n) => ['y'.repeat(n), `${'y'.repeat(n)}"`, 'é'.repeat(n), 'aZ9_'.repeat(n)]),
      ...[
        ' the',
        'abc',
        'x"',
        'xx',
        'ax"',
        'ab\n',
        'ab\\n',
        '\\n',
        '\\"',
        '\\u00e9',
        '\\u0041',
        'a\\',
        'a"b',
        '", "',
        'a,b',
      ],
      ...['日本', '日本語x', 'é日😀', '😀😀', 'a😀"', '\x7f', 'a\u2028', 'a b', 'a.b@c', '@mail.', 'é1', '12', '1a'],
      ...['61e6', 'e697', 'a5', '97a5', 'c3', 'a961', 'f09f', '98806f', 'eda080', '61c080', 'ff61'].map((hex) =>
        Buffer.from(hex, 'hex'),
      ),
    ]);
    const cases: [schema: Schema, text: string][] = [
      [{ pattern: '^.{1,40}x$' }, '"abc the日本éabc😀😀aZ9_aZ9_aZ9_aZ9_yyyyya'],
      [{ pattern: '^.{2,300}x$' }, '"ab'],
      [{ pattern: '^[^\\n"]*$' }, '"a😀b\\\\'],
      [{ pattern: '^[A-Z][a-z]{1,20}( [a-zé]+)*$' }, '"Zyyyyyyyyy theéé'],
      [{ pattern: '^[a-z]+[0-9]{2}[a-z]*$' }, '"abc12abc'],
      [{ pattern: 'a\\dx' }, '"é日a1x"'],
      [{ pattern: '^[\\u0800-\\u{10ffff}a]{1,9}$' }, '"日本語😀😀日本a'],
      [{ pattern: '^\\w+$', minLength: 3, maxLength: 18 }, '"aZ9_aZ9_yyyyyy'],
      [
        { anyOf: [{ pattern: '^.{1,9}x$' }, { pattern: '^[a-z ]{3,12}$' }, { type: 'string', maxLength: 4 }] },
        '"ab the',
      ],
      [{ format: 'email' }, '"abc.abc@mail.the'],
      [{ type: 'object', propertyNames: { pattern: '^[a-z]{2,6}$' } }, '{"abc": "日'],
    ];
    for (const [schema, text] of cases) {
      it(JSON.stringify(schema), () => {
        const grammar = compileSchema(schema, true);
        const tokens = tokensOf(vocabulary, text);
        let before = Buffer.alloc(0);
        for (const [n, set] of setsOf(vocabulary, schema, text).entries()) {
          const fits = (id: number) => {
            const bytes = bytesOf(vocabulary, id);
            return bytes.length > 0 && read(grammar, Buffer.concat([before, bytes])) !== undefined;
          };
          const expected = Array.from({ length: sizeOf(vocabulary) }, (_, id) => id).filter(fits);
          assert.deepEqual([...set], expected, `${before}`);
          if (n < tokens.length) before = Buffer.concat([before, bytesOf(vocabulary, tokens[n] as number)]);
        }
      });
    }

    it('they have spans', () => {
      for (const [schema] of cases) assert.ok(compileSchema(schema, true).spans.length > 0, JSON.stringify(schema));
    });
  });

  it('more readings of one text than there may be are an error', () => {
    const schema: Schema = { anyOf: Array.from({ length: 1100 }, (_, i) => ({ type: 'string', minLength: i })) };
    const grammar = compileSchema(schema, true);
    const call = () =>
      run('grammarSets', 'cpu', { vocabulary: vocabularyOf(singleBytes), grammar, tokens: Int32Array.of(0x22) });
    assert.throws(call, { code: 'ERR_AT_MOE_UNSUPPORTED' });
  });

  it('damaged grammars and vocabularies are refused', () => {
    const good = compileSchema({ type: 'object', properties: { a: { type: 'string' } } }, true);
    const vocabulary = vocabularyOf(singleBytes);
    const call =
      (grammar: object, words: object = vocabulary) =>
      () =>
        run('grammarSets', 'cpu', { vocabulary: words, grammar, tokens: new Int32Array() });
    call(good)();
    const changed = (name: keyof typeof good, index: number, value: number) => {
      const values = good[name].slice();
      values[index] = value;
      return { ...good, [name]: values };
    };
    const strings = Array.from({ length: good.nodes.length / 7 }, (_, i) => 7 * i).filter(
      (i) => good.nodes[i + 3] === 2,
    );
    for (const grammar of [
      changed('edges', 2, 1000),
      changed('edges', 0, 300),
      changed('calls', 0, 99),
      changed('calls', 1, -2),
      changed('empty', 0, -1),
      changed('rules', 0, 1 << 20),
      changed('nodes', 0, 1 << 20),
      changed('nodes', 7, -1),
      changed('nodes', 3, 7),
      changed('nodes', (strings[0] as number) + 6, -1),
      changed('nodes', (strings[0] as number) + 4, -5),
      { ...good, sets: Int32Array.of(1, 0x20, 0x30) },
      { ...good, sets: Int32Array.of(0, 0x20, 0x30, 0, 0x30, 0x40) },
      { ...good, spans: Int32Array.of(0, 0, 1) },
      { ...good, sets: Int32Array.of(0, 0x20, 0x30), spans: Int32Array.of(1 << 20, 0, 1) },
      { ...good, sets: Int32Array.of(0, 0x20, 0x30), spans: Int32Array.of((strings[0] as number) / 7, 0, 1) },
      { ...good, rules: new Int32Array() },
      { ...good, nodes: good.nodes.slice(1) },
    ]) {
      assert.throws(call(grammar), { code: 'ERR_AT_MOE_INTERNAL' });
    }
    assert.throws(call(good, { ...vocabulary, offsets: Int32Array.of(0, 5, 3) }), { code: 'ERR_AT_MOE_INTERNAL' });
  });
});

describe('bytes of tokens', () => {
  for (const name of ['gpt2', 'llama2', 'llama3', 'phi2', 'phi3-mini', 'qwen2']) {
    it(`${name}: are those of the decoded text`, { skip: unlessPresent(`tokenizers/${name}`) }, async () => {
      const tokenizer = await Tokenizer.load(join(sharedData, 'tokenizers', name));
      const vocabulary = await tokenBytes(tokenizer, tokenizer.vocabSize + 3);
      assert.equal(sizeOf(vocabulary), tokenizer.vocabSize + 3);
      const before = tokenizer.encode('x', { addSpecialTokens: false });
      const start = tokenizer.decode(before).length;
      for (let id = 0; id < tokenizer.vocabSize; id += 31) {
        const bytes = bytesOf(vocabulary, id);
        if (bytes.length === 0) {
          assert.ok(tokenizer.isAdded(id) || !tokenizer.has(id), `${id}`);
          continue;
        }
        const text = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
        if (!text.includes('\ufffd')) assert.equal(tokenizer.decode([...before, id]).slice(start), text, `${id}`);
      }
      const text = 'Grüße, 世界 "😀"\n\t{}';
      const ids = tokenizer.encode(text, { addSpecialTokens: false });
      const all = Buffer.concat(ids.map((id) => bytesOf(vocabulary, id))).toString();
      assert.equal(all.trimStart(), text);
    });
  }
});
