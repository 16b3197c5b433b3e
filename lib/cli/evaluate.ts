import type { TokenizedExample } from '../data/examples.js';
import { Mixture } from '../mixture.js';
import type { RoutingTrace } from '../routing-trace.js';
import { collectExamples, type TrainingContext } from '../training/context.js';
import { type EvaluationOptions, parseEvaluationOptions } from '../training/options.js';
import { exampleFlags, exampleOptions } from './example-flags.js';
import { type Command, type Flags, parseCommand, required } from './flags.js';
import { modelFlags, targetFlags, withTarget } from './open.js';
import { table } from './text.js';

const command = {
  name: 'evaluate',
  usage: '--model DIR|NAME [--mixture DIR | --adapter DIR] --data FILE [flags]',
  summary:
    'Loss and perplexity on the completions of a JSONL file; for a mixture the mean weight of every expert as well.',
  flags: {
    ...modelFlags,
    ...targetFlags,
    data: { type: 'string', short: 'd', value: 'FILE', help: 'JSONL of {prompt, completion} or {messages}' },
    ...exampleFlags,
    json: { type: 'boolean', help: 'one JSON object' },
  },
  examples: [
    'evaluate --model ./model --data test.jsonl',
    'evaluate --model ./model --mixture ./mixture --data test.jsonl --json',
    'evaluate --model ./model --adapter ./mixture/experts/function/triage --data test.jsonl',
  ],
} as const satisfies Command<Flags>;

/** Weights summed over layers and tokens, and how many there were. */
function addTrace(sums: Float64Array, { layers, tokens }: RoutingTrace): number {
  const count = tokens?.length ?? 1;
  for (const { expertWeights } of layers) {
    for (const [e, weight] of expertWeights.entries()) sums[e] = (sums[e] as number) + (weight * count) / layers.length;
  }
  return count;
}

/** Mean w of every expert: over the tokens with token scope, else over the examples. */
async function meanExpertWeights(
  mixture: Mixture,
  examples: readonly TokenizedExample[],
  signal: AbortSignal,
): Promise<Record<string, number>> {
  const names = mixture.groups.flatMap(({ name, experts }) => experts.map((expert) => `${name}/${expert}`));
  const sums = new Float64Array(names.length);
  const perToken = mixture.routing.scope === 'token';
  let count = 0;
  for (const { ids, promptLength } of examples) {
    const trace = await mixture.explain(perToken ? ids : ids.slice(0, promptLength), { signal });
    count += addTrace(sums, trace);
  }
  return Object.fromEntries(names.map((name, e) => [name, (sums[e] as number) / count]));
}

async function examplesOf(mixture: Mixture, data: string, options: EvaluationOptions): Promise<TokenizedExample[]> {
  const { engine, tokenizer, chatTemplate, info } = mixture.core;
  const context: TrainingContext = {
    engine,
    mixture: null,
    target: 'router',
    tokenizer,
    chatTemplate,
    groups: mixture.groups,
    contextLength: info.contextLength,
    fingerprint: '',
  };
  return await collectExamples(context, data, parseEvaluationOptions(options));
}

export async function evaluate(argv: string[], signal: AbortSignal): Promise<number> {
  const parsed = parseCommand(command, argv);
  if (!parsed) return 0;
  const { values } = parsed;
  const data = required('data', values.data);
  const options = { ...exampleOptions(values), signal };
  return await withTarget(values, signal, async (target) => {
    const result = await target.evaluate(data, options);
    const expertWeights =
      target instanceof Mixture
        ? await meanExpertWeights(target, await examplesOf(target, data, options), signal)
        : undefined;
    if (values.json) {
      process.stdout.write(`${JSON.stringify({ ...result, ...(expertWeights && { expertWeights }) })}\n`);
      return 0;
    }
    process.stdout.write(
      table([
        ['loss', result.loss.toFixed(4)],
        ['perplexity', result.perplexity.toFixed(3)],
        ['tokens', String(result.tokens)],
      ]),
    );
    const rows = Object.entries(expertWeights ?? {}).map(([name, weight]) => [name, weight.toFixed(4)]);
    if (rows.length > 0) process.stdout.write(`\n${table([['expert', 'mean weight'], ...rows])}`);
    return 0;
  });
}
