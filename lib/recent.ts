/** Values by key, of which those used last are kept. */
export class Recent<V> {
  readonly #entries = new Map<string, V>();
  readonly #size: number;
  readonly #onDrop: (value: V) => void;

  constructor(size: number, onDrop: (value: V) => void = () => {}) {
    this.#size = size;
    this.#onDrop = onDrop;
  }

  get(key: string): V | undefined {
    const value = this.#entries.get(key);
    if (value !== undefined) this.set(key, value);
    return value;
  }

  set(key: string, value: V): void {
    this.#entries.delete(key);
    this.#entries.set(key, value);
    const [oldest] = this.#entries;
    if (!oldest || this.#entries.size <= this.#size) return;
    this.#entries.delete(oldest[0]);
    this.#onDrop(oldest[1]);
  }
}
