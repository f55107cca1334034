/** What a published package promises, as functions of its files: each returns the sentences that say what is wrong. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** The newest symbol versions that the prebuilt addon may need: Debian 12, Ubuntu 22.04, Fedora 36 have them. */
export const FLOOR = { GLIBC: '2.34', GLIBCXX: '3.4.30', CXXABI: '1.3.13' };

const MAX_BYTES = 5e6;
const BINARIES = ['wrpo.node', 'libwrpo_core.so'].map((name) => `prebuilds/linux-x64/${name}`);
const REQUIRED = [
  ...['package.json', 'README.md', 'CHANGELOG.md', 'LICENSE', 'setup.mjs', 'CMakeLists.txt', 'binding.gyp'],
  ...[
    'dist/index.js',
    'dist/index.d.ts',
    'dist/cli/main.js',
    'native/addon.cpp',
    'prebuilds/README.md',
    'lib/report/page/page.css',
  ],
];
const ALLOWED =
  /^(package\.json|README\.md|CHANGELOG\.md|LICENSE|setup\.mjs|CMakeLists\.txt|binding\.gyp|(dist|native|prebuilds|lib\/report\/page)\/.+)$/;
const FORBIDDEN = /^native\/fuzz|\.(test\.[jt]s|safetensors|map|tgz)$|fixtures/;

/** Of a tarball: `files` and `size` as `npm pack --json` tells them. */
export function tarballProblems({ files, size }, { binaries }) {
  const names = files.map(({ path }) => path);
  const required = binaries ? [...REQUIRED, ...BINARIES] : REQUIRED;
  return [
    ...required.filter((name) => !names.includes(name)).map((name) => `the tarball lacks ${name}`),
    ...names.filter((name) => !ALLOWED.test(name) || FORBIDDEN.test(name)).map((name) => `${name} is in the tarball`),
    ...(size > MAX_BYTES ? [`the tarball has ${size} bytes: expected at most ${MAX_BYTES}`] : []),
  ];
}

/** The newest version of each library's symbols that an ELF file needs, such as `{ GLIBC: '2.34' }`. */
export function symbolNeeds(file) {
  const needs = {};
  const dump = execFileSync('objdump', ['-T', file], { encoding: 'utf8', maxBuffer: 1 << 26 });
  for (const [, library, version] of dump.matchAll(/\*UND\*.*\((\w+?)_([\d.]+)\)/g)) {
    if (needs[library] === undefined || compare(version, needs[library]) > 0) needs[library] = version;
  }
  return needs;
}

export function symbolProblems(file) {
  const needs = symbolNeeds(file);
  return Object.entries(FLOOR)
    .filter(([library, version]) => needs[library] !== undefined && compare(needs[library], version) > 0)
    .map(([library, version]) => `${file} needs ${library}_${needs[library]}: expected ${version} at most`);
}

function compare(a, b) {
  const [left, right] = [a, b].map((version) => version.split('.').map(Number));
  const at = left.findIndex((part, i) => part !== right[i]);
  return at < 0 ? left.length - right.length : left[at] - (right[at] ?? 0);
}

/** Of a lock file: nothing that a user installs may run a script then. */
export function scriptProblems(lockFile) {
  const { packages } = JSON.parse(readFileSync(lockFile, 'utf8'));
  return Object.entries(packages)
    .filter(([, { hasInstallScript, dev }]) => hasInstallScript && !dev)
    .map(([name]) => `${name || 'the package'} has an install script`);
}
