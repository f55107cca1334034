/** `wrpo data check`: what a training run would make of some rows, without loading any weights. */
import { WrpoError } from '../errors.js';
import { lossOfKeys, resolveArgs } from '../train/args.js';
import { locate, sourceOf, tokenizerOf } from '../train/prepare.js';
import { examine } from './data-report.js';
import { print } from './data-view.js';
import { parseOverrides, readRun } from './run-file.js';
import { say } from './say.js';
import { writeOut } from './stdout.js';

/** Short names of a run's keys, and what is shown. */
export interface CheckOptions {
  config?: string;
  model?: string;
  split?: string;
  revision?: string;
  /** Which row to show, from 1. */
  row: number;
  json?: boolean;
}

/**
 * Prints what it finds; returns whether every row can be used, and something is left to train on. `rest` is what else
 * stands on the command line: the data, and keys of the run.
 */
export async function checkData(options: CheckOptions, rest: string[]): Promise<boolean> {
  const named = rest[0] !== undefined && !rest[0].startsWith('--');
  const keys = parseOverrides(named ? rest.slice(1) : rest);
  if (named) keys.dataset_name = rest[0];
  if (options.model !== undefined) keys.model_name_or_path = options.model;
  if (options.split !== undefined) keys.dataset_train_split = options.split;
  if (options.revision !== undefined) keys.dataset_revision = options.revision;
  const { input, where } = readRun(options.config, keys, say);
  const args = resolveArgs({ ...input, outputDir: input.outputDir ?? '.' }, where);
  const { datasetName: file, modelNameOrPath: model } = args;
  if (file === undefined) throw missing('data', 'a file', 'dataset_name');
  if (model === undefined) throw missing('a model', '--model', 'model_name_or_path');

  const directory = await locate(model, { revision: args.modelRevision, say, weights: false });
  const source = await sourceOf(directory, { say, weights: false });
  const { vocabSize } = source.config;
  const tokenizer = await tokenizerOf(source, args.chatTemplate);
  // What a run trains with when it names no loss is for its first row to say.
  const lossType = (input.lossType ?? lossOfKeys(input)) === undefined ? undefined : args.lossType;
  const report = await examine(file, { ...args, lossType }, { vocabSize, tokenizer, shown: options.row, say });
  if (options.json) await writeOut(`${JSON.stringify(report)}\n`);
  else await print(report, options.row, tokenizer);
  return report.bad.count === 0 && (report.blocks?.count ?? report.rows - report.dropped.count) > 0;
}

function missing(what: string, how: string, key: string): WrpoError {
  return new WrpoError(
    'ERR_CONFIG',
    `data check needs ${what}: give ${how}, or --config with a run file that has ${key}`,
  );
}
