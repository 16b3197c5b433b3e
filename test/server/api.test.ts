import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import OpenAI from 'openai';
import type { Mixture, Model, RoutingTrace } from '../../lib/index.js';
import { assertFields, errorOf, idle, openMixture, openModel, type Running, start } from './support.js';

let model: Model;
let mixture: Mixture;
let running: Running;
let client: OpenAI;

before(async () => {
  model = await openModel();
  mixture = await openMixture(model);
  running = await start(model, { adapters: { medical: mixture } });
  client = running.client;
});

const text = 'note: cough\n';
const messages = [{ role: 'user' as const, content: 'note: cough' }];
const greedy = { temperature: 0, max_tokens: 12 };

type Extended = { routing?: RoutingTrace; seed?: number };

test('models: the base, the mixture, each expert', async () => {
  const ids = [];
  for await (const { id } of client.models.list()) ids.push(id);
  assert.deepEqual(ids, ['base', 'medical', 'medical/task/diagnosis', 'medical/task/triage']);
  const expert = await client.models.retrieve('medical/task/triage');
  assertFields(expert, { kind: 'expert', parent: 'medical', object: 'model' });
  await assert.rejects(client.models.retrieve('medical/task'), OpenAI.NotFoundError);
});

test('a completion is what the library writes', async () => {
  const expected = await model.complete(text, { maxTokens: 12 });
  const answer = await client.completions.create({ model: 'base', prompt: text, ...greedy });
  assert.equal(answer.choices[0]?.text, expected.text);
  assert.equal(answer.choices[0]?.finish_reason, 'length');
  const { promptTokens, completionTokens, totalTokens } = expected.usage;
  assertFields(answer.usage, {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: totalTokens,
  });
});

test('a chat is rendered by the template; system prompts, parts of text and developers are taken', async () => {
  const turns = [
    { role: 'developer' as const, content: 'be brief' },
    {
      role: 'user' as const,
      content: [
        { type: 'text' as const, text: 'note: ' },
        { type: 'text' as const, text: 'cough' },
      ],
    },
  ];
  const rendered = [
    { role: 'system', content: 'be brief' },
    { role: 'user', content: 'note: cough' },
  ];
  const expected = await model.complete(rendered, { maxTokens: 12 });
  const answer = await client.chat.completions.create({ model: 'base', messages: turns, ...greedy });
  assert.equal(answer.choices[0]?.message.content, expected.text);
  assert.equal(answer.choices[0]?.message.role, 'assistant');
});

test('a stream says the same as the whole, and ends with its usage when asked', async () => {
  const whole = await client.chat.completions.create({ model: 'medical', messages, ...greedy });
  const options = { stream: true as const, stream_options: { include_usage: true } };
  const stream = await client.chat.completions.create({ model: 'medical', messages, ...greedy, ...options });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.pop();
  assert.equal(
    chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join(''),
    whole.choices[0]?.message.content,
  );
  assert.deepEqual(
    chunks.flatMap(({ choices }) => choices[0]?.delta.role ?? []),
    ['assistant'],
  );
  assert.equal(chunks.at(-1)?.choices[0]?.finish_reason, 'length');
  assert.deepEqual(last?.choices, []);
  assert.deepEqual(last?.usage, whole.usage);
  assert.equal(new Set(chunks.map(({ id }) => id)).size, 1);
});

test('the bytes of a stream are server-sent events with [DONE]', async () => {
  const response = await running.post('/v1/completions', { model: 'base', prompt: text, ...greedy, stream: true });
  assert.equal(response.headers.get('content-type'), 'text/event-stream; charset=utf-8');
  const events = (await response.text()).split('\n\n');
  assert.equal(events.pop(), '');
  assert.equal(events.pop(), 'data: [DONE]');
  for (const event of events) assert.equal(JSON.parse(event.slice('data: '.length)).object, 'text_completion');
});

test('leaving in the middle of a stream ends the work', async () => {
  const stream = await client.completions.create({
    model: 'medical',
    prompt: text,
    max_tokens: 3500,
    stream: true,
    ...{ ignore_eos: true },
  });
  let count = 0;
  for await (const _ of stream) if (++count === 3) break;
  await idle(model);
  assert.ok((await running.metric('at_moe_completion_tokens_total{model="medical"}')) < 3500);
  assert.equal(await running.metric('at_moe_http_requests_total{route="/v1/completions",status="499"}'), 1);
});

