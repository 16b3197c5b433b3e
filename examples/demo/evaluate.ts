/** Exact success on compounds, by greedy decoding. */
import type { GenerateOptions, GenerateResult, Prompt } from '../../lib/index.js';
import { allRight, type Example, type Factor, factors, factorsRight } from './task.js';

export interface Success {
  /** Share of examples whose whole answer is right, 0 to 1. */
  joint: number;
  /** Share of examples that hold the part of a factor. */
  factors: Record<Factor, number>;
}

interface Writer {
  completeAll(prompts: readonly Prompt[], options?: GenerateOptions): Promise<GenerateResult[]>;
}

export const maxTokens = 40;

/** Writes an answer to every example; `routing` may depend on the example. */
export async function success(
  writer: Writer,
  examples: Example[],
  routing?: (example: Example) => GenerateOptions['routing'],
): Promise<Success> {
  const texts = await answers(writer, examples, routing);
  const share = (right: boolean[]) => right.filter(Boolean).length / Math.max(right.length, 1);
  const each = examples.map((example, i) => factorsRight(texts[i] as string, example));
  return {
    joint: share(examples.map((example, i) => allRight(texts[i] as string, example))),
    factors: Object.fromEntries(factors.map((factor) => [factor, share(each.map((right) => right[factor]))])) as Record<
      Factor,
      number
    >,
  };
}

async function answers(
  writer: Writer,
  examples: Example[],
  routing?: (example: Example) => GenerateOptions['routing'],
): Promise<string[]> {
  if (!routing)
    return (
      await writer.completeAll(
        examples.map(({ prompt }) => prompt),
        { maxTokens },
      )
    ).map(({ text }) => text);
  const results = await Promise.all(
    examples.map((example) => {
      const own = routing(example);
      return writer.completeAll([example.prompt], { maxTokens, ...(own && { routing: own }) });
    }),
  );
  return results.map(([result]) => result?.text ?? '');
}
