/** A user's directory, in which the documentation's blocks and the examples run: a tiny model, rows, `wrpo` on the PATH. */
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { expect } from 'vitest';
import { Model } from '../lib/model/model.ts';
import { MODELS, prompts, wrap } from '../miniature/skills.mjs';
import { trainTokenizer, writeTokenizer } from '../miniature/tokenizer.mjs';
import { Child, type Finished, MAIN, ROOT } from './training.ts';

export class Project {
  readonly dir: string;

  private constructor() {
    // Inside the package, so that `import … from 'wrpo'` finds it as an installed one would be found.
    mkdirSync(join(ROOT, 'runs'), { recursive: true });
    this.dir = mkdtempSync(join(ROOT, 'runs', 'project-'));
  }

  static async create(): Promise<Project> {
    const project = new Project();
    const target = project.path('models/target-sft');
    await writeTokenizer(target, trainTokenizer(MODELS.target));
    const model = await Model.create({
      model_type: 'llama',
      vocab_size: 159,
      hidden_size: 32,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      intermediate_size: 48,
      max_position_embeddings: 96,
      tie_word_embeddings: true,
    });
    await model.save(target);
    await model.close();
    project.write('quadruples.jsonl', quadruples(1, 64));
    project.write('held_out.jsonl', quadruples(2, 16));
    // What `npm install wrpo` brings: the command, by itself and through npx.
    const command = `#!/bin/sh\nexec ${process.execPath} ${MAIN} "$@"\n`;
    project.write('bin/wrpo', command, 0o755);
    project.write('bin/npx', '#!/bin/sh\nexec "$@"\n', 0o755);
    project.write('bin/npm', '#!/bin/sh\nexit 0\n', 0o755);
    return project;
  }

  path(...parts: string[]): string {
    return join(this.dir, ...parts);
  }

  write(name: string, text: string, mode?: number): void {
    mkdirSync(join(this.path(name), '..'), { recursive: true });
    writeFileSync(this.path(name), text, { mode });
  }

  node(...args: string[]): Promise<Finished> {
    return new Child(args, { cwd: this.dir }).done;
  }

  /** Lines of a shell, of which the first that fails is the last. */
  shell(lines: string): Promise<Finished> {
    const env = { ...process.env, NO_COLOR: '1', PATH: `${this.path('bin')}${delimiter}${process.env.PATH}` };
    return new Promise((resolve) => {
      execFile('sh', ['-e', '-c', lines], { cwd: this.dir, env }, (error, stdout, stderr) => {
        resolve({ status: error ? Number(error.code) : 0, signal: null, stdout, stderr });
      }).stdin!.end();
    });
  }

  /**
   * A line of a shell must be right as far as it can be told here: where it names a file that is not there, that is what it
   * says, in one sentence and without a word about usage.
   */
  async expectUsage(line: string): Promise<void> {
    const { status, stderr } = await (line.startsWith('wrpo watch ') ? this.#served(line) : this.shell(line));
    const absent = /^wrpo: .*(no model in|no such (file|directory)|cannot read|not there|no adapter|holds no|no run)/m;
    if (status !== 0) expect(stderr).toMatch(absent);
    expect(stderr).not.toMatch(/unknown|unexpected|usage|did you mean/i);
    expect(status, stderr).toBeLessThan(2);
  }

  /** What goes on until it is stopped, stopped when it serves. */
  async #served(line: string): Promise<Finished> {
    const child = new Child([MAIN, ...line.split(' ').slice(1)], { cwd: this.dir });
    await child.until(() => child.stderr.includes('until Ctrl-C'));
    return child.running ? child.kill('SIGINT') : child.done;
  }

  remove(): void {
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** The commands of shell blocks, each once, without comments; `a|b` in one stands for two. */
export function commandsOf(blocks: readonly string[]): string[] {
  const lines = blocks.flatMap((text) =>
    text
      .trim()
      .split('\n')
      .map((line) => line.replace(/ +#.*/, '')),
  );
  const single = lines.flatMap((line) => {
    const [, before, names, after] = /^(.*?)(\w+(?:\|\w+)+)(.*)$/.exec(line) ?? [];
    return names === undefined ? [line] : names.split('|').map((name) => `${before}${name}${after}`);
  });
  return [...new Set(single)];
}

function quadruples(seed: number, n: number): string {
  const rows = prompts(seed, n, 'po').map(({ prompt, args, gold }) => {
    const [source_chosen, target_chosen, rejected] = [wrap('itis', gold), wrap('arrow', gold), wrap('arrow', args[0]!)];
    return `${JSON.stringify({ prompt, source_chosen, target_chosen, rejected })}\n`;
  });
  return rows.join('');
}
