/** `wrpo evaluate`: a benchmark, by its run file. */
import { WrpoError } from '../errors.js';
import { type EvaluationConfig, resolveEvaluation } from '../evaluate/config.js';
import type { TaskResult } from '../evaluate/harness-results.js';
import { evaluateJudged } from '../evaluate/run.js';
import { evaluateLeaderboard } from '../evaluate/run-leaderboard.js';
import type { Results } from '../evaluate/work.js';
import { camel } from '../train/compat.js';
import { interruptible, table } from './fusion.js';
import { newsOf } from './news.js';
import { parseOverrides, readRunFile } from './run-file.js';
import { writeOut } from './stdout.js';

export interface EvaluateCommand {
  config: string;
  retryFailed?: boolean;
  dryRun?: boolean;
  json?: boolean;
}

export async function evaluate(options: EvaluateCommand, rest: string[]): Promise<void> {
  const config = readEvaluation(options.config, rest);
  const news = newsOf('judged');
  const { retryFailed, dryRun } = options;
  try {
    const results = await interruptible(async (signal): Promise<Results> => {
      const hooks = { signal, say: news.say, onOpen: news.expect, onJudged: () => news.add(1) };
      if (config.benchmark !== 'open_llm_leaderboard') return evaluateJudged(config, { ...hooks, retryFailed, dryRun });
      if (dryRun) throw new WrpoError('ERR_CONFIG', '--dry-run tells what judging takes; this benchmark has no judge');
      return evaluateLeaderboard(config, hooks);
    });
    await writeOut(options.json ? `${JSON.stringify(results)}\n` : described(results));
  } finally {
    news.end();
  }
}

/** The run file, and keys of the command line over it. */
function readEvaluation(file: string, rest: string[]): EvaluationConfig {
  const { values, where } = readRunFile(file);
  const overrides = Object.fromEntries(Object.entries(parseOverrides(rest)).map(([key, one]) => [camel(key), one]));
  const own = Object.fromEntries(Object.entries(values).map(([key, one]) => [camel(key), one]));
  return resolveEvaluation({ ...own, ...overrides }, (...path) =>
    path.length > 0 && camel(String(path[0])) in overrides ? 'command line' : where(...path),
  );
}

/** Names and numbers, those of a level below behind a slash. */
function described(results: Results): string {
  const rows = (value: object, before = ''): string[][] =>
    Object.entries(value).flatMap(([key, one]) => {
      if (typeof one === 'object' && one !== null) return rows(one, `${before}${key}/`);
      const text = typeof one === 'number' && !Number.isInteger(one) ? one.toFixed(4) : String(one);
      return [[`${before}${key}`, text]];
    });
  if (results.benchmark !== 'open_llm_leaderboard') return table(rows(results));
  // What else its file holds says nothing to a reader.
  const {
    benchmark,
    model,
    average,
    seconds,
    results: all,
  } = results as Results & { results: Record<string, TaskResult> };
  const numbers = Object.entries(all).map(([key, { name: _, alias: __, ...one }]) => [key, one]);
  return table(
    rows({ benchmark, model, ...Object.fromEntries(numbers), ...(average !== undefined && { average }), seconds }),
  );
}
