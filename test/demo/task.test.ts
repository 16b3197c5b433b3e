import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Tokenizer } from '@huggingface/tokenizers';
import { baseCorpus, corpusSentences } from '../../examples/demo/corpus.js';
import * as task from '../../examples/demo/task.js';
import { modelConfig, tokenizerConfig, tokenizerJson, vocabulary } from '../../scripts/demo-tokenizer.js';

const key = (c: task.Compound) => `${c.function} ${c.domain} ${c.style}`;
const tags = (prompt: string) =>
  prompt
    .match(/task: (\w+) \| field: (\w+) \| tone: (\w+)/)
    ?.slice(1)
    .join(' ');
const allNotes = task.severities.flatMap((severity) =>
  task.complaints.flatMap((complaint) => task.durations.map((duration) => ({ severity, complaint, duration }))),
);

test('the same seed gives the same data, another seed other data', () => {
  assert.deepEqual(task.routerExamples(100, 7), task.routerExamples(100, 7));
  assert.notDeepEqual(task.routerExamples(100, 7), task.routerExamples(100, 8));
  assert.deepEqual(baseCorpus(100, 7), baseCorpus(100, 7));
  assert.deepEqual(
    [1, 2, 3].map(task.random(1)).map((x) => Math.floor(x * 2 ** 32)),
    [2693262067, 11749833, 2265367787],
  );
});

test('spans cover the completion and depend on their own factor and the note only', () => {
  for (const note of allNotes) {
    const parts = new Map<string, string>();
    for (const compound of task.compounds) {
      const { completion, spans, groups, experts } = task.render(compound, note);
      assert.equal(spans.style[0], 0);
      assert.equal(spans.style[1], spans.function[0]);
      assert.equal(spans.function[1], spans.domain[0]);
      assert.equal(spans.domain[1], completion.length);
      assert.deepEqual(groups, [...task.factors]);
      assert.deepEqual(
        experts,
        task.factors.map((factor) => `${factor}/${compound[factor]}`),
      );
      for (const factor of task.factors) {
        const name = `${factor}/${compound[factor]}`;
        const part = completion.slice(...spans[factor]);
        assert.equal(parts.get(name) ?? part, part);
        parts.set(name, part);
      }
    }
    assert.equal(new Set(parts.values()).size, 10);
  }
});

test('a third of the compounds is unseen, and every pair of levels is covered by the seen ones', () => {
  assert.equal(task.compounds.length, 36);
  assert.equal(task.unseenCompounds.length, 12);
  const pairs = (among: readonly task.Compound[]) =>
    new Set(among.flatMap((c) => [`${c.function} ${c.domain}`, `${c.domain} ${c.style}`, `${c.function} ${c.style}`]));
  assert.deepEqual(pairs(task.seenCompounds), pairs(task.compounds));
});

test('nothing of an unseen compound is in any training data', () => {
  const unseen = new Set(task.unseenCompounds.map(key));
  const prompts = [...task.routerExamples(2000, 1), ...baseCorpus(2000, 1)].map(({ prompt }) => prompt);
  for (const factor of task.factors) {
    for (const level of task.levels[factor]) {
      const examples = task.expertExamples(factor, level, 300, 2);
      assert.ok(examples.every(({ experts }) => experts.includes(`${factor}/${level}`)));
      prompts.push(...examples.map(({ prompt }) => prompt));
    }
  }
  for (const prompt of prompts) assert.ok(!unseen.has(tags(prompt) ?? ''), prompt);
});

test('the base corpus knows every word of the answers, but no prompt with a part that a factor owns and no whole answer', () => {
  const sentences = corpusSentences();
  const documents = baseCorpus(3000, 3);
  const pieces = (text: string) => text.match(/ ?\w+| ?[^\s\w]/g) ?? [];
  const words = new Set(sentences.flatMap((sentence) => [...pieces(sentence), ...pieces(` ${sentence}`)]));
  const answers = [...sentences, ...documents.filter(({ prompt }) => prompt).map(({ completion }) => completion)].join(
    '\n',
  );
  const text = documents.map(({ completion }) => completion).join('\n');
  for (const note of allNotes) {
    for (const compound of task.compounds) {
      const example = task.render(compound, note);
      for (const word of pieces(example.completion)) assert.ok(words.has(word), word);
      assert.deepEqual(task.factorsRight(answers, example), { function: false, domain: false, style: false });
      assert.ok(!text.includes(example.completion));
    }
  }
});

test('the measure sees the part that is wrong', () => {
  const example = task.compound('advice', 'neurology', 'formal', task.random(5));
  assert.ok(task.allRight(`${example.completion} and more`, example));
  const other = example.completion.replace('Dear reader', 'Hello friend');
  assert.deepEqual(task.factorsRight(other, example), { function: true, domain: true, style: false });
  assert.ok(!task.allRight(other, example));
});

test('the tokenizer gives back every text, with one token a word, and is the one on disk', () => {
  const tokenizer = new Tokenizer(tokenizerJson(), tokenizerConfig);
  const size = vocabulary().length;
  assert.ok(size <= 512, `${size} tokens`);
  const read = (name: string) => JSON.parse(readFileSync(`examples/demo/base/${name}`, 'utf8'));
  assert.deepEqual(read('tokenizer.json'), tokenizerJson());
  assert.deepEqual(read('tokenizer_config.json'), tokenizerConfig);
  assert.deepEqual(read('config.json'), modelConfig(size));
  for (const { prompt, completion, spans } of task.examplesOf(task.compounds, 400, 9)) {
    const ids = (text: string) => tokenizer.encode(text, { add_special_tokens: false }).ids;
    const whole = tokenizer.encode(prompt + completion).ids;
    assert.equal(tokenizer.decode(whole, { skip_special_tokens: true }), prompt + completion);
    assert.equal(whole[0], 1);
    assert.deepEqual(whole.slice(1), [...ids(prompt), ...ids(completion)]);
    assert.deepEqual(
      ids(completion),
      (['style', 'function', 'domain'] as const).flatMap((factor) => ids(completion.slice(...spans[factor]))),
    );
    assert.ok(ids(completion).length <= 32 && whole.length <= 64);
  }
  for (const text of ['Größe 12 µg, "naïve"?\n\n  two  spaces', "日本語 🙂 it's"]) {
    assert.equal(tokenizer.decode(tokenizer.encode(text).ids, { skip_special_tokens: true }), text);
  }
});
