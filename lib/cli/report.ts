/** `wrpo report` and `wrpo watch`: what a run or a fusion did, as a page. */
import { writeReport } from '../report/call.js';
import { watch } from '../report/watch.js';
import { say } from './say.js';
import { writeOut } from './stdout.js';

export async function report(directory: string, { output }: { output?: string }): Promise<void> {
  await writeOut(`${await writeReport(directory, { file: output })}\n`);
}

/** Until Ctrl-C. */
export async function watchRun(directory: string, { port }: { port?: number }): Promise<void> {
  const { url, close } = await watch(directory, { port, onError: ({ message }) => say(`wrpo: ${message}`) });
  const stopped = new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
  say(`${directory} at ${url}, until Ctrl-C`);
  await stopped;
  await close();
}
