/** `wrpo select`: rows to train on, out of what was sampled and scored. */
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import type { FusionConfig } from '../fuse/config.js';
import { type Selection, selectRows } from '../fuse/quadruples.js';
import { isFinished } from '../fuse/shard.js';
import { Store } from '../fuse/store.js';
import { type FusionOptions, readFusion, table } from './fusion.js';
import { newsOf } from './news.js';
import { writeOut } from './stdout.js';

export async function select(options: FusionOptions, rest: string[]): Promise<void> {
  const config = readFusion(options.config, rest);
  const store = Store.open(config.outputDir);
  const directory = config.selectionDir ?? join(config.outputDir, 'selected');
  const target = targetOf(config, store);
  const news = newsOf('prompts looked at');
  news.expect(store.order.ids.length);
  let selection: Selection;
  try {
    selection = selectRows(store, {
      ...{ sources: subsetOf(config), target, scorer: scorerOf(config), seed: config.seed },
      ...{ rank: config.rank, sourceRejected: config.sourceRejected, heldOut: config.heldOut },
      keepTies: config.keepTies,
      ...{ sftRatio: config.sftRatio, rowSchema: config.rowSchema, format: config.format },
      ...(!options.dryRun && { directory }),
      onPrompt: () => news.add(1),
    });
  } finally {
    news.end();
  }
  if (target === undefined) news.say('no target is sampled and scored yet: only rows for fine-tuning are selected');
  if (options.json) return writeOut(`${JSON.stringify({ ...(!options.dryRun && { directory }), ...selection })}\n`);
  await writeOut(describe(selection));
  news.say(options.dryRun ? 'nothing was written' : `rows in ${directory}`);
}

/** The sources that are meant, in the order of the run file, in which ties are decided. */
function subsetOf({ sources, subset, groups }: FusionConfig): string[] {
  const names = sources.map(({ name }) => name);
  if (subset === undefined) return names;
  const meant = new Set(subset.flatMap((one) => groups[one] ?? [one]));
  return names.filter((name) => meant.has(name));
}

function scorerOf({ scorer, scorers, sources, targets }: FusionConfig): string {
  if (scorer !== undefined) return scorer;
  const imported = [...sources, ...targets].flatMap((one) => ('import' in one ? [one.scorer ?? 'imported'] : []));
  const names = [...new Set(scorers.length > 0 ? scorers.map(({ name }) => name) : imported)];
  if (names.length === 1) return names[0]!;
  const there = names.length === 0 ? 'the run file has no scorers' : `there is ${names.join(', ')}`;
  throw new WrpoError('ERR_CONFIG', `name whose scores decide with "scorer": ${there}`);
}

/** The one that is named, or the only one; undefined before it is sampled. */
function targetOf({ target, targets }: FusionConfig, store: Store): string | undefined {
  if (target !== undefined) return target;
  const names = targets.map(({ name }) => name).filter((name) => isFinished(store.samplesPath(name)));
  if (names.length <= 1) return names[0];
  throw new WrpoError('ERR_CONFIG', `name whose answers y_wt and y_l are with "target": there is ${names.join(', ')}`);
}

function describe({ rows, prompts, dropped, shares, scores }: Selection): string {
  const parts = (['train', 'test', 'sft'] as const).map((part) => [part, `${prompts[part]}`, `${rows[part]}`]);
  const lines = [
    table([['', 'prompts', 'rows'], ...parts]),
    ...Object.entries(dropped).map(([reason, count]) => `${count} prompts without a row: ${reason}\n`),
    table([['y_ws from', '%'], ...Object.entries(shares).map(([model, share]) => [model, share.toFixed(2)])]),
  ];
  const means = Object.entries(scores).map(([name, score]) => [name, score.toFixed(4)]);
  if (means.length > 0) lines.push(table([['mean score', ''], ...means]));
  return lines.join('\n');
}
