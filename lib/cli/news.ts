/** How far a command is, on stderr: in place on a terminal, a line now and then elsewhere. */
import { duration } from '../duration.js';

const MILLISECONDS_BETWEEN = { terminal: 100, lines: 10_000 };

export interface News {
  /** More to be done than was known. */
  expect(count: number): void;
  add(count: number): void;
  /** A line of words that stays. */
  say(line: string): void;
  end(): void;
}

/** `what` follows the number. Rate and time left are told where it is known how many there will be. */
export function newsOf(what: string): News {
  const { isTTY } = process.stderr;
  const began = performance.now();
  let count = 0;
  let total = 0;
  let told = began;
  let open = false;
  const words = () => {
    if (total === 0) return `${count} ${what}`;
    const seconds = (performance.now() - began) / 1000;
    const rate = count / seconds;
    const left = count === 0 ? '' : `, ${duration((total - count) / rate)} left`;
    return `${count}/${total} ${what}, ${rate.toPrecision(3)}/s${left}`;
  };
  return {
    expect(more) {
      total += more;
    },
    add(more) {
      count += more;
      if (performance.now() - told < MILLISECONDS_BETWEEN[isTTY ? 'terminal' : 'lines']) return;
      told = performance.now();
      open = isTTY;
      process.stderr.write(isTTY ? `\r\x1b[K${words()}` : `${words()}\n`);
    },
    say(line) {
      process.stderr.write(open ? `\r\x1b[K${line}\n` : `${line}\n`);
      open = false;
    },
    end() {
      if (open) process.stderr.write('\n');
      open = false;
    },
  };
}
