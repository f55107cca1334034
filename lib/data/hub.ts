/** Repositories of the Hugging Face hub, in the cache that Python's `huggingface_hub` also uses. */
import { createWriteStream, existsSync, readFileSync, rmSync } from 'node:fs';
import { copyFile, mkdir, open, readdir, readFile, rename, stat, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, isAbsolute, join, relative } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout } from 'node:timers/promises';
import { WrpoError } from '../errors.js';
import { type Fetch, patientFetch } from './http.js';

/** What to fetch. */
export interface RepositoryRequest {
  type: 'dataset' | 'model';
  /** `owner/name` */
  id: string;
  /** A branch, a tag or a commit. Default: `main`. */
  revision?: string;
  /** Given the paths of all files of the repository, says which are needed. May throw what is wrong with them. */
  choose: (paths: readonly string[]) => readonly string[];
  /** Told of every download. */
  say?: (line: string) => void;
}

// The package's own declarations do not compile under `skipLibCheck: false`; these are the members in use.
interface Hub {
  modelInfo(params: HubParams & { name: string; additionalFields: ['sha'] }): Promise<{ sha: string }>;
  datasetInfo(params: HubParams & { name: string; additionalFields: ['sha'] }): Promise<{ sha: string }>;
  listFiles(params: HubParams & { repo: object; recursive: true }): AsyncIterable<Entry & { type: string }>;
}
interface HubParams {
  fetch: Fetch;
  revision: string;
  hubUrl: string;
  accessToken?: string;
}
interface Entry {
  path: string;
  size: number;
  oid: string;
  lfs?: { oid: string };
}

/** Whether a name can be one of the hub's; a path that exists is to be preferred to it. */
export const isHubId = (name: string): boolean => /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/.test(name);

export interface ModelRequest extends Pick<RepositoryRequest, 'revision' | 'say'> {
  /** Whether the weights are needed too. Default true. */
  weights?: boolean;
}

/** The directory with what is needed of a model: configuration, tokenizer, safetensors; never pickled weights. */
export function fetchModel(id: string, { revision, say, weights = true }: ModelRequest = {}): Promise<string> {
  const needed =
    /^((generation_)?config\.json|model[^/]*\.safetensors(\.index\.json)?|(tokenizer|chat_template)[^/]*|(special_tokens_map|added_tokens|vocab)\.json|merges\.txt)$/;
  const choose = (paths: readonly string[]): string[] => {
    if (!paths.some((path) => /^model[^/]*\.safetensors$/.test(path))) {
      throw new WrpoError(
        'ERR_MODEL',
        `${id} ${isOffline() ? 'in the cache' : 'on the hub'} has no weights in safetensors (model*.safetensors)`,
      );
    }
    return paths.filter((path) => needed.test(path) && (weights || !path.endsWith('.safetensors')));
  };
  return fetchRepository({ type: 'model', id, revision, choose, say });
}

/**
 * The local directory with the chosen files of a repository, downloaded unless they are in the cache already. The cache is
 * that of Python (HF_HUB_CACHE, HF_HOME); the token is read from HF_TOKEN or where `hf auth login` leaves it, the address
 * from HF_ENDPOINT. With HF_HUB_OFFLINE=1 nothing is asked of the network, and `choose` sees what is in the cache.
 * Throws ERR_DATA or ERR_MODEL, in one sentence, when it is not there, may not be read or cannot be reached.
 */
export async function fetchRepository(request: RepositoryRequest): Promise<string> {
  try {
    return isOffline() ? await findSnapshot(request) : await fetchSnapshot(request);
  } catch (cause) {
    throw await hubFault(request, cause);
  }
}

async function findSnapshot(request: RepositoryRequest): Promise<string> {
  const directory = await cachedSnapshot(request);
  if (directory === undefined) {
    throw fault(request, 'is not in the cache, and HF_HUB_OFFLINE is set: unset it, or download it elsewhere');
  }
  request.choose(await readdir(directory, { recursive: true }));
  return directory;
}

