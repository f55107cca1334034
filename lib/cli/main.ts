#!/usr/bin/env node
/** The `wrpo` command. Data goes to files or stdout, words to stderr; exit 0 done, 1 failed, 2 wrong usage. */
import { Argument, Command, CommanderError, InvalidArgumentError } from 'commander';
import { WrpoError } from '../errors.js';
import { VERSION } from '../train/run.js';
import { misspelt, polishHelp } from './help.js';

const program = new Command('wrpo')
  .description('Fuse many large language models into one by weighted-reward preference optimisation.')
  .version(VERSION)
  .exitOverride();

const count = (text: string): number => {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new InvalidArgumentError('expected a positive whole number');
};

const amount = (text: string): number => {
  const value = Number(text);
  if (text.trim() !== '' && Number.isFinite(value)) return value;
  throw new InvalidArgumentError('expected a number');
};

const several = (text: string, before: string[] = []): string[] => [...before, text];

const KEYS_AS_OPTIONS = '\nAny key of the run file can be given as an option: --rank 2';

for (const [name, description] of [
  ['train', 'train a model on preference rows, by any loss_type'],
  ['sft', 'fine-tune a model on completions'],
]) {
  program
    .command(name!)
    .description(description!)
    .requiredOption('--config <file>', 'run file (YAML)')
    .option('--resume-from-checkpoint [dir]', 'continue from a checkpoint directory; without one, from the latest')
    .option('--json', 'print one JSON object when it is done')
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
  .summary('summed response log-probs of every row')
  .description('summed response log-probs of every row, one JSON line each')
  .requiredOption('--model <name>', 'model directory in Hugging Face layout, or a hub id')
  .requiredOption('--data <file>', 'rows: JSONL, Parquet, a directory, or a hub id')
  .option('--split <name>', 'of data that have splits (default: "train")')
  .option('--revision <name>', 'of a data set on the hub: a branch, a tag or a commit')
  .option('--dtype <dtype>', 'float32, bfloat16, float64 or auto', 'float32')
  .option('--device <device>', 'cpu, cuda (needs bfloat16) or auto', 'cpu')
  .option('--lengths', 'the numbers of tokens as well')
  .option('--output <file>', 'where to write; default: standard output')
  .action(async (options) => {
    const { logprobs } = await import('./logprobs.js');
    await logprobs(options);
  });

/** Options of what draws tokens. */
const drawing = (command: Command): Command =>
  command
    .requiredOption('--model <name>', 'model or adapter directory in Hugging Face layout, or a hub id')
    .option('--temperature <number>', '0 takes the likeliest token', amount, 0.8)
    .option('--top-p <number>', 'draw from the likeliest with this share together', amount, 0.95)
    .option('--top-k <count>', 'draw from so many of the likeliest tokens; 0: from all', amount, 0)
    .option('--min-p <number>', 'draw from those at least so likely beside the best', amount, 0)
    .option('--repetition-penalty <number>', 'against tokens that were there before', amount, 1)
    .option('--seed <number>', 'another seed, other samples', amount, 42)
    .option('--dtype <dtype>', 'float32, bfloat16, float64 or auto', 'float32');

drawing(program.command('generate'))
  .summary('samples of prompts')
  .description('samples of prompts, a JSON line each: {prompt_id, prompt, responses, finish_reasons, seeds}')
  .requiredOption('--prompts <file>', 'rows {prompt}: JSONL, Parquet, a directory, or a hub id')
  .option('--split <name>', 'of data that have splits (default: "train")')
  .option('--revision <name>', 'of a data set on the hub: a branch, a tag or a commit')
  .option('--n <count>', 'samples of each prompt', count, 1)
  .option('--max-tokens <count>', 'the longest sample', amount, 512)
  .option('--stop <text>', 'a text that ends a sample; may be given several times', several)
  .option('--max-sequences <count>', 'sequences continued at a time, for speed and memory', count, 64)
  .option('--logprobs', 'the log-prob of each token as well')
  .option('--output <file>', 'where to write; default: standard output')
  .action(async (options) => {
    const { generate } = await import('./generate.js');
    await generate(options);
  });

drawing(program.command('chat'))
  .summary('talk to a model')
  .description('talk to a model, a line a turn; Ctrl-C ends an answer, Ctrl-D the conversation')
  .option('--system <text>', 'a system turn before the first')
  .option('--max-tokens <count>', 'the longest answer', amount, 1024)
  .action(async (options) => {
    const { chat } = await import('./chat.js');
    await chat(options);
  });

program
  .command('fuse')
  .summary('a whole fusion, from prompts to models that are compared')
  .description(
    'a whole fusion: sample, score, select, fine-tune, learn preferences, compare; what is done is not done again',
  )
  .usage('<run.yaml> [options]')
  .option('--config <file>', 'another way to name the run file')
  .option('--from <stage>', 'do this stage and all that follow from it again')
  .option('--only <stages>', 'do nothing but these, with commas between')
  .option('--dry-run', 'say what is to be done, and about what time, memory and money it would take')
  .option('--answer-tokens <count>', 'for the dry run: tokens of an answer', count, 400)
  .option('--speed <count>', 'for the dry run: tokens a second of one request', count, 30)
  .option('--rate <count>', 'for the dry run: answers scored a second', count, 10)
  .option('--train-speed <count>', 'for the dry run: tokens trained on a second', count, 1000)
  .option('--json', 'print one JSON object')
  .allowUnknownOption()
  .allowExcessArguments()
  .addHelpText('after', KEYS_AS_OPTIONS)
  .action(async (options, command: Command) => {
    const named = options.config === undefined && command.args[0]?.startsWith('-') === false;
    const [config, ...rest] = named ? command.args : [options.config, ...command.args];
    if (config === undefined) command.error("error: missing argument '<run.yaml>', or option '--config'");
    const { fuse } = await import('./fuse.js');
    await fuse({ ...options, config }, rest);
  });

program
  .command('sample')
  .summary('ask the models of a fusion')
  .description('ask the models of a fusion for answers to its prompts; what is there already is not asked again')
  .requiredOption('--config <file>', 'run file (YAML)')
  .option('--only <names>', 'models, with commas between, or sources or targets')
  .option('--retry-failed', 'ask prompts again that failed in an earlier run')
  .option('--dry-run', 'say how many requests and tokens, and about what time it would take')
  .option('--answer-tokens <count>', 'for the dry run: tokens of an answer', count, 400)
  .option('--speed <count>', 'for the dry run: tokens a second of one request', count, 30)
  .option('--json', 'print one JSON object')
  .allowUnknownOption()
  .allowExcessArguments()
  .addHelpText('after', KEYS_AS_OPTIONS)
  .action(async (options, command: Command) => {
    const { sample } = await import('./sample.js');
    await sample(options, command.args);
  });

program
  .command('score')
  .summary("rewards of responses, or of a fusion's answers")
  .description('rewards of responses: of a file by ArmoRM, one JSON line a row, or of what a fusion sampled')
  .option('--config <file>', "run file (YAML) of a fusion, whose scorers score its models' answers")
  .option('--only <names>', 'models, with commas between, or sources or targets')
  .option('--retry-failed', 'score again what an earlier run found no score for')
  .option('--dry-run', 'say how many requests and tokens, and about what time it would take')
  .option('--rate <count>', 'for the dry run: answers scored a second', count, 10)
  .option('--json', 'print one JSON object')
  .option('--model <name>', 'reward model: a directory in Hugging Face layout, or a hub id')
  .option(
    '--data <file>',
    'rows {prompt, responses: […]}, {prompt, response} or preferences: JSONL, Parquet, a directory, or a hub id',
  )
  .option('--split <name>', 'of data that have splits (default: "train")')
  .option('--revision <name>', 'of a data set on the hub: a branch, a tag or a commit')
  .option('--dtype <dtype>', 'float32, bfloat16, float64 or auto', 'float32')
  .option('--device <device>', 'cpu, cuda (needs bfloat16) or auto', 'cpu')
  .option('--output <file>', 'where to write; default: standard output')
  .option('--rewards', 'the reward and the gate of each objective as well')
  .allowUnknownOption()
  .allowExcessArguments()
  .action(async (options, command: Command) => {
    if (options.config !== undefined) {
      const stray = ['model', 'data', 'split', 'revision', 'dtype', 'device', 'output', 'rewards'].find(
        (option) => command.getOptionValueSource(option) === 'cli',
      );
      if (stray !== undefined) command.error(`error: option '--${stray}' has no meaning with '--config'`);
      const { scoreStore } = await import('./score-store.js');
      return scoreStore(options, command.args);
    }
    const missing = ['model <name>', 'data <file>'].find((option) => options[option.split(' ')[0]!] === undefined);
    if (missing !== undefined)
      command.error(`error: required option '--${missing}' not specified (or --config <file>)`);
    if (command.args.length > 0) command.error(`error: unknown option '${command.args[0]}'`);
    const { score } = await import('./score.js');
    await score(options);
  });

program
  .command('select')
  .summary('rows to train on, out of a fusion')
  .description('rows to train on, out of what a fusion sampled and scored: train, test and sft files')
  .requiredOption('--config <file>', 'run file (YAML)')
  .option('--dry-run', 'say what would be selected, and write nothing')
  .option('--json', 'print one JSON object')
  .allowUnknownOption()
  .allowExcessArguments()
  .addHelpText('after', KEYS_AS_OPTIONS)
  .action(async (options, command: Command) => {
    const { select } = await import('./select.js');
    await select(options, command.args);
  });

program
  .command('evaluate')
  .summary('alpaca_eval, arena_hard, mt_bench, open_llm_leaderboard')
  .description(
    'measure a model: alpaca_eval, arena_hard, mt_bench, open_llm_leaderboard; what is judged is not asked again',
  )
  .requiredOption('--config <file>', 'run file (YAML)')
  .option('--retry-failed', 'ask again what got no answer in an earlier run')
  .option('--dry-run', 'say how many requests and tokens judging would take, and at most what cost')
  .option('--json', 'print one JSON object')
  .allowUnknownOption()
  .allowExcessArguments()
  .addHelpText('after', `${KEYS_AS_OPTIONS.replace('--rank 2', '--limit 100, --max_cost 5')}`)
  .action(async (options, command: Command) => {
    const { evaluate } = await import('./evaluate.js');
    await evaluate(options, command.args);
  });

program
  .command('tables')
  .summary("the paper's tables over finished runs")
  .description("the paper's tables and figures over finished runs, evaluations and fusions, as text")
  .argument('<dir...>', 'directories of runs, fusions, or of several; evaluations below a run belong to it')
  .option('--csv <dir>', 'write a CSV file a table as well')
  .option('--html <file>', 'write them as one page as well')
  .option('--weights <file>', "models to compare with on AlpacaEval: saved weights, in the public tool's CSV")
  .option('--json', 'print JSON')
  .action(async (directories, options) => {
    const { tables } = await import('./tables.js');
    await tables(directories, options);
  });

program
  .command('report')
  .description('what a training run or a fusion did, as one HTML file that needs no other')
  .argument('<dir>', 'directory of the run or fusion')
  .option('--output <file>', 'where to write; default: report.html in the directory')
  .action(async (directory, options) => {
    const { report } = await import('./report.js');
    await report(directory, options);
  });

program
  .command('watch')
  .description('the same while it goes on: a page on this machine alone that follows the run')
  .argument('<dir>', 'directory of the run or fusion')
  .option('--port <number>', 'default: one that is free', count)
  .action(async (directory, options) => {
    const { watchRun } = await import('./report.js');
    await watchRun(directory, options);
  });

program
  .command('merge')
  .description('a LoRA adapter and its base as one model')
  .requiredOption('--model <dir>', 'adapter directory (adapter_config.json, adapter_model.safetensors)')
  .requiredOption('--output <dir>', 'where to write the model, in Hugging Face layout')
  .option('--base <name>', 'directory or hub id of the base; default: the one that the adapter names')
  .option('--dtype <dtype>', 'of the saved weights: float32, bfloat16 or float64', 'float32')
  .action(async (options) => {
    const { merge } = await import('./merge.js');
    await merge(options);
  });

program
  .command('data')
  .description('look at preference rows')
  .command('check')
  .description('say what training would make of rows, without loading weights; fails if one cannot be used')
  .argument('[file]', 'rows: JSONL, Parquet, a directory, or a hub id; default: those of the run file')
  .option('--config <file>', 'run file (YAML) to check the rows for')
  .option('--model <name>', 'directory or hub id, of which config.json and the tokenizer are read')
  .option('--split <name>', 'of data that have splits (default: "train")')
  .option('--revision <name>', 'of a data set on the hub: a branch, a tag or a commit')
  .option('--row <number>', 'the row whose tokens are shown', count, 1)
  .option('--json', 'print one JSON object')
  .allowUnknownOption()
  .allowExcessArguments()
  .addHelpText('after', '\nAny key of a run file can be given as an option: --loss_type sft')
  .action(async (_, options, command: Command) => {
    const { checkData } = await import('./data.js');
    if (!(await checkData(options, command.args))) process.exitCode = 1;
  });

program
  .command('plan')
  .summary('what full training would need of a GPU')
  .description('what full training of a model would need of one GPU, from its config.json alone')
  .requiredOption('--model <dir>', 'model directory in Hugging Face layout, or its config.json')
  .requiredOption('--gpu <name>', 'H200, H100, A100, A800; of another its usable memory as well')
  .option('--memory <GiB>', 'usable memory', amount)
  .option('--tokens <count>', 'packed tokens of a micro-batch; default: several are compared', count)
  .option('--resident-reference', 'with the reference in memory, instead of computed beforehand')
  .option('--json', 'print one JSON object')
  .action(async (options) => {
    const { plan } = await import('./plan.js');
    plan(options);
  });

program
  .command('setup')
  .summary('fetch libtorch')
  .description('fetch libtorch into the per-user cache')
  .option('--cpu', 'the CPU build (default)')
  .option('--cuda', 'the CUDA build, 2 GB')
  .option('--from <archive>', 'a torch wheel or libtorch archive: a file, or an address; a broken download goes on')
  .option('--sha256 <sum>', 'what the archive must hash to')
  .option('--json', 'print one JSON object')
  .action(async (options, command: Command) => {
    if (options.sha256 !== undefined && options.from === undefined)
      command.error("error: option '--sha256' has no meaning without '--from'");
    if (options.cuda && options.from !== undefined)
      command.error("error: option '--from' has no meaning with '--cuda', which pip fetches");
    const { setup } = await import('./setup.js');
    await setup(options);
  });

program
  .command('doctor')
  .summary('check the installation, or a model directory')
  .description('check the installation, or what is recognised of a model')
  .option('--json', 'print one JSON object')
  .option('--model <dir>', 'a model directory to look at')
  .action(async (options) => {
    const { doctor } = await import('./doctor.js');
    if (!(await doctor(options))) process.exitCode = 1;
  });

program
  .command('completion')
  .summary('a script that completes commands and options in a shell')
  .description(
    'a script that completes commands and options in a shell, to be put where that looks for one, or sourced',
  )
  .addArgument(new Argument('<shell>').choices(['bash', 'zsh', 'fish']))
  .action(async (shell) => {
    const { completion } = await import('./completion.js');
    process.stdout.write(completion(shell, program));
  });

polishHelp(program);
try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    const hint = misspelt(error, process.argv.slice(2));
    if (hint !== undefined) process.stderr.write(`${hint}\n`);
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
