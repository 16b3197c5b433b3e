import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Ajv2020 } from 'ajv/dist/2020.js';
import type { GenerateOptions } from '../../lib/generation-options.js';
import { CompiledResponseFormat, type ResponseFormat } from '../../lib/response-format.js';
import { devices } from '../helpers/devices.js';
import { bits, loadBase, textModel } from './support.js';

const prompt = 'Describe the patient.';

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 12 },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    sex: { enum: ['female', 'male', null] },
    complaints: { type: 'array', items: { type: 'string', minLength: 1, maxLength: 6 }, maxItems: 2 },
  },
  required: ['name', 'age', 'complaints'],
  additionalProperties: false,
};
const responseFormat: ResponseFormat = { type: 'json_schema', schema: person };
const validate = new Ajv2020().compile(person);

const hasCode = (code: string) => (error: unknown) => (error as { code?: string }).code === code;

const short: ResponseFormat = {
  type: 'json_schema',
  schema: {
    type: 'object',
    properties: { ok: { type: 'boolean' }, name: { type: 'string', maxLength: 3 } },
    required: ['ok'],
  },
};

for (const device of devices) {
  describe(`response formats on ${device}`, () => {
    it('constrained and free sequences share steps and have the bits they have alone', async (t) => {
      const model = await textModel(t, device);
      const options = { maxTokens: 16, temperature: 2, ignoreEos: true, logProbs: true };
      const requests = [0, 1, 2].map((n) => () => {
        const format = [undefined, short, { type: 'json_object' as const }][n];
        return model.complete(`${n}`, { ...options, seed: n, ...(format && { responseFormat: format }) });
      });
      const alone = [];
      for (const request of requests) alone.push(bits(await request()));
      const together = await Promise.all(requests.map((request) => request()));
      assert.deepEqual(together.map(bits), alone);
      assert.match(together[1]?.text ?? '', /^\{"ok": ?(true|false)[,}]/);
    });
  });
}

