import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { doctor } from '../lib/cli/doctor.js';
import { setup } from '../lib/cli/setup.js';
import { obtainArchive } from '../lib/native/archive.js';
import { CUDA_LIBTORCH, cudaLibtorchCache } from '../lib/native/cuda-libtorch.js';
import {
  fetchLibtorch,
  findLibtorch,
  LIBTORCH_VERSION,
  libtorchCache,
  provideLibtorch,
  sameRelease,
  unpackWheel,
  verifyLibtorch,
} from '../lib/native/libtorch.js';
import { checkRelease, coreTorchVersion, findCore } from '../lib/native/load.js';
import { randomOf } from './training.js';

const scratch = mkdtempSync(join(tmpdir(), 'wrpo-setup-'));
afterAll(() => rmSync(scratch, { recursive: true }));
const python = spawnSync('python3', ['--version']).status === 0;

let dir: string;
const write = (name: string, text = '', mode = 0o644) => {
  mkdirSync(dirname(join(dir, name)), { recursive: true });
  writeFileSync(join(dir, name), text, { mode });
  return join(dir, name);
};
const refusal = (message: RegExp | string) =>
  expect.objectContaining({ code: 'ERR_NATIVE_LOAD', message: expect.stringMatching(message) });

/** A directory that looks like libtorch from outside. */
function fakeLibtorch(name: string, files: Record<string, string> = { 'version.py': "__version__ = '2.13.0+cpu'\n" }) {
  for (const [file, text] of Object.entries(files)) write(join(name, file), text);
  return dirname(dirname(write(join(name, 'lib/libtorch_cpu.so'))));
}

beforeEach(() => {
  dir = mkdtempSync(join(scratch, 'case-'));
  vi.stubEnv('WRPO_LIBTORCH', undefined);
  vi.stubEnv('LIBTORCH', undefined);
  vi.stubEnv('XDG_CACHE_HOME', join(dir, 'cache'));
  vi.stubEnv('PYTHONPATH', join(dir, 'python'));
});
afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

describe('findLibtorch', () => {
  it.skipIf(!python)('looks in the environment, the cache and the active Python, in this order', () => {
    // The package's code must not run: a torch that takes seconds to import is only looked at.
    write('python/torch/__init__.py', 'raise SystemExit(1)\n');
    const inPython = fakeLibtorch('python/torch');
    expect(findLibtorch()).toEqual({ dir: inPython, version: '2.13.0', variant: 'cpu', origin: 'python' });
    const cached = fakeLibtorch(relative(dir, libtorchCache()));
    expect(findLibtorch()).toMatchObject({ dir: cached, origin: 'cache' });
    vi.stubEnv('LIBTORCH', fakeLibtorch('one'));
    expect(findLibtorch()).toMatchObject({ dir: join(dir, 'one'), origin: 'LIBTORCH' });
    vi.stubEnv('WRPO_LIBTORCH', relative(process.cwd(), fakeLibtorch('two')));
    expect(findLibtorch()).toMatchObject({ dir: join(dir, 'two'), origin: 'WRPO_LIBTORCH' });
  });

  it.skipIf(!python)("passes over a Python's torch of another release", () => {
    write('python/torch/__init__.py');
    fakeLibtorch('python/torch', { 'version.py': "__version__ = '2.12.1'\n" });
    expect(findLibtorch()).toBeUndefined();
  });

  it.each(['WRPO_LIBTORCH', 'LIBTORCH'])('refuses a wrong %s instead of looking elsewhere', (name) => {
    fakeLibtorch(relative(dir, libtorchCache()));
    vi.stubEnv(name, join(dir, 'nowhere'));
    expect(findLibtorch).toThrow(refusal(`^${name}=.*nowhere holds no lib/libtorch_cpu.so: expected the directory`));
    vi.stubEnv(name, fakeLibtorch('nameless', {}));
    expect(findLibtorch).toThrow(refusal(`^${name}=.*nameless does not say its version`));
  });

  it.each<[Record<string, string>, string, string]>([
    [{ 'version.py': 'from typing import Optional\n__version__ = "2.14.0.dev20260101+cu130"\n' }, '2.14.0', 'cpu'],
    [{ 'build-version': '2.13.1+cu130\n', 'lib/libtorch_cuda.so': '' }, '2.13.1', 'cu130'],
    [{ 'version.py': "__version__ = '2.13.0'\n", 'lib/libtorch_cuda.so': '' }, '2.13.0', 'cuda'],
    [{ 'include/torch/headeronly/version.h': '#define TORCH_VERSION \\\n  "2.11.0"\n' }, '2.11.0', 'cpu'],
    [{ 'include/torch/version.h': '#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION "2.5.1"\n' }, '2.5.1', 'cpu'],
  ])('reads version and variant from %o', (files, version, variant) => {
    vi.stubEnv('WRPO_LIBTORCH', fakeLibtorch('libtorch', files));
    expect(findLibtorch()).toMatchObject({ version, variant });
  });
});

