#!/usr/bin/env node
/**
 * Makes a source tree ready to run: packages, TypeScript, libtorch, native core. `npm start`, `npm test` and
 * `npm run build` call it; what is up to date is left alone, silently. `--native`, or `rebuild` as node-gyp is called by
 * prebuildify, builds the addon only. Plain JavaScript on Node's own modules, since it runs before anything is installed.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, totalmem } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('.', import.meta.url));
const path = (...parts) => join(root, ...parts);
const read = (name) => readFileSync(path(name), 'utf8');
const log = (line) => process.stderr.write(`${line}\n`);
const [major, minor] = process.versions.node.split('.').map(Number);

if (major < 20 || (major === 20 && minor < 19)) {
  fail(`Node ${process.versions.node} is too old for wrpo: install Node 20.19 or newer (https://nodejs.org).`);
}
const nativeOnly = process.argv.includes('--native') || process.argv[2] === 'rebuild';
try {
  for (const step of nativeOnly ? [native] : [packages, typescript, native]) {
    const work = await step();
    if (!work) continue;
    await lock();
    await (await step())?.(); // asked again: whoever held the lock may have done it
  }
} catch (error) {
  fail(error.name === 'WrpoError' ? error.message : error.stack);
}

/** Each step returns its work, or nothing when it is up to date. */
function packages() {
  if (!existsSync(path('package-lock.json')) || installed()) return undefined;
  return async () => {
    log('packages: installing…');
    if (!onPath('npm')) {
      fail('npm is missing: install it, or Node with it (Debian: apt install npm; Fedora: dnf install npm).');
    }
    await run('npm ci', ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund']);
  };
}

// npm records what it installed in node_modules; a package may be absent only if it is for another platform.
function installed() {
  if (!existsSync(path('node_modules/.package-lock.json'))) return false;
  const have = JSON.parse(read('node_modules/.package-lock.json')).packages;
  return Object.entries(JSON.parse(read('package-lock.json')).packages).every(
    ([name, { version, integrity, optional, devOptional }]) =>
      name === '' ||
      (have[name] ? have[name].version === version && have[name].integrity === integrity : optional || devOptional),
  );
}

function typescript() {
  if (!existsSync(path('tsconfig.json'))) return undefined; // an installed package: dist came with it
  const stamp = digest('lib', 'tsconfig.json', 'package-lock.json');
  if (existsSync(path('dist/native/libtorch.js')) && stamped('typescript') === stamp) return undefined;
  return () =>
    stamping('typescript', async () => {
      rmSync(path('dist'), { recursive: true, force: true }); // else what a deleted source left behind would be published
      await run('tsc', [process.execPath, path('node_modules/typescript/bin/tsc'), '-p', root]);
      return stamp;
    });
}

async function native() {
  if (!existsSync(path('dist/native/libtorch.js'))) fail('The TypeScript is not compiled: run `node setup.mjs` first.');
  const { findLibtorch, provideLibtorch } = await import('./dist/native/libtorch.js');
  const cmakeJs = locateCmakeJs();
  const sources = digest('native', 'CMakeLists.txt');
  const stampFor = ({ dir, version }) => [sources, dir, version, cmakeJs.version].join('\n');
  // A core for each kind of libtorch, side by side: building one leaves the others.
  const suffixOf = ({ variant }) => (variant === 'cpu' ? '' : `_${variant}`);
  const outputsFor = (libtorch) =>
    ['wrpo.node', `libwrpo_core${suffixOf(libtorch)}.so`, `kernel_check${suffixOf(libtorch)}`].map((name) =>
      path('build/Release', name),
    );
  const found = findLibtorch();
  if (found && outputsFor(found).every(existsSync) && stamped(`native${suffixOf(found)}`) === stampFor(found)) {
    return undefined;
  }
  return async () => {
    requireBuildTools();
    const libtorch = await provideLibtorch({ log });
    await stamping(`native${suffixOf(libtorch)}`, async () => {
      log('native core: building (about a minute)…');
      const options = ['-d', root, '-O', path(`build/cmake${suffixOf(libtorch)}`)];
      options.push(`--CDWRPO_OUT=${path('build/Release')}`, `--CDTORCH_DIR=${libtorch.dir}`, '-p', String(jobs()));
      // `build` alone configures only once, and would go on with the libtorch of the first time.
      for (const command of ['configure', 'build']) {
        await run('The native build', [process.execPath, cmakeJs.bin, command, ...options]);
      }
      return stampFor(libtorch);
    });
  };
}

function locateCmakeJs() {
  try {
    const file = createRequire(import.meta.url).resolve('cmake-js/package.json');
    return { version: JSON.parse(readFileSync(file, 'utf8')).version, bin: join(file, '../bin/cmake-js') };
  } catch {
    return fail('cmake-js is missing, and the native core is built with it: run `npm install cmake-js@8`.');
  }
}

function requireBuildTools() {
  const tools = [
    { name: 'cmake', debian: 'cmake', fedora: 'cmake', found: onPath('cmake') },
    { name: 'a C++ compiler', debian: 'g++', fedora: 'gcc-c++', found: onPath('g++', 'clang++') },
    { name: 'make', debian: 'make', fedora: 'make', found: onPath('make', 'ninja') },
  ];
  const missing = tools.filter(({ found }) => !found);
  if (missing.length === 0) return;
  const list = (key, separator) => missing.map((tool) => tool[key]).join(separator);
  fail(
    `The native core cannot be built without ${list('name', ', ')}: install what is missing (Debian: apt install ${list('debian', ' ')}; Fedora: dnf install ${list('fedora', ' ')}).`,
  );
}

// A file that includes ATen takes about a gigabyte to compile.
function jobs() {
  const memory = Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
  return Math.max(1, Math.min(availableParallelism(), Math.floor(memory / 1.5e9)));
}

function onPath(...names) {
  const directories = (process.env.PATH ?? '').split(delimiter).filter(Boolean);
  return directories.some((directory) => names.some((name) => executable(join(directory, name))));
}

function executable(file) {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** A hash of files and folders, names and contents: times change with every checkout. */
function digest(...names) {
  const hash = createHash('sha256');
  const add = (name) => {
    if (!existsSync(path(name))) return;
    if (statSync(path(name)).isDirectory()) {
      for (const entry of readdirSync(path(name)).sort()) add(join(name, entry));
    } else {
      const bytes = readFileSync(path(name));
      hash.update(`${name}\0${bytes.length}\0`).update(bytes);
    }
  };
  names.forEach(add);
  return hash.digest('hex');
}

function stamped(name) {
  const file = path('build', `${name}.stamp`);
  return existsSync(file) ? readFileSync(file, 'utf8') : undefined;
}

/** The stamp goes before the work begins, so that half-done work never looks finished. */
async function stamping(name, work) {
  const file = path('build', `${name}.stamp`);
  rmSync(file, { force: true });
  writeFileSync(file, await work());
}

/** Runs a program silently; if it fails, its last lines say why. */
async function run(what, [command, ...args]) {
  const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output += text;
    });
  }
  const status = await new Promise((done, failed) => child.on('error', failed).on('close', done));
  if (status === 0) return;
  const tail = output.trimEnd().split('\n').slice(-30).join('\n');
  fail(`${tail}\n${what} failed; its last lines are above.`);
}

