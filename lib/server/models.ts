import { access } from 'node:fs/promises';
import { join } from 'node:path';
import type { Adapter } from '../adapter.js';
import type { Mixture } from '../mixture.js';
import type { Model } from '../model.js';
import type { TextGenerator } from '../text-generator.js';
import { ApiError, shuttingDown } from './errors.js';

/** What can be loaded over the base. */
export type LoadedAdapter = Mixture | Adapter;

/** A model as GET /v1/models shows it. */
export interface ModelCard {
  id: string;
  object: 'model';
  /** Seconds since 1970. */
  created: number;
  owned_by: 'at-moe';
  kind: 'base' | 'mixture' | 'adapter' | 'expert';
  /** What it works on: the base, or the mixture of an expert. */
  parent: string | null;
}

/** An adapter as GET /v1/adapters shows it. */
export interface AdapterCard {
  name: string;
  kind: 'mixture' | 'adapter';
  created: number;
  /** "group/expert", of a mixture. */
  experts?: string[];
}

/** The use of a model by one request: what is replaced or unloaded meanwhile lives on until `release`. */
export interface Lease {
  generator: TextGenerator;
  /** The expert that the model's name asks for. */
  only?: string;
  mixture?: Mixture;
  /** Of the mixture or adapter, undefined for the base. */
  name?: string;
  release(): void;
}

interface Entry {
  name: string;
  adapter: LoadedAdapter;
  created: number;
  /** Loaded by the server, so freed by it. */
  owned: boolean;
  leases: number;
  retired: boolean;
}

const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const now = () => Math.floor(Date.now() / 1000);

const mixtureOf = (adapter: LoadedAdapter): Mixture | undefined => ('groups' in adapter ? adapter : undefined);