describe('fetching', () => {
  const log = () => {};

  it('says what is missing without python3', async () => {
    vi.stubEnv('PATH', dir);
    await expect(fetchLibtorch({ log })).rejects.toThrow(refusal(/^python3 is missing.*apt install.*dnf install/));
  });

  it("quotes pip's reason, asks PyTorch's index second, and leaves nothing behind", async () => {
    vi.stubEnv('PATH', `${dir}:/usr/bin:/bin`);
    vi.stubEnv('WRPO_TORCH_INDEX', 'https://index.invalid/cpu');
    const script =
      'case "$*" in *--version*) exit 0;; esac; echo "$*" >> "$0.log"; echo "ERROR: No matching wheel"; exit 1';
    write('python3', `#!/bin/sh\n${script}\n`, 0o755);
    await expect(fetchLibtorch({ log })).rejects.toThrow(refusal(/\(No matching wheel\): check the network/));
    const [first, second] = readFileSync(join(dir, 'python3.log'), 'utf8').split('\n');
    expect(first).toMatch(/^-m pip download --no-deps --dest \S+ torch==2\.13\.0\+cpu$/);
    expect(second).toContain('--index-url https://index.invalid/cpu torch==');
    expect(readdirSync(dirname(libtorchCache()))).toEqual([]);
  });

  it.skipIf(!python)('fetches over a damaged cache and keeps an intact one', async () => {
    const wheel = makeWheel(LIBRARIES);
    const python3 = which('python3');
    const pip = `case "$*" in *download*) mkdir -p "$6" && cp ${wheel} "$6/";; esac`;
    write('bin/python3', `#!/bin/sh\ncase "$2" in pip) ${pip}; exit;; esac\nexec ${python3} "$@"\n`, 0o755);
    vi.stubEnv('PATH', `${join(dir, 'bin')}:${process.env.PATH}`);
    const fetched = await provideLibtorch({ log });
    expect(fetched).toEqual({ dir: libtorchCache(), version: LIBTORCH_VERSION, variant: 'cpu', origin: 'cache' });
    expect(await verifyLibtorch(fetched.dir)).toEqual({ ok: true, checked: 3, broken: [] });
    writeFileSync(join(fetched.dir, 'lib/libc10.so'), 'changed');
    expect(await verifyLibtorch(fetched.dir)).toEqual({ ok: false, checked: 3, broken: ['lib/libc10.so'] });
    const lines: string[] = [];
    await provideLibtorch({ log: (line) => lines.push(line) });
    expect(lines[0]).toMatch(/is damaged \(lib\/libc10\.so\): fetching it again/);
    expect((await verifyLibtorch(fetched.dir)).ok).toBe(true);
    lines.length = 0;
    await provideLibtorch({ log: (line) => lines.push(line) });
    expect(lines).toEqual([]);
    expect(readdirSync(dirname(libtorchCache()))).toHaveLength(1);
  });

  it('takes the libtorch that the environment names, but not for another kind', async () => {
    const files = { 'version.py': "__version__ = '2.13.0+cu130'\n", 'lib/libtorch_cuda.so': '' };
    const cuda = fakeLibtorch('cuda', files);
    vi.stubEnv('WRPO_LIBTORCH', cuda);
    expect(await provideLibtorch({ log })).toMatchObject({ dir: cuda, variant: 'cu130' });
    await expect(setup({ cpu: true })).rejects.toThrow(
      refusal(/is a CUDA libtorch \(cu130\): unset WRPO_LIBTORCH, or point it to a CPU one/),
    );
    vi.stubEnv('WRPO_LIBTORCH', fakeLibtorch('cpu'));
    await expect(setup({ cuda: true })).rejects.toThrow(
      refusal(/is a CPU libtorch \(cpu\): unset WRPO_LIBTORCH, or point it to a CUDA one/),
    );
  });

  it('fetches the CUDA libtorch whole or not at all', async () => {
    vi.stubEnv('PATH', `${dir}:/usr/bin:/bin`);
    const torch = join('$6', 'torch');
    write('python3', `#!/bin/sh\n[ "$3" = install ] || exit 0\necho "ERROR: no route" >&2\nexit 1\n`, 0o755);
    await expect(setup({ cuda: true })).rejects.toThrow(refusal(/pip could not install torch==.* \(no route\): check/));
    expect(readdirSync(join(dir, 'cache/wrpo'))).toEqual([]);
    const files = `mkdir -p ${torch}/lib; echo "__version__ = '2.14.1+cu130'" > ${torch}/version.py; touch ${torch}/lib/libtorch_cpu.so ${torch}/lib/libtorch_cuda.so`;
    // Of a release that this Python has no wheel of, but another has.
    const other = 'case "$*" in *--python-version*) ;; *) exit 1 ;; esac';
    write('python3', `#!/bin/sh\n${other}\nset -- x "$@"\n${files}\n`, 0o755);
    expect(await provideLibtorch({ log, variant: 'cuda' })).toMatchObject({
      ...{ dir: cudaLibtorchCache(), version: CUDA_LIBTORCH.version, variant: 'cu130', origin: 'cache' },
    });
    expect(readdirSync(join(dir, 'cache/wrpo'))).toEqual(['libtorch-2.14.1-cu130']);
  });
});

