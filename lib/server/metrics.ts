import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Usage } from '../generation.js';
import type { Model } from '../model.js';
import type { EngineStats, MemoryStatement } from '../native-types.js';
import type { RoutingTrace } from '../routing-trace.js';
import type { TextStep } from './text-step.js';

const latencies = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];
const tokenTimes = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5];

/** What GET /metrics shows, in a registry of its own. Labels hold no more than names of routes, models and experts. */
export class Metrics {
  readonly registry = new Registry();
  readonly #requests: Counter<'route' | 'status'>;
  readonly #seconds: Histogram<'route'>;
  readonly #promptTokens: Counter<'model'>;
  readonly #cachedTokens: Counter<'model'>;
  readonly #completionTokens: Counter<'model'>;
  readonly #firstToken: Histogram<'model'>;
  readonly #interToken: Histogram<'model'>;
  readonly #weights: Counter<'model' | 'expert'>;

  /** `baseName`: the label of the base; `open`: requests that are worked on. */
  constructor(
    model: Model,
    readonly baseName: string,
    open: () => number,
  ) {
    const { registry } = this;
    const registers = [registry];
    const byModel = { registers, labelNames: ['model'] as const };
    collectDefaultMetrics({ register: registry });
    this.#requests = new Counter({
      name: 'at_moe_http_requests_total',
      help: 'Requests that ended; status 499 for those that the client left',
      labelNames: ['route', 'status'] as const,
      registers,
    });
    this.#seconds = new Histogram({
      name: 'at_moe_http_request_seconds',
      help: 'Time of a request, from its headers to the end of its response',
      labelNames: ['route'] as const,
      buckets: latencies,
      registers,
    });
    const counter = (name: string, help: string) => new Counter({ name, help, ...byModel });
    this.#promptTokens = counter('at_moe_prompt_tokens_total', 'Tokens of prompts');
    this.#cachedTokens = counter('at_moe_cached_prompt_tokens_total', 'Of them those whose keys were there');
    this.#completionTokens = counter('at_moe_completion_tokens_total', 'Tokens written');
    this.#firstToken = new Histogram({
      name: 'at_moe_time_to_first_token_seconds',
      help: 'From the start of the generation, the wait in the queue included',
      ...byModel,
      buckets: latencies,
    });
    this.#interToken = new Histogram({
      name: 'at_moe_inter_token_seconds',
      help: 'Between two tokens of a text',
      ...byModel,
      buckets: tokenTimes,
    });
    this.#weights = new Counter({
      name: 'at_moe_expert_weight_total',
      help: 'Sum over texts of the weight of an expert, the mean over the layers: texts routed by sequence, or traced',
      labelNames: ['model', 'expert'] as const,
      registers,
    });
    new Gauge({
      name: 'at_moe_http_requests_open',
      help: 'Requests that are worked on',
      registers,
      collect() {
        this.set(open());
      },
    });
    addEngine(registry, model);
  }

  ended(route: string, status: number, milliseconds: number): void {
    this.#requests.inc({ route, status });
    this.#seconds.observe({ route }, milliseconds / 1000);
  }

  /** Counts of a prompt whose texts are done. */
  prompt(model: string | undefined, usage: Usage): void {
    const label = { model: model ?? this.baseName };
    this.#promptTokens.inc(label, usage.promptTokens);
    this.#cachedTokens.inc(label, usage.cachedTokens);
  }

  /** Takes the steps of a request's texts as they come, from its start on. */
  watch(model: string | undefined): (step: TextStep) => void {
    const label = { model: model ?? this.baseName };
    const started = performance.now();
    const last = new Map<number, number>();
    return (step) => {
      if ('text' in step) {
        if (step.text.routing) this.#routed(label.model, step.text.routing);
        return;
      }
      const count = step.piece.tokens.length;
      if (count === 0) return;
      const now = performance.now();
      const before = last.get(step.index);
      if (before === undefined) this.#firstToken.observe(label, (now - started) / 1000);
      else this.#interToken.observe(label, (now - before) / 1000);
      last.set(step.index, now);
      this.#completionTokens.inc(label, count);
    };
  }

  #routed(model: string, { experts, layers }: RoutingTrace): void {
    for (const [e, expert] of experts.entries()) {
      const mass = layers.reduce((sum, { expertWeights }) => sum + Math.abs(expertWeights[e] ?? 0), 0);
      this.#weights.inc({ model, expert }, mass / Math.max(1, layers.length));
    }
  }
}

