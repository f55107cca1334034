/** Every block of code in docs/ and README runs or is read by what it is for, and the examples run. */
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { configuration } from '../docs/generate.mjs';
import { FakeServer } from './fake-server.ts';
import { commandsOf, Project } from './project.ts';
import { type Finished, ROOT } from './training.ts';

/** Its commands want models, servers and days. */
const PAPER = 'reproduce-the-paper.md';

let project: Project;
beforeAll(async () => {
  project = await Project.create();
});
afterAll(() => project.remove());

const docs = readdirSync(join(ROOT, 'docs')).filter((name) => name.endsWith('.md'));
const read = (name: string) => readFileSync(join(ROOT, name), 'utf8');

interface Block {
  language: string;
  text: string;
  /** The file that its first line, a comment, names. */
  file?: string;
}

function blocksOf(markdown: string): Block[] {
  return [...markdown.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(([, language, text]) => {
    const file = /^(?:#|\/\/) ([\w-]+\.\w+)\n/.exec(text!)?.[1];
    return { language: language!, text: language === 'jsonl' ? text!.replace(/^.*\n/, '') : text!, file };
  });
}

const succeeded = ({ status, stdout, stderr }: Finished, what: string) => {
  expect(status, `${what}\n${stdout}${stderr}`).toBe(0);
  return stdout;
};

describe('docs', () => {
  it('are all listed', () => {
    const listed = read('docs/README.md');
    for (const name of docs) if (name !== 'README.md') expect(listed).toContain(`(${name})`);
  });

  it('have a table of configuration as the schema has it (else run `npm run docs`)', () => {
    expect(read('docs/configuration.md')).toBe(configuration());
  });

  it.each(docs)('%s: its links lead somewhere', (name) => {
    for (const [, target] of read(`docs/${name}`).matchAll(/\]\((?!https?:)([^)#]+)/g)) {
      expect(existsSync(join(ROOT, 'docs', target!)), `${name} links to ${target}`).toBe(true);
    }
  });

  it.each(docs.filter((name) => name !== PAPER && read(`docs/${name}`).includes('```')))(
    '%s: its code runs',
    async (name) => {
      for (const { language, text, file } of blocksOf(read(`docs/${name}`))) {
        if (file) project.write(file, text);
        if (language === 'sh') succeeded(await project.shell(text), text);
        else if (language === 'js' && !file) {
          project.write('block.mjs', text);
          succeeded(await project.node('block.mjs'), text);
        } else expect(file, `a ${language} block of docs/${name} has no file name`).toBeDefined();
      }
    },
  );
});

describe('the way through the paper', () => {
  const lines = commandsOf(blocksOf(read(`docs/${PAPER}`)).map(({ text }) => text));
  it.each(lines.filter((line) => line.startsWith('wrpo')))('shows a command that exists: %s', async (line) => {
    await project.expectUsage(line);
  });
});

describe('examples', () => {
  const example = async (name: string, ...args: string[]) => {
    const told = await project.node(join(ROOT, 'examples', name), ...args);
    return succeeded(told, name).trim().split('\n');
  };
  beforeAll(async () => {
    // The pages before wrote rows of their own.
    project.remove();
    project = await Project.create();
  });

  it('are all listed', () => {
    const listed = read('examples/README.md');
    for (const name of readdirSync(join(ROOT, 'examples')))
      if (name !== 'README.md') expect(listed).toContain(`(${name})`);
  });

  it('train.mjs trains, evaluates, and goes on from its checkpoint when it is given again', async () => {
    const args = ['models/target-sft', 'quadruples.jsonl', 'held_out.jsonl', 'runs/example'];
    const lines = await example('train.mjs', ...args);
    expect(lines.at(-1)).toBe('16 steps; the model is in runs/example');
    expect(lines.filter((line) => /^held out 0\.69/.test(line)).length).toBeGreaterThanOrEqual(4);
    expect(existsSync(project.path('runs/example/checkpoint-16'))).toBe(true);
    const again = await example('train.mjs', ...args);
    expect(again.at(-1)).toBe(lines.at(-1));
    expect(again.filter((line) => /^\d+ 0\./.test(line))).toEqual([]); // nothing is trained twice
    const bad = await project.node(join(ROOT, 'examples/train.mjs'), 'no-model', ...args.slice(1));
    expect(bad.status).toBe(1);
    expect(bad.stderr).toMatch(/^ERR_MODEL: no model in no-model/m);
  });

  it('fuse.mjs fuses the models of a server into one, and does nothing twice', async () => {
    const server = await FakeServer.start({ models: ['one', 'two'] });
    try {
      const prompts = Array.from({ length: 15 }, (_, i) => JSON.stringify({ prompt: `spell ${'abcdefghijklmno'[i]}` }));
      project.write('prompts.jsonl', `${prompts.join('\n')}\n`);
      const args = ['models/target-sft', 'prompts.jsonl', 'runs/fused', server.url, 'one', 'two'];
      const lines = await example('fuse.mjs', ...args);
      expect(lines.map((line) => line.split(' ')[0])).toEqual(
        expect.arrayContaining(['target', 'target-sft', 'wrpo', 'dpo']),
      );
      const asked = server.seen.length;
      expect(asked).toBeGreaterThanOrEqual(15 * 2);
      expect(await example('fuse.mjs', ...args)).toEqual(lines);
      expect(server.seen).toHaveLength(asked);
    } finally {
      await server.close();
    }
  });

  it('objective.mjs trains by a loss of its own, which begins at 1', async () => {
    const [loss] = await example('objective.mjs', 'models/target-sft', 'quadruples.jsonl', 'runs/hinge');
    expect(Number(loss)).toBeCloseTo(1, 2);
  });

  it('tracker.mjs sends every log line to the tracker', async () => {
    const got: { route: string; body: Record<string, never> }[] = [];
    const server = createServer(async (request, response) => {
      let text = '';
      for await (const part of request) text += part;
      got.push({ route: request.url!, body: JSON.parse(text) });
      response.end(JSON.stringify({ run: { info: { run_id: 'r1' } } }));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await example('tracker.mjs', 'models/target-sft', 'quadruples.jsonl', 'runs/tracked', address);
    server.close();
    expect(got[0]).toMatchObject({ route: '/api/2.0/mlflow/runs/create', body: { experiment_id: '0' } });
    const batches = got.flatMap(({ body }) => (body.metrics as { key: string; value: number; step: number }[]) ?? []);
    // Requests that are under way at once may arrive in any order.
    const losses = batches.filter(({ key }) => key === 'loss').sort((a, b) => a.step - b.step);
    const logged = readFileSync(project.path('runs/tracked/metrics.jsonl'), 'utf8').trim().split('\n');
    const lines = logged.map((line) => JSON.parse(line)).filter(({ loss }) => loss !== undefined);
    expect(losses.map(({ step, value }) => ({ step, loss: value }))).toEqual(
      lines.map(({ step, loss }) => ({ step, loss })),
    );
    expect(losses).toHaveLength(32);
    expect(got.at(-1)).toMatchObject({
      route: '/api/2.0/mlflow/runs/update',
      body: { run_id: 'r1', status: 'FINISHED' },
    });
  });
});
