/** Every block of code in docs/ and README runs or is read by what it is for, and the examples run. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { configuration } from '../docs/generate.mjs';
import { FakeServer } from './fake-server.ts';
import { Project } from './project.ts';
import { type Finished, ROOT } from './training.ts';

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

  it.each(docs.filter((name) => read(`docs/${name}`).includes('```')))('%s: its code runs', async (name) => {
    for (const { language, text, file } of blocksOf(read(`docs/${name}`))) {
      if (file) project.write(file, text);
      if (language === 'sh') succeeded(await project.shell(text), text);
      else if (language === 'js' && !file) {
        project.write('block.mjs', text);
        succeeded(await project.node('block.mjs'), text);
      } else expect(file, `a ${language} block of docs/${name} has no file name`).toBeDefined();
    }
  });
});
