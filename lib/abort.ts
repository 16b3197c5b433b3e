import { AtMoeError } from './errors.js';

/** The work's result, or at once the signal's reason when it aborts; the work itself goes on unheard. */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return await work;
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** What an aborted operation throws: the signal's reason in place of the engine's or the reader's ERR_AT_MOE_ABORTED. */
export function abortReason(error: unknown, signal: AbortSignal | undefined): unknown {
  return signal?.aborted && error instanceof AtMoeError && error.code === 'ERR_AT_MOE_ABORTED' ? signal.reason : error;
}
