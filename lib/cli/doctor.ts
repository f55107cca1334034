import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { availableParallelism, cpus, release, totalmem } from 'node:os';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readModelConfig } from '../model/config.js';
import { readAdapterTensors, readModelTensors } from '../model/directory.js';
import { baseOf, isAdapter, readAdapterConfig } from '../model/lora.js';
import type { NativeAddon } from '../native/addon.js';
import { type Libtorch, libtorchPlaces, verifyLibtorch } from '../native/libtorch.js';
import {
  addonPlaces,
  checkRelease,
  coreTorchVersion,
  findCore,
  findShim,
  loadNative,
  requireLibtorch,
} from '../native/load.js';
import { VERSION } from '../train/run.js';
import { paintOut } from './stdout.js';

/** One line of the report: what was found, or what is wrong and how to cure it. */
interface Check {
  name: string;
  ok: boolean;
  detail: string;
  /** Where it was looked for, and what is there. */
  places?: string[];
}

/**
 * `wrpo doctor`: everything that can be wrong with an installation, in the order in which it would go wrong.
 * Returns false if something is.
 */
export async function doctor(options: { json?: boolean; model?: string }): Promise<boolean> {
  const checks: Check[] = [];
  // A check that needs what a failed one would have found is left out: one cause, one line.
  const check = async <T>(name: string, find: () => T | Promise<T>, show: (found: T) => string = String) => {
    try {
      const found = await find();
      checks.push({ name, ok: true, detail: show(found) });
      return found;
    } catch (error) {
      checks.push({ name, ok: false, detail: (error as Error).message });
      return undefined;
    }
  };
  const alsoTell = (places: string[]) => Object.assign(checks.at(-1)!, { places });

  await check('wrpo', () => `${VERSION} in ${fileURLToPath(new URL('../..', import.meta.url))}`);
  await check('node', nodeVersion);
  await check('platform', platform);
  await check('system', system);
  await check('cpu', cpu);
  const libtorch = await check('libtorch', requireLibtorch, describe);
  alsoTell(libtorchPlaces());
  if (libtorch) await check('checksums', () => checksums(libtorch.dir));
  const shim = await check('shim', findShim);
  alsoTell(addonPlaces(libtorch));
  const core = shim && libtorch && (await check('core', () => findCore(dirname(shim), libtorch)));
  const fits = core && (await check('versions', () => versions(core, libtorch)));
  const addon = fits && (await check('addon', loadNative, () => 'loads'));
  if (addon) await check('info', () => info(addon));
  if (addon) await check('openmp', openmpRuntime);
  await check('threads', threads);
  await check('settings', settings);
  const { model } = options;
  if (model) await check('model', () => describeModel(model));

  const ok = checks.every((one) => one.ok);
  if (options.json) {
    const byName = Object.fromEntries(checks.map(({ name, ...rest }) => [name, rest]));
    process.stdout.write(`${JSON.stringify({ ok, checks: byName }, null, 2)}\n`);
  } else {
    const paint = paintOut();
    for (const one of checks) {
      const mark = one.ok ? paint.green('ok     ') : paint.red('problem');
      process.stdout.write(`${mark} ${one.name.padEnd(10)} ${one.detail}\n`);
      for (const place of one.places ?? []) process.stdout.write(`${' '.repeat(19)}- ${place}\n`);
    }
  }
  return ok;
}

function describeModel(dir: string): string {
  if (isAdapter(dir)) {
    const { r } = readAdapterConfig(dir);
    const tensors = readAdapterTensors(dir);
    return `LoRA adapter of rank ${r}, ${tensors.size} tensors, on ${describeModel(baseOf(dir))}`;
  }
  const c = readModelConfig(dir);
  const tensors = readModelTensors(dir);
  const head = c.rewardHead ? 'no language-model head' : c.tieWordEmbeddings ? 'tied' : 'untied';
  const kind = c.rewardHead ? `reward model (ArmoRM, ${c.rewardHead.objectives} objectives) on llama` : c.family;
  const sliding = [...c.windows].filter((window) => window > 0);
  const features = [
    c.rope.type !== 'default' && `${c.rope.type} rope scaling`,
    c.rope.dim < c.headDim && `${c.rope.dim} of ${c.headDim} dimensions rotated`,
    c.localRope && `theta ${c.localRope.theta} in layers with a window`,
    sliding.length > 0 && `a window of ${sliding[0]} in ${sliding.length} layers`,
    c.qkvBias && 'query, key and value biases',
    c.headNorm && 'norms of queries and keys',
    c.branchNorms && 'norms behind attention and MLP',
    c.activation !== 'silu' && 'GeGLU',
    c.attentionSoftcap > 0 && `attention capped at ${c.attentionSoftcap}`,
    c.finalSoftcap > 0 && `logits capped at ${c.finalSoftcap}`,
    c.fusedProjections && 'fused projections',
  ].filter((feature) => feature);
  return [
    `${kind}: ${c.layers} layers, width ${c.hiddenSize}, ${c.heads} heads of ${c.headDim} (${c.kvHeads} for keys), ` +
      `vocabulary ${c.vocabSize} (${head})`,
    ...features,
    `${tensors.size} tensors stored`,
  ].join('; ');
}

