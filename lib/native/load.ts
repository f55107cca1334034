/** Finds the shim, libtorch and the core, checks that they fit, and loads them; every failure says what to do. */
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { WrpoError } from '../errors.js';
import type { NativeAddon } from './addon.js';
import { findLibtorch, type Libtorch, sameRelease } from './libtorch.js';

const require = createRequire(import.meta.url);
const root = fileURLToPath(new URL('../..', import.meta.url));
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
  explain(`libtorch ${libtorch.version} in ${libtorch.dir} could not be loaded`, 'run `wrpo doctor`', () => {
    const { preload } = require(shim) as { preload(path: string): void };
    preload(join(libtorch.dir, 'lib', 'libtorch_cpu.so'));
    if (libtorch.variant !== 'cpu') preload(join(libtorch.dir, 'lib', 'libtorch_cuda.so')); // loads without a driver, too
  });
  const module = { exports: {} };
  explain('The native core could not be loaded', 'run `npm run build` to rebuild it on this machine', () =>
    process.dlopen(module, core, constants.dlopen.RTLD_NOW),
  );
  return module.exports as NativeAddon;
}

/** The path of `wrpo.node`: the source build's if there is one, else the prebuilt one. */
export function findShim(): string {
  try {
    return require('node-gyp-build').resolve(root);
  } catch (cause) {
    throw new WrpoError(
      'ERR_NATIVE_LOAD',
      `The native addon for ${process.platform}-${process.arch} is not built: run \`npm run build\` in ${root}.`,
      { cause },
    );
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
    throw new WrpoError('ERR_NATIVE_LOAD', `${core} is missing: run \`npm run build\` to build it.`);
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
    `${core} does not say which libtorch it was built for: run \`npm run build\` to rebuild it.`,
  );
}

/** Refuses a libtorch whose ABI the core was not compiled against. */
export function checkRelease(core: string, libtorch: Libtorch): void {
  const built = coreTorchVersion(core);
  if (sameRelease(built, libtorch.version)) return;
  const [major, minor] = built.split('.');
  throw new WrpoError(
    'ERR_NATIVE_LOAD',
    `The native core was built for libtorch ${built} but ${libtorch.dir} holds ${libtorch.version}: run \`npm run build\` to rebuild it, or set WRPO_LIBTORCH to a libtorch ${major}.${minor}.`,
  );
}

function explain(what: string, remedy: string, action: () => void): void {
  try {
    action();
  } catch (cause) {
    throw new WrpoError('ERR_NATIVE_LOAD', `${what} (${(cause as Error).message}): ${remedy}.`, { cause });
  }
}