function expertPaths(adapter: LoadedAdapter): string[] {
  return mixtureOf(adapter)?.groups.flatMap(({ name, experts }) => experts.map((expert) => `${name}/${expert}`)) ?? [];
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

/** A mixture or a PEFT adapter, whichever the folder holds. @throws ApiError 400 when it is neither; errors of loading. */
export async function openAdapter(
  model: Model,
  dir: string,
  onWarning: (message: string) => void,
  pin = false,
): Promise<LoadedAdapter> {
  if (await exists(join(dir, 'mixture.json'))) return await model.loadMixture(dir, { onWarning, pin });
  if (await exists(join(dir, 'adapter_config.json'))) return await model.loadAdapter(dir, { pin });
  const message = `${dir} holds neither mixture.json nor adapter_config.json`;
  throw new ApiError(400, message, { code: 'invalid_adapter', param: 'path' });
}

/** The models of a server by name: the base, what was loaded over it, and each expert of a mixture. */
export class Models {
  readonly #base: Model;
  readonly #baseName: string;
  readonly #most: number;
  readonly #pinned: ReadonlySet<string>;
  readonly #created = now();
  readonly #entries = new Map<string, Entry>();
  readonly #loading = new Set<string>();
  #closed = false;

  /** `pinned`: names whose adapters are to stay on the device. */
  constructor(base: Model, baseName: string, most: number, pinned: readonly string[]) {
    this.#base = base;
    this.#baseName = baseName;
    this.#most = most;
    this.#pinned = new Set(pinned);
  }

  /** @throws ApiError 404 */
  lease(id: string): Lease {
    if (id === this.#baseName) return { generator: this.#base, release: () => {} };
    const slash = id.indexOf('/');
    const entry = this.#entries.get(slash < 0 ? id : id.slice(0, slash));
    const only = slash < 0 ? undefined : id.slice(slash + 1);
    if (!entry || (only !== undefined && !expertPaths(entry.adapter).includes(only))) throw noSuchModel(id);
    entry.leases++;
    const mixture = mixtureOf(entry.adapter);
    let released = false;
    return {
      generator: entry.adapter,
      name: entry.name,
      ...(only !== undefined && { only }),
      ...(mixture && { mixture }),
      release: () => {
        if (released) return;
        released = true;
        entry.leases--;
        freeIfUnused(entry);
      },
    };
  }

  list(): ModelCard[] {
    const card = (id: string, created: number, kind: ModelCard['kind'], parent: string | null): ModelCard => ({
      id,
      object: 'model',
      created,
      owned_by: 'at-moe',
      kind,
      parent,
    });
    const base = card(this.#baseName, this.#created, 'base', null);
    const others = [...this.#entries.values()].flatMap(({ name, adapter, created }) => [
      card(name, created, mixtureOf(adapter) ? 'mixture' : 'adapter', this.#baseName),
      ...expertPaths(adapter).map((path) => card(`${name}/${path}`, created, 'expert', name)),
    ]);
    return [base, ...others];
  }

  /** @throws ApiError 404 */
  card(id: string): ModelCard {
    const found = this.list().find((card) => card.id === id);
    if (!found) throw noSuchModel(id);
    return found;
  }

  adapters(): AdapterCard[] {
    return [...this.#entries.values()].map(({ name, adapter, created }) => {
      const isMixture = mixtureOf(adapter) !== undefined;
      return {
        name,
        kind: isMixture ? 'mixture' : 'adapter',
        created,
        ...(isMixture && { experts: expertPaths(adapter) }),
      };
    });
  }

  /** @throws ApiError 404 */
  adapter(name: string): AdapterCard {
    const found = this.adapters().find((card) => card.name === name);
    if (!found) throw noSuchAdapter(name);
    return found;
  }

  /** Puts what `open` gives under a name. Without `owned` it stays the caller's. @throws ApiError 400, 409; those of `open`. */
  async add(
    name: string,
    open: (pin: boolean) => LoadedAdapter | Promise<LoadedAdapter>,
    { replace = false, owned = true }: { replace?: boolean; owned?: boolean } = {},
  ): Promise<{ card: AdapterCard; replaced: boolean }> {
    this.#checkName(name, replace);
    this.#loading.add(name);
    let adapter: LoadedAdapter;
    try {
      adapter = await open(this.#pinned.has(name));
    } finally {
      this.#loading.delete(name);
    }
    const entry: Entry = { name, adapter, created: now(), owned, leases: 0, retired: false };
    if (this.#closed) {
      retire(entry);
      throw shuttingDown();
    }
    const old = this.#entries.get(name);
    this.#entries.set(name, entry);
    if (old) retire(old);
    return { card: this.adapter(name), replaced: old !== undefined };
  }

  /** @throws ApiError 404 */
  remove(name: string): void {
    const entry = this.#entries.get(name);
    if (!entry) throw noSuchAdapter(name);
    this.#entries.delete(name);
    retire(entry);
  }

  close(): void {
    this.#closed = true;
    for (const name of [...this.#entries.keys()]) this.remove(name);
  }

  #checkName(name: string, replace: boolean): void {
    const refuse = (status: number, message: string, code: string) => {
      throw new ApiError(status, message, { code, param: 'name' });
    };
    if (!namePattern.test(name)) refuse(400, `name: letters, digits, ".", "_" and "-", at most 64`, 'invalid_value');
    if (name === this.#baseName) refuse(400, `name: ${JSON.stringify(name)} is the base model`, 'invalid_value');
    if (this.#loading.has(name)) refuse(409, `adapter ${JSON.stringify(name)} is being loaded`, 'busy');
    const isNew = !this.#entries.has(name);
    if (!isNew && !replace) {
      refuse(409, `adapter ${JSON.stringify(name)} is loaded: replace it with "replace": true`, 'adapter_exists');
    }
    if (isNew && this.#entries.size + this.#loading.size >= this.#most) {
      refuse(409, `${this.#most} adapters are loaded: unload one first`, 'too_many_adapters');
    }
  }
}

function retire(entry: Entry): void {
  entry.retired = true;
  freeIfUnused(entry);
}

function freeIfUnused(entry: Entry): void {
  if (entry.retired && entry.owned && entry.leases === 0) entry.adapter.dispose();
}

function noSuchModel(id: string): ApiError {
  const message = `the model ${JSON.stringify(id)} does not exist; GET /v1/models lists those there are`;
  return new ApiError(404, message, { code: 'model_not_found', param: 'model' });
}

function noSuchAdapter(name: string): ApiError {
  return new ApiError(404, `no adapter ${JSON.stringify(name)} is loaded`, { code: 'adapter_not_found' });
}