function nodeVersion(): string {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  if (major > 20 || (major === 20 && minor >= 19)) return process.versions.node;
  throw new Error(`${process.versions.node} is too old: install Node 20.19 or newer.`);
}

function platform(): string {
  const name = `${process.platform}-${process.arch}`;
  if (process.platform === 'linux') return name;
  throw new Error(`${name} is not supported: use Linux, where libtorch and the addon are built for.`);
}

function system(): string {
  const { header } = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  const [, name] = /^PRETTY_NAME="?([^"\n]*)/m.exec(unlessMissing('/etc/os-release')) ?? [];
  const libc = header.glibcVersionRuntime ? `glibc ${header.glibcVersionRuntime}` : 'no glibc';
  return `${name ?? 'unknown'}, kernel ${release()}, ${libc}`;
}

function unlessMissing(path: string): string {
  return existsSync(path) ? readFileSync(path, 'utf8') : '';
}

function cpu(): string {
  const memory = Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
  return `${cpus()[0]?.model ?? 'unknown'}, ${availableParallelism()} usable cores, ${(memory / 2 ** 30).toFixed(1)} GiB`;
}

// What changes how the engine is found, loaded and run; nothing that may hold a secret.
function settings(): string {
  const telling =
    /^((WRPO|OMP|GOMP|MKL|KMP|CUDA|NVIDIA|LD)_\w+|LIBTORCH|XDG_CACHE_HOME|HF_HOME|HF_HUB_OFFLINE|NODE_OPTIONS)$/;
  const set = Object.entries(process.env).filter(([name]) => telling.test(name));
  const shown = ([name, value = '']: [string, string?]) => `${name}=${value.replace(/\/\/[^/@]+@/, '//…@')}`;
  return set.map(shown).join(' ') || 'none in the environment';
}

function describe({ dir, version, variant, origin }: Libtorch): string {
  return `${version} (${variant}) in ${dir}, found by ${origin}`;
}

function versions(core: string, libtorch: Libtorch): string {
  checkRelease(core, libtorch);
  return `built for libtorch ${coreTorchVersion(core)}, runs with ${libtorch.version}`;
}

function info(addon: NativeAddon): string {
  const { torchVersion, cpuCapability, threads, devices } = addon.info();
  return `libtorch ${torchVersion}, ${cpuCapability} kernels, ${threads} threads, devices ${devices.join(' ')}`;
}

async function checksums(dir: string): Promise<string> {
  const { checked, broken } = await verifyLibtorch(dir);
  if (broken.length > 0) throw new Error(`${broken.join(', ')} changed since the download: run \`wrpo setup\`.`);
  if (checked > 0) return `${checked} libraries unchanged since the download`;
  return 'none kept: `wrpo setup` did not fetch this libtorch';
}

// Two OpenMP runtimes in one process have two teams of threads, which fight for the cores.
function openmpRuntime(): string {
  const loaded = new Set<string>();
  for (const [path] of readFileSync('/proc/self/maps', 'utf8').matchAll(/\/.*\/lib(?:gomp|iomp5|omp)[-.][^/\n]*$/gm)) {
    loaded.add(existsSync(path) ? realpathSync(path) : path);
  }
  if (loaded.size === 1) return [...loaded][0]!;
  if (loaded.size === 0) throw new Error('no OpenMP runtime is loaded, so one thread computes: run `wrpo setup`.');
  throw new Error(
    `${[...loaded].join(' and ')} are both loaded: remove all but libtorch's own, for example from LD_PRELOAD.`,
  );
}

function threads(): string {
  const cores = availableParallelism();
  const wanted = process.env.OMP_NUM_THREADS;
  const policy = process.env.OMP_WAIT_POLICY ?? 'passive';
  if (wanted && Number(wanted) > cores) {
    throw new Error(
      `OMP_NUM_THREADS=${wanted} on ${cores} usable cores slows everything down: set it to ${cores} or less.`,
    );
  }
  if (policy.toLowerCase() === 'active') {
    throw new Error('OMP_WAIT_POLICY=active makes idle threads spin: unset it, wrpo sets passive.');
  }
  return wanted ? `OMP_NUM_THREADS=${wanted} of ${cores} cores` : `${cores}, one per usable core`;
}
