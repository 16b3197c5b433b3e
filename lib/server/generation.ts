import type { Choice, Usage } from '../generation.js';
import type { GenerateOptions, Prompt } from '../generation-options.js';
import { merge } from '../merge.js';
import type { RoutingControls } from '../routing-controls.js';
import type { TextGenerator } from '../text-generator.js';
import { ApiError, argumentError } from './errors.js';
import type { Metrics } from './metrics.js';
import type { Lease } from './models.js';
import type { GenerationRequest } from './requests.js';
import type { TextStep } from './text-step.js';

/** The controls of a request for a model by name, which may ask for one expert. */
function controlsOf({ only }: Lease, controls: RoutingControls): RoutingControls {
  if (only === undefined) return controls;
  if (Object.keys(controls).length === 0) return { only };
  const message = 'routing: a model that is one expert has no routing to control';
  throw new ApiError(400, message, { code: 'invalid_routing', param: 'routing' });
}

/** One record for a text is cheap, one for each of its tokens is not. */
const isTracedAnyway = ({ mixture }: Lease) => mixture?.routing.scope === 'sequence';

/** The queue takes all prompts or none. @throws as TextGenerator.generate(), wrong arguments as ApiError 400. */
function start(generator: TextGenerator, prompts: readonly Prompt[], options: GenerateOptions) {
  try {
    return generator.streams(prompts, options);
  } catch (error) {
    throw argumentError(error);
  }
}

/**
 * The texts of a request as they come, all prompts side by side: text c after prompt p has the index p · n + c. Returns
 * the counts of all. @throws ApiError; errors of generation; the signal's reason.
 */
export async function* generate(
  lease: Lease,
  request: GenerationRequest,
  signal: AbortSignal,
  metrics: Metrics,
): AsyncGenerator<TextStep, Usage> {
  const { prompts, n } = request;
  const options = {
    ...request.options,
    n,
    trace: request.options.trace || isTracedAnyway(lease),
    routing: controlsOf(lease, request.controls),
    signal,
  };
  const streams = start(lease.generator, prompts, options);
  const watch = metrics.watch(lease.name);
  const total = { promptTokens: 0, completionTokens: 0, totalTokens: 0, cachedTokens: 0 };
  for await (const { index: p, step } of merge(streams)) {
    const steps: TextStep[] = step.done
      ? (step.value.choices as Choice[]).map((text, c) => ({ index: p * n + c, text }))
      : [{ index: p * n + (step.value.index as number), piece: step.value }];
    for (const next of steps) {
      watch(next);
      yield next;
    }
    if (!step.done) continue;
    for (const key of Object.keys(total) as (keyof Usage)[]) total[key] += step.value.usage[key];
    metrics.prompt(lease.name, step.value.usage);
  }
  return total;
}
