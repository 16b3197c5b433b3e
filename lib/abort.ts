import { AtMoeError } from './errors.js';

/** All who wait for one signal, of which it has one listener. */
class Hearers {
  static readonly #known = new WeakMap<AbortSignal, Hearers>();
  readonly #signal: AbortSignal;
  readonly #callbacks = new Set<() => void>();

  static of(signal: AbortSignal): Hearers {
    const known = Hearers.#known.get(signal);
    if (known) return known;
    const made = new Hearers(signal);
    Hearers.#known.set(signal, made);
    return made;
  }

  private constructor(signal: AbortSignal) {
    this.#signal = signal;
  }

  add(callback: () => void): void {
    if (this.#callbacks.size === 0) this.#signal.addEventListener('abort', this.#tell);
    this.#callbacks.add(callback);
  }

  remove(callback: () => void): void {
    if (this.#callbacks.delete(callback) && this.#callbacks.size === 0)
      this.#signal.removeEventListener('abort', this.#tell);
  }

  readonly #tell = (): void => {
    for (const callback of [...this.#callbacks]) {
      this.remove(callback);
      callback();
    }
  };
}

/**
 * Calls back once when the signal aborts, at once if it has; not after a call of what is returned. However many wait for a
 * signal, it has one listener, and none when all are told or gone.
 */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (signal?.aborted) callback();
  if (!signal || signal.aborted) return () => {};
  const hearers = Hearers.of(signal);
  const own = () => callback();
  hearers.add(own);
  return () => hearers.remove(own);
}

export interface JoinedSignal {
  signal: AbortSignal;
  abort(reason?: unknown): void;
  /** Lets go of the signals it follows. */
  release(): void;
}

/** A signal that aborts with the first of others, with its reason. */
export function joinSignals(...signals: readonly (AbortSignal | undefined)[]): JoinedSignal {
  const controller = new AbortController();
  const leave = signals.map((signal) => onAbort(signal, () => controller.abort(signal?.reason)));
  return {
    signal: controller.signal,
    abort: (reason) => controller.abort(reason),
    release: () => {
      for (const each of leave) each();
    },
  };
}

/** The work's result, or at once the signal's reason when it aborts; the work itself goes on unheard. */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return await work;
  let leave = () => {};
  const aborted = new Promise<never>((_, reject) => {
    leave = onAbort(signal, () => reject(signal.reason));
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    leave();
  }
}

/** What an aborted operation throws: the signal's reason in place of the engine's or the reader's ERR_AT_MOE_ABORTED. */
export function abortReason(error: unknown, signal: AbortSignal | undefined): unknown {
  return signal?.aborted && error instanceof AtMoeError && error.code === 'ERR_AT_MOE_ABORTED' ? signal.reason : error;
}