interface EngineState {
  memory: MemoryStatement;
  stats: EngineStats;
}

/** What the engine says of itself, once for all metrics of a reading; nothing when it has failed. */
function engineReader(model: Model): () => Promise<EngineState | undefined> {
  const ask = async (): Promise<EngineState> => {
    const [memory, stats] = await Promise.all([model.memory(), model.stats()]);
    return { memory, stats };
  };
  let pending: Promise<EngineState | undefined> | undefined;
  return () => {
    pending ??= ask()
      .catch(() => undefined)
      .finally(() => {
        pending = undefined;
      });
    return pending;
  };
}

type Sample = [labels: Record<string, string>, value: number];

/** State of the engine, asked for when it is read. */
function addEngine(registry: Registry, model: Model): void {
  const read = engineReader(model);
  const registers = [registry];
  const metric =
    (Kind: typeof Gauge | typeof Counter) =>
    (name: string, help: string, samples: (state: EngineState) => Sample[], labelNames: string[] = []) =>
      new Kind({
        name,
        help,
        labelNames,
        registers,
        async collect() {
          this.reset();
          const state = await read();
          for (const [labels, value] of state ? samples(state) : []) this.inc(labels, value);
        },
      });
  const gauge = metric(Gauge);
  const counter = metric(Counter);
  gauge(
    'at_moe_kv_tokens',
    'Tokens that the KV cache has room for',
    ({ memory: { kvFreeTokens, kvTokens } }) => [
      [{ state: 'free' }, kvFreeTokens],
      [{ state: 'used' }, kvTokens - kvFreeTokens],
    ],
    ['state'],
  );
  gauge(
    'at_moe_sequences',
    'Sequences in the batch, waiting for a place in it, waiting for their reader',
    ({ stats: { running, queued, stalled } }) => [
      [{ state: 'running' }, running],
      [{ state: 'queued' }, queued],
      [{ state: 'stalled' }, stalled],
    ],
    ['state'],
  );
  gauge('at_moe_batch_size', 'Sequences of the last step', ({ stats }) => [[{}, stats.batchSize]]);
  counter(
    'at_moe_engine_requests_total',
    'Requests that the engine took, refused because its queue was full, ended because their time was up',
    ({ stats: { requests, refused, expired } }) => [
      [{ result: 'taken' }, requests],
      [{ result: 'refused' }, refused],
      [{ result: 'expired' }, expired],
    ],
    ['result'],
  );
  counter(
    'at_moe_prefix_cache_tokens_total',
    'Tokens of prompts that were looked up in the prefix cache, and found',
    ({ stats: { lookedUpTokens, hitTokens } }) => [
      [{ result: 'looked_up' }, lookedUpTokens],
      [{ result: 'hit' }, hitTokens],
    ],
    ['result'],
  );
  gauge(
    'at_moe_adapter_bytes',
    'Device memory of mixtures and adapters: what is held, and the budget if there is one',
    ({ stats: { adapterBytes, adapterBudget } }) => [
      [{ kind: 'held' }, adapterBytes],
      ...(adapterBudget > 0 ? ([[{ kind: 'budget' }, adapterBudget]] satisfies Sample[]) : []),
    ],
    ['kind'],
  );
  gauge(
    'at_moe_adapters',
    'Mixtures and adapters that are on the device, and those that are pinned there',
    ({ stats: { adaptersResident, adaptersPinned } }) => [
      [{ state: 'resident' }, adaptersResident],
      [{ state: 'pinned' }, adaptersPinned],
    ],
    ['state'],
  );
  counter(
    'at_moe_adapter_requests_total',
    'Requests that found their mixture or adapter on the device, and that waited for it',
    ({ stats: { adapterHits, adapterMisses } }) => [
      [{ result: 'hit' }, adapterHits],
      [{ result: 'miss' }, adapterMisses],
    ],
    ['result'],
  );
  counter(
    'at_moe_adapter_loads_total',
    'Mixtures and adapters brought to the device',
    ({ stats: { adapterLoads } }) => [[{}, adapterLoads]],
  );
  counter(
    'at_moe_adapter_evictions_total',
    'Those that gave their room to others',
    ({ stats: { adapterEvictions } }) => [[{}, adapterEvictions]],
  );
  counter(
    'at_moe_preemptions_total',
    'Sequences that lost their place to another one',
    ({ stats: { preemptions } }) => [[{}, preemptions]],
  );
}
