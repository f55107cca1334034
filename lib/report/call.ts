/** `writeReport` as programs call it. */
import { join } from 'node:path';
import { writeFileAtomic } from '../data/files.js';
import type { ReportOptions } from './report.js';

/**
 * Writes the report of a training run's or a fusion's directory and returns its path. It tells what is there and leaves out
 * what is not. Throws ERR_DATA when the directory holds neither, or naming a damaged file.
 */
export async function writeReport(directory: string, options: ReportOptions = {}): Promise<string> {
  // Not before: its checks of files take longer to load than the rest of the package.
  const { makeReport, pageOf } = await import('./report.js');
  const { file = join(directory, 'report.html') } = options;
  writeFileAtomic(file, pageOf(await makeReport(directory, options)));
  return file;
}
