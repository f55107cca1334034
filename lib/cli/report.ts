/** `wrpo report`: what a run or a fusion has to tell, as a file. */
import { writeReport } from '../report/report.js';
import { say } from './say.js';

export async function report(directory: string, { output }: { output?: string }): Promise<void> {
  say(`report in ${await writeReport(directory, { file: output })}`);
}
