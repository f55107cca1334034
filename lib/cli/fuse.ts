/** `wrpo fuse`: the stages of a fusion, from prompts to models that are compared. */
import { runFusion } from '../fuse/fuse.js';
import { interruptible, readFusion, table } from './fusion.js';
import { type News, newsOf } from './news.js';
import { writeOut } from './stdout.js';
import { describe } from './train.js';

export interface FuseCommand {
  config: string;
  from?: string;
  /** Names of stages, with commas between. */
  only?: string;
  dryRun?: boolean;
  json?: boolean;
}

export async function fuse({ config: file, from, only, json }: FuseCommand, rest: string[]): Promise<void> {
  const config = readFusion(file, rest);
  let news: News | undefined;
  let at: { stage: string; done: number; total: number } | undefined;
  const say = (line: string) => (news ? news.say(line) : process.stderr.write(`${line}\n`));
  try {
    const result = await interruptible((signal) =>
      runFusion(config, {
        ...{ from, only: only?.split(',').map((name) => name.trim()), signal, say },
        onProgress(now) {
          if (at?.stage !== now.stage) {
            news?.end();
            news = newsOf(now.stage.startsWith('score') ? 'answers' : 'prompts');
            at = undefined;
          }
          news!.expect(now.total - (at?.total ?? 0));
          news!.add(now.done - (at?.done ?? 0));
          at = now;
        },
        onLog: (stage, line) => {
          if (!process.stderr.isTTY) say(`${stage}: ${describe(line)}`);
        },
      }),
    );
    news?.end();
    if (json) return writeOut(`${JSON.stringify(result)}\n`);
    const plusMinus = (value: number, error: number | null) =>
      `${value.toFixed(3)}${error === null ? '' : ` ± ${error.toFixed(3)}`}`;
    const rows = (result.results ?? []).map((row) => [
      ...[row.name, plusMinus(row.reward, row.reward_stderr), plusMinus(row.win_rate, row.win_rate_stderr)],
      ...[row.mean_length.toFixed(0), String(row.n)],
    ]);
    if (rows.length > 0)
      await writeOut(table([['model', 'reward', 'win rate against target', 'length', 'n'], ...rows]));
    say(`models and results in ${result.directory}`);
  } finally {
    news?.end();
  }
}
