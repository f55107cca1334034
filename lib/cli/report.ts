/** `wrpo report` and `wrpo watch`: what a run or a fusion has to tell, as a file or as it goes on. */
import { writeReport } from '../report/report.js';
import { watchReport } from '../report/watch.js';
import { interruptible } from './fusion.js';
import { say } from './say.js';

export async function report(directory: string, { output }: { output?: string }): Promise<void> {
  say(`report in ${await writeReport(directory, { output })}`);
}

export async function watch(directory: string, { port }: { port: number }): Promise<void> {
  const watching = await watchReport(directory, { port });
  say(`${directory} at ${watching.url} (Ctrl-C ends this)`);
  await interruptible((signal) => new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve())));
  await watching.close();
}
