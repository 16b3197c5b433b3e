import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { toApiError } from './errors.js';

interface Stream {
  /** Aborts when the client left, the server closes or a deadline is over. */
  signal: AbortSignal;
  /** Milliseconds that a client may take to read what was sent before it is given up. */
  stallMs: number;
}

/** One server-sent event; the next one waits until the client read enough. */
async function send(response: ServerResponse, data: string, { signal, stallMs }: Stream): Promise<void> {
  if (response.write(`data: ${data}\n\n`)) return;
  const stalled = setTimeout(() => response.destroy(), stallMs);
  try {
    await once(response, 'drain', { signal });
  } finally {
    clearTimeout(stalled);
  }
}

/**
 * Sends objects as server-sent events from the step `first` on, "[DONE]" behind the last one, and returns what their
 * iterator returns. A failure is one more event with the error, without "[DONE]", and is thrown.
 */
export async function sendEvents<R>(
  response: ServerResponse,
  first: IteratorResult<object, R>,
  events: AsyncGenerator<object, R>,
  stream: Stream,
): Promise<R> {
  try {
    let step = first;
    for (; !step.done; step = await events.next()) await send(response, JSON.stringify(step.value), stream);
    response.end('data: [DONE]\n\n');
    return step.value;
  } catch (error) {
    const cause = stream.signal.aborted ? stream.signal.reason : error;
    if (!response.destroyed) response.end(`data: ${JSON.stringify(toApiError(cause).body)}\n\n`);
    throw cause;
  } finally {
    await events.return(undefined as never);
  }
}
