/** `wrpo train` and `wrpo sft`: a run file, and options that override its keys. */
import { readFileSync, statSync } from 'node:fs';
import { isMap, isScalar, LineCounter, parse, parseDocument, YAMLParseError } from 'yaml';
import { readPreferences } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import {
  evaluates,
  lossOfKeys,
  readKeys,
  resolveArgs,
  type TrainingArgs,
  type TrainingArgsInput,
} from '../train/args.js';
import { camel, OTHER_DEFAULTS, snake } from '../train/compat.js';
import type { Metrics } from '../train/metrics.js';
import { fittingLoss } from '../train/objective.js';
import { trainSplit } from '../train/prepare.js';
import { Trainer } from '../train/trainer.js';

interface Options {
  config: string;
  resumeFromCheckpoint?: string | true;
}

const COMMAND_LINE = 'command line';
const say = (line: string) => process.stderr.write(`${line}\n`);

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

  const controller = new AbortController();
  const stop = () => {
    say('stopping after the micro-batch in hand; again to stop at once');
    controller.abort();
  };
  process.once('SIGINT', stop);
  try {
    const { globalStep, trainingLoss } = await trainer.train({
      resumeFromCheckpoint: options.resumeFromCheckpoint,
      signal: controller.signal,
    });
    say(`done: ${globalStep} steps, loss ${trainingLoss.toFixed(4)}; model and metrics in ${args.outputDir}`);
  } finally {
    process.removeListener('SIGINT', stop);
    await trainer.close();
  }
}

/** The arguments of a run, checked but as they were given: the file's, and the command line's over them. */
async function readInput(command: 'train' | 'sft', config: string, rest: string[]): Promise<Record<string, unknown>> {
  const file = readRunFile(config);
  const options = parseOverrides(rest);
  const overrides = readKeys(options, COMMAND_LINE, say);
  const overridden = new Set([...Object.keys(options).map(camel), ...Object.keys(overrides)]);
  // Two names of one thing.
  if (overridden.has('simpoGamma')) overridden.add('gammaBetaRatio');
  else if (overridden.has('gammaBetaRatio')) overridden.add('simpoGamma');
  let foreign = false;
  const notice = (line: string) => {
    foreign = true;
    say(line);
  };
  const input: Record<string, unknown> = { ...readKeys(file.values, file.where, notice, overridden), ...overrides };
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
  const where = (key?: string) => (key !== undefined && overridden.has(camel(key)) ? COMMAND_LINE : file.where(key));
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

interface RunFile {
  values: Record<string, unknown>;
  /** The file, with the line of a key. */
  where(key?: string): string;
}

function readRunFile(path: string): RunFile {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new WrpoError('ERR_CONFIG', `cannot read the run file ${path}`, { cause });
  }
  const values = parseYaml(text, path);
  if (typeof values !== 'object' || values === null || Array.isArray(values)) {
    throw new WrpoError('ERR_CONFIG', `${path} must hold keys and values`);
  }
  const counter = new LineCounter();
  const { contents } = parseDocument(text, { lineCounter: counter });
  const lines = new Map<string, number>();
  for (const { key } of isMap(contents) ? contents.items : []) {
    if (isScalar(key) && key.range) lines.set(camel(String(key.value)), counter.linePos(key.range[0]).line);
  }
  const where = (key?: string) => {
    const line = key === undefined ? undefined : lines.get(camel(key));
    return line === undefined ? path : `${path} line ${line}`;
  };
  return { values: values as Record<string, unknown>, where };
}

function parseYaml(text: string, where: string): unknown {
  try {
    return parse(text);
  } catch (cause) {
    // The first line says what and where; the others draw it.
    const message = cause instanceof YAMLParseError ? cause.message.split('\n')[0]!.replace(/:$/, '') : String(cause);
    throw new WrpoError('ERR_CONFIG', `${where}: ${message}`, { cause });
  }
}

/** `--learning_rate 1e-6`, `--learning-rate=1e-6`, `--shuffle` (true): values as YAML would read them. */
function parseOverrides(rest: string[]): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  for (let i = 0; i < rest.length; i++) {
    const match = /^--([a-zA-Z][\w-]*)(?:=(.*))?$/s.exec(rest[i]!);
    if (!match) throw new WrpoError('ERR_CONFIG', `unexpected argument "${rest[i]}": expected --key value`);
    const key = match[1]!.replaceAll('-', '_');
    let text = match[2];
    if (text === undefined && i + 1 < rest.length && !rest[i + 1]!.startsWith('--')) text = rest[++i];
    values[key] = text === undefined ? true : parseYaml(text, `${COMMAND_LINE}: --${match[1]} "${text}"`);
  }
  return values;
}

function describe(line: Metrics): string {
  const parts = Object.entries(line)
    .filter(([name]) =>
      /^(step|epoch|(eval_)?loss|(eval_)?rewards\/(margins|accuracies)|cur_alpha|learning_rate|tokens_per_second)$/.test(
        name,
      ),
    )
    .map(([name, value]) => `${name} ${Number.isInteger(value) ? value : value.toPrecision(5)}`);
  return parts.join('  ');
}
