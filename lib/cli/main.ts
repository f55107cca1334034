#!/usr/bin/env node
/** The `wrpo` command. Data goes to files or stdout, words to stderr; exit 0 done, 1 failed, 2 wrong usage. */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { WrpoError } from '../errors.js';
import { VERSION } from '../train/run.js';

const program = new Command('wrpo')
  .description('Fuse many large language models into one by weighted-reward preference optimisation.')
  .version(VERSION)
  .exitOverride()
  .configureHelp({ showGlobalOptions: true });

for (const [name, description] of [
  ['train', 'train a model on preference rows (wrpo, sigmoid; any loss_type of the run file)'],
  ['sft', 'fine-tune a model on completions'],
]) {
  program
    .command(name!)
    .description(description!)
    .requiredOption('--config <file>', 'run file (YAML)')
    .option('--resume-from-checkpoint [dir]', 'continue from a checkpoint directory; without one, from the latest')
    .allowUnknownOption()
    .allowExcessArguments()
    .addHelpText('after', '\nAny key of the run file can be given as an option: --learning_rate 1e-6')
    .action(async (options, command: Command) => {
      const { train } = await import('./train.js');
      await train(name as 'train' | 'sft', options, command.args);
    });
}

program
  .command('logprobs')
  .description('summed response log-probs of every row, one JSON line each')
  .requiredOption('--model <dir>', 'model directory in Hugging Face layout')
  .requiredOption('--data <file>', 'rows: JSONL, Parquet, a directory, or a hub id')
  .option('--dtype <dtype>', 'float32, bfloat16 or float64', 'float32')
  .option('--output <file>', 'where to write; default: standard output')
  .action(async (options) => {
    const { logprobs } = await import('./logprobs.js');
    await logprobs(options);
  });

const count = (text: string): number => {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError('expected a positive whole number');
};

program
  .command('data')
  .description('look at preference rows')
  .command('check')
  .description('say what training would make of rows, without loading weights; fails if one cannot be used')
  .argument('<file>', 'rows: JSONL, Parquet, a directory, or a hub id')
  .requiredOption('--model <dir>', 'model directory, of which config.json and the tokenizer are read')
  .addOption(
    new Option('--loss-type <name>', 'whose responses are needed; default: what the first row has').choices([
      ...['wrpo', 'wrpo_simpo', 'wrpo_ipo', 'wrpo_ls', 'sigmoid', 'simpo', 'ipo', 'authors_sigmoid', 'sft'],
    ]),
  )
  .option('--max-length <tokens>', 'prompt and response together', count, 2048)
  .option('--max-prompt-length <tokens>', 'prompt alone', count)
  .addOption(new Option('--template-mode <mode>').choices(['default', 'authors']).default('default'))
  .option('--row <number>', 'the row whose tokens are shown', count, 1)
  .option('--json', 'print one JSON object')
  .addHelpText(
    'after',
    '\nExample: wrpo data check quadruples.jsonl --model models/target-sft --max-length 1024 --row 3',
  )
  .action(async (file, options) => {
    const { checkData } = await import('./data.js');
    if (!(await checkData(file, options))) process.exitCode = 1;
  });

program
  .command('setup')
  .description('fetch libtorch into the per-user cache')
  .option('--cpu', 'the CPU build (default)')
  .option('--cuda', 'the CUDA build')
  .action(async (options) => {
    const { setup } = await import('./setup.js');
    await setup(options);
  });

program
  .command('doctor')
  .description('check the installation, or what is recognised of a model')
  .option('--json', 'print one JSON object')
  .option('--model <dir>', 'a model directory to look at')
  .action(async (options) => {
    const { doctor } = await import('./doctor.js');
    if (!(await doctor(options))) process.exitCode = 1;
  });

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  } else if (error instanceof WrpoError) {
    process.stderr.write(`wrpo: ${error.message}\n`);
    process.exitCode = 1;
  } else if ((error as Error).name === 'AbortError') {
    process.stderr.write('wrpo: stopped\n');
    process.exitCode = 1;
  } else if ((error as NodeJS.ErrnoException).code === 'EPIPE') {
    process.exitCode = 1;
  } else {
    process.stderr.write(`wrpo: unexpected error: ${(error as Error).stack ?? error}\n`);
    process.exitCode = 1;
  }
}
