/** Finds the shim, libtorch and the core, checks that they fit, and loads them; every failure says what to do. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { WrpoError } from '../errors.js';
import type { NativeAddon } from './addon.js';
import { findLibtorch, type Libtorch, sameRelease } from './libtorch.js';

const require = createRequire(import.meta.url);
const root = fileURLToPath(new URL('../..', import.meta.url));
const BUILD = existsSync(join(root, 'tsconfig.json'))
  ? 'run `npm run build`'
  : `run \`npm install cmake-js@8\` in your project, then \`npm run build\` in ${root}`;
const MARKER = 'WRPO_CORE_TORCH=';

let addon: NativeAddon | undefined;

/** The native addon, loaded at the first call and the same object ever after (in each worker thread its own). */
export function loadNative(): NativeAddon {
  addon ??= load();
  return addon;
}

function load(): NativeAddon {
  const shim = findShim();
  const libtorch = requireLibtorch();
  const core = findCore(dirname(shim), libtorch);
  checkRelease(core, libtorch);
  const rebuild = `${BUILD} to build it on this machine`;
  const { preload } = explain<Shim>('The native addon could not be loaded', rebuild, () => require(shim));
  explain(`libtorch ${libtorch.version} in ${libtorch.dir} could not be loaded`, 'run `wrpo doctor`', () => {
    preload(join(libtorch.dir, 'lib', 'libtorch_cpu.so'));
    if (libtorch.variant !== 'cpu') preload(join(libtorch.dir, 'lib', 'libtorch_cuda.so')); // loads without a driver, too
  });
  const module = { exports: { WrpoError } }; // which the core then throws
  explain('The native core could not be loaded', rebuild, () =>
    process.dlopen(module, core, constants.dlopen.RTLD_NOW),
  );
  return module.exports as unknown as NativeAddon;
}

interface Shim {
  preload(path: string): void;
}

/** The path of `wrpo.node`: the source build's if there is one, else the prebuilt one. */
export function findShim(): string {
  const here = `${process.platform}-${process.arch}`;
  if (process.platform !== 'linux') {
    throw new WrpoError(
      'ERR_NATIVE_LOAD',
      `wrpo computes on Linux alone (linux-x64 is built and tested), and there is no native addon for ${here}: run it in a Linux container or virtual machine.`,
    );
  }
  try {
    return require('node-gyp-build').resolve(root);
  } catch (cause) {
    throw new WrpoError('ERR_NATIVE_LOAD', `No native addon for ${here} is in ${root}: ${BUILD} to build it.`, {
      cause,
    });
  }
}

/** Both places where the addon could be, in the order in which they are asked, with what is there: for a report. */
export function addonPlaces(libtorch: Libtorch | undefined): string[] {
  return ['build/Release', `prebuilds/${process.platform}-${process.arch}`].map((name) => {
    const dir = join(root, name);
    if (!existsSync(join(dir, 'wrpo.node'))) return `${dir}: no wrpo.node`;
    const cores = readdirSync(dir).filter((file) => /^libwrpo_core.*\.so$/.test(file));
    return `${dir}: ${cores.map((core) => `${core} ${fitOf(join(dir, core), libtorch)}`).join('; ') || 'no core'}`;
  });
}

function fitOf(core: string, libtorch: Libtorch | undefined): string {
  try {
    const built = coreTorchVersion(core);
    const other = libtorch !== undefined && !sameRelease(built, libtorch.version);
    return `for libtorch ${built}${other ? `, refused: ${libtorch.version} was found` : ''}`;
  } catch {
    return 'refused, it does not say which libtorch it is for';
  }
}

/** `findLibtorch`, for a caller that cannot do without. */
export function requireLibtorch(): Libtorch {
  const libtorch = findLibtorch();
  if (libtorch) return libtorch;
  throw new WrpoError(
    'ERR_NATIVE_LOAD',
    'libtorch is not installed: run `wrpo setup` (in a source tree `npm run build`), or set WRPO_LIBTORCH to its directory.',
  );
}

/** The core beside the shim that was built for this kind of libtorch; a CUDA libtorch needs its own. */
export function findCore(dir: string, { variant, ...libtorch }: Libtorch): string {
  const core = join(dir, variant === 'cpu' ? 'libwrpo_core.so' : `libwrpo_core_${variant}.so`);
  if (existsSync(core)) return core;
  if (variant === 'cpu') {
    throw new WrpoError('ERR_NATIVE_LOAD', `${core} is missing: ${BUILD} to build it.`);
  }
  const otherwise = {
    python: 'run `wrpo setup` to fetch the CPU libtorch',
    cache: 'set WRPO_LIBTORCH to a CPU libtorch',
    WRPO_LIBTORCH: 'unset WRPO_LIBTORCH or point it to a CPU libtorch',
    LIBTORCH: 'unset LIBTORCH or point it to a CPU libtorch',
  }[libtorch.origin];
  throw new WrpoError(
    'ERR_NATIVE_LOAD',
    `${libtorch.dir} is a CUDA libtorch (${variant}), and this build has no ${basename(core)} for it: run \`npm run build\` where nvcc of CUDA 12 or newer is, or ${otherwise}.`,
  );
}

/** The libtorch version a core was compiled for, read from the file: a wrong one may crash before it could be asked. */
export function coreTorchVersion(core: string): string {
  const bytes = readFileSync(core);
  for (let at = bytes.indexOf(MARKER); at >= 0; at = bytes.indexOf(MARKER, at + 1)) {
    const version = /^=([\d.]+);/.exec(bytes.toString('latin1', at + MARKER.length - 1, at + MARKER.length + 32))?.[1];
    if (version) return version;
  }
  throw new WrpoError(
    'ERR_NATIVE_LOAD',
    `${core} does not say which libtorch it was built for: ${BUILD} to rebuild it.`,
  );
}

/** Refuses a libtorch whose ABI the core was not compiled against. */
export function checkRelease(core: string, libtorch: Libtorch): void {
  const built = coreTorchVersion(core);
  if (sameRelease(built, libtorch.version)) return;
  const [major, minor] = built.split('.');
  throw new WrpoError(
    'ERR_NATIVE_LOAD',
    `The native core was built for libtorch ${built} but ${libtorch.dir} holds ${libtorch.version}: ${BUILD} to rebuild it, or set WRPO_LIBTORCH to a libtorch ${major}.${minor}.`,
  );
}

/** What `action` gives; its failure is named by `what` and followed by `remedy`. */
function explain<T>(what: string, remedy: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    throw new WrpoError('ERR_NATIVE_LOAD', `${what} (${(cause as Error).message}): ${remedy}.`, { cause });
  }
}
