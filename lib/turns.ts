import { onAbort } from './abort.js';

/** Work in steps of well under a millisecond, between which it may pause. */
export type Steps<T> = Generator<undefined, T, undefined>;

/** Does the work at once. */
export function runSteps<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** Milliseconds of work, of all that is under way together, in one turn of the event loop. */
const share = 4;

/** Works until a moment; true when there is nothing left to do. */
type Job = (until: number) => boolean;

const jobs: Job[] = [];

function turn(): void {
  const until = performance.now() + share;
  do {
    const job = jobs.shift() as Job;
    if (!job(until)) jobs.push(job);
  } while (jobs.length > 0 && performance.now() < until);
  if (jobs.length > 0) setImmediate(turn);
}

/** Does the work in turns with the event loop and with other such work. @throws the signal's reason, between two steps. */
export function runInTurns<T>(steps: Steps<T>, signal?: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    let open = true;
    const leave = onAbort(signal, () => {
      open = false;
      steps.return(undefined as never);
      reject(signal?.reason);
    });
    if (!open) return;
    const work: Job = (until) => {
      while (open) {
        const step = steps.next();
        if (step.done) resolve(step.value);
        if (step.done) break;
        if (performance.now() >= until) return false;
      }
      leave();
      return true;
    };
    const job: Job = (until) => {
      try {
        return work(until);
      } catch (error) {
        leave();
        reject(error);
        return true;
      }
    };
    if (jobs.push(job) === 1) setImmediate(turn);
  });
}