async function fetchSnapshot(request: RepositoryRequest): Promise<string> {
  const { type, id, revision = 'main', choose, say = () => {} } = request;
  const cache = cacheOf(request);
  const { modelInfo, datasetInfo, listFiles }: Hub = createRequire(import.meta.url)('@huggingface/hub');
  const ask = await patientFetch(PATIENCE);
  const where = { fetch: ask, hubUrl: endpoint(), accessToken: token(request) };
  const params = { ...where, name: id, additionalFields: ['sha'] as ['sha'] };
  const entries: Entry[] = [];
  const { sha: commit } = await (type === 'model' ? modelInfo : datasetInfo)({ ...params, revision });
  const repository = { repo: { type, name: id }, revision: commit, recursive: true } as const;
  for await (const entry of listFiles({ ...params, ...repository })) if (entry.type === 'file') entries.push(entry);
  const outside = entries.find(({ path }) => isAbsolute(path) || path.split('/').includes('..'));
  if (outside) throw fault(request, `names a file outside of itself, "${outside.path}"`);
  const directory = join(cache, 'snapshots', commit);
  await mkdir(directory, { recursive: true });
  const chosen = new Set(choose(entries.map(({ path }) => path)));
  for (const entry of entries.filter(({ path }) => chosen.has(path))) {
    const path = join(directory, entry.path);
    if (existsSync(path)) continue;
    const blob = join(cache, 'blobs', entry.lfs?.oid ?? entry.oid);
    if (!existsSync(blob)) {
      say(`downloading ${entry.path} of ${id} (${megabytes(entry.size)})`);
      await download(ask, request, commit, entry, blob);
    }
    await link(blob, path);
  }
  // Last, so that what a name leads to is whole.
  if (revision !== commit) {
    await mkdir(dirname(join(cache, 'refs', revision)), { recursive: true });
    await writeFile(join(cache, 'refs', revision), commit);
  }
  return directory;
}

/**
 * Not by the package, which does not go on where a transfer was interrupted. Writing is by position and every process
 * begins at what is there, so that two that load the same file write the same bytes to the same places.
 */
async function download(
  ask: Fetch,
  request: RepositoryRequest,
  commit: string,
  entry: Entry,
  blob: string,
): Promise<void> {
  const { type, id } = request;
  const path = entry.path.split('/').map(encodeURIComponent).join('/');
  const url = `${endpoint()}/${type === 'dataset' ? 'datasets/' : ''}${id}/resolve/${commit}/${path}`;
  const part = `${blob}.wrpo-incomplete`;
  const bearer = token(request);
  await mkdir(dirname(blob), { recursive: true });
  await (await open(part, 'a')).close();
  let stuck = 0; // how many transfers in a row brought nothing
  for (let had = -1; !existsSync(blob); ) {
    const { size } = await stat(part);
    if (size === entry.size) break;
    if (size > entry.size) {
      rmSync(part);
      throw fault(request, `sends more of ${entry.path} than its size: try again`);
    }
    stuck = size > had ? 0 : stuck + 1;
    had = size;
    const headers: Record<string, string> = {};
    if (bearer) headers.authorization = `Bearer ${bearer}`;
    if (size > 0) headers.range = `bytes=${size}-`;
    try {
      const response = await ask(url, { headers });
      if (!response.ok) throw Object.assign(new Error(response.statusText), { statusCode: response.status });
      const start = response.status === 206 ? size : 0;
      await pipeline(Readable.fromWeb(response.body!), createWriteStream(part, { flags: 'r+', start }));
    } catch (cause) {
      const { statusCode, syscall } = cause as Failure;
      if (statusCode !== undefined || syscall !== undefined || stuck === TRIES) throw cause;
      await setTimeout(200 * (stuck + 1));
    }
    if (stuck > TRIES) throw fault(request, `does not send all of ${entry.path}: try again`);
  }
  await rename(part, blob).catch((cause) => {
    if (!existsSync(blob)) throw cause; // otherwise another process was first
  });
}

