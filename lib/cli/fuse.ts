/** `wrpo fuse`: the stages of a fusion, from prompts to models that are compared. */

import { duration } from '../duration.js';
import type { FusionConfig } from '../fuse/config.js';
import { forecastFusion, runFusion } from '../fuse/fuse.js';
import { gib } from '../train/memory-plan.js';
import { interruptible, readFusion, table } from './fusion.js';
import { type News, newsOf } from './news.js';
import { say } from './say.js';
import { writeOut } from './stdout.js';
import { describe } from './train.js';

export interface FuseCommand {
  config: string;
  from?: string;
  /** Names of stages, with commas between. */
  only?: string;
  dryRun?: boolean;
  json?: boolean;
  answerTokens: number;
  speed: number;
  rate: number;
  trainSpeed: number;
}

export async function fuse(options: FuseCommand, rest: string[]): Promise<void> {
  const { from, only, json } = options;
  const config = readFusion(options.config, rest);
  if (options.dryRun) return plan(config, options);
  let news: News | undefined;
  let at: { stage: string; done: number; total: number } | undefined;
  const tell = (line: string) => (news ? news.say(line) : say(line));
  try {
    const result = await interruptible((signal) =>
      runFusion(config, {
        ...{ from, only: only?.split(',').map((name) => name.trim()), signal, say: tell },
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
          if (!process.stderr.isTTY) tell(`${stage}: ${describe(line)}`);
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
    tell(`models and results in ${result.directory}`);
  } finally {
    news?.end();
  }
}

/** What is to be done, stage by stage. */
async function plan(config: FusionConfig, options: FuseCommand): Promise<void> {
  const { prompts, stages } = await forecastFusion(config, { from: options.from, say }, options);
  if (options.json) return writeOut(`${JSON.stringify({ prompts, stages })}\n`);
  const number = (value: number | undefined) => (value === undefined ? '' : String(value));
  const rows = stages.map((one) => [
    ...[one.stage, one.state === 'done' ? 'done' : one.state === 'changed' ? 'again' : 'to do'],
    ...[number(one.count), number(one.tokensRead), number(one.tokensWritten)],
    one.seconds === undefined ? '' : duration(one.seconds),
    one.bytes === undefined ? '' : `${gib(one.bytes)} GiB`,
    one.dollars === undefined ? '' : `$${one.dollars.toFixed(2)}`,
  ]);
  const head = ['stage', '', 'requests or rows', 'tokens read', 'written', 'time', 'memory', 'cost'];
  const { answerTokens, speed, rate, trainSpeed } = options;
  const assumed = `${answerTokens} tokens an answer, ${speed} tokens/s a request, ${rate} answers scored and ${trainSpeed} tokens trained on a second (--answer-tokens, --speed, --rate, --train-speed)`;
  const seconds = stages.reduce((sum, one) => sum + (one.seconds ?? 0), 0);
  await writeOut(`${table([head, ...rows])}${prompts} prompts, ${duration(seconds)}, assuming ${assumed}\n`);
}
