import { AtMoeError } from './errors.js';

/** Of what can be disposed: its uses throw afterwards, and work that is bound to its signals ends. */
export class Lifetime {
  readonly #what: string;
  readonly #parent: Lifetime | undefined;
  readonly #controller = new AbortController();

  /** `what`: as messages say it; `parent`: with whose end it ends. */
  constructor(what: string, parent?: Lifetime) {
    this.#what = what;
    this.#parent = parent;
  }

  /** Those that abort at the end, with the error that `check` throws. */
  get signals(): readonly AbortSignal[] {
    return [this.#controller.signal, ...(this.#parent?.signals ?? [])];
  }

  get ended(): boolean {
    return this.signals.some(({ aborted }) => aborted);
  }

  /** @throws AtMoeError ERR_AT_MOE_DISPOSED */
  check(): void {
    for (const signal of this.signals) signal.throwIfAborted();
  }

  /** False when it was over already. */
  end(): boolean {
    if (this.#controller.signal.aborted) return false;
    this.#controller.abort(new AtMoeError('ERR_AT_MOE_DISPOSED', `${this.#what} was disposed`));
    return true;
  }
}
