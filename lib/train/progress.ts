/** The progress bar: on stderr, and only where stderr is a terminal. */
import { cliProgress } from '../packages.js';
import type { Metrics } from './metrics.js';

export interface Progress {
  update(done: number, metrics: Metrics): void;
  stop(): void;
}

const number = (value: number | undefined, digits: number) => (value === undefined ? '-' : value.toFixed(digits));

/** A bar of `total` units with loss, margin, alpha, tokens/s and time left; silent when `enabled` is false. */
export function progressBar(label: string, total: number, enabled: boolean): Progress {
  if (!enabled || !process.stderr.isTTY) return { update: () => {}, stop: () => {} };
  const { SingleBar } = cliProgress();
  const bar = new SingleBar({
    format: `${label} {bar} {value}/{total} {words} | {eta_formatted} left`,
    stream: process.stderr,
    hideCursor: true,
    barsize: 20,
    etaBuffer: 20,
  });
  bar.start(total, 0, { words: '' });
  return {
    update(done, metrics) {
      const words = [
        'loss' in metrics && `loss ${number(metrics.loss, 4)}`,
        'rewards/margins' in metrics && `margin ${number(metrics['rewards/margins'], 4)}`,
        'cur_alpha' in metrics && `alpha ${number(metrics.cur_alpha, 3)}`,
        'tokens_per_second' in metrics && `${number(metrics.tokens_per_second, 0)} tok/s`,
      ].filter(Boolean);
      bar.update(done, { words: words.join(' ') });
    },
    stop: () => bar.stop(),
  };
}
