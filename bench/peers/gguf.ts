// Writes GGUF files (version 3) of random weights: a llama model of a shape, and LoRA adapters for it.
// Layout: header, key-values, tensor infos, then the tensors' data, each from a multiple of 32 bytes on.
import { open } from 'node:fs/promises';
import type { ModelConfig } from '../../lib/descriptors.js';

/** ggml's numbers of types; q8_0: blocks of 32 weights, a f16 scale before the 32 bytes. */
const ggmlTypes = { f32: 0, f16: 1, q8_0: 8 } as const;
export type GgufType = keyof typeof ggmlTypes;

interface TensorInfo {
  name: string;
  /** Fastest dimension first: [in_features, out_features]. */
  dims: number[];
  type: GgufType;
}

type Value =
  | string
  | { u32: number }
  | { f32: number }
  | { strings: string[] }
  | { floats: number[] }
  | { ints: number[] };

const alignment = 32;
const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment;

class Bytes {
  readonly parts: Buffer[] = [];

  u32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    this.parts.push(part);
    return this;
  }
  u64(value: number): this {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(BigInt(value));
    this.parts.push(part);
    return this;
  }
  text(value: string): this {
    const part = Buffer.from(value);
    this.u64(part.length).parts.push(part);
    return this;
  }
  numbers(values: Float32Array | Int32Array): this {
    this.parts.push(Buffer.from(values.buffer, values.byteOffset, values.byteLength));
    return this;
  }
  value(value: Value): this {
    if (typeof value === 'string') return this.u32(8).text(value);
    if ('u32' in value) return this.u32(4).u32(value.u32);
    if ('f32' in value) return this.u32(6).numbers(Float32Array.of(value.f32));
    if ('floats' in value) return this.u32(9).u32(6).u64(value.floats.length).numbers(Float32Array.from(value.floats));
    if ('ints' in value) return this.u32(9).u32(5).u64(value.ints.length).numbers(Int32Array.from(value.ints));
    this.u32(9).u32(8).u64(value.strings.length);
    for (const text of value.strings) this.text(text);
    return this;
  }
}

function bytesOf({ dims, type }: TensorInfo): number {
  const count = dims.reduce((product, dim) => product * dim, 1);
  return type === 'f32' ? count * 4 : type === 'f16' ? count * 2 : (count / 32) * 34;
}

/** Values of about 0.01 in a run that tensors repeat: their size, not their pattern, matters to speed. */
function pool(type: GgufType): Buffer {
  const bytes = Buffer.alloc(alignment * 34 * 1024);
  let state = 1;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state;
  };
  if (type === 'f32') new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4).fill(1);
  else if (type === 'f16') {
    for (let i = 0; i < bytes.length; i += 2)
      bytes.writeUInt16LE(0x2000 | ((next() >>> 24) << 2) | ((next() >>> 31) << 15), i);
  } else {
    for (let i = 0; i < bytes.length; i += 1) bytes[i] = i % 34 === 0 ? 0x00 : i % 34 === 1 ? 0x04 : next() >>> 24;
  }
  return bytes;
}

async function write(file: string, values: Record<string, Value>, tensors: readonly TensorInfo[]): Promise<void> {
  const header = new Bytes();
  header.parts.push(Buffer.from('GGUF'));
  header.u32(3).u64(tensors.length).u64(Object.keys(values).length);
  for (const [key, value] of Object.entries(values)) header.text(key).value(value);
  let offset = 0;
  for (const tensor of tensors) {
    header.text(tensor.name).u32(tensor.dims.length);
    for (const dim of tensor.dims) header.u64(dim);
    header.u32(ggmlTypes[tensor.type]).u64(offset);
    offset += aligned(bytesOf(tensor));
  }
  const pools = new Map<GgufType, Buffer>();
  await using handle = await open(file, 'w');
  const head = Buffer.concat(header.parts);
  await handle.writeFile(Buffer.concat([head, Buffer.alloc(aligned(head.length) - head.length)]));
  for (const tensor of tensors) {
    const source = pools.get(tensor.type) ?? pool(tensor.type);
    pools.set(tensor.type, source);
    const bytes = bytesOf(tensor);
    for (let at = 0; at < bytes; at += source.length) {
      await handle.writeFile(source.subarray(0, Math.min(source.length, bytes - at)));
    }
    await handle.writeFile(Buffer.alloc(aligned(bytes) - bytes));
  }
}

