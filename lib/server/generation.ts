import type { Usage } from '../generation.js';
import { merge } from '../merge.js';
import type { Model } from '../model.js';
import type { RoutingControls } from '../routing-controls.js';
import { ApiError } from './errors.js';
import type { Metrics } from './metrics.js';
import type { Lease } from './models.js';
import type { GenerationRequest } from './requests.js';
import { generateTexts, type TextStep } from './scheduling.js';

/** The controls of a request for a model by name, which may ask for one expert. */
function controlsOf({ only }: Lease, controls: RoutingControls): RoutingControls {
  if (only === undefined) return controls;
  if (Object.keys(controls).length === 0) return { only };
  const message = 'routing: a model that is one expert has no routing to control';
  throw new ApiError(400, message, { code: 'invalid_routing', param: 'routing' });
}

/** One record for a text is cheap, one for each of its tokens is not. */
const isTracedAnyway = ({ mixture }: Lease) => mixture?.routing.scope === 'sequence';

/**
 * The texts of a request as they come, all prompts side by side: text c after prompt p has the index p · n + c. Returns
 * the counts of all. @throws ApiError; errors of generation; the signal's reason.
 */
export async function* generate(
  model: Model,
  lease: Lease,
  request: GenerationRequest,
  signal: AbortSignal,
  metrics: Metrics,
): AsyncGenerator<TextStep, Usage> {
  const { prompts, n, priority, timeoutMs } = request;
  const options = {
    ...request.options,
    trace: request.options.trace || isTracedAnyway(lease),
    routing: controlsOf(lease, request.controls),
    signal,
  };
  const scheduling = { n, ...(priority !== undefined && { priority }), ...(timeoutMs !== undefined && { timeoutMs }) };
  const streams = prompts.map((prompt) => generateTexts(model, lease.generator, prompt, options, scheduling));
  const watch = metrics.watch(lease.name);
  const total = { promptTokens: 0, completionTokens: 0, totalTokens: 0, cachedTokens: 0 };
  for await (const { index, step } of merge(streams)) {
    if (!step.done) {
      const next = { ...step.value, index: index * n + step.value.index };
      watch(next);
      yield next;
      continue;
    }
    for (const key of Object.keys(total) as (keyof Usage)[]) total[key] += step.value[key];
    metrics.prompt(lease.name, step.value);
  }
  return total;
}
