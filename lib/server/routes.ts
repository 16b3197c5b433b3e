import type { FastifyReply, FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { Usage } from '../generation.js';
import type { Model } from '../model.js';
import { insideRoot, withoutRoot } from './adapter-path.js';
import { chunks, wholeAnswer } from './answer.js';
import type { Handler, Routes } from './app.js';
import { chat } from './chat.js';
import { completions } from './completions.js';
import type { Dialect } from './dialect.js';
import { ApiError, logFault, schemaError, shuttingDown, toApiError } from './errors.js';
import { sendEvents } from './events.js';
import { generate } from './generation.js';
import type { Metrics } from './metrics.js';
import { type Models, openAdapter } from './models.js';
import type { OpenRequests } from './open-requests.js';

/** What routes work with. */
export interface Service {
  model: Model;
  models: Models;
  open: OpenRequests;
  metrics: Metrics;
  maxTokens: number;
  stallMs: number;
  /** The real path of the folder that adapters are loaded from. */
  adaptersRoot: string | undefined;
  isClosing(): boolean;
}

function logUsage({ open }: Service, request: FastifyRequest, { promptTokens, completionTokens }: Usage): void {
  open.log(request.raw, { promptTokens, completionTokens });
}

/** Text by either dialect, whole or as a stream. */
function writeText(service: Service, dialect: Dialect): Handler {
  const { model, models, open, metrics, maxTokens, stallMs } = service;
  return async (request, reply) => {
    const asked = dialect.parse(request.body, { maxTokens });
    const lease = models.lease(asked.model);
    try {
      open.log(request.raw, { model: asked.model });
      const signal = open.signalOf(request.raw);
      const steps = generate(lease, asked, signal, metrics);
      if (!asked.stream) {
        const { body, usage } = await wholeAnswer(dialect, asked, steps, model.tokenizer);
        logUsage(service, request, usage);
        return body;
      }
      const events = chunks(dialect, asked, steps, model.tokenizer);
      // A request that fails before its first token fails as any other.
      const first = await events.next();
      startStream(reply);
      const usage = await sendEvents(reply.raw, first, events, { signal, stallMs }).catch((error: unknown) => {
        logFault(request, toApiError(error));
      });
      if (usage) logUsage(service, request, usage);
    } finally {
      lease.release();
    }
  };
}

function startStream(reply: FastifyReply): void {
  reply.hijack();
  for (const [name, value] of Object.entries(reply.getHeaders())) if (value) reply.raw.setHeader(name, value);
  reply.raw.writeHead(200, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
    'x-accel-buffering': 'no',
  });
}

const adapterBody = z.strictObject({ name: z.string(), path: z.string().min(1), replace: z.boolean().nullish() });

function rootOf({ adaptersRoot }: Service): string {
  if (adaptersRoot !== undefined) return adaptersRoot;
  throw new ApiError(403, 'adapters are not loaded at run time here: no adapters root was given', {
    code: 'adapters_disabled',
  });
}

/** What is wrong with an adapter's files is the client's to know, where they lie is not. */
function loadError(error: unknown, root: string): unknown {
  const { code, message } = error as { code?: string; message: string };
  const isFault =
    error instanceof ApiError || /^ERR_AT_MOE_(BAD_FILE|MISMATCH|NOT_FINITE|NOT_FOUND|UNSUPPORTED)$/.test(code ?? '');
  if (!isFault) return error;
  return new ApiError(400, withoutRoot(root, message), { code: 'invalid_adapter', param: 'path', cause: error });
}

/** Warnings by adapter: one that is replaced again and again is warned of once. */
class Warnings {
  readonly #told = new Map<string, Set<string>>();

  isNew(name: string, message: string): boolean {
    const told = this.#told.get(name) ?? new Set();
    this.#told.set(name, told);
    return told.size < told.add(message).size;
  }

  forget(name: string): void {
    this.#told.delete(name);
  }
}

function loadAdapter(service: Service, warnings: Warnings): Handler {
  const { model, models } = service;
  return async (request, reply) => {
    const root = rootOf(service);
    const parsed = adapterBody.safeParse(request.body);
    if (!parsed.success) throw schemaError(parsed.error);
    const { name, path, replace } = parsed.data;
    const warn = (message: string) => {
      if (warnings.isNew(name, message)) request.log.warn(message);
    };
    const open = async (pin: boolean) => {
      const folder = await insideRoot(root, path);
      try {
        return await openAdapter(model, folder, warn, pin);
      } catch (error) {
        throw loadError(error, root);
      }
    };
    const { card, replaced } = await models.add(name, open, { replace: replace ?? false });
    void reply.code(replaced ? 200 : 201);
    return card;
  };
}

const nameOf = (request: FastifyRequest) => (request.params as { name: string }).name;

async function health({ model, isClosing }: Service): Promise<object> {
  if (isClosing()) throw shuttingDown();
  try {
    await model.memory();
  } catch (cause) {
    throw new ApiError(503, 'the engine has failed', { code: 'engine_failed', cause });
  }
  return { status: 'ok' };
}

export function routesOf(service: Service): Routes {
  const { models, metrics } = service;
  const warnings = new Warnings();
  return {
    '/v1/chat/completions': { POST: writeText(service, chat) },
    '/v1/completions': { POST: writeText(service, completions) },
    '/v1/models': { GET: async () => ({ object: 'list', data: models.list() }) },
    '/v1/models/*': { GET: async ({ params }) => models.card((params as { '*': string })['*']) },
    '/v1/adapters': {
      GET: async () => ({ object: 'list', data: models.adapters() }),
      POST: loadAdapter(service, warnings),
    },
    '/v1/adapters/:name': {
      GET: async (request) => models.adapter(nameOf(request)),
      DELETE: async (request) => {
        rootOf(service);
        models.remove(nameOf(request));
        warnings.forget(nameOf(request));
        return { name: nameOf(request), deleted: true };
      },
    },
    '/healthz': { GET: () => health(service) },
    '/metrics': {
      GET: async (_request, reply) => {
        void reply.type(metrics.registry.contentType);
        return await metrics.registry.metrics();
      },
    },
  };
}
