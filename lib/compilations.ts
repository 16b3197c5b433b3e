import { orAborted } from './abort.js';
import { Recent } from './recent.js';
import { runInTurns, runSteps, type Steps } from './turns.js';

interface Compilation<T> {
  made: Promise<T>;
  waiting: number;
  stop(): void;
}

/**
 * What is compiled from texts, each once: what was used last is kept, and who asks for what is being compiled waits for it.
 * A compilation ends when nobody waits for it any more.
 */
export class Compilations<T> {
  readonly #steps: (text: string) => Steps<T>;
  readonly #kept: Recent<T>;
  readonly #running = new Map<string, Compilation<T>>();
  #started = 0;

  constructor(size: number, steps: (text: string) => Steps<T>) {
    this.#kept = new Recent(size);
    this.#steps = steps;
  }

  /** Compilations that were begun so far. */
  get started(): number {
    return this.#started;
  }

  /** In turns with the event loop. Errors: those of the steps; the signal's reason. */
  async get(text: string, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted();
    const known = this.#kept.get(text);
    if (known !== undefined) return known;
    const running = this.#running.get(text) ?? this.#start(text);
    running.waiting++;
    try {
      return await orAborted(running.made, signal);
    } finally {
      if (--running.waiting === 0) running.stop();
    }
  }

  /** At once. Errors: those of the steps. */
  getNow(text: string): T {
    const known = this.#kept.get(text);
    if (known !== undefined) return known;
    this.#started++;
    const made = runSteps(this.#steps(text));
    this.#kept.set(text, made);
    return made;
  }

  #start(text: string): Compilation<T> {
    this.#started++;
    const controller = new AbortController();
    const run = async () => {
      const made = await runInTurns(this.#steps(text), controller.signal);
      this.#kept.set(text, made);
      return made;
    };
    const stop = () => {
      if (this.#running.get(text) === compilation) this.#running.delete(text);
      controller.abort();
    };
    const compilation = { made: run(), waiting: 0, stop };
    this.#running.set(text, compilation);
    return compilation;
  }
}
