/** `wrpo train` and `wrpo sft`: a run file, and options that override its keys. */
import { readFileSync } from 'node:fs';
import { parse, YAMLParseError } from 'yaml';
import { WrpoError } from '../errors.js';
import { camelKeys, resolveArgs, type TrainingArgsInput } from '../train/args.js';
import type { Metrics } from '../train/metrics.js';
import { Trainer } from '../train/trainer.js';

interface Options {
  config: string;
  resumeFromCheckpoint?: string | true;
}

const COMMAND_LINE = 'command line';

export async function train(command: 'train' | 'sft', options: Options, rest: string[]): Promise<void> {
  const fromFile = camelKeys(readRunFile(options.config), options.config);
  const input = { ...fromFile, ...camelKeys(parseOverrides(rest), COMMAND_LINE) };
  if (command === 'sft') {
    const asked = input.lossType ?? undefined;
    if (asked !== undefined && asked !== 'sft') {
      throw new WrpoError(
        'ERR_CONFIG',
        `${options.config}: loss_type is "${asked}"; \`wrpo sft\` trains with "sft", use \`wrpo train\``,
      );
    }
    input.lossType = 'sft';
  }
  const args = resolveArgs(input, options.config);
  const required = (key: 'modelNameOrPath' | 'datasetName', name: string): string => {
    const value = args[key];
    if (value === undefined) throw new WrpoError('ERR_CONFIG', `${options.config}: missing key "${name}"`);
    return value;
  };
  const trainer = new Trainer({
    model: required('modelNameOrPath', 'model_name_or_path'),
    args: input as unknown as TrainingArgsInput,
    trainDataset: required('datasetName', 'dataset_name'),
    evalDataset: args.evalDatasetName,
  });
  // Where no progress bar is drawn, the log lines are the progress.
  if (!process.stderr.isTTY || args.disableTqdm)
    trainer.on('log', (line) => process.stderr.write(`${describe(line)}\n`));

  const controller = new AbortController();
  const stop = () => {
    process.stderr.write('stopping after the micro-batch in hand; again to stop at once\n');
    controller.abort();
  };
  process.once('SIGINT', stop);
  try {
    const { globalStep, trainingLoss } = await trainer.train({
      resumeFromCheckpoint: options.resumeFromCheckpoint,
      signal: controller.signal,
    });
    process.stderr.write(
      `done: ${globalStep} steps, loss ${trainingLoss.toFixed(4)}; model and metrics in ${args.outputDir}\n`,
    );
  } finally {
    process.removeListener('SIGINT', stop);
    await trainer.close();
  }
}

function readRunFile(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new WrpoError('ERR_CONFIG', `cannot read the run file ${path}`, { cause });
  }
  const value = parseYaml(text, path);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new WrpoError('ERR_CONFIG', `${path} must hold keys and values`);
  }
  return value as Record<string, unknown>;
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
