/** Work on many things at a time. */
import { setMaxListeners } from 'node:events';

/**
 * Does `work` on the items, `width` at a time, taking them as they are needed. The first failure, or `signal`, aborts the
 * signal that all work is given, waits for what is running and is thrown.
 */
export async function inParallel<T>(
  items: Iterable<T>,
  width: number,
  signal: AbortSignal | undefined,
  work: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  const stop = () => controller.abort(signal!.reason);
  if (signal?.aborted) stop();
  signal?.addEventListener('abort', stop);
  const iterator = items[Symbol.iterator]();
  const failures: unknown[] = [];
  const worker = async () => {
    while (!controller.signal.aborted) {
      const next = iterator.next();
      if (next.done) return;
      await work(next.value, controller.signal);
    }
  };
  const guarded = () =>
    worker().catch((error) => {
      failures.push(error);
      controller.abort(error);
    });
  try {
    await Promise.all(Array.from({ length: width }, guarded));
  } finally {
    signal?.removeEventListener('abort', stop);
  }
  signal?.throwIfAborted();
  if (failures.length > 0) throw failures[0];
}

/** At most `width` at a time; others wait their turn. */
export class Limit {
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(readonly width: number) {}

  async run<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    if (this.#running < this.width) this.#running++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      signal?.throwIfAborted();
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }
}
