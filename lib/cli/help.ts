/** What `--help` shows: every command on a screen of 24 lines by 100 columns, with one example. */
import { type Command, type CommanderError, Option } from 'commander';
import { nearest } from '../edit-distance.js';

const WIDTH = 100;

const EXAMPLES: Record<string, string> = {
  train: 'wrpo train --config run.yaml --learning_rate 1e-6',
  sft: 'wrpo sft --config sft.yaml --num_train_epochs 3',
  logprobs: 'wrpo logprobs --model runs/wrpo --data rows.jsonl > logprobs.jsonl',
  generate: 'wrpo generate --model runs/wrpo --prompts prompts.jsonl --n 5 --output samples.jsonl',
  chat: 'wrpo chat --model runs/wrpo --temperature 0',
  fuse: 'wrpo fuse fusion.yaml --dry-run',
  sample: 'wrpo sample --config fusion.yaml --only sources',
  score: 'wrpo score --model models/armorm --data answers.jsonl --output scores.jsonl',
  select: 'wrpo select --config fusion.yaml --rank 2 --selection_dir runs/rank2',
  evaluate: 'wrpo evaluate --config evaluation.yaml --limit 100 --max_cost 5',
  tables: 'wrpo tables runs/dpo runs/wrpo --csv tables',
  report: 'wrpo report runs/wrpo --output wrpo.html',
  watch: 'wrpo watch runs/wrpo --port 8080',
  merge: 'wrpo merge --model runs/lora --output models/merged',
  'data check': 'wrpo data check quadruples.jsonl --model models/target-sft --max_length 1024 --row 3',
  plan: 'wrpo plan --model models/target-sft --gpu H100',
  setup: 'wrpo setup --from torch-2.13.0+cpu-cp312-cp312-linux_x86_64.whl',
  doctor: 'wrpo doctor --json > report.json',
  completion: 'wrpo completion bash > ~/.local/share/bash-completion/completions/wrpo',
};

/** The commands that do something, each with its name as it is typed: `data check`. */
export function leavesOf(program: Command, before = ''): { name: string; command: Command }[] {
  return program.commands.flatMap((command) => {
    const name = `${before}${command.name()}`;
    return command.commands.length > 0 ? leavesOf(command, `${name} `) : [{ name, command }];
  });
}

/** Gives every command its example, and help a width; of a mistyped option, what was probably meant. */
export function polishHelp(program: Command): void {
  program.addHelpText('after', '\nExit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage.');
  for (const { name, command } of leavesOf(program)) {
    command.addHelpOption(new Option('-h, --help').hideHelp()); // who reads it has found it
    if (EXAMPLES[name]) command.addHelpText('after', `\nExample: ${EXAMPLES[name]}`);
  }
  const everywhere = (command: Command): void => {
    command.configureOutput({ getOutHelpWidth: () => Math.min(process.stdout.columns ?? WIDTH, WIDTH) });
    command.commands.forEach(everywhere);
  };
  everywhere(program);
}

/**
 * Of a command that takes any key as an option: the required option that was probably meant by one of `args`, since
 * commander finds fault with its absence alone.
 */
export function misspelt(error: CommanderError, args: readonly string[]): string | undefined {
  const [, missing] = /required option '(--[\w-]+)/.exec(error.message) ?? [];
  const near = args.find(
    (arg) => arg.startsWith('--') && arg !== missing && nearest(arg, [missing ?? '']) !== undefined,
  );
  return near === undefined || missing === undefined ? undefined : `(Did you mean ${missing} by ${near}?)`;
}
