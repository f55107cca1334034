/** The rows of whatever holds them: a file, a directory, a data set on the hub. */
import { existsSync } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { readArrow } from './arrow.js';
import { fetchRepository, isHubId } from './hub.js';
import { readJsonl } from './jsonl.js';
import { readParquet } from './parquet.js';
import { type ChooseColumns, fault, type OnFault, type RawRow, readFault } from './rows.js';
import { type Card, DATA_FILE, filesOfSplit, KINDS, nameOfSplit, readCard, type SplitOptions } from './splits.js';

export interface SourceOptions extends SplitOptions {
  /** Of a data set on the hub: a branch, a tag or a commit. Default: `main`. */
  revision?: string;
  /** Told of every download. */
  say?: (line: string) => void;
  /** Told of a row that cannot be read, which is then passed over. Default: the first one ends the reading. */
  onFault?: OnFault;
}

/** The rows of a source, one after another; `choose` sees the columns of each table before its rows. */
export async function* readSource(
  source: string,
  options: SourceOptions & { onFault: OnFault },
  choose: ChooseColumns,
): AsyncGenerator<RawRow> {
  const { root, paths } = await filesOf(source, options);
  for (const path of paths) {
    const name = relative(root, path);
    if (/\.parquet$/i.test(path)) yield* readParquet(path, name, choose);
    else if (/\.arrow$/i.test(path)) yield* readArrow(path, name, choose);
    else yield* readJsonl(path, name, options.onFault);
  }
}

/** Files with the directory that their rows are told from. */
interface Files {
  root: string;
  paths: string[];
}

async function filesOf(source: string, options: SourceOptions): Promise<Files> {
  if (!existsSync(source) && isHubId(source) && !DATA_FILE.test(source)) return filesOnHub(source, options);
  const found = await stat(source).catch((cause) => {
    throw readFault(source, cause);
  });
  if (found.isDirectory()) return { root: source, paths: await filesOfDirectory(source, options) };
  if (!DATA_FILE.test(source)) throw fault(source, `is no ${KINDS} file`);
  return { root: dirname(source), paths: [source] };
}

async function filesOfDirectory(directory: string, options: SourceOptions): Promise<string[]> {
  if (existsSync(join(directory, 'dataset_dict.json'))) {
    const { splits } = await readSaved<{ splits: string[] }>(join(directory, 'dataset_dict.json'), 'splits');
    const split = nameOfSplit(splits, directory, options.split ?? 'train')!;
    return savedFiles(join(directory, split));
  }
  if (existsSync(join(directory, 'state.json'))) return savedFiles(directory);
  const paths = await readdir(directory, { recursive: true });
  const card = await cardIn(directory);
  return filesOfSplit(paths, directory, options, card).map((path) => join(directory, path));
}

/** The files of one data set that `save_to_disk` wrote, in the order of its rows. */
async function savedFiles(directory: string): Promise<string[]> {
  interface State {
    _data_files: { filename: string }[];
    _indices_files?: unknown[] | null;
    _indices_data_files?: unknown[] | null;
  }
  const state = await readSaved<State>(join(directory, 'state.json'), '_data_files');
  if (state._indices_files?.length || state._indices_data_files?.length) {
    throw fault(
      directory,
      'its rows are a selection of those in its files: call flatten_indices() before save_to_disk',
    );
  }
  return state._data_files.map(({ filename }) => join(directory, filename));
}

async function filesOnHub(id: string, options: SourceOptions): Promise<Files> {
  const { revision, say } = options;
  const request = { type: 'dataset', id, revision, say } as const;
  // First the README, which may say what is where, then the split and nothing else.
  const about = await fetchRepository({ ...request, choose: (paths) => paths.filter((path) => path === 'README.md') });
  const card = await cardIn(about);
  let files: readonly string[] = [];
  const directory = await fetchRepository({
    ...request,
    choose: (paths) => {
      files = filesOfSplit(paths, `${id} on the hub`, options, card);
      return files;
    },
  });
  return { root: directory, paths: files.map((path) => join(directory, path)) };
}

async function cardIn(directory: string): Promise<Card | undefined> {
  const path = join(directory, 'README.md');
  return existsSync(path) ? readCard(await readFile(path, 'utf8')) : undefined;
}

/** One of the descriptions that `save_to_disk` writes; the list is what we need of it. */
async function readSaved<T>(path: string, list: keyof T & string): Promise<T> {
  let saved: T;
  try {
    saved = JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    throw fault(path, `cannot be read as what save_to_disk writes: ${(cause as Error).message}`, cause);
  }
  if (!Array.isArray(saved?.[list])) throw fault(path, `is not what save_to_disk writes: it has no list "${list}"`);
  return saved;
}
