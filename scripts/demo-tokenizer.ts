/**
 * Writes the demo base model's tokenizer and configuration files: node dist/scripts/demo-tokenizer.js [folder]
 * Byte-level BPE without merges: each word of the demo's world is one token, any other text falls back to its bytes.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { corpusSentences } from '../examples/demo/corpus.js';
import { complaints, compounds, durations, render, severities } from '../examples/demo/task.js';

const specialTokens = ['<unk>', '<bos>', '<eos>'];
const wordPattern = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** Byte to printable character, as in GPT-2's byte-level vocabulary. */
export function byteAlphabet(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

function worldTexts(): string[] {
  const texts = corpusSentences().flatMap((sentence) => [sentence, ` ${sentence}`]);
  for (const compound of compounds) {
    for (const severity of severities) {
      for (const complaint of complaints) {
        for (const duration of durations) {
          const { prompt, completion } = render(compound, { severity, complaint, duration });
          texts.push(prompt, completion);
        }
      }
    }
  }
  return texts;
}

export function vocabulary(): string[] {
  const alphabet = byteAlphabet();
  const words = new Set<string>();
  for (const text of worldTexts()) {
    for (const [word] of text.matchAll(wordPattern)) {
      words.add([...new TextEncoder().encode(word)].map((byte) => alphabet[byte]).join(''));
    }
  }
  return [...specialTokens, ...new Set([...alphabet, ...[...words].sort()])];
}

function addedToken(content: string) {
  return { content, lstrip: false, normalized: false, rstrip: false, single_word: false, special: true };
}

export function tokenizerJson() {
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, id) => ({ id, ...addedToken(content) })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<bos>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [
        { SpecialToken: { id: '<bos>', type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
        { Sequence: { id: 'B', type_id: 0 } },
      ],
      special_tokens: { '<bos>': { id: '<bos>', ids: [1], tokens: ['<bos>'] } },
    },
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: true,
      vocab: Object.fromEntries(vocabulary().map((token, id) => [token, id])),
      merges: [],
    },
  };
}

export const tokenizerConfig = {
  tokenizer_class: 'PreTrainedTokenizerFast',
  bos_token: '<bos>',
  eos_token: '<eos>',
  unk_token: '<unk>',
  clean_up_tokenization_spaces: false,
  model_max_length: 128,
  chat_template:
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}{% else %}{{ message.content }}\n{% endif %}{% endfor %}",
};

export function modelConfig(vocabSize: number) {
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: 128,
    intermediate_size: 256,
    num_hidden_layers: 4,
    num_attention_heads: 8,
    num_key_value_heads: 8,
    head_dim: 16,
    hidden_act: 'silu',
    vocab_size: vocabSize,
    max_position_embeddings: 128,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    rope_scaling: null,
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: true,
    bos_token_id: 1,
    eos_token_id: 2,
    torch_dtype: 'float32',
  };
}

export const generationConfig = { bos_token_id: 1, eos_token_id: 2, do_sample: false, max_new_tokens: 48 };

function main(folder: string): void {
  const files = {
    'tokenizer.json': tokenizerJson(),
    'tokenizer_config.json': tokenizerConfig,
    'config.json': modelConfig(vocabulary().length),
    'generation_config.json': generationConfig,
  };
  mkdirSync(folder, { recursive: true });
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(folder, name), `${JSON.stringify(content, null, 2)}\n`);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main(process.argv[2] ?? 'examples/demo/base');
