import { onAbort } from './abort.js';
import type { GenerateRequest, NativeEngine, SequenceEvent } from './native-types.js';

export type DoneEvent = Extract<SequenceEvent, { type: 'done' }>;

/** An event of one of a request's texts. */
export interface TextEvent {
  index: number;
  event: SequenceEvent;
}

/** The texts of a request whose reader is gone without having left: its iterator was dropped. */
const dropped = new FinalizationRegistry<RunningTexts>((texts) => texts.drop());

/** The texts of one request in the engine. It knows nothing of its reader, so that a reader that is dropped can be collected. */
export class RunningTexts {
  /** How each text ended. */
  readonly ends: DoneEvent[] = [];
  readonly #engine: NativeEngine;
  readonly #count: number;
  readonly #events: TextEvent[] = [];
  #wake: (() => void) | undefined;
  /** The engine's number of the first; absent before the request is posted. */
  #first: number | undefined;
  #unread = 0;
  #untold = 0;
  #leave: readonly (() => void)[] = [];
  #onDropped: (() => void) | undefined;
  #dropped = false;

  constructor(engine: NativeEngine, count: number) {
    this.#engine = engine;
    this.#count = count;
  }

  get count(): number {
    return this.#count;
  }

  /** @internal Of the submission: the request is posted, and the engine numbers its texts from `first` on. */
  begin(first: number): void {
    this.#first = first;
    this.#unread = this.#count;
    this.#untold = this.#count;
  }

  /** @internal Of the submission: what the engine tells. */
  readonly tell = (event: SequenceEvent, index: number): void => {
    if (event.type === 'done') {
      this.ends[index] = event;
      if (--this.#untold === 0 && this.#dropped) this.#onDropped?.();
    }
    if (this.#dropped) return;
    this.#events.push({ index, event });
    this.#wake?.();
  };

  /** When `reader` is collected the texts end, and `onDropped`, which may not lead to the reader, is called when they have. */
  watch(reader: object, onDropped: (() => void) | undefined): void {
    this.#onDropped = onDropped;
    dropped.register(reader, this, this);
  }

  /** The texts end with the first of the signals that aborts. */
  endWith(signals: readonly (AbortSignal | undefined)[]): void {
    this.#leave = signals.map((signal) => onAbort(signal, () => this.cancel()));
  }

  /** The next event; undefined when all texts have ended. The event loop is held while it is waited for. */
  async next(): Promise<TextEvent | undefined> {
    if (this.#unread === 0) return undefined;
    if (this.#events.length === 0) await this.#told();
    const next = this.#events.shift() as TextEvent;
    if (next.event.type === 'done') this.#unread--;
    return next;
  }

  async #told(): Promise<void> {
    this.#engine.hold();
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wake = undefined;
    this.#engine.letGo();
  }

  /** So many more tokens of a text were read. */
  read(index: number, tokens: number): void {
    this.#engine.read((this.#first as number) + index, tokens);
  }

  /** Ends one text, or all that have not ended. */
  cancel(index?: number): void {
    const first = this.#first;
    if (first === undefined) return;
    const which = index === undefined ? Array.from({ length: this.#count }, (_, i) => i) : [index];
    for (const i of which) if (!this.ends[i]) this.#engine.cancel(first + i);
  }

  /** For a reader that leaves: ends what has not ended, and resolves when the engine has told so. */
  async end(): Promise<void> {
    this.#forget();
    this.cancel();
    while (await this.next());
  }

  /** For a reader that is gone. */
  drop(): void {
    this.#forget();
    this.#dropped = true;
    this.#events.length = 0;
    if (this.#untold > 0) this.cancel();
    else this.#onDropped?.();
  }

  #forget(): void {
    dropped.unregister(this);
    for (const leave of this.#leave) leave();
  }
}

/** Makes a request of what was prepared, if anything, for which it has waited so long. */
type MakeRequest<P> = (prepared: P | undefined, waitedMs: number) => GenerateRequest;

/** The requests of one call, which the engine takes together, or refuses together when its queue has no room for all. */
export class Submission<P = never> {
  readonly #engine: NativeEngine;
  readonly #prepare: (() => Promise<P>) | undefined;
  readonly #parts: { texts: RunningTexts; request: MakeRequest<P> }[] = [];
  #posted: Promise<void> | undefined;

  /** `prepare`: what the requests need before. */
  constructor(engine: NativeEngine, prepare?: () => Promise<P>) {
    this.#engine = engine;
    this.#prepare = prepare;
  }

  /** One more request, for `count` texts. `request` makes it when the call is posted; its errors are those of the call. */
  add(count: number, request: MakeRequest<P>): RunningTexts {
    const texts = new RunningTexts(this.#engine, count);
    this.#parts.push({ texts, request });
    return texts;
  }

  /** Posts the call, once; at once where there is nothing to prepare. */
  post(): Promise<void> {
    this.#posted ??= this.#post();
    return this.#posted;
  }

  async #post(): Promise<void> {
    const asked = performance.now();
    const prepared = this.#prepare && (await this.#prepare());
    const waited = this.#prepare ? performance.now() - asked : 0;
    const calls = this.#parts.map(({ texts, request }) => ({
      request: request(prepared, waited),
      listener: texts.tell,
    }));
    const firsts = this.#engine.submit(calls);
    for (const [i, { texts }] of this.#parts.entries()) texts.begin(firsts[i] as number);
  }
}
