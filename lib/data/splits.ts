/** Which of the files of a directory, or of a repository on the hub, hold a split. */
import { posix } from 'node:path';
import { fault } from './rows.js';

/** Where in a data set its rows are taken from. */
export interface SplitOptions {
  /** Default: `train`. */
  split?: string;
  /** Which configuration of the data set, where it has several. Default: the one it calls its default. */
  config?: string;
}

/** What is read, by the ends of names. */
export const KINDS = '.jsonl, .json, .jsonl.gz, .parquet or .arrow';
export const DATA_FILE = /\.(jsonl|json|jsonl\.gz|parquet|arrow)$/i;

/** Descriptions of data sets, not rows. */
const DESCRIPTIONS = /(^|\/)(dataset_infos?|dataset_dict|state|config)\.json$/;
const HIDDEN = /(^|\/)(\.|__)/;
const SHARD = /^(.+)-\d{5}-of-(\d{5})(-[0-9a-f]+)?$/;
const USUAL = ['train', 'test', 'validation', 'valid', 'val', 'dev', 'eval'];

/** The splits of each configuration, and the paths of each split. */
type Configs = Map<string, Map<string, string[]>>;

/**
 * The paths that hold a split, in order. Without a `card` that declares them, the name of a file says its split
 * (`train.jsonl`, `data/train-00000-of-00002.parquet`), or the name of its folder does (`train/0.parquet`); folders of
 * other names are configurations. Throws ERR_DATA with the splits or configurations there are when the choice is not
 * clear, and when a part of the split is missing.
 */
export function filesOfSplit(paths: readonly string[], where: string, options: SplitOptions, card?: Card): string[] {
  const data = paths
    .filter((path) => DATA_FILE.test(path) && !DESCRIPTIONS.test(path) && !HIDDEN.test(path))
    .sort((a, b) => (a < b ? -1 : 1));
  if (data.length === 0) {
    throw fault(where, `holds no ${KINDS} file, and nothing that save_to_disk wrote`);
  }
  const configs = (card && declared(card, data)) ?? named(data);
  const splits = configs.get(nameOfConfig([...configs.keys()], where, options.config))!;
  const split = nameOfSplit([...splits.keys()], where, options.split);
  return whole(split === undefined ? [...splits.values()].flat().sort() : splits.get(split)!, where);
}

/**
 * The name among `names` that a split goes by: its own, or the only one with that word in it (`train_prefs`). Without a
 * wish, undefined stands for all of them, where none of the usual names is among them.
 */
export function nameOfSplit(names: readonly string[], where: string, wish?: string): string | undefined {
  const split = wish ?? 'train';
  if (names.includes(split)) return split;
  const near = names.filter((name) => words(name).includes(split));
  if (near.length === 1) return near[0];
  if (wish === undefined && !names.some((name) => words(name).some((word) => USUAL.includes(word)))) return undefined;
  throw fault(where, `has no split "${split}"; there is ${list(names)}`);
}

function nameOfConfig(names: readonly string[], where: string, wish?: string): string {
  const candidates = wish !== undefined ? [wish] : names.length === 1 ? names : ['default', ''];
  const found = candidates.find((name) => names.includes(name));
  if (found !== undefined) return found;
  const what = wish === undefined ? 'has several configurations and none was chosen' : `has no configuration "${wish}"`;
  const folders = names.filter((name) => name !== '');
  throw fault(where, folders.length > 0 ? `${what}; there is ${list(folders)}` : what);
}

/** Configurations and splits as the names of folders and files have them. */
function named(paths: readonly string[]): Configs {
  const configs: Configs = new Map();
  for (const path of paths) {
    const folders = path.split('/').filter((folder) => folder !== 'data');
    const stem = folders.pop()!.replace(DATA_FILE, '');
    const at = folders.findIndex((folder) => USUAL.includes(folder));
    const split = at === -1 ? (SHARD.exec(stem)?.[1] ?? stem) : folders[at]!;
    add(configs, (at === -1 ? folders : folders.slice(0, at)).join('/'), split, path);
  }
  return configs;
}

/** What the top of a data set's README declares: `configs: [{config_name, data_files: [{split, path}]}]`. */
export type Card = readonly { config: string; split: string; pattern: string }[];

/** Reads a README; undefined when it declares no files. */
export async function readCard(readme: string): Promise<Card | undefined> {
  const head = /^---\n(.*?)\n---/s.exec(readme.replaceAll('\r\n', '\n'))?.[1];
  if (!head?.includes('data_files')) return undefined;
  const { parse } = await import('yaml');
  try {
    return parse(head, { logLevel: 'error' }).configs.flatMap(patternsOf);
  } catch {
    return undefined; // then the names of the files say it
  }
}

interface DeclaredConfig {
  config_name?: string;
  default?: boolean;
  data_dir?: string;
  data_files?: DeclaredFiles | DeclaredFiles[];
}
type DeclaredFiles = string | { split?: string; path?: string | string[] };

function patternsOf({ config_name = 'default', data_files = [], data_dir, default: first }: DeclaredConfig): Card {
  const names = first ? [config_name, 'default'] : [config_name];
  return [data_files].flat().flatMap((files) => {
    const { split = 'train', path = [] } = typeof files === 'string' ? { path: files } : files;
    const patterns = [path].flat().map((pattern) => posix.join(data_dir ?? '', pattern));
    return patterns.flatMap((pattern) => names.map((config) => ({ config, split, pattern })));
  });
}

function declared(card: Card, paths: readonly string[]): Configs | undefined {
  const configs: Configs = new Map();
  for (const { config, split, pattern } of card) {
    const matches = glob(pattern);
    for (const path of paths) if (matches.test(path)) add(configs, config, split, path);
  }
  return configs.size > 0 ? configs : undefined;
}

function add(configs: Configs, config: string, split: string, path: string): void {
  const splits = configs.get(config) ?? new Map<string, string[]>();
  configs.set(config, splits.set(split, [...new Set([...(splits.get(split) ?? []), path])]));
}

/** Throws when a part of a split is missing, or when it is there twice, in two formats. */
function whole(files: string[], where: string): string[] {
  const formats = new Set(files.map((path) => DATA_FILE.exec(path)![0]));
  if (formats.size > 1)
    throw fault(where, `holds the split as ${[...formats].join(' and as ')}; name one of the files`);
  const count = SHARD.exec(files[0]!.replace(DATA_FILE, ''))?.[2];
  if (count !== undefined && Number(count) !== files.length) {
    throw fault(where, `only ${files.length} of the ${Number(count)} parts of the split are there`);
  }
  return files;
}

const GLOB: Record<string, string> = { '**/': '(.*/)?', '**': '.*', '*': '[^/]*', '?': '[^/]' };

/** `*`, `**` and `?`, and sets of characters as they are. */
function glob(pattern: string): RegExp {
  return new RegExp(`^${pattern.replace(/\*\*\/|\*\*|[*?]|[.+^${}()|\\]/g, (part) => GLOB[part] ?? `\\${part}`)}$`);
}

const words = (name: string): string[] => name.split(/[^\p{L}\p{N}]+/u);

const list = (names: readonly string[]): string => names.map((name) => `"${name}"`).join(', ');
