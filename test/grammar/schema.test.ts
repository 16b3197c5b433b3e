import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Json, Schema } from '../../lib/grammar/keywords.js';
import { limits } from '../../lib/grammar/limits.js';
import { compileSchema } from '../../lib/grammar/schema.js';
import type { SchemaError } from '../../lib/grammar/schema-error.js';
import { accepts, read } from './support.js';

const string: Schema = { type: 'string' };

function accepted(schema: Schema, texts: string[], strict = true): void {
  for (const text of texts) assert.ok(accepts(schema, text, strict), `${text} should be accepted`);
}

function rejected(schema: Schema, texts: string[], strict = true): void {
  for (const text of texts) assert.ok(!accepts(schema, text, strict), `${text} should be rejected`);
}

describe('texts of a schema', () => {
  it('one space may follow a colon or a comma, and nothing else is space', () => {
    const schema: Schema = { type: 'object', properties: { a: string, b: { type: 'array', items: { type: 'null' } } } };
    accepted(schema, ['{}', '{"a":"x","b":[]}', '{"a": "x", "b": [null,null, null]}']);
    rejected(schema, ['{ }', ' {}', '{} ', '{"a" :"x"}', '{"a":  "x"}', '{"a":\n"x"}', '{"b":[ ]}', '{"b":[null ]}']);
  });

  it('strings are valid UTF-8 with valid escapes', () => {
    accepted(string, ['""', '"é€😀"', '"\\n\\/\\"\\\\"', '"\\u00e9\\ud83D\\uDe00\\uD7ff\\uE000"', '"\x7f"']);
    rejected(string, ['"\n"', '"\\x"', '"\\ud83d"', '"\\ude00"', '"\\ud83d\\u0041"', '"\\u00g0"', '"', "''"]);
    const bad = ['22c08022', '22eda08022', '22f490808022', '22ff22', '22e28222', '22f0808080', '228022'];
    for (const hex of bad) assert.ok(!accepts(string, Buffer.from(hex, 'hex')), hex);
    for (const hex of ['22f48fbfbf22', '22ed9fbf22', '22efbfbf22'])
      assert.ok(accepts(string, Buffer.from(hex, 'hex')), hex);
  });

  it('lengths count characters, not bytes or units', () => {
    const schema: Schema = { type: 'string', minLength: 2, maxLength: 3 };
    accepted(schema, ['"ab"', '"😀😀😀"', '"\\ud83d\\ude00é"', '"\\n\\n\\n"']);
    rejected(schema, ['"a"', '"abcd"', '"😀"', '"\\ud83d\\ude00"']);
    accepted({ type: 'string', maxLength: 0 }, ['""']);
    rejected({ type: 'string', maxLength: 0 }, ['"a"']);
  });

  it('numbers are what a double holds', () => {
    accepted({ type: 'number' }, ['0', '-0', '12', '-3.25', '1e5', '1.5E-10', '1e+99', '999999999999999']);
    rejected({ type: 'number' }, ['01', '.5', '1.', '+1', '1e', '1e100', '1234567890123456', '- 1', 'NaN', '']);
    accepted({ type: 'integer' }, ['0', '-7', '123456']);
    rejected({ type: 'integer' }, ['1.0', '1e2', '--1']);
  });

  it('numbers in ranges', () => {
    const some = [-120.75, -100, -17.5, -1, -0.5, -0.25, 0, 0.1, 0.5, 0.999, 1, 1.25, 7, 9.5, 10, 99.9, 100, 1203.004];
    const bounds = [-100, -17.5, -0.5, 0, 0.1, 1, 1.25, 10, 99.9, 1203];
    for (const least of bounds) {
      for (const most of bounds.filter((value) => value >= least)) {
        const closed = compileSchema({ type: 'number', minimum: least, maximum: most }, true);
        for (const value of some) {
          const inside = value >= least && value <= most;
          assert.equal(read(closed, String(value))?.complete === true, inside, `${value} in [${least}, ${most}]`);
        }
        if (least === most) continue;
        const open = compileSchema({ type: 'number', exclusiveMinimum: least, exclusiveMaximum: most }, true);
        for (const value of some) {
          const inside = value > least && value < most;
          assert.equal(read(open, String(value))?.complete === true, inside, `${value} in (${least}, ${most})`);
        }
      }
    }
    const range: Schema = { type: 'integer', minimum: -12, maximum: 305 };
    for (let value = -130; value < 400; value++)
      assert.equal(accepts(range, String(value)), value >= -12 && value <= 305, `${value}`);
  });

  it('bounds of many digits, and behind many zeros, are met as JSON.parse reads the number', () => {
    const near = (value: number) => [
      ...[15, 16, 17, 18].map((digits) => value.toPrecision(digits)),
      ...[14, 17, 19].map((digits) => value.toFixed(digits)),
    ];
    const bounds = [1e-7, 0.000001234, 0.05, 0.1, 0.30000000000000004, 1.0000000000000002, 5.25, 1234567.891234567];
    for (const bound of bounds) {
      const step = bound * 2 ** -53;
      const beside = [-4, -2, -1, 0, 1, 2, 4].flatMap((n) => near(bound + n * step));
      const texts = [...beside, ...[...beside].map((text) => `${text}9`)].filter((text) => /^\d+\.?\d*$/.test(text));
      for (const sign of ['', '-']) {
        const value = Number(`${sign}${bound}`);
        const cases: [Schema, (number: number) => boolean][] = [
          [{ minimum: value, maximum: 2e6 }, (number) => number >= value],
          [{ exclusiveMinimum: value }, (number) => number > value],
          [{ maximum: value }, (number) => number <= value],
          [{ exclusiveMaximum: value, exclusiveMinimum: -3.0000000000000004 }, (number) => number < value],
        ];
        for (const [limits, isInside] of cases) {
          if (limits === cases[3]?.[0] && value < -3) continue;
          const grammar = compileSchema({ type: 'number', ...(limits as object) }, true);
          for (const text of texts) {
            const complete = read(grammar, sign + text)?.complete === true;
            const number = JSON.parse(sign + text) as number;
            const what = `${sign}${text} of ${JSON.stringify(limits)}`;
            if (complete) assert.ok(isInside(number), what);
            const isShort = text.replace('.', '').length <= 15;
            if (isShort && isInside(number)) assert.ok(complete, what);
          }
        }
      }
    }
    rejected({ type: 'integer', minimum: 0, maximum: 20 }, ['00', '01', '-0', '007']);
  });

  it('members come in the order of properties, optional ones may be left out', () => {
    const schema: Schema = { type: 'object', properties: { a: {}, b: {}, c: {}, d: {} }, required: ['c'] };
    accepted(schema, ['{"c":1}', '{"a":1,"c":1}', '{"b":1,"c":1,"d":1}', '{"a":[],"b":{},"c":"","d":null}']);
    rejected(schema, ['{}', '{"a":1}', '{"c":1,"a":1}', '{"c":1,"c":1}', '{"c":1,}', '{,"c":1}', '{"c":1,"e":1}']);
  });

  it('objects are open or closed by additionalProperties, and by strict where it is absent', () => {
    const properties = { a: { type: 'string' } };
    rejected({ type: 'object', properties }, ['{"b":1}']);
    accepted({ type: 'object', properties }, ['{"b":1}', '{"a":"x","b":1}'], false);
    accepted({ type: 'object' }, ['{"b":1}']);
    const typed: Schema = { type: 'object', properties, additionalProperties: { type: 'integer' } };
    accepted(typed, ['{"b":1}', '{"a":"x","aa":1,"":2,"é":3}', '{"b\\n":1}']);
    rejected(typed, ['{"a":1}', '{"b":"x"}', '{"\\u0061":1}', '{"b":1,"a":"x"}']);
  });

  it('a key that is a part of, or differs late from, a name', () => {
    const schema: Schema = {
      type: 'object',
      properties: { ab: string, aé: string },
      additionalProperties: { type: 'null' },
    };
    accepted(schema, ['{"a":null}', '{"abc":null}', '{"ax":null}', '{"aéx":null}', '{"b":null}']);
    rejected(schema, ['{"ab":null}', '{"aé":null}', '{"a\\u0062":null}']);
  });

  it('patterns match as JSON Schema has it, written with no more escapes than needed', () => {
    const match = (pattern: string, yes: string[], no: string[]) => {
      const schema: Schema = { type: 'string', pattern };
      const json = (texts: string[]) => texts.map((text) => JSON.stringify(text));
      for (const text of yes) assert.ok(new RegExp(pattern, 'u').test(text), `${text} of ${pattern}`);
      for (const text of no) assert.ok(!new RegExp(pattern, 'u').test(text), `${text} of ${pattern}`);
      accepted(schema, json(yes));
      rejected(schema, json(no));
    };
    match('b', ['b', 'abc', 'é\nb"'], ['', 'a']);
    match('^a', ['a', 'ab'], ['ba', '']);
    match('a$', ['a', 'ba'], ['ab']);
    match('^a|b$|c', ['ax', 'xb', 'xcx'], ['xa', 'bx']);
    match('^(?:ab|cd){2,3}$', ['abab', 'abcdab'], ['ab', 'abababab', 'abc']);
    match('^a*b+?c?$', ['b', 'aabbc'], ['', 'ac']);
    match('^.$', ['a', '😀', '"', '\t'], ['\n', 'ab', '\u2028']);
    match('^[\\w.-]+@\\d{2,}\\S\\D$', ['a.b-c@12xy'], ['a b@12xy', 'a@1xy']);
    match('^[^]$', ['\n', 'é'], ['']);
    match('^\\u{1F600}[\\x41-\\u0043]\\cJ\\/\\.$', ['😀B\n/.'], ['😀D\n/.']);
    match('^(?<year>\\d{4})-(a|b|)$', ['2024-a', '2024-'], ['2024-c']);
    match('^[é-ü😀-😎]$', ['é', 'ö', '😃'], ['e', '😏']);
    match('', ['', 'x'], []);
  });

  it('references may be circular, and combine', () => {
    const schema: Schema = {
      $defs: {
        list: {
          anyOf: [
            { type: 'null' },
            { type: 'array', prefixItems: [{ type: 'integer' }, { $ref: '#/$defs/list' }], items: false, minItems: 2 },
          ],
        },
      },
      $ref: '#/$defs/list',
    };
    accepted(schema, ['null', '[1,null]', '[1,[2,[3,null]]]']);
    rejected(schema, ['[1]', '[1,[2]]', '[1,null,null]']);
  });

  it('alternatives that begin alike are followed at once', () => {
    const option = (kind: string, rest: Json): Json =>
      ({ type: 'object', properties: { kind: { const: kind }, rest }, required: ['kind', 'rest'] }) as Json;
    const schema: Schema = {
      anyOf: [option('aa', string), option('ab', { type: 'null' }), option('ab', { type: 'integer' })],
    };
    accepted(schema, ['{"kind":"aa","rest":"x"}', '{"kind":"ab","rest":null}', '{"kind":"ab","rest":7}']);
    rejected(schema, ['{"kind":"aa","rest":null}', '{"kind":"ab","rest":"x"}']);
  });
});

