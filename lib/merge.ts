/** A step of one of several iterators. */
export interface IndexedStep<T, R> {
  index: number;
  step: IteratorResult<T, R>;
}

/**
 * The steps of several iterators, the last of each included, in the order they come. An iterator is asked for its next
 * step when the one before was taken. Leaving early, or an error of one, ends them all.
 */
export async function* merge<T, R>(streams: readonly AsyncGenerator<T, R>[]): AsyncGenerator<IndexedStep<T, R>> {
  const ready: (IndexedStep<T, R> | { error: unknown })[] = [];
  let wake = () => {};
  const advance = (index: number) =>
    void (streams[index] as AsyncGenerator<T, R>)
      .next()
      .then(
        (step) => ready.push({ index, step }),
        (error: unknown) => ready.push({ error }),
      )
      .then(() => wake());
  for (const index of streams.keys()) advance(index);
  let open = streams.length;
  try {
    while (open > 0) {
      const next = ready.shift();
      if (!next) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        continue;
      }
      if ('error' in next) throw next.error;
      if (next.step.done) open--;
      yield next;
      if (!next.step.done) advance(next.index);
    }
  } finally {
    await Promise.allSettled(streams.map((stream) => stream.return(undefined as never)));
  }
}
