/**
 * `npm run docs` writes docs/configuration.md: the keys of a run file, from the schema that checks them and its comments.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { argumentSchema } from '../dist/train/args.js';
import { snake } from '../dist/train/compat.js';

const FILE = fileURLToPath(new URL('configuration.md', import.meta.url));
const SOURCE = fileURLToPath(new URL('../lib/train/args.ts', import.meta.url));

/** The section that begins with a key. */
const SECTIONS = {
  modelNameOrPath: 'Model, data and output',
  preset: 'Objective',
  usePeft: 'LoRA',
  learningRate: 'Optimiser',
  perDeviceTrainBatchSize: 'Batches and length of the run',
  maxLength: 'Text',
  loggingSteps: 'Logging, evaluation and saving',
};

const HEAD = `# Configuration

The keys of a run file (\`wrpo train --config run.yaml\`), which are options of the command line too (\`--learning_rate 1e-6\`)
and, in camelCase, the \`args\` of a \`Trainer\`. Keys of TRL's, transformers' and the alignment-handbook's files are read as
well: see [moving from TRL](moving-from-trl.md). \`wrpo fuse\` and \`wrpo evaluate\` have run files of their own, in the
[README](../README.md#fusion-data).

This file is written by \`npm run docs\`; what it says stands in [\`lib/train/args.ts\`](../lib/train/args.ts).
`;

/** The whole file, as it should be. */
export function configuration() {
  const { properties, required } = z.toJSONSchema(argumentSchema(), { io: 'input' });
  const comments = commentsOf(readFileSync(SOURCE, 'utf8'));
  const lines = [HEAD];
  for (const [key, property] of Object.entries(properties)) {
    if (SECTIONS[key]) lines.push(`\n## ${SECTIONS[key]}\n\n| key | values | default | meaning |\n|---|---|---|---|\n`);
    const value = required.includes(key) ? 'required' : code(property.default);
    const row = [`\`${snake(key)}\``, typeOf(property), value, comments.get(key) ?? ''];
    lines.push(`| ${row.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |\n`);
  }
  return lines.join('');
}

const code = (value) => (value === undefined ? '' : `\`${value}\``);

function typeOf({ type, enum: names, anyOf, items, ...limits }) {
  if (anyOf) return anyOf.map(typeOf).join(' or ');
  if (names) return names.map(code).join(', ');
  if (type === 'array') return `a list of ${typeOf(items)}s`;
  if (type === 'boolean') return 'true, false';
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = limits;
  const bounds = [
    minimum !== undefined && minimum > -1e15 && `from ${minimum}`,
    exclusiveMinimum !== undefined && `above ${exclusiveMinimum}`,
    maximum !== undefined && maximum < 1e15 && `to ${maximum}`,
    exclusiveMaximum !== undefined && `below ${exclusiveMaximum}`,
  ].filter(Boolean);
  return [type === 'integer' ? 'whole number' : type === 'string' ? 'text' : type, ...bounds].join(' ');
}

/** The comment before each key of the schema, with the names of other keys as a run file spells them. */
function commentsOf(source) {
  const comments = new Map();
  for (const [, comment, key] of source.matchAll(/\/\*\*((?:(?!\*\/)[\s\S])*)\*\/\s*(\w+): ?/g)) {
    const text = comment.replaceAll(/\s*\n\s*\*?\s*/g, ' ').trim();
    comments.set(
      key,
      text.replaceAll(/`[^`]+`/g, (code) => code.replaceAll(/\b[a-z]+[A-Z]\w*/g, snake)),
    );
  }
  return comments;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(FILE, configuration());
