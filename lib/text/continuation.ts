import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';

type Json = Record<string, unknown>;

/**
 * When a tokenizer writes a space before text that has none: before every stretch between added tokens, the first only,
 * or never.
 */
export type PrefixScheme = 'always' | 'first' | 'never';

/** The components of a part of tokenizer.json that may be a sequence of them under `key`. */
export function parts(node: unknown, key: string): Json[] {
  if (typeof node !== 'object' || node === null) return [];
  const children = (node as Json)[key];
  return Array.isArray(children) ? children.flatMap((child) => parts(child, key)) : [node as Json];
}

/** Which prefix scheme a parsed tokenizer.json has. */
export function prefixScheme(tokenizerJson: Json): PrefixScheme {
  if (parts(tokenizerJson.normalizer, 'normalizers').some((part) => part.type === 'Prepend')) return 'always';
  for (const part of parts(tokenizerJson.pre_tokenizer, 'pretokenizers')) {
    if (part.type === 'ByteLevel' && part.add_prefix_space === true) return 'always';
    if (part.type === 'Metaspace') return (part.prepend_scheme as PrefixScheme | undefined) ?? 'always';
  }
  return 'never';
}

function withoutPrefix(part: Json): Json {
  if (part.type === 'ByteLevel') return { ...part, add_prefix_space: false };
  if (part.type === 'Metaspace') return { ...part, prepend_scheme: 'never', add_prefix_space: false };
  return part;
}

/**
 * A tokenizer for text that goes on after other text: as `base`, but it writes no space before its input.
 * It shares the vocabulary of `base`, so it costs nothing to make.
 */
export function continuationTokenizer(tokenizerJson: Json, config: Json, base: HfTokenizer): HfTokenizer {
  const normalizers = parts(tokenizerJson.normalizer, 'normalizers').filter((part) => part.type !== 'Prepend');
  const preTokenizers = parts(tokenizerJson.pre_tokenizer, 'pretokenizers').map(withoutPrefix);
  const tokenizer = new HfTokenizer(
    {
      ...tokenizerJson,
      normalizer: normalizers.length > 0 ? { type: 'Sequence', normalizers } : null,
      pre_tokenizer: preTokenizers.length > 0 ? { type: 'Sequence', pretokenizers: preTokenizers } : null,
      model: { type: 'BPE', vocab: {}, merges: [] },
    },
    config,
  );
  tokenizer.model = base.model;
  return tokenizer;
}
