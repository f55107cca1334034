/** The README's example runs as it stands, and what the package's entry promises holds. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Model } from '../lib/model/model.js';
import { MODELS, prompts, wrap } from '../miniature/skills.mjs';
import { trainTokenizer, writeTokenizer } from '../miniature/tokenizer.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const blocks = (language: string) =>
  [...readme.matchAll(new RegExp(`\`\`\`${language}\n([\\s\\S]*?)\`\`\``, 'g'))].map((match) => match[1]!);
const block = (language: string) => blocks(language)[0]!;
// Inside the package, so that `import … from 'wrpo'` finds it as an installed one would be found.
let dir: string;

beforeAll(async () => {
  mkdirSync(join(root, 'runs'), { recursive: true });
  dir = mkdtempSync(join(root, 'runs', 'readme-'));
  await writeTokenizer(join(dir, 'models/target-sft'), trainTokenizer(MODELS.target));
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
  await model.save(join(dir, 'models/target-sft'));
  await model.close();
  const quadruples = (seed: number, n: number) =>
    prompts(seed, n, 'po').map(({ prompt, args, gold }) => {
      const [source_chosen, target_chosen, rejected] = [
        wrap('itis', gold),
        wrap('arrow', gold),
        wrap('arrow', args[0]!),
      ];
      return `${JSON.stringify({ prompt, source_chosen, target_chosen, rejected })}\n`;
    });
  writeFileSync(join(dir, 'quadruples.jsonl'), quadruples(1, 64).join(''));
  writeFileSync(join(dir, 'held_out.jsonl'), quadruples(2, 16).join(''));
});

afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('README', () => {
  it('runs the Trainer example', () => {
    writeFileSync(
      join(dir, 'example.mjs'),
      `${block('ts')}\nconsole.log(JSON.stringify({ globalStep, trainingLoss }));\n`,
    );
    const output = execFileSync(process.execPath, ['example.mjs'], { cwd: dir, encoding: 'utf8' }).trim().split('\n');
    const { globalStep, trainingLoss } = JSON.parse(output.at(-1)!);
    expect(globalStep).toBe(4);
    expect(trainingLoss).toBeCloseTo(Math.log(2), 3);
    expect(output.length).toBe(3); // the log at the end, the evaluation, and our own line
  });

  it('runs the objectives of one’s own', () => {
    const [, contests, hinge] = blocks('ts');
    for (const one of [contests, hinge]) expect(one!.trim().split('\n').length).toBeLessThanOrEqual(15);
    const said =
      'console.log(JSON.stringify([await trainer.train(), await hinged.train()].map((run) => run.trainingLoss)));';
    writeFileSync(join(dir, 'own.mjs'), `${contests}${hinge}${said}\n`);
    const output = execFileSync(process.execPath, ['own.mjs'], { cwd: dir, encoding: 'utf8' });
    const [mixed, hinged] = JSON.parse(output.trim().split('\n').at(-1)!);
    expect(mixed).toBeCloseTo(Math.log(2), 3); // the first steps are small: the loss of policy = reference
    expect(hinged).toBeCloseTo(1, 3);
  });

  it('has an example of ten lines', () => {
    expect(block('ts').trim().split('\n').length).toBeLessThanOrEqual(10);
  });

  it('shows a run file that runs', () => {
    writeFileSync(join(dir, 'run.yaml'), block('yaml'));
    const args = [
      join(root, 'dist/cli/main.js'),
      'train',
      '--config',
      'run.yaml',
      '--output_dir',
      'runs/cli',
      '--dtype',
      'float32',
    ];
    const run = spawnSync(process.execPath, args, { cwd: dir, encoding: 'utf8' });
    expect(run.stderr).toContain('done: 4 steps');
    expect(run.status).toBe(0);
    const logged = readFileSync(join(dir, 'runs/cli/metrics.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    const documented = [...readme.matchAll(/`([a-z_]+(?:\/[a-z_]+)?)`/g)].map((match) => match[1]!);
    for (const name of Object.keys(logged[0]).filter((key) => !['step', 'epoch'].includes(key))) {
      expect(documented, `README explains ${name}`).toContain(name);
    }
  });
});

describe('package entry', () => {
  it('works with require()', () => {
    writeFileSync(join(dir, 'required.cjs'), "const { Trainer } = require('wrpo');\nconsole.log(typeof Trainer);\n");
    const run = spawnSync(process.execPath, ['--no-warnings', 'required.cjs'], { cwd: dir, encoding: 'utf8' });
    expect(run.stdout.trim()).toBe('function');
  });
});
