/** A file that says which process is writing beside it; that of a dead process counts for nothing. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { writeError } from '../data/files.js';
import { WrpoError } from '../errors.js';

/**
 * Takes the lock at `path`, or throws ERR_CHECKPOINT saying which process is writing to `what`; returns what gives the
 * lock back.
 */
export function lock(path: string, what: string): () => void {
  const own = identity(process.pid)!;
  for (;;) {
    try {
      writeFileSync(path, own, { flag: 'wx' });
      return () => rmSync(path, { force: true });
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw writeError(path, cause);
    }
    const holder = read(path);
    const pid = Number(holder?.split(' ')[0]);
    if (pid > 0 && identity(pid) === holder) {
      throw new WrpoError('ERR_CHECKPOINT', `${what} is being written by process ${pid}; wait for it or stop it`);
    }
    rmSync(path, { force: true });
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** A process id, and when that process started: ids are used again. */
function identity(pid: number): string | undefined {
  const stat = read(`/proc/${pid}/stat`);
  // The name in parentheses may hold anything; the start is the 20th field behind it.
  return stat === undefined ? undefined : `${pid} ${stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]}`;
}
