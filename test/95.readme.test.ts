/** The README's example runs as it stands, and what the package's entry promises holds. */
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { resolveEvaluation } from '../lib/evaluate/config.ts';
import { resolveFusion } from '../lib/fuse/config.ts';
import { resolveArgs } from '../lib/train/args.ts';
import { commandsOf, Project } from './project.ts';
import { MAIN, ROOT } from './training.ts';

const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
const blocks = (language: string) =>
  [...readme.matchAll(new RegExp(`\`\`\`${language}\n([\\s\\S]*?)\`\`\``, 'g'))].map((match) => match[1]!);
const block = (language: string) => blocks(language)[0]!;
let project: Project;

beforeAll(async () => {
  project = await Project.create();
});

afterAll(() => project.remove());

describe('README', () => {
  it('runs the Trainer example', () => {
    writeFileSync(
      project.path('example.mjs'),
      `${block('ts')}\nconsole.log(JSON.stringify({ globalStep, trainingLoss }));\n`,
    );
    const output = execFileSync(process.execPath, ['example.mjs'], { cwd: project.dir, encoding: 'utf8' })
      .trim()
      .split('\n');
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
    writeFileSync(project.path('own.mjs'), `${contests}${hinge}${said}\n`);
    const output = execFileSync(process.execPath, ['own.mjs'], { cwd: project.dir, encoding: 'utf8' });
    const [mixed, hinged] = JSON.parse(output.trim().split('\n').at(-1)!);
    expect(mixed).toBeCloseTo(Math.log(2), 3); // the first steps are small: the loss of policy = reference
    expect(hinged).toBeCloseTo(1, 3);
  });

  it('has an example of ten lines', () => {
    expect(block('ts').trim().split('\n').length).toBeLessThanOrEqual(10);
  });

  it('shows a run file that runs', () => {
    writeFileSync(project.path('run.yaml'), block('yaml'));
    const args = [MAIN, 'train', '--config', 'run.yaml', '--output_dir', 'runs/cli', '--dtype', 'float32'];
    const run = spawnSync(process.execPath, args, { cwd: project.dir, encoding: 'utf8' });
    expect(run.stderr).toContain('done: 4 steps');
    expect(run.status).toBe(0);
    const logged = readFileSync(project.path('runs/cli/metrics.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    const documented = [...readme.matchAll(/`([a-z_]+(?:\/[a-z_]+)?)`/g)].map((match) => match[1]!);
    for (const name of Object.keys(logged[0]).filter((key) => !['step', 'epoch'].includes(key))) {
      expect(documented, `README explains ${name}`).toContain(name);
    }
  });

  it('shows how samples are drawn', async () => {
    const [generation] = blocks('js');
    project.write('generation.mjs', generation!);
    const { status, stdout, stderr } = await project.node('generation.mjs');
    expect(status, stderr).toBe(0);
    expect(stdout.match(/^(stop|length|eos|end)\b/gm), stdout).toHaveLength(3);
  });

  it('has no block of another language than the tests know', () => {
    const languages = [...readme.matchAll(/^```(\w*)\n[\s\S]*?^```$/gm)].map((match) => match[1]!);
    expect([...new Set(languages)].sort()).toEqual(['js', 'sh', 'ts', 'yaml']);
    expect(blocks('js')).toHaveLength(1);
    expect(blocks('ts')).toHaveLength(3);
  });

  it.each(blocks('yaml'))('shows keys that exist: %#', (text) => {
    const values = parse(text) as Record<string, unknown>;
    const where = (...path: PropertyKey[]) => path.join('.');
    if ('benchmark' in values) expect(resolveEvaluation(values, where)).toHaveProperty('benchmark');
    else if ('sources' in values) expect(resolveFusion(values, where)).toHaveProperty('sources');
    else
      expect(resolveArgs({ output_dir: 'runs/x', ...values })).toHaveProperty(
        'outputDir',
        values.output_dir ?? 'runs/x',
      );
  });

  it.each(commandsOf(blocks('sh')))('shows a command that exists: %s', async (line) => {
    if (!line.startsWith('npm ')) return project.expectUsage(line);
    const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
    expect(scripts).toHaveProperty([line.replace(/^npm (run )?/, '').split(' ')[0]!]);
  });
});

describe('package entry', () => {
  it('works with require()', async () => {
    project.write('required.cjs', "const { Trainer } = require('wrpo');\nconsole.log(typeof Trainer);\n");
    const { stdout } = await project.node('--no-warnings', 'required.cjs');
    expect(stdout.trim()).toBe('function');
  });
});
