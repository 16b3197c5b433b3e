import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type ChatMessage, ChatTemplate } from '../../lib/text/chat-template.js';
import { strftime } from '../../lib/text/strftime.js';
import { readShared, unlessPresent } from './shared-data.js';

const file = 'tokenizers/chat/chat_cases.json';

interface ChatCases {
  templates: Record<string, { template: string; bos_token: string; eos_token: string }>;
  cases: {
    template: string;
    messages: ChatMessage[];
    add_generation_prompt: boolean;
    tools: unknown[] | null;
    text?: string;
    error?: string;
  }[];
}

describe('renderings of transformers', { skip: unlessPresent(file) }, () => {
  const { templates, cases }: ChatCases = unlessPresent(file) ? { templates: {}, cases: [] } : readShared(file);
  for (const [name, { template, bos_token, eos_token }] of Object.entries(templates)) {
    test(name, () => {
      const chat = new ChatTemplate(template, { bos_token, eos_token });
      for (const { messages, add_generation_prompt, tools, text, error } of cases.filter((c) => c.template === name)) {
        const render = (): string =>
          chat.render(messages, { addGenerationPrompt: add_generation_prompt, tools: tools ?? undefined });
        if (error === undefined) assert.equal(render(), text);
        else assert.throws(render, { code: 'ERR_AT_MOE_BAD_DATA', message: `chat template: ${error}` });
      }
    });
  }

  test('assistant turns follow from the prompt in every template', () => {
    const messages = [
      { role: 'user', content: 'What is 1+1?' },
      { role: 'assistant', content: 'Two.' },
      { role: 'user', content: 'And 2+2?' },
      { role: 'assistant', content: 'Four.' },
    ];
    for (const { template, bos_token, eos_token } of Object.values(templates)) {
      const chat = new ChatTemplate(template, { bos_token, eos_token });
      const turns = chat.renderPromptAndCompletion(messages);
      assert.deepEqual(
        turns.map(({ turn }) => turn),
        [1, 3],
      );
      assert.match(turns[0]!.completion, /Two\./);
      assert.doesNotMatch(turns[0]!.prompt + turns[0]!.completion, /2\+2/);
      assert.match(turns[1]!.prompt, /Two\.[\s\S]*2\+2/);
      assert.match(turns[1]!.completion, /Four\./);
    }
  });
});

const chatml =
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

test('the completion is the answer and its end marker', () => {
  const messages = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'Hello' },
    { role: 'user', content: 'Bye' },
  ];
  assert.deepEqual(new ChatTemplate(chatml).renderPromptAndCompletion(messages), [
    { prompt: '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n', completion: 'Hello<|im_end|>\n', turn: 1 },
  ]);
});

test('conversations that give no example are refused', () => {
  const chat = new ChatTemplate(chatml);
  assert.throws(() => chat.renderPromptAndCompletion([{ role: 'user', content: 'Hi' }]), {
    code: 'ERR_AT_MOE_BAD_DATA',
  });
  const rewriting = new ChatTemplate('{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}');
  const messages = [
    { role: 'user', content: 'a' },
    { role: 'assistant', content: 'b' },
  ];
  assert.throws(() => rewriting.renderPromptAndCompletion(messages), {
    code: 'ERR_AT_MOE_BAD_DATA',
    message: /does not extend its prompt with message 1/,
  });
});

test('named templates', () => {
  const chat = new ChatTemplate({ default: 'plain', tool_use: '{{ tools | length }} tools', rag: 'rag' });
  assert.equal(chat.render([]), 'plain');
  assert.equal(chat.render([], { tools: [{}] }), '1 tools');
  assert.equal(chat.render([], { template: 'rag' }), 'rag');
  assert.throws(() => chat.render([], { template: 'nope' }), { code: 'ERR_AT_MOE_UNKNOWN_NAME', message: /tool_use/ });
  assert.throws(() => new ChatTemplate('{% if %}').render([]), { code: 'ERR_AT_MOE_BAD_FILE' });
});

test('globals: range, strftime_now, tools left undefined, further variables', () => {
  const render = (source: string, options = {}): string => new ChatTemplate(source).render([], options);
  assert.equal(render('{% for i in range(2, 8, 3) %}{{ i }}{% endfor %}'), '25');
  assert.equal(render('{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}'), '321');
  assert.equal(render('{{ tools is defined }}'), 'false');
  assert.equal(render('{{ mode }}', { variables: { mode: 'quick' } }), 'quick');
  const now = new Date(2024, 1, 3, 14, 5, 9);
  assert.equal(render("{{ strftime_now('%d %b %Y') }}", { now }), '03 Feb 2024');
  assert.equal(strftime(now, '%A %-d %B %y, %I:%M %p, %j %% %Q'), 'Saturday 3 February 24, 02:05 PM, 034 % %Q');
});
