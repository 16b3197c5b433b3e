/**
 * Passes an iterator through and runs `finish` when it ends, by whatever way. An error of the iterator is not replaced by
 * one of `finish`.
 */
export async function* finishing<T>(steps: AsyncGenerator<T>, finish: () => Promise<void>): AsyncGenerator<T> {
  let failed = false;
  try {
    yield* steps;
  } catch (error) {
    failed = true;
    throw error;
  } finally {
    await finish().catch((error) => {
      if (!failed) throw error;
    });
  }
}