describe('response formats', () => {
  it('a hot random model writes values of the schema, and stops after them', async (t) => {
    const model = await textModel(t, 'cpu');
    const options = { responseFormat, temperature: 2, maxTokens: 200 };
    const seeds = Array.from({ length: 20 }, (_, seed) => seed);
    const results = await Promise.all(seeds.map((seed) => model.complete(prompt, { ...options, seed })));
    results.push(await model.complete(prompt, { responseFormat }));
    for (const { text, finishReason, tokens } of results) {
      assert.equal(finishReason, 'stop', text);
      assert.ok(validate(JSON.parse(text)), text);
      assert.ok(tokens.length < 200);
    }
    assert.ok(new Set(results.map(({ text }) => text)).size > 10);
  });

  it('a preempted sequence goes on in its format', async (t) => {
    const model = await textModel(t, 'cpu');
    const small = await loadBase(t, model.path, 'cpu', { threads: 1, kvTokens: 112, maxBatch: 4, contextLength: 112 });
    const options = { responseFormat, temperature: 1.5, maxTokens: 60, logProbs: true };
    const run = (of: typeof model) =>
      Promise.all([1, 2, 3, 4].map((seed) => of.complete(prompt, { ...options, seed })));
    assert.deepEqual((await run(small)).map(bits), (await run(model)).map(bits));
  });

  it('log-probabilities are of all tokens', async (t) => {
    const model = await textModel(t, 'cpu');
    const { tokens, logProbs } = await model.complete(prompt, { responseFormat, logProbs: true });
    const scored = await model.score(prompt, tokens);
    for (const [i, value] of scored.logProbs.entries()) assert.ok(Math.abs(value - (logProbs?.[i] as number)) < 1e-3);
  });

  it('maxTokens cuts a value short, a stop string ends it, other rules narrow it', async (t) => {
    const model = await textModel(t, 'cpu');
    const long: ResponseFormat = { type: 'json_schema', schema: { type: 'string', minLength: 100 } };
    const cut = await model.complete(prompt, { responseFormat: long, maxTokens: 5, temperature: 1 });
    assert.equal(cut.finishReason, 'length');
    assert.equal(cut.tokens.length, 5);
    assert.ok(cut.text.startsWith('"'));
    const stopped = await model.complete(prompt, { responseFormat, stop: '"age"', maxTokens: 100 });
    assert.equal(stopped.stop, '"age"');
    assert.match(stopped.text, /^\{"name": ?".*", ?$/);
    const narrow = {
      responseFormat,
      temperature: 2,
      topK: 1,
      topP: 0.5,
      minP: 0.5,
      repetitionPenalty: 1.3,
      maxTokens: 200,
    };
    const result = await model.complete(prompt, narrow);
    if (result.finishReason === 'stop') assert.ok(validate(JSON.parse(result.text)), result.text);
    else assert.equal(result.tokens.length, 200);
  });

  it('a value that could go on ends at an end-of-sequence token, or with ignoreEos where it must', async (t) => {
    const model = await textModel(t, 'cpu');
    const number: ResponseFormat = { type: 'json_schema', schema: { type: 'integer' } };
    for (const seed of [1, 2, 3, 4, 5, 6]) {
      const options: GenerateOptions = { responseFormat: number, temperature: 3, seed };
      const { text, finishReason } = await model.complete(prompt, options);
      assert.equal(finishReason, 'stop');
      assert.ok(Number.isInteger(JSON.parse(text)), text);
    }
    const longest = await model.complete(prompt, { responseFormat: number, temperature: 3, seed: 1, ignoreEos: true });
    assert.match(longest.text, /^-?(0|\d{15})$/);
  });

  it('is compiled once, and cached by its text', async (t) => {
    const model = await textModel(t, 'cpu');
    const compiled = await model.compileResponseFormat(responseFormat);
    assert.ok(compiled instanceof CompiledResponseFormat);
    assert.equal(await model.compileResponseFormat(structuredClone(responseFormat)), compiled);
    assert.equal(model.compileResponseFormatSync(structuredClone(responseFormat)), compiled);
    assert.notEqual(
      await model.compileResponseFormat({ ...responseFormat, strict: false } as ResponseFormat),
      compiled,
    );
    const given = await model.complete(prompt, { responseFormat: compiled, seed: 1 });
    assert.equal((await model.complete(prompt, { responseFormat, seed: 1 })).text, given.text);
    // More formats than are kept: the first is made again, under way or not.
    const others = Array.from(
      { length: 80 },
      (_, i): ResponseFormat => ({ type: 'json_schema', schema: { const: i } }),
    );
    const texts = await Promise.all(
      others.map(async (one) => (await model.complete(prompt, { responseFormat: one })).text),
    );
    assert.deepEqual(
      texts,
      Array.from({ length: 80 }, (_, i) => `${i}`),
    );
    assert.notEqual(await model.compileResponseFormat(responseFormat), compiled);
    assert.equal((await model.complete(prompt, { responseFormat: compiled, seed: 1 })).text, given.text);
  });

  it('the event loop turns while formats are compiled, and a request ends with its signal meanwhile', async (t) => {
    const model = await textModel(t, 'cpu');
    const heavy = (n: number): ResponseFormat => ({
      type: 'json_schema',
      schema: { type: 'string', pattern: `^.{${n},300}x$` },
    });
    let turns = 0;
    let open = true;
    const count = () => {
      turns++;
      if (open) setImmediate(count);
    };
    setImmediate(count);
    const { tokens } = await model.complete(prompt, { responseFormat: heavy(1), maxTokens: 2 });
    open = false;
    assert.equal(tokens.length, 2);
    assert.ok(turns > 3, `${turns} turns`);
    const controller = new AbortController();
    const reason = new Error('enough');
    const ended = model.complete(prompt, { responseFormat: heavy(2), signal: controller.signal });
    const shared = model.complete(prompt, { responseFormat: heavy(2), maxTokens: 2 });
    setImmediate(() => controller.abort(reason));
    await assert.rejects(ended, reason);
    assert.equal((await shared).tokens.length, 2);
    const disposed = model.complete(prompt, { responseFormat: heavy(3) });
    setImmediate(() => void model.dispose());
    await assert.rejects(disposed, hasCode('ERR_AT_MOE_DISPOSED'));
  });

  it('the deadline counts from the call, however long the format takes', async (t) => {
    const model = await textModel(t, 'cpu');
    const pattern = (i: number) => ({ type: 'string', pattern: `^.{${i},${i + 50}}x$` });
    const schema = { anyOf: Array.from({ length: 20 }, (_, i) => pattern(i + 1)) };
    const late = model.complete(prompt, {
      responseFormat: { type: 'json_schema', schema },
      timeoutMs: 5,
      maxTokens: 1,
    });
    await assert.rejects(late, hasCode('ERR_AT_MOE_DEADLINE'));
  });

  it('a handle serves another model', async (t) => {
    const [one, two] = [await textModel(t, 'cpu'), await textModel(t, 'cpu')];
    const compiled = await one.compileResponseFormat({ type: 'json_schema', schema: { const: 'x' } });
    assert.equal((await two.complete(prompt, { responseFormat: compiled })).text, '"x"');
  });

  it('sessions keep the value, not what ended it', async (t) => {
    const model = await textModel(t, 'cpu');
    using session = model.createSession();
    const first = await session.complete('a', { responseFormat, temperature: 1 });
    assert.ok(validate(JSON.parse(first.text)));
    const second = await session.complete('b', {
      responseFormat: { type: 'json_schema', schema: { type: 'boolean' } },
    });
    assert.match(second.text, /^(true|false)$/);
    assert.equal(session.messages.at(-3)?.content, first.text);
  });

  it('free text is the default, and json_object any object', async (t) => {
    const model = await textModel(t, 'cpu');
    const options = { maxTokens: 20, seed: 1, logProbs: true };
    const free = await model.complete(prompt, options);
    const told = await model.complete(prompt, { ...options, responseFormat: { type: 'text' } });
    assert.deepEqual(bits(told), bits(free));
    const { text } = await model.complete(prompt, { responseFormat: { type: 'json_object' }, temperature: 1, seed: 3 });
    assert.ok(text.startsWith('{'), text);
  });

  it('wrong formats throw at the call, schemas that are not supported at the first read', async (t) => {
    const model = await textModel(t, 'cpu');
    const wrong = [null, 'json', {}, { type: 'xml' }, { type: 'json_schema' }, { type: 'json_object', schema: {} }];
    for (const format of [
      ...wrong,
      { type: 'json_schema', schema: {}, strict: 1 },
      { type: 'json_schema', schema: [] },
    ]) {
      assert.throws(
        () => model.generate(prompt, { responseFormat: format as ResponseFormat }),
        TypeError,
        JSON.stringify(format),
      );
    }
    const unsupported = { type: 'object', properties: { a: { not: {} } } };
    const format: ResponseFormat = { type: 'json_schema', schema: unsupported };
    const expected = { name: 'TypeError', code: 'ERR_AT_MOE_SCHEMA', pointer: '#/properties/a/not' };
    await assert.rejects(model.generate(prompt, { responseFormat: format }).next(), expected);
    await assert.rejects(model.complete(prompt, { responseFormat: format }), expected);
    await assert.rejects(model.compileResponseFormat(format), expected);
    assert.throws(() => model.compileResponseFormatSync(format), expected);
    const cyclic: { items?: object } = {};
    cyclic.items = cyclic;
    const deep = JSON.parse(`${'{"items":'.repeat(500)}{}${'}'.repeat(500)}`);
    const wide = { enum: Array.from({ length: 100_000 }, (_, i) => `value ${i}`) };
    for (const schema of [cyclic, deep, wide]) {
      assert.throws(() => model.generate(prompt, { responseFormat: { type: 'json_schema', schema } }), RangeError);
    }
    const noJson: [value: unknown, named: RegExp][] = [
      [Number.NaN, /^schema at #\/properties\/a\/default: NaN is no JSON value$/],
      [undefined, /: undefined is no/],
      [7n, /: 7n is no/],
      [() => 1, /: a function is no/],
      [new Date(), /: an instance of Date is no/],
    ];
    for (const [value, message] of noJson) {
      const schema = { type: 'object', properties: { a: { default: value } } };
      const pointer = '#/properties/a/default';
      await assert.rejects(model.compileResponseFormat({ type: 'json_schema', schema }), {
        name: 'TypeError',
        message,
        pointer,
      });
    }
    const shared = { type: 'null' };
    model.compileResponseFormatSync({ type: 'json_schema', schema: { properties: { a: shared, b: shared } } });
    const named = JSON.parse('{"properties": {"__proto__": {"type": "null"}}, "required": ["__proto__"]}');
    model.compileResponseFormatSync({ type: 'json_schema', schema: named });
    assert.equal(({} as { type?: string }).type, undefined);
  });

  it('a model without a tokenizer has none', async (t) => {
    const { goldenBase } = await import('../helpers/engine.js');
    const model = await loadBase(t, goldenBase, 'cpu');
    await assert.rejects(model.compileResponseFormat(responseFormat), hasCode('ERR_AT_MOE_UNSUPPORTED'));
    assert.throws(() => model.generate([1, 2], { responseFormat }), hasCode('ERR_AT_MOE_UNSUPPORTED'));
    assert.equal((await model.complete([1, 2], { responseFormat: { type: 'text' }, maxTokens: 2 })).tokens.length, 2);
  });
});
