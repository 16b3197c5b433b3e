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

  /**
   * Calls `exchange`, which makes `to` the present content, when that is on the device if the one before was to stay there.
   * When `to` cannot come, nothing changes.
   */
  async move(to: MixtureHandle, exchange: () => void): Promise<void> {
    for (let pinned = false; pinned !== this.#wanted; ) {
      if (pinned) this.#engine.unpinMixture(to);
      else await this.#engine.pinMixture(to);
      pinned = !pinned;
    }
    exchange();
  }
}
