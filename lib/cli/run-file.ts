/** Run files, and options that override their keys. */
import { readFileSync } from 'node:fs';
import { isMap, isScalar, isSeq, LineCounter, type Node, parseDocument, YAMLError } from 'yaml';
import { WrpoError } from '../errors.js';
import { readKeys } from '../train/args.js';
import { camel } from '../train/compat.js';

const COMMAND_LINE = 'command line';

export interface RunInput {
  /** Our arguments as they were given, not yet checked. */
  input: Record<string, unknown>;
  /** Where a key stands, for errors. */
  where(key?: string): string;
  /** Whether the file holds keys of other trainers. */
  foreign: boolean;
}

/** The arguments of a run file, if there is one, and those of the command line over them; `say` takes notices. */
export function readRun(
  config: string | undefined,
  options: Record<string, unknown>,
  say: (line: string) => void,
): RunInput {
  const file = config === undefined ? { values: {}, where: () => COMMAND_LINE } : readRunFile(config);
  const overrides = readKeys(options, COMMAND_LINE, say);
  const overridden = new Set([...Object.keys(options).map(camel), ...Object.keys(overrides)]);
  // Two names of one thing.
  if (overridden.has('simpoGamma')) overridden.add('gammaBetaRatio');
  else if (overridden.has('gammaBetaRatio')) overridden.add('simpoGamma');
  let foreign = false;
  const notice = (line: string) => {
    foreign = true;
    say(line);
  };
  const input = { ...readKeys(file.values, file.where, notice, overridden), ...overrides };
  const where = (key?: string) => (key !== undefined && overridden.has(camel(key)) ? COMMAND_LINE : file.where(key));
  return { input, where, foreign };
}

export interface RunFile {
  values: Record<string, unknown>;
  /** The file, with the line of a key: its own name, or the keys and indices that lead to it. */
  where(...path: (PropertyKey | undefined)[]): string;
}

export function readRunFile(path: string): RunFile {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new WrpoError('ERR_CONFIG', `cannot read the run file ${path}`, { cause });
  }
  const values = parseYaml(text, path);
  if (typeof values !== 'object' || values === null || Array.isArray(values)) {
    throw new WrpoError('ERR_CONFIG', `${path} must hold keys and values`);
  }
  const counter = new LineCounter();
  const { contents } = parseDocument(text, { lineCounter: counter });
  const where = (...steps: (PropertyKey | undefined)[]) => {
    const start = placeOf(contents as Node | null, steps);
    return start === undefined ? path : `${path} line ${counter.linePos(start).line}`;
  };
  return { values: values as Record<string, unknown>, where };
}

/** Where the last of the keys and indices that are there begins, as an offset. */
function placeOf(root: Node | null, steps: readonly (PropertyKey | undefined)[]): number | undefined {
  let node: unknown = root;
  let start: number | undefined;
  for (const step of steps) {
    if (isSeq(node)) node = node.items[Number(step)];
    else if (isMap(node)) {
      const item = node.items.find(({ key }) => isScalar(key) && camel(String(key.value)) === camel(String(step)));
      start = (item?.key as Node | undefined)?.range?.[0] ?? start;
      node = item?.value;
      continue;
    } else break;
    start = (node as Node | undefined)?.range?.[0] ?? start;
  }
  return start;
}

function parseYaml(text: string, where: string): unknown {
  try {
    const document = parseDocument(text, { merge: true, logLevel: 'error' }); // as in YAML 1.1, which Python reads
    // A tag that it does not know is a warning: what stands behind it is anybody's guess.
    const [fault] = [...document.errors, ...document.warnings];
    if (fault) throw fault;
    const values: unknown = document.toJS();
    JSON.stringify(values); // an alias within what it stands for is a value without an end
    return values;
  } catch (cause) {
    if (cause instanceof TypeError && /circular/i.test(cause.message)) {
      throw new WrpoError('ERR_CONFIG', `${where}: an alias stands within its own value`, { cause });
    }
    // The first line says what and where; the others draw it.
    const message = cause instanceof YAMLError ? cause.message.split('\n')[0]!.replace(/:$/, '') : String(cause);
    throw new WrpoError('ERR_CONFIG', `${where}: ${message}`, { cause });
  }
}

/** `--learning_rate 1e-6`, `--learning-rate=1e-6`, `--shuffle` (true): values as YAML would read them. */
export function parseOverrides(rest: string[]): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  for (let i = 0; i < rest.length; i++) {
    const match = /^--([a-zA-Z][\w-]*)(?:=(.*))?$/s.exec(rest[i]!);
    if (!match) throw new WrpoError('ERR_CONFIG', `unexpected argument "${rest[i]}": expected --key value`);
    const key = match[1]!.replaceAll('-', '_');
    let text = match[2];
    if (text === undefined && i + 1 < rest.length && !rest[i + 1]!.startsWith('--')) text = rest[++i];
    values[key] = text === undefined ? true : parseYaml(text, `${COMMAND_LINE}: --${match[1]} "${text}"`);
  }
  return values;
}
