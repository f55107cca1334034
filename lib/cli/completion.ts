/** `wrpo completion`: a script for a shell, made of the commands and options that there are. */
import type { Command } from 'commander';
import { leavesOf } from './help.js';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
type Shell = (typeof SHELLS)[number];

interface Word {
  /** As it is typed: `train`, `data`. */
  name: string;
  description: string;
  /** What may follow it: options, and names of commands below. */
  options: { long: string; description: string; takesValue: boolean }[];
  below: string[];
}

/** The script, to be sourced or put where the shell looks for completions. Files complete where no option is begun. */
export function completion(shell: Shell, program: Command): string {
  const words = program.commands.map((command): Word => {
    const leaves = leavesOf(command).map((leaf) => leaf.command);
    const options = (leaves.length > 0 ? leaves : [command]).flatMap((leaf) => leaf.options);
    return {
      name: command.name(),
      description: command.summary() || command.description(),
      options: options.flatMap(({ long, description, required, optional }) =>
        long ? [{ long, description, takesValue: required || optional }] : [],
      ),
      below: command.commands.map((one) => one.name()),
    };
  });
  return { bash, zsh, fish }[shell](words);
}

const named = (words: Word[]) => words.map(({ name }) => name).join(' ');
const after = ({ options, below }: Word) => [...below, ...options.map(({ long }) => long)].join(' ');

function bash(words: Word[]): string {
  const cases = words.map((word) => `    ${word.name}) words="${after(word)}" ;;\n`).join('');
  return `# bash completion for wrpo
_wrpo() {
  local current="\${COMP_WORDS[COMP_CWORD]}" words=""
  if [[ $COMP_CWORD -eq 1 ]]; then
    words="${named(words)} --help --version"
  else
    case "\${COMP_WORDS[1]}" in
${cases}    esac
    [[ $current == -* || $COMP_CWORD -eq 2 ]] || words=""
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _wrpo wrpo
`;
}

function zsh(words: Word[]): string {
  const cases = words.map((word) => `    ${word.name}) candidates=(${after(word)}) ;;\n`).join('');
  return `#compdef wrpo
_wrpo() {
  local -a candidates
  if (( CURRENT == 2 )); then
    candidates=(${named(words)} --help --version)
    compadd -- $candidates
    return
  fi
  case $words[2] in
${cases}  esac
  if [[ $PREFIX == -* ]]; then
    compadd -- $candidates
  else
    (( CURRENT == 3 )) && compadd -- \${candidates:#-*}
    _files
  fi
}
compdef _wrpo wrpo
`;
}

function fish(words: Word[]): string {
  const quoted = (text: string) => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
  const lines = words.flatMap((word) => [
    `complete -c wrpo -n __fish_use_subcommand -a ${word.name} -d ${quoted(word.description)}`,
    ...word.below.map((name) => `complete -c wrpo -n '__fish_seen_subcommand_from ${word.name}' -a ${name}`),
    ...word.options.map(
      ({ long, description, takesValue }) =>
        `complete -c wrpo -n '__fish_seen_subcommand_from ${word.name}' -l ${long.slice(2)}${takesValue ? ' -r' : ''} -d ${quoted(description)}`,
    ),
  ]);
  return `# fish completion for wrpo\n${lines.join('\n')}\n`;
}