const TRIES = 3;
/** Seconds without a byte after which a connection is given up. */
const PATIENCE = 60;

async function link(blob: string, path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await symlink(relative(dirname(path), blob), path).catch((cause) => {
    if (cause.code !== 'EEXIST') return copyFile(blob, path); // a file system without links
  });
}

/** What is in the cache of a revision. */
async function cachedSnapshot(request: RepositoryRequest): Promise<string | undefined> {
  const { revision = 'main' } = request;
  const cache = cacheOf(request);
  const commit = await readFile(join(cache, 'refs', revision), 'utf8').catch(() => revision);
  const directory = join(cache, 'snapshots', commit.trim());
  return existsSync(directory) ? directory : undefined;
}

// The variables of huggingface_hub, in its order.
const { env } = process;
const home = () => env.HF_HOME || join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface');
const cacheOf = ({ type, id }: RepositoryRequest) =>
  join(env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || join(home(), 'hub'), `${type}s--${id.replace('/', '--')}`);
const endpoint = () => (env.HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '');
const isOffline = () => /^(1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? '');

function token(request: RepositoryRequest): string | undefined {
  const file = env.HF_TOKEN_PATH || join(home(), 'token');
  const value = (env.HF_TOKEN || (existsSync(file) ? readFileSync(file, 'utf8') : '')).trim();
  if (value === '') return undefined;
  if (value.startsWith('hf_')) return value;
  throw fault(request, `cannot be asked for: ${env.HF_TOKEN ? 'HF_TOKEN' : file} is no token, which begins with "hf_"`);
}

/** What a request to the hub may fail with: its answer, an error of the network, or one of the local disk. */
interface Failure extends Error {
  statusCode?: number;
  data?: { error?: string };
  syscall?: string;
}

async function hubFault(request: RepositoryRequest, cause: unknown): Promise<WrpoError> {
  if (cause instanceof WrpoError) return cause;
  const { statusCode, data, syscall, message, cause: inner } = cause as Failure;
  const bearer = token(request);
  const page = `${endpoint()}/${request.type === 'dataset' ? 'datasets/' : ''}${request.id}`;
  if (syscall !== undefined) return fault(request, `cannot be kept in the cache: ${message}`, cause);
  if (statusCode === 401) {
    const open = 'is private, gated or not there: check the id, or set HF_TOKEN to a token that may read it';
    return fault(request, bearer ? 'is not shown, since the token is not valid: renew it' : open, cause);
  }
  if (statusCode === 403) {
    const how = bearer ? 'with the account of the token' : 'and set HF_TOKEN';
    return fault(request, `needs permission: accept its terms at ${page} ${how}`, cause);
  }
  if (statusCode === 404) {
    const what = /rev/i.test(data?.error ?? '')
      ? 'has no such revision'
      : 'does not exist, or the token may not read it';
    return fault(request, `${what}: see ${page}`, cause);
  }
  if (statusCode !== undefined) return fault(request, `cannot be fetched: the hub answers ${statusCode}`, cause);
  const cached = (await cachedSnapshot(request)) !== undefined;
  const how = cached ? 'set HF_HUB_OFFLINE=1 to use what is in the cache' : 'check the network';
  const reason = (inner as NodeJS.ErrnoException | undefined)?.code ?? message;
  return fault(request, `cannot be fetched from ${endpoint()} (${reason}): ${how}`, cause);
}

function fault({ type, id, revision = 'main' }: RepositoryRequest, what: string, cause?: unknown): WrpoError {
  const code = type === 'model' ? 'ERR_MODEL' : 'ERR_DATA';
  return new WrpoError(code, `${id} is no local path, and as a ${type} on the hub (revision ${revision}) it ${what}`, {
    cause,
  });
}

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