test('log-probabilities of the tokens', async () => {
  const expected = await model.complete(text, { maxTokens: 12, logProbs: true });
  const answer = await client.completions.create({ model: 'base', prompt: text, ...greedy, logprobs: 0 });
  const { tokens = [], token_logprobs = [], text_offset = [] } = answer.choices[0]?.logprobs ?? {};
  assert.deepEqual(token_logprobs, expected.logProbs);
  assert.equal(tokens.join(''), expected.text);
  for (const [i, offset] of text_offset.entries()) assert.ok(expected.text.startsWith(tokens[i] ?? '', offset));

  const chat = await client.chat.completions.create({ model: 'base', messages, ...greedy, logprobs: true });
  const content = chat.choices[0]?.logprobs?.content ?? [];
  assert.equal(content.length, 12);
  assert.equal(content.map(({ token }) => token).join(''), chat.choices[0]?.message.content);
  assert.equal(Buffer.from(content.flatMap(({ bytes }) => bytes ?? [])).toString(), chat.choices[0]?.message.content);

  const stream = await client.chat.completions.create({
    model: 'base',
    messages,
    ...greedy,
    logprobs: true,
    stream: true,
  });
  const streamed = [];
  for await (const { choices } of stream) streamed.push(...(choices[0]?.logprobs?.content ?? []));
  assert.deepEqual(streamed, content);

  const alternatives = { model: 'base', messages, ...greedy, logprobs: true, top_logprobs: 2 };
  await assert.rejects(client.chat.completions.create(alternatives), { status: 400, param: 'top_logprobs' });
});

test('a seed gives the same text again, text c of n that of the seed + c', async () => {
  const sampled = { model: 'base', prompt: text, temperature: 1.5, max_tokens: 12 };
  const many = await client.completions.create({ ...sampled, seed: 5, n: 3 });
  assert.deepEqual(
    many.choices.map(({ index }) => index),
    [0, 1, 2],
  );
  assert.equal(many.usage?.completion_tokens, 36);
  for (const [c, { text }] of many.choices.entries()) {
    const one = await client.completions.create({ ...sampled, seed: 5 + c });
    assert.equal(one.choices[0]?.text, text);
    assert.equal((one.choices[0] as Extended).seed, 5 + c);
  }
  assert.equal(new Set(many.choices.map(({ text }) => text)).size, 3);
});

test('several prompts, as texts and as ids, stream side by side', async () => {
  const prompts = [text, 'note: fever\n'];
  const answer = await client.completions.create({ model: 'base', prompt: prompts, ...greedy, n: 2 });
  assert.equal(answer.choices.length, 4);
  assert.equal(answer.choices[2]?.text, (await model.complete('note: fever\n', { maxTokens: 12 })).text);
  const ids = prompts.map((prompt) => model.tokenizer?.encode(prompt) ?? []);
  const streamed = ['', ''];
  const stream = await client.completions.create({ model: 'base', prompt: ids, ...greedy, stream: true });
  for await (const { choices } of stream) for (const { index, text } of choices) streamed[index] += text;
  assert.deepEqual(streamed, [answer.choices[0]?.text, answer.choices[2]?.text]);
});

test('stop strings end a text and are not part of it', async () => {
  const whole = (await client.completions.create({ model: 'base', prompt: text, ...greedy })).choices[0]?.text ?? '';
  const stop = whole.slice(4, 9);
  const answer = await client.completions.create({ model: 'base', prompt: text, ...greedy, stop: [stop] });
  assert.equal(answer.choices[0]?.text, whole.slice(0, whole.indexOf(stop)));
  assert.equal(answer.choices[0]?.finish_reason, 'stop');
});

