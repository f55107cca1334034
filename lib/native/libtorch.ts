/**
 * Where libtorch is, and how it gets there. Loads no package before it downloads: setup.mjs runs the compiled form.
 */
import { spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { WrpoError } from '../errors.js';
import { obtainArchive, sha256Of } from './archive.js';
import { cudaLibtorchCache, fetchCudaLibtorch, hasNvidiaDriver } from './cuda-libtorch.js';

/** The libtorch this version of wrpo is built and tested with. */
export const LIBTORCH_VERSION = '2.13.0';

const DEFAULT_INDEX = 'https://download.pytorch.org/whl/cpu';
const SUMS = 'SHA256SUMS';

/** A libtorch directory: `lib/`, `include/` and a version file directly inside. */
export interface Libtorch {
  dir: string;
  /** Without a local suffix: `2.13.0`. */
  version: string;
  /** `cpu`, or the CUDA release it was built for, such as `cu130` (`cuda` where it does not say). */
  variant: 'cpu' | `cu${string}`;
  /** How it was found. */
  origin: 'WRPO_LIBTORCH' | 'LIBTORCH' | 'cache' | 'python';
}

/**
 * The libtorch to use: the directory that `WRPO_LIBTORCH` or `LIBTORCH` names, else the per-user cache that `wrpo setup`
 * fills, where there is an NVIDIA driver first with the CUDA one, else the active Python's torch of the pinned release.
 */
export function findLibtorch(): Libtorch | undefined {
  for (const name of ['WRPO_LIBTORCH', 'LIBTORCH'] as const) {
    const value = process.env[name];
    if (!value) continue;
    const expected = 'expected the directory of an unpacked libtorch, such as the torch directory of a wheel.';
    if (!existsSync(join(value, 'lib', 'libtorch_cpu.so'))) {
      throw new WrpoError('ERR_NATIVE_LOAD', `${name}=${value} holds no lib/libtorch_cpu.so: ${expected}`);
    }
    const found = inspect(resolve(value), name);
    if (!found) throw new WrpoError('ERR_NATIVE_LOAD', `${name}=${value} does not say its version: ${expected}`);
    return found;
  }
  const cuda = hasNvidiaDriver() ? inspect(cudaLibtorchCache(), 'cache') : undefined;
  return cuda ?? inspect(libtorchCache(), 'cache') ?? findInPython();
}

/** Every place where a libtorch could be, in the order in which they are asked, with what is there: for a report. */
export function libtorchPlaces(): string[] {
  const named = (['WRPO_LIBTORCH', 'LIBTORCH'] as const).map((name) => {
    const dir = process.env[name];
    return dir ? `${name}=${dir}: ${contents(dir, name)}` : `${name}: not set`;
  });
  const caches = dirname(libtorchCache());
  const cached = unless('ENOENT', () => readdirSync(caches).filter((name) => /^libtorch-[^/]*-\w+$/.test(name))) ?? [];
  const kept = [...new Set([basename(libtorchCache()), ...cached])].map(
    (name) => `${join(caches, name)}: ${contents(join(caches, name), 'cache')}`,
  );
  const python = locateInPython();
  return [...named, ...kept, `python3: ${python ? `${python}: ${contents(python, 'python')}` : 'has no torch'}`];
}

function contents(dir: string, origin: Libtorch['origin']): string {
  if (!existsSync(dir)) return 'not there';
  const found = inspect(dir, origin);
  if (!found) {
    const library = existsSync(join(dir, 'lib', 'libtorch_cpu.so'));
    return library ? 'refused, it does not say its version' : 'refused, it holds no lib/libtorch_cpu.so';
  }
  const fits = sameRelease(found.version, LIBTORCH_VERSION);
  return `libtorch ${found.version} (${found.variant})${fits ? '' : `, refused: expected ${LIBTORCH_VERSION}`}`;
}

/** The directory that `wrpo setup` fills. */
export function libtorchCache(): string {
  const caches = process.env.XDG_CACHE_HOME || join(homedir(), '.cache');
  return join(caches, 'wrpo', `libtorch-${LIBTORCH_VERSION}-cpu`);
}

/** libtorch promises its C++ ABI only within a minor release. */
export function sameRelease(a: string, b: string): boolean {
  const release = (version: string) => version.split('.', 2).join('.');
  return release(a) === release(b);
}

/**
 * A libtorch that a core can be built on and run with: the one found if it fits and is intact, else a fetched one.
 * `variant`: only one of this kind.
 */
export async function provideLibtorch(options: {
  log: (line: string) => void;
  variant?: 'cpu' | 'cuda' | undefined;
}): Promise<Libtorch> {
  const found = findLibtorch();
  const named = found !== undefined && /LIBTORCH$/.test(found.origin);
  if (named && options.variant !== undefined && (found.variant === 'cpu') !== (options.variant === 'cpu')) {
    throw new WrpoError(
      'ERR_NATIVE_LOAD',
      `${found.origin}=${found.dir} is a ${found.variant === 'cpu' ? 'CPU' : 'CUDA'} libtorch (${found.variant}): unset ${found.origin}, or point it to a ${options.variant === 'cpu' ? 'CPU' : 'CUDA'} one.`,
    );
  }
  if (named) return found;
  if (options.variant === 'cuda')
    return inspect(cudaLibtorchCache(), 'cache') ?? inspect(fetchCudaLibtorch(options), 'cache')!;
  if (found?.origin === 'cache' && found.variant !== 'cpu' && options.variant === undefined) return found;
  const cached = inspect(libtorchCache(), 'cache');
  if (cached) {
    const { broken } = await verifyLibtorch(cached.dir);
    if (broken.length === 0) return cached;
    options.log(`libtorch in ${cached.dir} is damaged (${broken.join(', ')}): fetching it again`);
  } else if (found?.variant === 'cpu' && existsSync(join(found.dir, 'include', 'ATen', 'ATen.h'))) {
    return found;
  }
  return fetchLibtorch(options);
}

export interface FetchOptions {
  log: (line: string) => void;
  /** A file or an http(s) address: a torch wheel or PyTorch's libtorch archive, in place of what pip finds. */
  from?: string;
  /** Of `from`. */
  sha256?: string;
}

/** Downloads the pinned CPU libtorch, with pip if `from` names none, and unpacks it into the per-user cache. */
export async function fetchLibtorch({ log, from, sha256 }: FetchOptions): Promise<Libtorch> {
  requirePython({ pip: from === undefined });
  const cache = libtorchCache();
  let work: string | undefined;
  try {
    mkdirSync(dirname(cache), { recursive: true });
    sweep(cache);
    work = mkdtempSync(`${cache}.partial-`);
    const downloads = join(dirname(cache), 'downloads');
    if (from === undefined) log(`libtorch ${LIBTORCH_VERSION}+cpu: downloading (190 MB)…`);
    const wheel = await (from === undefined
      ? downloadWheel(join(work, 'wheel'))
      : obtainArchive(from, downloads, { log, ...(sha256 === undefined ? {} : { sha256 }) }));
    log(`libtorch ${LIBTORCH_VERSION}+cpu: unpacking into ${cache}…`);
    const unpacked = join(work, basename(cache));
    await unpackWheel(wheel, unpacked);
    const libraries = readdirSync(join(unpacked, 'lib')).sort();
    const sums = await Promise.all(libraries.map((name) => sha256Of(join(unpacked, 'lib', name))));
    writeFileSync(join(unpacked, SUMS), libraries.map((name, i) => `${sums[i]}  lib/${name}\n`).join(''));
    await publish(unpacked, cache);
    if (wheel !== from) rmSync(wheel);
  } catch (cause) {
    if (cause instanceof WrpoError) throw cause;
    const reason = (cause as Error).message;
    throw new WrpoError('ERR_NATIVE_LOAD', `libtorch could not be stored in ${cache}: ${reason}.`, { cause });
  } finally {
    if (work) rmSync(work, { recursive: true, force: true });
  }
  return inspect(cache, 'cache')!;
}

/**
 * Compares a fetched libtorch with the sums written when it was unpacked. `ok` needs sums: a directory of the user's own
 * has none and is `checked: 0`.
 */
export async function verifyLibtorch(dir: string): Promise<{ ok: boolean; checked: number; broken: string[] }> {
  const lines = read(dir, SUMS).split('\n').filter(Boolean);
  const broken: string[] = [];
  for (const line of lines) {
    const [sum, name] = line.split('  ') as [string, string];
    const actual = await sha256Of(join(dir, name)).catch(() => 'unreadable');
    if (actual !== sum) broken.push(name);
  }
  return { ok: lines.length > 0 && broken.length === 0, checked: lines.length, broken };
}

/** Unpacks what building and running needs of a torch wheel, or of a libtorch archive, into `dir`. */
export async function unpackWheel(wheel: string, dir: string): Promise<void> {
  const { status, output } = await run('python3', ['-c', UNPACK, wheel, dir]);
  if (status !== 0) {
    throw new WrpoError('ERR_NATIVE_LOAD', `${basename(wheel)} could not be unpacked: ${lastLine(output)}.`);
  }
  const version = inspect(dir, 'cache')?.version;
  if (version !== LIBTORCH_VERSION) {
    const got = version ? `libtorch ${version}` : 'no libtorch';
    throw new WrpoError('ERR_NATIVE_LOAD', `${basename(wheel)} holds ${got}: expected libtorch ${LIBTORCH_VERSION}.`);
  }
}

// Python's zipfile, since pip needs Python anyway and Node reads no zip. The arm64 wheel keeps its BLAS beside libtorch.
const UNPACK = String.raw`
import os, re, shutil, sys, zipfile
wheel, root = sys.argv[1], os.path.realpath(sys.argv[2])
libraries = r'lib/lib(torch_cpu|c10|gomp|gfortran|openblas|arm_compute)([-_.][^/]*)?\.so[^/]*'
wanted = re.compile(r'(?:lib)?torch/(version\.py|build-version|include/.+|' + libraries + ')', re.S)
try:
    with zipfile.ZipFile(wheel) as archive:
        if any(re.fullmatch('(lib)?torch/lib/libtorch_cuda.so', name) for name in archive.namelist()):
            sys.exit('it is a CUDA build, expected the CPU build')
        for entry in archive.infolist():
            if entry.is_dir() or not wanted.fullmatch(entry.filename):
                continue
            target = os.path.realpath(os.path.join(root, entry.filename.partition('/')[2]))
            if not target.startswith(root + os.sep):
                sys.exit('it holds the unsafe name ' + entry.filename)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(entry) as source, open(target, 'xb') as file:
                shutil.copyfileobj(source, file, 1 << 20)
except (OSError, zipfile.BadZipFile) as error:
    sys.exit(str(error))
`;

// find_spec locates the package without running it. The empty entry of sys.path is the working directory, where a
// stranger's torch.py must not count.
const LOCATE = `
import sys
sys.path = [entry for entry in sys.path if entry]
from importlib.util import find_spec
spec = find_spec('torch')
print(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else '')
`;

function locateInPython(): string | undefined {
  const { stdout } = spawnSync('python3', ['-c', LOCATE], { encoding: 'utf8', timeout: 10_000 });
  return stdout?.trim() || undefined;
}

function findInPython(): Libtorch | undefined {
  const dir = locateInPython();
  const found = dir ? inspect(dir, 'python') : undefined;
  return found && sameRelease(found.version, LIBTORCH_VERSION) ? found : undefined;
}

// Wheels have version.py, PyTorch's own libtorch archives build-version, and every build its headers.
function inspect(dir: string, origin: Libtorch['origin']): Libtorch | undefined {
  if (!existsSync(join(dir, 'lib', 'libtorch_cpu.so'))) return undefined;
  const label = /^__version__ = ['"](.+)['"]/m.exec(read(dir, 'version.py'))?.[1] ?? read(dir, 'build-version');
  const header = read(dir, 'include/torch/headeronly/version.h') || read(dir, 'include/torch/version.h');
  const named = /^\d+\.\d+\.\d+/.exec(label)?.[0] ?? /define TORCH_VERSION\s+\\?\s*"(\d+\.\d+\.\d+)/.exec(header)?.[1];
  if (!named) return undefined;
  const cuda = existsSync(join(dir, 'lib', 'libtorch_cuda.so'));
  const variant = cuda ? ((/\+(cu\d+)/.exec(label)?.[1] ?? 'cuda') as Libtorch['variant']) : 'cpu';
  return { dir, version: named, variant, origin };
}

function read(dir: string, name: string): string {
  try {
    return readFileSync(join(dir, name), 'utf8');
  } catch {
    return '';
  }
}

// Python unpacks, too: Node reads no zip.
function requirePython({ pip }: { pip: boolean }): void {
  const { error, status } = spawnSync('python3', pip ? ['-m', 'pip', '--version'] : ['--version'], { stdio: 'ignore' });
  if (!error && status === 0) return;
  const name = pip ? 'python3-pip' : 'python3';
  throw new WrpoError(
    'ERR_NATIVE_LOAD',
    `${error ? 'python3' : "python3's pip"} is missing, and libtorch is ${pip ? 'downloaded' : 'unpacked'} with it: install it (Debian: apt install ${name}; Fedora: dnf install ${name}), or set WRPO_LIBTORCH to an unpacked libtorch ${LIBTORCH_VERSION}.`,
  );
}

// First as the user has configured pip, with mirrors and proxies; then PyTorch's index, since PyPI's Linux wheel is the
// CUDA build; then for a Python that this torch has no wheel for, because libtorch does not care about Python.
async function downloadWheel(dir: string): Promise<string> {
  const index = ['--index-url', process.env.WRPO_TORCH_INDEX || DEFAULT_INDEX];
  const requirement = `torch==${LIBTORCH_VERSION}+cpu`;
  const reasons = new Set<string>();
  for (const extra of [[], index, [...index, '--only-binary=:all:', '--python-version', '3.12']]) {
    const args = ['-m', 'pip', 'download', '--no-deps', '--dest', dir, ...extra, requirement];
    const { status, output } = await run('python3', args);
    const wheel = status === 0 && readdirSync(dir).find((name) => name.endsWith('.whl'));
    if (wheel) return join(dir, wheel);
    reasons.add([...output.matchAll(/^ERROR: (.+)$/gm)].at(-1)?.[1] ?? lastLine(output));
  }
  throw new WrpoError(
    'ERR_NATIVE_LOAD',
    `pip could not download ${requirement} (${[...reasons].join('; ')}): check the network and pip's configuration, name another index in WRPO_TORCH_INDEX, give an archive with \`wrpo setup --from\`, or set WRPO_LIBTORCH to an unpacked libtorch ${LIBTORCH_VERSION}.`,
  );
}

// A rename is all or nothing, so a reader sees a whole directory or none. What stands there already is another setup's
// work, which may be in use and stays, or damaged, and goes.
async function publish(from: string, to: string): Promise<void> {
  if ((await verifyLibtorch(to)).ok) return;
  unless('ENOENT', () => renameSync(to, `${from}.damaged`));
  unless('ENOTEMPTY', () => renameSync(from, to));
}

function unless<T>(code: string, action: () => T): T | undefined {
  try {
    return action();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== code) throw error;
    return undefined;
  }
}

// What a killed setup left behind is half a gigabyte; a day old, nobody is writing it any more.
function sweep(cache: string): void {
  for (const name of readdirSync(dirname(cache))) {
    const path = join(dirname(cache), name);
    if (!name.startsWith(`${basename(cache)}.partial-`)) continue;
    if (Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now()) < 86_400_000) continue;
    rmSync(path, { recursive: true, force: true });
  }
}

function run(command: string, args: string[]): Promise<{ status: number | null; output: string }> {
  return new Promise((done, failed) => {
    // A pip that is too old to go on with a broken download does not know the variable.
    const env = { PIP_RESUME_RETRIES: '20', ...process.env };
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
    const parts: Buffer[] = [];
    child.stdout.on('data', (part) => parts.push(part));
    child.stderr.on('data', (part) => parts.push(part));
    child.on('error', failed);
    child.on('close', (status) => done({ status, output: Buffer.concat(parts).toString() }));
  });
}

const lastLine = (text: string) => text.trim().split('\n').at(-1)!.replace(/\.$/, '');
