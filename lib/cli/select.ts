/** `wrpo select`: rows to train on, out of what was sampled and scored. */
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import type { FusionConfig } from '../fuse/config.js';
import { type Selection, selectRows } from '../fuse/quadruples.js';
import { ruleOf } from '../fuse/rule.js';
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
      ...ruleOf(config, { target }),
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