test('routing controls change the answer and the trace, in whole and in the last chunk', async () => {
  const ask = async (routing: object) => {
    const body = { model: 'medical', prompt: text, ...greedy, routing: { trace: true, ...routing } };
    const { choices } = await client.completions.create(body);
    const [choice] = choices as (OpenAI.CompletionChoice & Extended)[];
    const stream = await client.completions.create({ ...body, stream: true });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.deepEqual((chunks.at(-1)?.choices[0] as Extended | undefined)?.routing, choice?.routing);
    assert.ok(chunks.slice(0, -1).every(({ choices }) => (choices[0] as Extended).routing === undefined));
    return { text: choice?.text, weights: choice?.routing?.layers[0]?.expertWeights };
  };
  const free = await ask({});
  const denied = await ask({ deny: ['task/diagnosis'] });
  assert.deepEqual(free.weights, [0.5, 0.5]);
  assert.deepEqual(denied.weights, [0, 1]);
  assert.notEqual(denied.text, free.text);
  const expected = await mixture.complete(text, { maxTokens: 12, routing: { deny: ['task/diagnosis'] } });
  assert.equal(denied.text, expected.text);

  const expert = await client.completions.create({ model: 'medical/task/triage', prompt: text, ...greedy });
  assert.equal(
    expert.choices[0]?.text,
    (await mixture.complete(text, { maxTokens: 12, routing: { only: 'triage' } })).text,
  );
  assert.equal((expert.choices[0] as Extended).routing, undefined);
});

test('token ids for a model without a tokenizer, and the routing alone with no token at all', async () => {
  const body = { model: 'medical', prompt: text, ...greedy, return_token_ids: true };
  const answer = await client.completions.create(body);
  const { tokens } = await mixture.complete(text, { maxTokens: 12 });
  assert.deepEqual((answer.choices[0] as { token_ids?: number[] }).token_ids, tokens);
  const none = await running.post('/v1/completions', { ...body, max_tokens: 0, routing: { trace: true } });
  const { choices } = (await none.json()) as { choices: (Extended & { text: string })[] };
  assert.equal(choices[0]?.text, '');
  assert.equal(choices[0]?.routing?.layers.length, model.config.numLayers);
});

const refusals: [what: string, body: object, expected: object][] = [
  ['an unknown model', { model: 'medical/task/surgery' }, { status: 404, code: 'model_not_found', param: 'model' }],
  ['a missing prompt', { prompt: undefined }, { status: 400, param: 'prompt' }],
  ['a prompt of numbers and texts', { prompt: [1, 'a'] }, { status: 400, param: 'prompt' }],
  ['an empty prompt', { prompt: '' }, { status: 400, code: 'empty_prompt' }],
  ['an id outside the vocabulary', { prompt: [1, 100_000] }, { status: 400 }],
  [
    'a prompt longer than the context',
    { prompt: 'note '.repeat(9000) },
    { status: 400, code: 'context_length_exceeded' },
  ],
  ['a negative max_tokens', { max_tokens: -1 }, { status: 400, param: 'max_tokens' }],
  ['a max_tokens beyond the limit', { max_tokens: 5000 }, { status: 400, param: 'max_tokens' }],
  ['a temperature of text', { temperature: 'hot' }, { status: 400, param: 'temperature' }],
  ['too many texts', { prompt: Array(100).fill('a'), n: 2 }, { status: 400, param: 'n' }],
  ['an unknown parameter', { max_token: 3 }, { status: 400, param: 'max_token', code: 'unknown_parameter' }],
  ['a penalty that is not computed', { frequency_penalty: 0.5 }, { status: 400, param: 'frequency_penalty' }],
  ['controls of the base', { model: 'base', routing: { deny: ['x'] } }, { status: 400, param: 'routing' }],
  [
    'controls of one expert',
    { model: 'medical/task/triage', routing: { deny: ['x'] } },
    { status: 400, param: 'routing' },
  ],
  ['an unknown expert', { routing: { deny: ['surgery'] } }, { status: 400, param: 'routing', code: 'unknown_expert' }],
  [
    'controls that deny all',
    { routing: { deny: ['task'] } },
    { status: 400, param: 'routing', code: 'invalid_routing' },
  ],
  ['an unknown control', { routing: { denied: [] } }, { status: 400, param: 'routing' }],
];
for (const [what, body, expected] of refusals) {
  for (const stream of [false, true]) {
    test(`${what} is refused${stream ? ' before the stream begins' : ''}`, async () => {
      const response = await running.post('/v1/completions', { model: 'medical', prompt: text, stream, ...body });
      const { type, ...error } = await errorOf(response);
      assertFields({ status: response.status, ...error }, expected);
      assert.equal(type, 'invalid_request_error');
    });
  }
}