describe.skipIf(!python)('setup --from', () => {
  let server: Server;
  let address: string;
  /** What the server does to the next request, and what it was asked. */
  let cut: number[] = [];
  let asked: IncomingHttpHeaders[] = [];
  let archive: Buffer;
  let tag: string;

  beforeEach(async () => {
    [cut, asked, tag] = [[], [], '"one"'];
    archive = readFileSync(makeWheel({ ...LIBRARIES, 'torch/include/noise.h': noise(100_000) }));
    server = createServer((request, response) => {
      asked.push(request.headers);
      if (request.url === '/gone.whl') return response.writeHead(404).end();
      const { range } = request.headers;
      const start = range && request.headers['if-range'] === tag ? Number(/\d+/.exec(range)![0]) : 0;
      const body = archive.subarray(start);
      response.writeHead(start > 0 ? 206 : 200, { etag: tag, 'content-length': body.length });
      const limit = cut.shift();
      if (limit === undefined) response.end(body);
      else response.write(body.subarray(0, limit), () => keptOf(start + limit).finally(() => response.destroy()));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    address = `http://127.0.0.1:${(server.address() as AddressInfo).port}/torch.whl`;
  });
  afterEach(() => server.close());
  const noise = (length: number) => {
    const random = randomOf(7);
    return Array.from({ length }, () => String.fromCharCode(32 + Math.floor(random() * 95))).join('');
  };
  const sum = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
  const downloads = () => join(dirname(libtorchCache()), 'downloads');
  /** Once so many bytes of a download are in its file: what a client has not read yet is lost with the connection. */
  const keptOf = (bytes: number) =>
    vi.waitFor(() => {
      const sizes = readdirSync(downloads()).map((name) => statSync(join(downloads(), name)).size);
      expect(Math.max(0, ...sizes)).toBeGreaterThanOrEqual(bytes);
    }, 20_000);
  const log = () => {};

  it('takes a wheel or a libtorch archive from a file, once for all projects, without pip', async () => {
    write('bin/python3', `#!/bin/sh\ncase "$2" in pip) exit 1;; esac\nexec ${which('python3')} "$@"\n`, 0o755);
    vi.stubEnv('PATH', `${join(dir, 'bin')}:${process.env.PATH}`);
    const said = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    const names = {
      'libtorch/build-version': '2.13.0+cpu',
      'libtorch/lib/libtorch_cpu.so': '',
      'libtorch/lib/libc10.so': '',
    };
    const from = makeWheel({ ...names, 'libtorch/lib/libgomp.so.1': '', 'libtorch/lib/libtorch.so': '' });
    await setup({ from, sha256: sum(readFileSync(from)).toUpperCase() });
    expect(findLibtorch()).toMatchObject({ dir: libtorchCache(), origin: 'cache', version: '2.13.0', variant: 'cpu' });
    expect(await verifyLibtorch(libtorchCache())).toMatchObject({ ok: true, checked: 3 });
    expect(existsSync(from)).toBe(true);
    said.mockClear();
    await setup({ from: join(dir, 'not-looked-at.whl') });
    expect(said.mock.calls.join('')).toMatch(/is there and intact.*\n.*is ready in/);
    expect(readdirSync(dirname(libtorchCache()))).toEqual([basename(libtorchCache())]);
  });

  it('goes on where a connection broke, and leaves no archive behind', async () => {
    cut = [50_000, 20_000];
    const lines: string[] = [];
    const file = await obtainArchive(address, downloads(), {
      sha256: sum(archive),
      log: (line) => lines.push(line),
      retryDelay: 1,
    });
    expect(readFileSync(file)).toEqual(archive);
    const [none, ...starts] = asked.map(({ range }) => range && Number(/^bytes=(\d+)-$/.exec(range)![1]));
    expect(none).toBeUndefined();
    expect(starts).toEqual([50_000, 70_000]);
    expect(lines.filter((line) => line.includes('going on at'))).toHaveLength(2);
    expect(readdirSync(downloads())).toEqual([basename(file)]);
    await fetchLibtorch({ log, from: address, sha256: sum(archive) });
    expect(asked).toHaveLength(3); // what is whole is not asked for again
    expect(readdirSync(downloads())).toEqual([]);
    expect((await verifyLibtorch(libtorchCache())).ok).toBe(true);
  });

  it('another run goes on, unless the server has another version', async () => {
    const once = (options = {}) => obtainArchive(address, downloads(), { log, retryDelay: 1, ...options });
    cut = [50_000, ...Array(6).fill(0)];
    await expect(once()).rejects.toThrow(refusal(/could not be downloaded \(.+\): run the command again to go on/));
    cut = [];
    asked = [];
    tag = '"two"';
    archive = Buffer.from(archive).reverse();
    expect(readFileSync(await once())).toEqual(archive);
    expect(asked).toMatchObject([{ range: 'bytes=50000-', 'if-range': '"one"' }]);
  });

  it('refuses another file than the sum says, and forgets it', async () => {
    await expect(fetchLibtorch({ log, from: address, sha256: 'a'.repeat(64) })).rejects.toThrow(
      refusal(`torch\\.whl has the SHA-256 sum ${sum(archive)}: expected a{64}\\.$`),
    );
    expect(readdirSync(downloads())).toEqual([]);
    expect(existsSync(libtorchCache())).toBe(false);
    await expect(fetchLibtorch({ log, from: address, sha256: '12' })).rejects.toThrow(
      refusal(/expected 64 hexadecimal/),
    );
  });

  it('names what cannot be taken', async () => {
    await expect(fetchLibtorch({ log, from: join(dir, 'no.whl') })).rejects.toThrow(refusal(/no\.whl: no such file/));
    await expect(fetchLibtorch({ log, from: address.replace('torch', 'gone') })).rejects.toThrow(
      refusal(/gone\.whl answers 404 Not Found: expected a libtorch archive/),
    );
    const cuda = makeWheel({ ...LIBRARIES, 'torch/lib/libtorch_cuda.so': '' });
    await expect(fetchLibtorch({ log, from: cuda })).rejects.toThrow(
      refusal(/it is a CUDA build, expected the CPU build/),
    );
    vi.stubEnv('PATH', dir);
    await expect(fetchLibtorch({ log, from: cuda })).rejects.toThrow(refusal(/^python3 is missing.*unpacked with it/));
  });

  it('goes through a proxy', async () => {
    const proxied: string[] = [];
    const proxy = createServer((request, response) => {
      proxied.push(request.url!);
      response.writeHead(200, { 'content-length': archive.length }).end(archive);
    });
    // A proxy is asked for a tunnel, which leads to the server whatever the name.
    proxy.on('connect', (request, socket) => {
      proxied.push(request.url!);
      const through = connect(Number(new URL(address).port), '127.0.0.1', () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n');
        socket.pipe(through).pipe(socket);
      });
    });
    proxy.listen(0, '127.0.0.1');
    await once(proxy, 'listening');
    vi.stubEnv('HTTP_PROXY', `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`);
    vi.stubEnv('http_proxy', undefined);
    const file = await obtainArchive('http://torch.invalid/torch.whl', downloads(), { log });
    expect(readFileSync(file)).toEqual(archive);
    expect(proxied.join()).toContain('torch.invalid');
    proxy.close();
    proxy.closeAllConnections();
  });
});

const LIBRARIES = {
  'torch/version.py': "__version__ = '2.13.0+cpu'\n",
  'torch/lib/libtorch_cpu.so': 'cpu',
  'torch/lib/libc10.so': 'c10',
  'torch/lib/libgomp-a34b3233.so.1': 'gomp',
};

const which = (name: string) => spawnSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' }).stdout.trim();

function makeWheel(files: Record<string, string>): string {
  const wheel = join(dir, 'torch.whl');
  const script =
    'import json, sys, zipfile\nz = zipfile.ZipFile(sys.argv[1], "w")\n[z.writestr(*f) for f in json.loads(sys.argv[2]).items()]\nz.close()';
  expect(spawnSync('python3', ['-c', script, wheel, JSON.stringify(files)]).status).toBe(0);
  return wheel;
}

describe.skipIf(!python)('unpackWheel', () => {
  const out = () => join(dir, 'deep/out');

  it('takes the libraries, the headers and the version, and nothing else', async () => {
    const extra = {
      'torch/include/ATen/ATen.h': '',
      'torch/lib/libtorch_python.so': '',
      'torch/lib/libc10_x.txt': '',
      'torch/nn.py': '',
    };
    await unpackWheel(makeWheel({ ...LIBRARIES, ...extra }), out());
    expect(readdirSync(out(), { recursive: true }).sort()).toEqual([
      'include',
      'include/ATen',
      'include/ATen/ATen.h',
      'lib',
      'lib/libc10.so',
      'lib/libgomp-a34b3233.so.1',
      'lib/libtorch_cpu.so',
      'version.py',
    ]);
  });

  it.each(['torch/include/../../../escaped.h', 'torch/include//../../../escaped.h'])(
    'refuses the name %s',
    async (name) => {
      await expect(unpackWheel(makeWheel({ ...LIBRARIES, [name]: '' }), out())).rejects.toThrow(
        refusal(/the unsafe name torch/),
      );
      expect(readdirSync(dir, { recursive: true }).filter((file) => String(file).endsWith('escaped.h'))).toEqual([]);
    },
  );

  it('refuses what is no wheel, or of another version', async () => {
    await expect(unpackWheel(write('torch.whl', 'text'), out())).rejects.toThrow(
      refusal(/^torch\.whl could not be unpacked: /),
    );
    const old = { ...LIBRARIES, 'torch/version.py': "__version__ = '2.12.0'\n" };
    await expect(unpackWheel(makeWheel(old), out())).rejects.toThrow(
      refusal(/holds libtorch 2\.12\.0: expected libtorch 2\.13/),
    );
  });
});

describe('the core and its libtorch', () => {
  const libtorch = { dir: '/some/torch', version: '2.13.1', variant: 'cpu', origin: 'cache' } as const;

  it('fits within a minor release', () => {
    expect(sameRelease('2.13.0', '2.13.1')).toBe(true);
    expect(sameRelease('2.13.0', '2.1.3')).toBe(false);
    // The marker's name may stand in the core without a version too, as it does in this loader.
    const core = write('libwrpo_core.so', '\x7fELF WRPO_CORE_TORCH=\0 WRPO_CORE_TORCH=2.13.0;\0');
    expect(coreTorchVersion(core)).toBe('2.13.0');
    expect(findCore(dir, libtorch)).toBe(core);
    expect(() => checkRelease(core, libtorch)).not.toThrow();
  });

  it('names both versions and the remedy when they differ', () => {
    const core = write('libwrpo_core.so', 'WRPO_CORE_TORCH=2.13.0;');
    expect(() => checkRelease(core, { ...libtorch, version: '2.14.1' })).toThrow(
      refusal(/built for libtorch 2\.13\.0 but \/some\/torch holds 2\.14\.1: run `npm run build`.*a libtorch 2\.13\.$/),
    );
    expect(() => coreTorchVersion(write('other.so', 'no marker'))).toThrow(refusal(/does not say which libtorch/));
  });

  it('explains a missing core', () => {
    expect(() => findCore(dir, libtorch)).toThrow(refusal(/libwrpo_core\.so is missing: run `npm run build`/));
    write('libwrpo_core.so');
    expect(() => findCore(dir, { ...libtorch, variant: 'cu130', origin: 'python' })).toThrow(
      refusal(
        /CUDA libtorch \(cu130\).*no libwrpo_core_cu130\.so for it: run `npm run build` where nvcc .*, or run `wrpo setup`/,
      ),
    );
    expect(() => findCore(dir, { ...libtorch, variant: 'cu130', origin: 'LIBTORCH' })).toThrow(
      refusal(/unset LIBTORCH/),
    );
  });
});

describe('doctor', () => {
  it('reports the first cause, with its remedy, and goes on', async () => {
    vi.stubEnv('WRPO_LIBTORCH', dir);
    vi.stubEnv('OMP_NUM_THREADS', '100000');
    vi.stubEnv('WRPO_TORCH_INDEX', 'https://me:secret@index.invalid');
    const old = fakeLibtorch('old', { 'version.py': "__version__ = '2.12.1'\n" });
    vi.stubEnv('LIBTORCH', old);
    const output = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
    expect(await doctor({ json: true })).toBe(false);
    const { ok, checks } = JSON.parse(String(output.mock.calls[0]![0]));
    expect(ok).toBe(false);
    expect(checks.node.ok).toBe(true);
    expect(checks.libtorch).toMatchObject({ ok: false, detail: expect.stringContaining('WRPO_LIBTORCH=') });
    expect(checks.libtorch.places).toEqual([
      `WRPO_LIBTORCH=${dir}: refused, it holds no lib/libtorch_cpu.so`,
      `LIBTORCH=${old}: libtorch 2.12.1 (cpu), refused: expected 2.13.0`,
      `${libtorchCache()}: not there`,
      expect.stringMatching(/^python3: /),
    ]);
    expect(checks.shim.places).toEqual([
      expect.stringMatching(/build\/Release: .*libwrpo_core\.so for libtorch 2\.13\.0/),
      expect.stringMatching(/prebuilds\/linux-x64: /),
    ]);
    expect(checks.system.detail).toMatch(/kernel .*, glibc \d/);
    expect(checks.settings.detail).toContain('WRPO_TORCH_INDEX=https://…@index.invalid');
    expect(checks.settings.detail).not.toContain('secret');
    expect(checks.threads).toEqual({ ok: false, detail: expect.stringContaining('set it to') });
    expect(checks).not.toHaveProperty('addon');
    output.mockClear();
    await doctor({});
    expect(output.mock.calls.map(([line]) => String(line)).join('')).toMatch(/problem.* libtorch +WRPO_LIBTORCH=/);
  });
});

/** setup.mjs in a tree of its own, where libtorch, the compilers and cmake-js are stand-ins. */
describe('setup.mjs', () => {
  beforeEach(() => {
    mkdirSync(join(dir, 'bin'));
    copyFileSync(new URL('../setup.mjs', import.meta.url), join(dir, 'setup.mjs'));
    write('package.json', '{"type": "module"}');
    write('CMakeLists.txt');
    write('native/core.cpp', 'one');
    write(
      'dist/native/libtorch.js',
      "export const findLibtorch = () => ({ dir: '/torch', variant: 'cpu', version: '2.13.0' });\nexport const provideLibtorch = async () => findLibtorch();\n",
    );
    write('node_modules/cmake-js/package.json', '{"version": "8.0.0"}');
    write(
      'node_modules/cmake-js/bin/cmake-js',
      `const { appendFileSync, mkdirSync, writeFileSync } = require('node:fs');
       if (require('node:fs').readFileSync('native/core.cpp', 'utf8') === 'broken') {
         console.log('core.cpp:1: error: broken');
         process.exit(1);
       }
       if (process.argv[2] === 'build') {
         const out = process.argv.find((a) => a.startsWith('--CDWRPO_OUT=')).slice(13);
         mkdirSync(out, { recursive: true });
         for (const name of ['wrpo.node', 'libwrpo_core.so', 'kernel_check']) writeFileSync(out + '/' + name, '');
         appendFileSync('built', process.argv.find((a) => a.startsWith('--CDTORCH_DIR=')) + '\\n');
         Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300);
       }`,
    );
  });
  const tools = (...names: string[]) => {
    for (const name of names) write(join('bin', name), '', 0o755);
  };
  const run = async (...args: string[]) => {
    const child = spawn(process.execPath, [join(dir, 'setup.mjs'), ...args], { env: { PATH: join(dir, 'bin') } });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (output += text));
    return { status: await new Promise((done) => child.on('close', done)), output, pid: child.pid };
  };
  const builds = () =>
    existsSync(join(dir, 'built')) ? readFileSync(join(dir, 'built'), 'utf8').trim().split('\n') : [];

  it('names the missing build tools in one sentence', async () => {
    expect(await run()).toMatchObject({
      status: 1,
      output:
        'The native core cannot be built without cmake, a C++ compiler, make: install what is missing (Debian: apt install cmake g++ make; Fedora: dnf install cmake gcc-c++ make).\n',
    });
    tools('g++', 'ninja');
    expect((await run()).output).toMatch(/^The native core cannot be built without cmake: .*\n$/);
  });

  it('builds once, is silent when nothing is to do, and rebuilds what changed or is gone', async () => {
    tools('cmake', 'g++', 'make');
    expect(await run('--native')).toMatchObject({ status: 0, output: 'native core: building (about a minute)…\n' });
    expect(builds()).toEqual(['--CDTORCH_DIR=/torch']);
    expect(await run()).toMatchObject({ status: 0, output: '' });
    expect(await run('rebuild', '--target=20.0.0')).toMatchObject({ status: 0, output: '' });
    rmSync(join(dir, 'build/Release/wrpo.node'));
    await run();
    write('native/core.cpp', 'two');
    await run();
    expect(builds()).toHaveLength(3);
  });

  it("ends with the compiler's last lines and tries again next time, even with the old sources back", async () => {
    tools('cmake', 'g++', 'make');
    await run();
    write('native/core.cpp', 'broken');
    expect(await run()).toMatchObject({
      status: 1,
      output: expect.stringContaining('core.cpp:1: error: broken\nThe native build failed'),
    });
    write('native/core.cpp', 'one');
    await run();
    expect(builds()).toHaveLength(2);
  });

  it('works once when started twice, and is not held up by a killed one', async () => {
    tools('cmake', 'g++', 'make');
    const runs = await Promise.all([run(), run(), run()]);
    expect(runs.map(({ status }) => status)).toEqual([0, 0, 0]);
    expect(builds()).toHaveLength(1);
    expect(runs.map(({ output }) => output).join('')).toMatch(/another setup \(process \d+\) is at work: waiting…/);
    rmSync(join(dir, 'build/Release'), { recursive: true });
    spawnSync('ln', ['-s', `${process.pid}:1`, join(dir, 'build/setup.lock')]); // this process's id, of an earlier life
    expect(await run()).toMatchObject({ status: 0, output: 'native core: building (about a minute)…\n' });
    expect(readdirSync(join(dir, 'build')).sort()).toEqual(['Release', 'native.stamp']);
  });

  it('prints an error of libtorch as its sentence', async () => {
    write(
      'dist/native/libtorch.js',
      "export const findLibtorch = () => { throw Object.assign(new Error('WRPO_LIBTORCH is wrong.'), { name: 'WrpoError' }); };\n",
    );
    expect(await run()).toMatchObject({ status: 1, output: 'WRPO_LIBTORCH is wrong.\n' });
  });
});