describe('schemas that are refused', () => {
  const wrong: [name: string, schema: unknown, pointer: string, kind: typeof TypeError | typeof RangeError][] = [
    ['not', { not: {} }, '#/not', TypeError],
    [
      'an unknown keyword',
      { type: 'object', properties: { 'a/b': { colour: 1 } } },
      '#/properties/a~1b/colour',
      TypeError,
    ],
    ['if', { anyOf: [{ type: 'string' }, { if: {}, type: 'null' }] }, '#/anyOf/1/if', TypeError],
    ['patternProperties', { patternProperties: {} }, '#/patternProperties', TypeError],
    ['uniqueItems', { type: 'array', uniqueItems: true }, '#/uniqueItems', TypeError],
    ['multipleOf', { items: { multipleOf: 2 } }, '#/items/multipleOf', TypeError],
    ['prototype names', JSON.parse('{"__proto__": {}}'), '#/__proto__', TypeError],
    ['a bad type', { type: 'text' }, '#/type', TypeError],
    ['no types', { type: [] }, '#/type', TypeError],
    ['a bad count', { minLength: -1 }, '#/minLength', TypeError],
    ['a bad bound', { minimum: '1' }, '#/minimum', TypeError],
    ['items as a list', { items: [{}] }, '#/items', TypeError],
    ['a schema that is none', { properties: { a: 1 } }, '#/properties', TypeError],
    ['an unknown format', { format: 'iri' }, '#/format', TypeError],
    ['a great length beside a pattern', { pattern: 'a', minLength: 2000 }, '#', TypeError],
    ['look-ahead', { pattern: '^(?=a)' }, '#/pattern', TypeError],
    ['look-behind', { pattern: '(?<!a)b' }, '#/pattern', TypeError],
    ['a back-reference', { pattern: '(a)\\1' }, '#/pattern', TypeError],
    ['a word boundary', { pattern: '\\bx' }, '#/pattern', TypeError],
    ['an anchor inside', { pattern: 'a(^b)' }, '#/pattern', TypeError],
    ['a class by property', { pattern: '\\p{L}' }, '#/pattern', TypeError],
    ['a pattern that is none', { pattern: '[' }, '#/pattern', TypeError],
    ['a bound of too many digits', { type: 'number', minimum: 1e-20 }, '#', TypeError],
    ['a number too large', { type: 'integer', minimum: 1e15 }, '#', TypeError],
    ['a constraint beside enum', { enum: ['a'], minLength: 1 }, '#/minLength', TypeError],
    ['a reference elsewhere', { $ref: 'https://example.com/a' }, '#/$ref', TypeError],
    ['a reference to nothing', { $ref: '#/$defs/a' }, '#/$ref', TypeError],
    ['a reference to a prototype', { $ref: '#/constructor' }, '#/$ref', TypeError],
    ['a reference that is no pointer', { $ref: '#/%' }, '#/$ref', TypeError],
    ['an inner $id', { properties: { a: { $id: 'x' } } }, '#/properties/a', TypeError],
    ['a reference to itself', { $ref: '#' }, '#', TypeError],
    ['a choice of itself', { anyOf: [{ $ref: '#' }, { type: 'null' }] }, '#', TypeError],
    ['a merge of itself', { allOf: [{ $ref: '#' }, { type: 'null' }] }, '#', TypeError],
    ['nothing', false, '#', TypeError],
    ['no common type', { allOf: [{ type: 'string' }, { type: 'null' }] }, '#', TypeError],
    ['no end', { type: 'object', properties: { a: { $ref: '#' } }, required: ['a'] }, '#', TypeError],
    ['no length', { type: 'string', minLength: 3, maxLength: 2 }, '#', TypeError],
    ['required of a closed object', { type: 'object', properties: {}, required: ['a'] }, '#/required', TypeError],
    ['patterns without a common text', { allOf: [{ pattern: '^a' }, { pattern: '^b' }] }, '#', TypeError],
  ];
  for (const [name, schema, pointer, kind] of wrong) {
    it(name, () => {
      assert.throws(
        () => compileSchema(schema as Schema, true),
        (error: SchemaError) => {
          assert.ok(error instanceof kind, `${error}`);
          assert.equal(error.code, 'ERR_AT_MOE_SCHEMA', `${error.stack}`);
          assert.equal(error.pointer, pointer, error.message);
          return true;
        },
      );
    });
  }

  const nested = (depth: number, pattern: string) => '('.repeat(depth) + pattern + ')'.repeat(depth);
  const bomb = (levels: number, width: number) => ({
    $defs: Object.fromEntries(
      Array.from({ length: levels }, (_, i) => [
        `d${i}`,
        { allOf: Array(width).fill({ anyOf: [{ $ref: `#/$defs/d${i + 1}` }, { minLength: i }, { maxLength: i }] }) },
      ]).concat([[`d${levels}`, { type: 'string' }]] as never),
    ),
    $ref: '#/$defs/d0',
  });
  const hostile: Record<string, unknown> = {
    'many alternatives by allOf': {
      allOf: Array.from({ length: 20 }, (_, i) => ({ anyOf: [{ required: [`a${i}`] }, { required: [`b${i}`] }] })),
    },
    'references that multiply': bomb(30, 3),
    'references that double': {
      $defs: Object.fromEntries(
        Array.from({ length: 25 }, (_, i) => [
          `d${i}`,
          i === 24 ? { type: 'object' } : { allOf: Array(2).fill({ $ref: `#/$defs/d${i + 1}` }) },
        ]),
      ),
      $ref: '#/$defs/d0',
    },
    'a pattern with an exponential automaton': { pattern: '(a|b)*a(a|b){20}' },
    'a pattern of nested repetitions': { pattern: '^((a{1000}){1000}){1000}$' },
    'a pattern of nothing, very often': { pattern: '^((((((?:){1000}){1000}){1000}){1000}){1000}){1000}$' },
    'deep groups': { pattern: nested(200, 'a') },
    'a long pattern': { pattern: 'a'.repeat(5000) },
    'a huge repetition': { pattern: 'a{100000}' },
    'huge arrays': { type: 'array', items: {}, minItems: 1_000_000 },
    'arrays of arrays': {
      type: 'array',
      maxItems: 1000,
      items: { type: 'array', maxItems: 1000, prefixItems: Array(1000).fill({ type: 'array', minItems: 1000 }) },
    },
    'many properties': {
      type: 'object',
      properties: Object.fromEntries(
        Array.from({ length: 5000 }, (_, i) => [`property ${i} `.repeat(3), { const: i }]),
      ),
    },
    'huge strings': { maxLength: 2 ** 40 },
    'merges that grow': {
      $defs: {
        a: { properties: { x: { allOf: [{ $ref: '#/$defs/b' }, { $ref: '#/$defs/a' }] } } },
        b: { properties: { x: { allOf: [{ $ref: '#/$defs/a' }, { properties: { y: { $ref: '#/$defs/b' } } }] } } },
      },
      allOf: [{ $ref: '#/$defs/a' }, { $ref: '#/$defs/b' }],
    },
  };
  for (const [name, schema] of Object.entries(hostile)) {
    it(`${name}: refused by a limit, or compiled`, () => {
      try {
        const { nodes } = compileSchema(schema as Schema, true);
        assert.ok(nodes.length / 7 <= limits.nodes);
      } catch (error) {
        assert.ok(error instanceof RangeError, `${(error as Error).stack}`);
        assert.equal((error as unknown as SchemaError).code, 'ERR_AT_MOE_SCHEMA', `${error.stack}`);
      }
    });
  }
});