/**
 * Waits until no other setup works in this tree. The lock is a symbolic link, made whole in one step, whose target names
 * its owner by process id and start time, so that neither a killed owner nor a reused id blocks for ever.
 */
async function lock() {
  const file = path('build/setup.lock');
  const self = `${process.pid}:${startOf(process.pid)}`;
  mkdirSync(path('build'), { recursive: true });
  for (let waiting = false; ; ) {
    try {
      symlinkSync(self, file);
      process.on('exit', () => rmSync(file, { force: true }));
      return;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const owner = ownerOf(file);
    if (owner === self) return;
    if (owner && startOf(owner.split(':')[0]) !== owner.split(':')[1]) {
      discard(file, owner);
      continue;
    }
    if (owner && !waiting) log(`another setup (process ${owner.split(':')[0]}) is at work: waiting…`);
    waiting ||= owner !== undefined;
    await sleep(200);
  }
}

// Renamed before it is deleted: of two waiters only one can rename it, and who moved a fresh lock puts it back.
function discard(file, owner) {
  const stale = `${file}.${process.pid}`;
  try {
    renameSync(file, stale);
    if (ownerOf(stale) === owner) unlinkSync(stale);
    else renameSync(stale, file);
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
}

function ownerOf(file) {
  try {
    return readlinkSync(file);
  } catch {
    return undefined;
  }
}

function startOf(pid) {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1).split(' ')[19];
  } catch {
    return undefined;
  }
}

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}
