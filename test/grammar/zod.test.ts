// Schemas as zod and the openai client write them: what is drawn at random by them is read back by zod.
import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import type { Schema } from '../../lib/grammar/keywords.js';
import { compileSchema } from '../../lib/grammar/schema.js';
import type { VocabularyDescription } from '../../lib/native-types.js';
import { accepts, demoVocabulary, sizeOf, walks } from './support.js';

const zoo: Record<string, z.ZodType> = {
  email: z.email(),
  'email of a length': z.email().min(8).max(40),
  uuid: z.uuid(),
  'uuid 4': z.uuidv4(),
  guid: z.guid(),
  url: z.url(),
  'http url': z.httpUrl(),
  'date-time': z.iso.datetime(),
  'date-time, offset': z.iso.datetime({ offset: true }),
  'date-time, local': z.iso.datetime({ offset: true, local: true }),
  date: z.iso.date(),
  time: z.iso.time(),
  duration: z.iso.duration(),
  ipv4: z.ipv4(),
  ipv6: z.ipv6(),
  cidrv4: z.cidrv4(),
  cidrv6: z.cidrv6(),
  base64: z.base64(),
  base64url: z.base64url(),
  e164: z.e164(),
  hostname: z.hostname(),
  hex: z.hex(),
  nanoid: z.nanoid(),
  cuid: z.cuid(),
  cuid2: z.cuid2(),
  ulid: z.ulid(),
  xid: z.xid(),
  ksuid: z.ksuid(),
  mac: z.mac(),
  emoji: z.emoji(),
  'string that begins and ends': z.string().startsWith('a').endsWith('b').max(20),
  'string that includes': z.string().includes('xy'),
  'string in lower case': z.string().lowercase(),
  'string of a pattern and a length': z.string().regex(/[ab]/).min(2).max(5),
  'template literal': z.templateLiteral(['v', z.int(), '.', z.enum(['a', 'b'])]),
  record: z.record(z.string(), z.boolean()),
  'record of all names': z.record(z.enum(['a', 'b', 'c']), z.int()),
  'record of some names': z.partialRecord(z.enum(['a', 'b', 'c']), z.int()),
  'record of a pattern': z.record(z.string().regex(/^x-[a-z]{1,4}$/), z.null()),
  'record of dates': z.record(z.iso.date(), z.boolean()),
  integer: z.int(),
  'integer of 32 bits': z.int32(),
  'positive number': z.number().positive(),
  tuple: z.tuple([z.string().max(3), z.number()]),
  'tuple with a rest': z.tuple([z.boolean()], z.int32()),
  'list that is not empty': z.array(z.boolean()).nonempty(),
  'discriminated union': z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('a'), x: z.int32() }),
    z.object({ kind: z.literal('b'), y: z.iso.date().nullable() }),
  ]),
  object: z.object({ a: z.email().optional(), b: z.uuid().nullable(), c: z.boolean().default(true) }),
  'loose object': z.looseObject({ a: z.boolean() }),
  intersection: z.intersection(z.object({ a: z.null() }), z.object({ b: z.boolean() })),
  literals: z.literal(['a', 1, null]),
};

/** What the client's own helper writes no schema for. */
const refusedByHelper = /^(base64|base64url|string that begins and ends|record.*|tuple.*|object|loose object)$/;

describe('schemas of zod', () => {
  let vocabulary: VocabularyDescription;
  before(async () => {
    vocabulary = await demoVocabulary();
  });

  for (const [name, type] of Object.entries(zoo)) {
    it(name, () => {
      const wrapped = z.object({ value: type });
      const cases: [z.ZodType, Schema][] = [
        [type, z.toJSONSchema(type) as Schema],
        [wrapped, z.toJSONSchema(wrapped) as Schema],
      ];
      const byHelper = () => zodResponseFormat(wrapped, 'answer').json_schema.schema as Schema;
      if (refusedByHelper.test(name)) assert.throws(byHelper);
      else cases.push([wrapped, byHelper()]);
      for (const [parser, schema] of cases) {
        const grammar = compileSchema(schema, true);
        const weights = new Float32Array(sizeOf(vocabulary)).fill(1);
        const drawn = walks(vocabulary, grammar, weights, { seed: 7, walks: 60, maxTokens: 60 });
        const texts = drawn.filter(({ ended }) => ended).map(({ text }) => text);
        for (const text of texts) {
          const { error } = parser.safeParse(JSON.parse(text));
          assert.equal(error, undefined, `${text}: ${error?.message}`);
        }
      }
    });
  }

  const values: [type: z.ZodType, values: unknown[]][] = [
    [z.email(), ['ann.lee+1@mail.example.org']],
    [z.url(), ['https://example.org/a/b%20c?d=e&f#g', 'http://a-b.example.com:8080']],
    [z.ipv6(), ['::', '::1', 'fe80::1:2', '1:2:3:4:5:6:7:8', '1::']],
    [z.base64(), ['', 'YQ==', 'YWI=', 'YWJj']],
    [z.iso.datetime(), ['2024-02-29T12:00:00Z', '2024-02-28T12:00:00.123Z']],
    [z.iso.duration(), ['P1Y2M', 'PT5M', 'P3W']],
    [z.record(z.string(), z.int()), [{}, { a: 1, b: 2 }]],
    [z.record(z.enum(['a', 'b']), z.int()), [{ a: 1, b: 2 }]],
    [z.partialRecord(z.enum(['a', 'b']), z.int()), [{}, { b: 2 }]],
  ];
  for (const [type, own] of values) {
    for (const value of own) {
      it(`${JSON.stringify(value)} can be written`, () => {
        assert.deepEqual(type.parse(value), value);
        assert.ok(accepts(z.toJSONSchema(type) as Schema, JSON.stringify(value)));
      });
    }
  }

  it('a format beside a pattern holds with it, and is an annotation where it is not known', () => {
    const dates: Schema = { type: 'string', format: 'date', pattern: '^2024' };
    assert.ok(accepts(dates, '"2024-05-06"'));
    assert.ok(!accepts(dates, '"2025-05-06"'));
    assert.ok(!accepts(dates, '"2024-05-60"'));
    assert.ok(accepts({ type: 'string', format: 'plate', pattern: '^[A-Z]+$' }, '"AB"'));
  });

  it('names of properties that are named are held to propertyNames', () => {
    const schema: Schema = {
      properties: { a: { type: 'null' }, x: { type: 'null' } },
      propertyNames: { enum: ['a', 'b'] },
      additionalProperties: { type: 'boolean' },
    };
    for (const text of ['{"a":null,"b":true}', '{}', '{"b":false}']) assert.ok(accepts(schema, text), text);
    for (const text of ['{"x":null}', '{"c":true}']) assert.ok(!accepts(schema, text), text);
  });
});
