import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { Ajv2020 } from 'ajv/dist/2020.js';
import type OpenAI from 'openai';
import type { Model, ResponseFormat } from '../../lib/index.js';
import { assertFields, errorOf, openModel, type Running, start } from './support.js';

const schema = {
  type: 'object',
  properties: { urgency: { enum: ['low', 'high'] }, days: { type: 'integer', minimum: 0, maximum: 99 } },
  required: ['urgency', 'days'],
  additionalProperties: false,
};
const format = { type: 'json_schema' as const, json_schema: { name: 'triage', schema, strict: true } };
const messages = [{ role: 'user' as const, content: 'note: cough' }];

let model: Model;
let running: Running;
before(async () => {
  model = await openModel();
  running = await start(model);
});

test('answers are values of a JSON schema, each of n, whole and streamed, as the library writes them', async () => {
  const { client } = running;
  const asked = { model: 'base', messages, max_tokens: 100, temperature: 1.5, seed: 3, response_format: format };
  const { choices } = await client.chat.completions.create({ ...asked, n: 3 });
  const validate = new Ajv2020().compile(schema);
  for (const [i, { message, finish_reason }] of choices.entries()) {
    assert.equal(finish_reason, 'stop');
    assert.ok(validate(JSON.parse(message.content ?? '')), message.content ?? '');
    const options = { maxTokens: 100, temperature: 1.5, seed: 3 + i };
    const alone = await model.complete(messages, { ...options, responseFormat: { type: 'json_schema', schema } });
    assert.equal(message.content, alone.text);
  }
  assert.equal(new Set(choices.map(({ message }) => message.content)).size, 3);
  let streamed = '';
  const stream = await client.chat.completions.create({ ...asked, stream: true });
  for await (const chunk of stream) streamed += chunk.choices[0]?.delta.content ?? '';
  assert.equal(streamed, choices[0]?.message.content);
});

test('json_object, and strict as it is given', async () => {
  const ask = async (response_format: OpenAI.ChatCompletionCreateParams['response_format']) => {
    const body = { model: 'base', messages, max_tokens: 60, temperature: 1, seed: 1, response_format };
    return (await running.client.chat.completions.create(body)).choices[0]?.message.content;
  };
  const expected = async (responseFormat: ResponseFormat) =>
    (await model.complete(messages, { maxTokens: 60, temperature: 1, seed: 1, responseFormat })).text;
  assert.equal(await ask({ type: 'json_object' }), await expected({ type: 'json_object' }));
  const open = { type: 'object', properties: { a: { type: 'null' } } };
  for (const strict of [undefined, null, true, false]) {
    const text = await ask({ type: 'json_schema', json_schema: { name: 'a', schema: open, strict } });
    assert.equal(text, await expected({ type: 'json_schema', schema: open, strict: strict ?? true }));
  }
});

const bad: [what: string, format: unknown, expected: object][] = [
  ['an unknown type', { type: 'xml' }, { param: 'response_format.type' }],
  ['no schema', { type: 'json_schema' }, { param: 'response_format.json_schema' }],
  [
    'a schema of text',
    { type: 'json_schema', json_schema: { name: 'a', schema: 'object' } },
    { param: 'response_format.json_schema.schema' },
  ],
  [
    'a keyword that is not supported',
    { type: 'json_schema', json_schema: { name: 'a', schema: { properties: { routing: { not: {} } } } } },
    { param: 'response_format', code: 'invalid_schema' },
  ],
  [
    'a schema that is none',
    { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'thing' } } },
    { param: 'response_format', code: 'invalid_schema' },
  ],
];
for (const [what, response_format, expected] of bad) {
  for (const stream of [false, true]) {
    test(`${what} is refused${stream ? ' before the stream begins' : ''}`, async () => {
      const response = await running.post('/v1/chat/completions', { model: 'base', messages, stream, response_format });
      assert.equal(response.status, 400);
      const error = await errorOf(response);
      assertFields(error, expected);
      if (error.code === 'invalid_schema') assert.match(error.message, /^response_format: schema at #/);
    });
  }
}
