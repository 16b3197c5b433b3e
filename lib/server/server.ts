import { realpath } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';
import type { Model } from '../model.js';
import { addRoutes, createApp } from './app.js';
import { shuttingDown } from './errors.js';
import { Metrics } from './metrics.js';
import { Models, openAdapter } from './models.js';
import { OpenRequests } from './open-requests.js';
import { checkServerOptions, type ServerOptions } from './options.js';
import { routesOf } from './routes.js';

export interface ListenOptions {
  /** Default 127.0.0.1. */
  host?: string;
  /** Default 8080; 0: any that is free. */
  port?: number;
}

/** What aborted requests get to say so to their clients. */
const lastWordsMs = 1000;

/** An OpenAI-compatible server over a loaded model. */
export class Server {
  /** The fastify instance: further routes and hooks may be added before listen(). */
  readonly fastify: FastifyInstance;
  readonly #model: Model;
  readonly #models: Models;
  readonly #open: OpenRequests;
  readonly #graceMs: number;
  #closing: Promise<void> | undefined;

  /** @internal */
  constructor(model: Model, checked: ReturnType<typeof checkServerOptions>, adaptersRoot: string | undefined) {
    const open = new OpenRequests(checked.stallTimeoutMs);
    const metrics = new Metrics(model, checked.name, () => open.size);
    const isClosing = () => this.#closing !== undefined;
    this.#model = model;
    this.#models = new Models(model, checked.name, checked.maxAdapters, checked.pinned);
    this.#open = open;
    this.#graceMs = checked.graceMs;
    this.fastify = createApp(checked, { open, metrics, isClosing });
    const service = {
      model,
      models: this.#models,
      open,
      metrics,
      maxTokens: checked.maxTokens ?? model.contextLength,
      stallMs: checked.stallTimeoutMs,
      adaptersRoot,
      isClosing,
    };
    addRoutes(this.fastify, routesOf(service));
  }

  /** @internal */
  async addAdapters({ adapters, pinned }: ReturnType<typeof checkServerOptions>): Promise<void> {
    const unknown = pinned.find((name) => !Object.hasOwn(adapters, name));
    if (unknown !== undefined)
      throw new RangeError(`createServer: pinned: no adapter is named ${JSON.stringify(unknown)}`);
    const warn = (message: string) => this.fastify.log.warn(message);
    for (const [name, adapter] of Object.entries(adapters)) {
      const owned = typeof adapter === 'string';
      const open = async (pin: boolean) => {
        if (owned) return await openAdapter(this.#model, adapter, warn, pin);
        if (pin) await adapter.pin();
        return adapter;
      };
      await this.#models.add(name, open, { owned });
    }
  }

  /** Starts to listen; resolves with the address, as "http://127.0.0.1:8080". */
  async listen({ host = '127.0.0.1', port = 8080 }: ListenOptions = {}): Promise<string> {
    return await this.fastify.listen({ host, port });
  }

  /**
   * Takes no more requests, lets the open ones finish within `graceMs`, then ends what is left with 503 or an error event,
   * and frees the adapters that the server loaded. May be called again. The model is the caller's to dispose of.
   */
  async close({ graceMs = this.#graceMs }: { graceMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(graceMs);
    await this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(graceMs: number): Promise<void> {
    // It listens on until then, so that who asks for its health hears that it closes.
    const empty = this.#open.empty();
    await Promise.race([empty, sleep(graceMs, undefined, { ref: false })]);
    this.#open.abort(shuttingDown());
    await Promise.race([empty, sleep(lastWordsMs, undefined, { ref: false })]);
    const closed = this.fastify.close();
    this.fastify.server.closeAllConnections();
    await closed;
    this.#models.close();
  }
}

/**
 * A server of a model, its adapters and their experts; it listens after listen().
 * @throws TypeError, RangeError; errors of loading an adapter.
 */
export async function createServer(model: Model, options: ServerOptions = {}): Promise<Server> {
  if (typeof model?.generate !== 'function') throw new TypeError('createServer needs a loaded model');
  const checked = checkServerOptions(options);
  const root = checked.adaptersRoot === undefined ? undefined : await realpath(checked.adaptersRoot);
  const server = new Server(model, checked, root);
  try {
    await server.addAdapters(checked);
  } catch (error) {
    await server.close({ graceMs: 0 });
    throw error;
  }
  return server;
}
