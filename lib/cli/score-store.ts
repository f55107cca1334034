/** `wrpo score --config`: what a fusion's models have answered, by its scorers. */

import { duration } from '../duration.js';
import { WrpoError } from '../errors.js';
import type { FusionConfig } from '../fuse/config.js';
import { chosenModels } from '../fuse/models.js';
import type { ScorerConfig } from '../fuse/schema.js';
import { openAnswers, scoreModel } from '../fuse/score.js';
import { scorerOf } from '../fuse/scorers.js';
import { isFinished } from '../fuse/shard.js';
import { Store } from '../fuse/store.js';
import { type FusionOptions, interruptible, readFusion, table } from './fusion.js';
import { newsOf } from './news.js';
import { writeOut } from './stdout.js';

export interface ScoreStoreCommand extends FusionOptions {
  /** For the dry run: answers a second. */
  rate: number;
}

export async function scoreStore(options: ScoreStoreCommand, rest: string[]): Promise<void> {
  const config = readFusion(options.config, rest);
  const store = Store.open(config.outputDir);
  const news = newsOf('answers scored');
  const models = sampledModels(store, config, options.only, news.say);
  const scorers = config.scorers.filter(({ name }) => config.scorer === undefined || name === config.scorer);
  if (scorers.length === 0) {
    const what = config.scorer === undefined ? 'scorers is empty' : `there is no scorer "${config.scorer}"`;
    throw new WrpoError('ERR_CONFIG', `${options.config}: ${what}; name one of kind armorm, http or judge`);
  }
  if (options.dryRun) return plan(store, models, scorers, options);
  const report: object[] = [];
  try {
    for (const one of scorers) {
      const scorer = await scorerOf(one, config, news.say);
      try {
        for (const model of models) {
          news.expect(openAnswers(store, model, one.name).answers);
          const totals = await interruptible((signal) =>
            scoreModel(store, model, scorer, { retryFailed: options.retryFailed, signal, onScored: news.add }),
          );
          report.push({ model, scorer: one.name, ...totals });
          const failed = totals.failed > 0 ? `, ${totals.failed} without (--retry-failed tries them again)` : '';
          news.say(`${model}: ${totals.scores} scores by ${one.name}, mean ${totals.mean.toFixed(4)}${failed}`);
        }
      } finally {
        await scorer.close?.();
      }
    }
  } finally {
    news.end();
  }
  if (options.json) await writeOut(`${JSON.stringify(report)}\n`);
}

/** The models whose samples are all there; the others are named. Throws ERR_DATA when there is none. */
function sampledModels(
  store: Store,
  config: FusionConfig,
  only: string | undefined,
  say: (line: string) => void,
): string[] {
  const names = chosenModels(config, only).map(({ source }) => source.name);
  const sampled = names.filter((name) => isFinished(store.samplesPath(name)));
  const missing = names.filter((name) => !sampled.includes(name));
  if (sampled.length === 0) {
    throw new WrpoError('ERR_DATA', `${names.join(', ')}: not sampled to the end yet; run \`wrpo sample\` first`);
  }
  if (missing.length > 0) say(`not sampled to the end yet, and not scored: ${missing.join(', ')}`);
  return sampled;
}

/** A token of text is about so many letters. */
const LETTERS = 4;

async function plan(
  store: Store,
  models: readonly string[],
  scorers: readonly ScorerConfig[],
  { rate, json }: ScoreStoreCommand,
): Promise<void> {
  const plans = scorers.flatMap(({ name: scorer }) =>
    models.map((model) => {
      const { answers, letters } = openAnswers(store, model, scorer);
      return { scorer, model, answers, tokens: Math.ceil(letters / LETTERS), seconds: Math.ceil(answers / rate) };
    }),
  );
  const seconds = plans.reduce((sum, one) => sum + one.seconds, 0);
  if (json) return writeOut(`${JSON.stringify({ seconds, rate, models: plans })}\n`);
  const rows = plans.map(({ scorer, model, answers, tokens, seconds }) => [
    ...[`${model} by ${scorer}`, String(answers), String(tokens), duration(seconds)],
  ]);
  const head = ['model', 'requests', 'tokens read', 'time'];
  await writeOut(`${table([head, ...rows])}${duration(seconds)}, assuming ${rate} answers/s (--rate)\n`);
}