/** [name, in_features, out_features] of a block's linears. */
function linears(config: ModelConfig, block: number): [string, number, number][] {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim } = config;
  const [q, kv] = [numHeads * headDim, numKvHeads * headDim];
  const shapes: [string, number, number][] = [
    ['attn_q', hiddenSize, q],
    ['attn_k', hiddenSize, kv],
    ['attn_v', hiddenSize, kv],
    ['attn_output', q, hiddenSize],
    ['ffn_gate', hiddenSize, intermediateSize],
    ['ffn_up', hiddenSize, intermediateSize],
    ['ffn_down', intermediateSize, hiddenSize],
  ];
  return shapes.map(([name, rows, cols]) => [`blk.${block}.${name}.weight`, rows, cols]);
}

const blocks = (config: ModelConfig) => Array.from({ length: config.numLayers }, (_, block) => block);

/** A llama model of the shape; its tokenizer has a word for every id. */
export async function writeModel(file: string, config: ModelConfig, type: 'f16' | 'q8_0'): Promise<void> {
  const { hiddenSize, vocabSize } = config;
  const word = (id: number) =>
    id < 3
      ? (['<unk>', '<s>', '</s>'][id] as string)
      : id < 259
        ? `<0x${(id - 3).toString(16).toUpperCase().padStart(2, '0')}>`
        : `▁w${id}`;
  const ids = Array.from({ length: vocabSize }, (_, id) => id);
  const norm = (name: string): TensorInfo => ({ name, dims: [hiddenSize], type: 'f32' });
  const tensors: TensorInfo[] = [{ name: 'token_embd.weight', dims: [hiddenSize, vocabSize], type }];
  for (const block of blocks(config)) {
    tensors.push(norm(`blk.${block}.attn_norm.weight`), norm(`blk.${block}.ffn_norm.weight`));
    for (const [name, rows, cols] of linears(config, block)) tensors.push({ name, dims: [rows, cols], type });
  }
  tensors.push(norm('output_norm.weight'), { name: 'output.weight', dims: [hiddenSize, vocabSize], type });
  await write(
    file,
    {
      'general.architecture': 'llama',
      'llama.context_length': { u32: config.maxPositionEmbeddings },
      'llama.embedding_length': { u32: hiddenSize },
      'llama.block_count': { u32: config.numLayers },
      'llama.feed_forward_length': { u32: config.intermediateSize },
      'llama.attention.head_count': { u32: config.numHeads },
      'llama.attention.head_count_kv': { u32: config.numKvHeads },
      'llama.attention.layer_norm_rms_epsilon': { f32: config.rmsNormEps },
      'llama.rope.dimension_count': { u32: config.headDim },
      'llama.rope.freq_base': { f32: config.ropeTheta },
      'llama.vocab_size': { u32: vocabSize },
      'tokenizer.ggml.model': 'llama',
      'tokenizer.ggml.tokens': { strings: ids.map(word) },
      'tokenizer.ggml.scores': { floats: ids.map((id) => -id) },
      'tokenizer.ggml.token_type': { ints: ids.map((id) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1)) },
      'tokenizer.ggml.bos_token_id': { u32: 1 },
      'tokenizer.ggml.eos_token_id': { u32: 2 },
    },
    tensors,
  );
}

/** A LoRA adapter of one rank on every linear. */
export async function writeAdapter(file: string, config: ModelConfig, rank: number): Promise<void> {
  const tensors = blocks(config)
    .flatMap((block) => linears(config, block))
    .flatMap(([name, rows, cols]): TensorInfo[] => [
      { name: `${name}.lora_a`, dims: [rows, rank], type: 'f16' },
      { name: `${name}.lora_b`, dims: [rank, cols], type: 'f16' },
    ]);
  await write(
    file,
    {
      'general.architecture': 'llama',
      'general.type': 'adapter',
      'adapter.type': 'lora',
      'adapter.lora.alpha': { f32: rank },
    },
    tensors,
  );
}
