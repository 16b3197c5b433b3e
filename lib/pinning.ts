import type { MixtureHandle } from './native-mixture-types.js';
import type { NativeEngine } from './native-types.js';

/** Keeps what a mixture or adapter is now on the device, whatever else asks for room there. */
export class Pinning {
  readonly #engine: NativeEngine;
  readonly #handle: () => MixtureHandle;
  #wanted = false;

  constructor(engine: NativeEngine, handle: () => MixtureHandle) {
    this.#engine = engine;
    this.#handle = handle;
  }

  async pin(): Promise<void> {
    this.#wanted = true;
    for (let handle = this.#handle(); ; handle = this.#handle()) {
      try {
        await this.#engine.pinMixture(handle);
        return;
      } catch (error) {
        if (handle !== this.#handle()) continue; // it was exchanged meanwhile
        this.#wanted = false;
        throw error;
      }
    }
  }

  unpin(): void {
    this.#wanted = false;
    this.#engine.unpinMixture(this.#handle());
  }

  /** Gives the place to what comes instead of the present content; when there is no room for that, nothing changes. */
  async move(to: MixtureHandle): Promise<void> {
    if (!this.#wanted) return;
    const from = this.#handle();
    this.#engine.unpinMixture(from);
    try {
      await this.#engine.pinMixture(to);
    } catch (error) {
      await this.#engine.pinMixture(from);
      throw error;
    }
  }
}
