import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Ajv2020 } from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';
import type { Schema } from '../../lib/grammar/keywords.js';
import { compileSchema } from '../../lib/grammar/schema.js';
import type { VocabularyDescription } from '../../lib/native-types.js';
import { Random } from '../ops/support.js';
import { schemas } from './schemas.js';
import { bytesOf, demoVocabulary, sizeOf, straddling, vocabularyOf, type Walk, walks } from './support.js';

const ajv = new Ajv2020({ strict: false, unicodeRegExp: true });
addFormats.default(ajv);

/** Weights of a random model; what ends strings and containers is likelier, the last token ends the text. */
function randomWeights(vocabulary: VocabularyDescription, seed: number, closing: number): Float32Array {
  const random = new Random(seed);
  const weights = random.array(sizeOf(vocabulary), 1.5).map(Math.exp);
  for (let id = 0; id < weights.length; id++) {
    const text = Buffer.from(bytesOf(vocabulary, id)).toString('latin1');
    if (/["\]}]/.test(text)) weights[id] = (weights[id] as number) * closing;
  }
  weights[weights.length - 1] = 20;
  return weights;
}

/** What a walk begins with, completed: by tokens that close. */
function completed(vocabulary: VocabularyDescription, schema: string, strict: boolean, seed: number): Walk[] {
  const grammar = compileSchema(schemas[schema] as Schema, strict);
  const settings = { seed, walks: 40, maxTokens: 300 };
  return walks(vocabulary, grammar, randomWeights(vocabulary, seed, 30), settings);
}

describe('random walks', async () => {
  const vocabulary = await demoVocabulary();
  for (const [name, schema] of Object.entries(schemas)) {
    it(`${name}: every text that ends is a value of the schema`, () => {
      const validate = ajv.compile(typeof schema === 'object' ? structuredClone(schema) : schema);
      let ended = 0;
      for (const strict of [true, false]) {
        for (const seed of [1, 2, 3]) {
          for (const walk of completed(vocabulary, name, strict, 1000 * seed)) {
            if (!walk.ended) continue;
            ended++;
            assert.ok(validate(JSON.parse(walk.text)), `${walk.text}: ${JSON.stringify(validate.errors)}`);
          }
        }
      }
      assert.ok(ended > 60, `only ${ended} of 240 ended`);
    });
  }

  it('whatever has been written can be ended', () => {
    const closing = new Float32Array(sizeOf(vocabulary)).fill(1);
    for (const [text, weight] of [
      ['"', 1e5],
      [']', 1e6],
      ['}', 1e6],
      ['@', 1e4],
      ['', 1e7],
    ] as const) {
      for (let id = 0; id < closing.length; id++) {
        if (Buffer.from(bytesOf(vocabulary, id)).toString() === text) closing[id] = weight;
      }
    }
    for (const [name, schema] of Object.entries(schemas)) {
      const grammar = compileSchema(schema, false);
      const weights = randomWeights(vocabulary, 7, 1);
      for (const { tokens } of walks(vocabulary, grammar, weights, { seed: 9, walks: 12, maxTokens: 17 })) {
        const [end] = walks(vocabulary, grammar, closing, { seed: 9, walks: 1, maxTokens: 2000, tokens }) as [Walk];
        assert.ok(end.ended, `${name}: ${Buffer.concat(Array.from(tokens, (id) => bytesOf(vocabulary, id)))}`);
      }
    }
  });

  it('tokens that straddle structure are used', () => {
    const names = ['any object', 'tree', 'map', 'list'];
    const found = [1, 2, 3, 4].flatMap((seed) => names.flatMap((name) => completed(vocabulary, name, true, seed)));
    const ids = found.flatMap(({ tokens }) => [...tokens]);
    const used = new Set(ids.map((id) => Buffer.from(bytesOf(vocabulary, id)).toString()));
    for (const token of straddling) assert.ok(used.has(token), token);
  });

  it('a vocabulary of single bytes gives valid UTF-8 and valid escapes', () => {
    const bytes = vocabularyOf(Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte)));
    const weights = new Float32Array(257).fill(1);
    weights[0x22] = 8;
    weights[0x5c] = 30;
    weights[0x75] = 30;
    for (const { text, ended } of walks(bytes, compileSchema({ type: 'string' }, true), weights, {
      seed: 3,
      walks: 500,
      maxTokens: 500,
    })) {
      assert.ok(ended);
      assert.ok(!/\p{Surrogate}/u.test(JSON.parse(text)), text);
    }
  });
});
