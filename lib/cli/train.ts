/** `wrpo train` and `wrpo sft`: a run file, and options that override its keys. */
import { statSync } from 'node:fs';
import { readPreferences } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { evaluates, lossOfKeys, resolveArgs, type TrainingArgs, type TrainingArgsInput } from '../train/args.js';
import { OTHER_DEFAULTS, snake } from '../train/compat.js';
import type { Metrics } from '../train/metrics.js';
import { fittingLoss } from '../train/objective.js';
import { trainSplit } from '../train/prepare.js';
import { Trainer } from '../train/trainer.js';
import { parseOverrides, readRun } from './run-file.js';
import { say } from './say.js';
import { writeOut } from './stdout.js';

interface Options {
  config: string;
  resumeFromCheckpoint?: string | true;
  json?: boolean;
}

export async function train(command: 'train' | 'sft', options: Options, rest: string[]): Promise<void> {
  const input = await readInput(command, options.config, rest);
  const args = resolveArgs(input);
  const required = (key: 'modelNameOrPath' | 'datasetName', name: string): string => {
    const value = args[key];
    if (value === undefined) throw new WrpoError('ERR_CONFIG', `${options.config}: missing key "${name}"`);
    return value;
  };
  const trainer = new Trainer({
    model: required('modelNameOrPath', 'model_name_or_path'),
    trainDataset: required('datasetName', 'dataset_name'),
    evalDataset: evaluationData(args),
    args: { ...input, datasetTestSplit: args.datasetTestSplit } as TrainingArgsInput,
  });
  // Where no progress bar is drawn, the log lines are the progress.
  if (!process.stderr.isTTY || args.disableTqdm) trainer.on('log', (line) => say(describe(line)));

  let checkpoint: string | undefined;
  trainer.on('save', (dir) => {
    checkpoint = dir;
  });
  const controller = new AbortController();
  try {
    const result = await withStops(controller, () =>
      trainer.train({ resumeFromCheckpoint: options.resumeFromCheckpoint, signal: controller.signal }),
    );
    const { outputDir } = args;
    say(`done: ${result.globalStep} steps, loss ${result.trainingLoss.toFixed(4)}; model and metrics in ${outputDir}`);
    if (options.json) await writeOut(`${JSON.stringify({ outputDir, ...result })}\n`);
  } catch (error) {
    if (error !== controller.signal.reason) throw error;
    const kept = checkpoint ? `${checkpoint} holds the run so far` : `what is in ${args.outputDir} is kept`;
    say(`wrpo: stopped: ${kept}; the same command with --resume-from-checkpoint goes on from there`);
    process.exitCode = 1;
  } finally {
    await trainer.close();
  }
}

/** Runs something that Ctrl-C and what schedulers send (SIGTERM) abort; a second time they end the process at once. */
async function withStops<T>(controller: AbortController, body: () => Promise<T>): Promise<T> {
  const signals = ['SIGINT', 'SIGTERM'] as const;
  const ignore = () => {
    for (const signal of signals) process.removeListener(signal, stop);
  };
  const stop = () => {
    say('stopping after the micro-batch in hand; again to stop at once');
    ignore();
    controller.abort();
  };
  for (const signal of signals) process.on(signal, stop);
  try {
    return await body();
  } finally {
    ignore();
  }
}

/** The arguments of a run, checked but as they were given: the file's, and the command line's over them. */
async function readInput(command: 'train' | 'sft', config: string, rest: string[]): Promise<Record<string, unknown>> {
  const { input, where, foreign } = readRun(config, parseOverrides(rest), say);
  const asked = input.lossType ?? undefined;
  if (command === 'sft') {
    if (asked !== undefined && asked !== 'sft') {
      throw new WrpoError(
        'ERR_CONFIG',
        `${config}: loss_type is "${asked}"; \`wrpo sft\` trains with "sft", use \`wrpo train\``,
      );
    }
    input.lossType = 'sft';
  }
  const args = resolveArgs(input, where);
  if (asked === undefined && lossOfKeys(input) === undefined && command === 'train' && args.datasetName !== undefined) {
    const fitting = await lossOf(args.datasetName, args);
    // What "sigmoid" means in the authors' files is another loss.
    input.lossType = fitting === 'sigmoid' ? 'dpo' : fitting;
    if (fitting !== args.lossType) say(`${config} has no loss_type: ${input.lossType}, by what the rows hold`);
  }
  if (foreign) sayDefaults(config, input);
  return input;
}

/** A file for another trainer counts on that one's defaults. */
function sayDefaults(config: string, input: Record<string, unknown>): void {
  const meant = (name: string) => {
    if (input.preset !== undefined && (name === 'beta' || name === 'learningRate')) return false;
    if (name === 'beta') return input.lossType !== 'sft';
    return name !== 'warmupRatio' || input.warmupSteps === undefined;
  };
  const left = OTHER_DEFAULTS.filter((name) => input[name] === undefined && meant(name));
  if (left.length > 0)
    say(`${config} leaves out ${left.map(snake).join(', ')}: the defaults are wrpo's, not transformers'`);
}

/** A DPO file of TRL names no loss: the first row does. */
async function lossOf(datasetName: string, args: TrainingArgs): Promise<TrainingArgs['lossType']> {
  for await (const row of readPreferences(datasetName, trainSplit(args))) return fittingLoss(row);
  return 'wrpo';
}

/** The evaluation data: a data set of its own, or the test split of the training data's. */
function evaluationData(args: TrainingArgs): string | undefined {
  if (!evaluates(args) || args.evalDatasetName !== undefined) return args.evalDatasetName;
  const expected = args.doEval || args.evalStrategy !== undefined;
  args.datasetTestSplit ??= expected ? 'test' : undefined;
  if (args.datasetTestSplit === undefined) return undefined;
  if (!statSync(args.datasetName!, { throwIfNoEntry: false })?.isFile()) return args.datasetName;
  say(`no evaluation: ${args.datasetName} is one file without splits; name held-out rows with eval_dataset_name`);
  return undefined;
}

/** A line of a training run's log in words. */
export function describe(line: Metrics): string {
  const parts = Object.entries(line)
    .filter(([name]) =>
      /^(step|epoch|(eval_)?loss|(eval_)?rewards\/(margins|accuracies)|cur_alpha|learning_rate|tokens_per_second)$/.test(
        name,
      ),
    )
    .map(([name, value]) => `${name} ${Number.isInteger(value) ? value : value.toPrecision(5)}`);
  return parts.join('  ');
}
