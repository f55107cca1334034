/** What is published: the tarball's contents, its types, and what the binaries need. `npm run release` installs it as well. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { scriptProblems, symbolNeeds, symbolProblems, tarballProblems } from '../release/checks.mjs';
import { Child, MAIN, ROOT, scratchDirectory } from './training.ts';

const path = scratchDirectory('package');
const bin = (name: string, args: string[]) =>
  spawnSync(join(ROOT, 'node_modules/.bin', name), args, { cwd: ROOT, encoding: 'utf8' });

interface Packed {
  files: { path: string }[];
  size: number;
}

describe('the tarball', () => {
  let packed: Packed;
  let file: string;
  beforeAll(() => {
    const { stdout, stderr } = spawnSync('npm', ['pack', '--json', '--pack-destination', path()], {
      cwd: ROOT,
      encoding: 'utf8',
    });
    expect(stdout, stderr).not.toBe('');
    const [one] = JSON.parse(stdout);
    packed = one;
    file = path(one.filename);
  });

  it('holds what a user needs and nothing else', () => {
    expect(tarballProblems(packed, { binaries: false })).toEqual([]);
  });

  it('would not pass with a test, a model, without the command, or too large', () => {
    const files = [...packed.files.filter((one) => one.path !== 'dist/cli/main.js'), { path: 'test/fixtures/a.json' }];
    files.push({ path: 'dist/model.safetensors' });
    expect(tarballProblems({ files, size: 6e6 }, { binaries: true })).toEqual([
      'the tarball lacks dist/cli/main.js',
      ...(packed.files.some((one) => one.path === 'prebuilds/linux-x64/wrpo.node')
        ? []
        : ['the tarball lacks prebuilds/linux-x64/wrpo.node', 'the tarball lacks prebuilds/linux-x64/libwrpo_core.so']),
      'test/fixtures/a.json is in the tarball',
      'dist/model.safetensors is in the tarball',
      'the tarball has 6000000 bytes: expected at most 5000000',
    ]);
  });

  it('holds the page of a report, and no TypeScript that its set-up would want to compile', () => {
    mkdirSync(join(ROOT, 'runs'), { recursive: true });
    const dir = mkdtempSync(join(ROOT, 'runs', 'package-')); // where the packages that it needs are found
    try {
      expect(spawnSync('tar', ['-xzf', file, '-C', dir]).status).toBe(0);
      const own = (name: string) => join(dir, 'package', name);
      const PATH = ''; // no compiler: it must come as far as missing one
      const { stderr } = spawnSync(process.execPath, [own('setup.mjs')], {
        encoding: 'utf8',
        env: { HOME: dir, PATH },
      });
      expect(stderr).toMatch(/^The native core cannot be built without cmake/);
      mkdirSync(join(dir, 'run'));
      writeFileSync(join(dir, 'run/metrics.jsonl'), '{"step": 1, "loss": 0.5}\n');
      const report = spawnSync(process.execPath, [own('dist/cli/main.js'), 'report', join(dir, 'run')], {
        encoding: 'utf8',
      });
      expect(report.stdout, report.stderr).toBe(`${join(dir, 'run/report.html')}\n`);
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });

  it('is clean for publint and attw', () => {
    for (const { status, stdout, stderr } of [
      bin('publint', ['run', file, '--strict']),
      bin('attw', [file, '--profile', 'esm-only']),
    ]) {
      expect(status, stdout + stderr).toBe(0);
    }
  });
});

describe('installing', () => {
  it('runs no script, of this package or of those it needs', () => {
    expect(scriptProblems(join(ROOT, 'package-lock.json'))).toEqual([]);
    const lock = { packages: { 'node_modules/a': { hasInstallScript: true } } };
    writeFileSync(path('lock.json'), JSON.stringify(lock));
    expect(scriptProblems(path('lock.json'))).toEqual(['node_modules/a has an install script']);
  });

  it.each(['darwin-arm64', 'win32-x64', 'linux-riscv64'])(
    'on %s the first native call says what is missing',
    async (pretend) => {
      const flags = ['--import', join(ROOT, 'release/consumer/pretend.mjs')];
      const env = { PRETEND: pretend, WRPO_PREBUILD: path() };
      const call =
        "import('./dist/index.js').then(({ Tensor, info }) => Tensor && info()).catch(({ code, message }) => console.log(code, message))";
      const { stdout } = await new Child([...flags, '-e', call], { cwd: ROOT, env }).done;
      expect(stdout).toMatch(/^ERR_NATIVE_LOAD [^\n]+\n$/);
      expect(stdout).toContain(
        pretend.startsWith('linux') ? `No native addon for ${pretend}` : 'computes on Linux alone',
      );
      expect(stdout).toContain(pretend);
      const doctor = await new Child([...flags, MAIN, 'doctor'], { env }).done;
      expect(doctor.status).toBe(1);
      expect(doctor.stdout).toMatch(new RegExp(`^problem shim .*${pretend}`, 'm'));
    },
  );
});

describe('the binaries', () => {
  it.each(['wrpo.node', 'libwrpo_core.so'])('%s needs no newer glibc and libstdc++ than is said', (name) => {
    const file = join(ROOT, 'build/Release', name);
    expect(symbolNeeds(file)).toHaveProperty('GLIBC');
    expect(symbolProblems(file)).toEqual([]);
  });
});

describe('types', () => {
  // Inside the package, so that `wrpo` means what an installed one would.
  let dir: string;
  beforeAll(() => {
    mkdirSync(join(ROOT, 'runs'), { recursive: true });
    dir = mkdtempSync(join(ROOT, 'runs', 'types-'));
    cpSync(join(ROOT, 'release/consumer/train.ts'), join(dir, 'train.ts'));
  });
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  it.each([
    ['node16', 'node16'],
    ['nodenext', 'nodenext'],
    ['esnext', 'bundler'],
  ])('hold with module %s, resolution %s, and skipLibCheck false', (module, moduleResolution) => {
    const compilerOptions = { module, moduleResolution, target: 'es2022', strict: true, skipLibCheck: false };
    const config = { compilerOptions: { ...compilerOptions, types: ['node'], noEmit: true }, files: ['train.ts'] };
    writeFileSync(join(dir, 'tsconfig.json'), JSON.stringify(config));
    const { status, stdout } = bin('tsc', ['-p', dir]);
    expect(status, stdout).toBe(0);
  });
});