test('parameters that change nothing, and those that are ignored, are taken', async () => {
  const neutral = { frequency_penalty: 0, presence_penalty: null, logit_bias: {}, tools: [], n: null, stop: null };
  const ignored = { user: 'a', metadata: { a: 'b' }, store: false, response_format: { type: 'text' } };
  const response = await running.post('/v1/chat/completions', {
    model: 'base',
    messages,
    ...greedy,
    ...neutral,
    ...ignored,
  });
  assert.equal(response.status, 200);
});

const worded: [body: object, message: string][] = [
  [{ prompt: undefined }, 'prompt: must be a text, an array of texts, an array of token ids, or an array of those'],
  [{ model: undefined }, 'model: must be a text'],
  [{ max_tokens: 1.5 }, 'max_tokens: must be an integer'],
  [{ n: 500 }, 'n: must be at most 128'],
  [{ top_p: 0 }, 'top_p: must be more than 0'],
  [{ stream: 'yes' }, 'stream: must be true or false'],
  [{ stop: Array(17).fill('a') }, 'stop: must be a text, or must have at most 16 elements'],
  [{ routing: { deny: 'a' } }, 'routing.deny: must be an array'],
  [{ response_format: { type: 'json_schema', json_schema: 3 } }, 'response_format.json_schema: must be an object'],
];
for (const [body, message] of worded) {
  test(`refused in words: ${message}`, async () => {
    const error = await errorOf(await running.post('/v1/completions', { model: 'base', prompt: text, ...body }));
    assertFields(error, { message, param: message.slice(0, message.indexOf(':')) });
  });
}

test('a conversation with tool calls goes on, and what a client sends beside it is taken where it changes nothing', async () => {
  const call = { id: 'c1', type: 'function' as const, function: { name: 'look_up', arguments: '{"word":"cough"}' } };
  const called: OpenAI.ChatCompletionMessageParam[] = [
    ...messages,
    { role: 'assistant', content: null, tool_calls: [call] },
    { role: 'tool', tool_call_id: 'c1', content: 'a symptom' },
  ];
  const without = { tools: [], tool_choice: 'none' as const, parallel_tool_calls: false };
  const answer = await client.chat.completions.create({ model: 'base', messages: called, max_tokens: 2, ...without });
  assert.equal(answer.usage?.completion_tokens, 2);
  const nothing = { model: 'base', messages: [{ role: 'user', content: null }] };
  const { param } = await errorOf(await running.post('/v1/chat/completions', nothing));
  assert.equal(param, 'messages[0].content');
  const tools = [{ type: 'function', function: { name: 'a' } }];
  const refused = await running.post('/v1/chat/completions', { model: 'base', messages, tools });
  assert.equal((await errorOf(refused)).param, 'tools');
});

test('max_tokens beside max_completion_tokens is refused', async () => {
  const both = { model: 'base', messages, max_tokens: 3, max_completion_tokens: 3 };
  const response = await running.post('/v1/chat/completions', both);
  assert.equal(response.status, 400);
  assert.equal((await errorOf(response)).param, 'max_tokens');
});

test('a deadline ends a request, before and in a stream', async () => {
  const long = { model: 'base', prompt: text, max_tokens: 3500, ignore_eos: true, timeout_ms: 40 };
  const whole = await running.post('/v1/completions', long);
  assert.equal(whole.status, 504);
  assert.equal((await errorOf(whole)).code, 'deadline_exceeded');
  const stream = await (await running.post('/v1/completions', { ...long, stream: true })).text();
  assert.match(stream, /deadline_exceeded/);
  assert.doesNotMatch(stream, /\[DONE\]/);
  await idle(model);
});

test('a request id comes back when it is fit for one', async () => {
  const id = async (given: string) =>
    (await fetch(`${running.url}/healthz`, { headers: { 'x-request-id': given } })).headers.get('x-request-id');
  assert.equal(await id('abc-1'), 'abc-1');
  assert.match((await id('a b')) ?? '', /^[0-9a-f-]{36}$/);
});
