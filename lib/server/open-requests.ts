import type { IncomingMessage, ServerResponse } from 'node:http';
import { clientLeft } from './errors.js';

/** What the log says of a request beside its route and status. */
export type LogFields = Record<string, string | number>;

interface Open {
  controller: AbortController;
  fields: LogFields;
}

/** The requests that are worked on: who left, and who is still here when the server closes. */
export class OpenRequests {
  readonly #known = new WeakMap<IncomingMessage, Open>();
  readonly #open = new Set<Open>();
  readonly #stallMs: number;
  #onEmpty: (() => void) | undefined;

  /** `stallMs`: what a client may take to read the end of an answer before it is given up. */
  constructor(stallMs: number) {
    this.#stallMs = stallMs;
  }

  get size(): number {
    return this.#open.size;
  }

  /** `onEnd` hears when the response is done, or the client gone. */
  add(request: IncomingMessage, response: ServerResponse, onEnd: (left: boolean, fields: LogFields) => void): void {
    const open = { controller: new AbortController(), fields: {} };
    this.#known.set(request, open);
    this.#open.add(open);
    let stalled: NodeJS.Timeout | undefined;
    let left = true;
    response.once('finish', () => {
      left = response.destroyed;
    });
    response.once('prefinish', () => {
      if (!response.destroyed) stalled = setTimeout(() => response.destroy(), this.#stallMs);
    });
    response.once('close', () => {
      clearTimeout(stalled);
      this.#open.delete(open);
      if (left) open.controller.abort(clientLeft());
      onEnd(left, open.fields);
      if (this.#open.size === 0) this.#onEmpty?.();
    });
  }

  /** Aborts when the client leaves, or the server gives the request up. */
  signalOf(request: IncomingMessage): AbortSignal {
    return this.#get(request).controller.signal;
  }

  log(request: IncomingMessage, fields: LogFields): void {
    Object.assign(this.#get(request).fields, fields);
  }

  /** Aborts all. */
  abort(reason: Error): void {
    for (const { controller } of this.#open) controller.abort(reason);
  }

  /** Resolves when none is open. */
  async empty(): Promise<void> {
    if (this.#open.size === 0) return;
    await new Promise<void>((resolve) => {
      this.#onEmpty = resolve;
    });
  }

  #get(request: IncomingMessage): Open {
    const open = this.#known.get(request);
    if (!open) throw new Error('a request that was not added');
    return open;
  }
}
