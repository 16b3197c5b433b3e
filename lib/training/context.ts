import { abortReason, orAborted } from '../abort.js';
import { type TokenizedExample, tokenizeExamples } from '../data/examples.js';
import type { GroupNames } from '../data/labels.js';
import type { ExampleSource } from '../data/rows.js';
import type { Lifetime } from '../lifetime.js';
import type { MixtureHandle } from '../native-mixture-types.js';
import type { TrainTarget } from '../native-training-types.js';
import type { NativeEngine } from '../native-types.js';
import type { ChatTemplate } from '../text/chat-template.js';
import type { Tokenizer } from '../text/tokenizer.js';
import type { ParsedEvaluationOptions } from './options.js';

/** What is trained or evaluated, and what its rows are read with. */
export interface TrainingContext {
  engine: NativeEngine;
  /** Null for the base. */
  mixture: MixtureHandle | null;
  target: TrainTarget;
  tokenizer?: Tokenizer;
  chatTemplate?: ChatTemplate;
  /** The mixture's groups; without them labels of rows are passed over. */
  groups?: readonly GroupNames[];
  /** Longest sequence in tokens. */
  contextLength: number;
  /** Ids of rows of ids must be below it. */
  vocabSize?: number;
  /** Of the structure of model and mixture: a checkpoint is resumed only where it is the same. */
  fingerprint: string;
  /** Of the adapters' input where the options give none; default 0. */
  dropout?: number;
  /** Training and evaluation end with it. */
  life?: Lifetime;
  /** Called once before the trainer ends, however it ends: the last moment to read what was trained. */
  onEnd?: (trainer: number) => Promise<void>;
}

/**
 * The examples of a source. Errors: RangeError for a maxLength beyond the context; those of tokenizeExamples, where
 * an abort throws the signal's reason.
 */
export async function* readExamples(
  context: TrainingContext,
  source: ExampleSource,
  options: ParsedEvaluationOptions,
): AsyncGenerator<TokenizedExample> {
  const { contextLength, vocabSize, tokenizer, chatTemplate, groups } = context;
  const { lossOn, appendEos, tooLong, onSkip, signal, batchTokens } = options;
  if ((options.maxLength ?? 0) > contextLength) {
    throw new RangeError(`maxLength ${options.maxLength} is beyond the context of ${contextLength} tokens`);
  }
  const limit = options.maxLength ?? contextLength;
  // An example beyond batchTokens is refused by packing, in words of its own, unless it was to be cut or left out.
  const maxLength = tooLong === 'error' ? limit : Math.min(limit, batchTokens);
  try {
    yield* tokenizeExamples(source, {
      tokenizer,
      chatTemplate,
      groups,
      vocabSize,
      lossOn,
      appendEos,
      maxLength,
      tooLong,
      onSkip,
      signal,
    });
  } catch (error) {
    throw abortReason(error, signal);
  }
}

/** All examples of a source, kept in memory. Errors: as readExamples; an abort does not wait for the source. */
export async function collectExamples(
  context: TrainingContext,
  source: ExampleSource,
  options: ParsedEvaluationOptions,
): Promise<TokenizedExample[]> {
  const collect = async () => {
    const examples: TokenizedExample[] = [];
    for await (const example of readExamples(context, source, options)) examples.push(example);
    return examples;
  };
  return await orAborted(collect(), options.signal);
}
