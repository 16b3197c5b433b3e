/**
 * What an engine that schedules offers beyond one that does not: `n`, `priority` and `timeoutMs` among the options of
 * generation, and counts. This file alone knows the difference.
 */
import type { GenerateResult, Piece, Usage } from '../generation.js';
import type { GenerateOptions, Prompt } from '../generation-options.js';
import { merge } from '../merge.js';
import type { Model } from '../model.js';
import type { TextGenerator } from '../text-generator.js';
import { ApiError, argumentError } from './errors.js';

/** Of what Model.stats() tells. */
export interface EngineStats {
  running: number;
  queued: number;
  stalled: number;
  batchSize: number;
  lookedUpTokens: number;
  hitTokens: number;
  preemptions: number;
}

interface SchedulingOptions {
  n?: number;
  priority?: number;
  timeoutMs?: number;
}

/** One finished text. */
export type Text = Omit<GenerateResult, 'usage' | 'choices'>;

/** A piece of one of several texts, or the end of one. */
export type TextStep = { index: number; piece: Piece } | { index: number; text: Text };

function statsOf(model: Model): (() => Promise<EngineStats>) | undefined {
  const { stats } = model as { stats?: () => Promise<EngineStats> };
  return stats?.bind(model);
}

/** Undefined for an engine that does not count. */
export async function engineStats(model: Model): Promise<EngineStats | undefined> {
  return await statsOf(model)?.();
}

/**
 * `n` texts after one prompt, the i-th that of the seed + i. Returns the counts of all.
 * @throws as TextGenerator.generate(), at the first step; ApiError 400 for a priority that the engine cannot honour.
 */
export function generateTexts(
  model: Model,
  generator: TextGenerator,
  prompt: Prompt,
  options: GenerateOptions,
  scheduling: SchedulingOptions & { n: number },
): AsyncGenerator<TextStep, Usage> {
  if (statsOf(model)) return byEngine(generator, prompt, { ...options, ...scheduling });
  if (scheduling.priority) {
    throw new ApiError(400, 'priority: is not supported by this engine', { code: 'unsupported', param: 'priority' });
  }
  return byCalls(generator, prompt, options, scheduling.n);
}

/** @throws as TextGenerator.generate(), wrong arguments as ApiError 400. */
function start(generator: TextGenerator, prompt: Prompt, options: GenerateOptions & SchedulingOptions) {
  try {
    return generator.generate(prompt, options);
  } catch (error) {
    throw argumentError(error);
  }
}

async function* byEngine(
  generator: TextGenerator,
  prompt: Prompt,
  options: GenerateOptions & SchedulingOptions,
): AsyncGenerator<TextStep, Usage> {
  for await (const { step } of merge([start(generator, prompt, options)])) {
    if (!step.done) {
      const piece: Piece & { index?: number } = step.value;
      yield { index: piece.index ?? 0, piece };
      continue;
    }
    const { usage, choices = [step.value] }: GenerateResult & { choices?: Text[] } = step.value;
    for (const [index, text] of choices.entries()) yield { index, text };
    return usage;
  }
  throw new Error('the engine gave no result');
}

async function* byCalls(
  generator: TextGenerator,
  prompt: Prompt,
  options: GenerateOptions,
  n: number,
): AsyncGenerator<TextStep, Usage> {
  const seed = (i: number) => (options.seed === undefined ? {} : { seed: options.seed + i });
  const streams = Array.from({ length: n }, (_, i) => start(generator, prompt, { ...options, ...seed(i) }));
  const usage = { promptTokens: 0, completionTokens: 0, totalTokens: 0, cachedTokens: 0 };
  for await (const { index, step } of merge(streams)) {
    if (!step.done) {
      yield { index, piece: step.value };
      continue;
    }
    const { promptTokens, completionTokens, cachedTokens } = step.value.usage;
    usage.promptTokens = promptTokens;
    usage.cachedTokens = Math.max(usage.cachedTokens, cachedTokens);
    usage.completionTokens += completionTokens;
    yield { index, text: step.value };
  }
  usage.totalTokens = usage.promptTokens + usage.completionTokens;
  return usage;
}
