/** CUDA as far as a machine without a GPU can tell; on one with a GPU, `npm run test:gpu` runs the rest. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { WrpoError } from '../lib/errors.ts';
import { readModelConfig } from '../lib/model/config.ts';
import { chooseDevice } from '../lib/model/device.ts';
import { Model } from '../lib/model/model.ts';
import { cudaLibtorchCache } from '../lib/native/cuda-libtorch.ts';
import { info } from '../lib/native/surface.ts';
import { resolveArgs } from '../lib/train/args.ts';
import { forecast } from '../lib/train/memory-plan.ts';
import { describePlan, explainOutOfMemory } from '../lib/train/run-memory.ts';
import { Trainer } from '../lib/train/trainer.ts';
import { expectSentence } from './support.ts';
import { POLICY, ROOT, scratchDirectory, TRACE } from './training.ts';

const scratch = scratchDirectory('gpu');
const KERNELS = join(ROOT, 'native/kernels');
const LIBRARY = join(ROOT, 'build/cmake/libwrpo_kernels.a');
const CHECK = join(ROOT, 'build/Release/gpu_check');
const sources = readdirSync(KERNELS).filter((name) => name.endsWith('.cu'));

/** The functions of a library's device code by architecture: each image is an ELF file with a section for every one. */
function functionsIn(library: Buffer): Map<number, string[]> {
  const found = new Map<number, string[]>();
  for (let at = library.indexOf('\x7fELF'); at >= 0; at = library.indexOf('\x7fELF', at + 1)) {
    const image = library.subarray(at);
    if (image.readUInt16LE(18) !== 190) continue; // EM_CUDA
    const [flags, sections] = [image.readUInt32LE(48), Number(image.readBigUInt64LE(40))];
    // Images of CUDA 13 have the architecture a byte higher than earlier ones.
    const architecture = image[8]! >= 8 ? (flags >> 8) & 0xff : flags & 0xff;
    const header = (i: number) => image.subarray(sections + i * image.readUInt16LE(58));
    const names = image.subarray(Number(header(image.readUInt16LE(62)).readBigUInt64LE(24)));
    for (let i = 0; i < image.readUInt16LE(60); i++) {
      const start = header(i).readUInt32LE();
      const name = names.toString('latin1', start, names.indexOf(0, start));
      if (name.startsWith('.text.')) found.set(architecture, [...(found.get(architecture) ?? []), name]);
    }
  }
  return found;
}

describe('CUDA kernels', () => {
  it('have a definition on the CPU each, and need no header of torch', () => {
    for (const name of sources) {
      const stem = name.replace(/\.cu$/, '.cpp');
      const beside = name === 'objective.cu' ? join(ROOT, 'native/train', stem) : join(KERNELS, stem);
      expect(existsSync(beside), beside).toBe(true);
    }
    const device = readdirSync(KERNELS, { recursive: true, encoding: 'utf8' })
      .filter((name) => /\.cuh?$|^launch\.h$|^row\//.test(name))
      .filter((name) => /\.(cuh?|h)$/.test(name));
    expect(device.length).toBeGreaterThan(sources.length);
    for (const name of device) {
      const text = readFileSync(join(KERNELS, name), 'utf8');
      expect(text.match(/#include [<"](ATen|c10|torch)\//), name).toBeNull();
    }
  });

  it.runIf(existsSync(LIBRARY))('are compiled for sm_80 and sm_90, all of them', () => {
    const text = readdirSync(KERNELS)
      .filter((name) => /\.cuh?$/.test(name))
      .map((name) => readFileSync(join(KERNELS, name), 'utf8'))
      .join('\n');
    const kernels = [...text.matchAll(/__global__ void\s+(?:__launch_bounds__\(\w+\)\s+)?(\w+)\(/g)].map(
      ([, name]) => name!,
    );
    expect(kernels.length).toBe(text.split('__global__').length - 1);
    const compiled = functionsIn(readFileSync(LIBRARY));
    expect([...compiled.keys()].sort()).toEqual([80, 90]);
    for (const [architecture, functions] of compiled) {
      for (const kernel of kernels) expect(functions.join('\n'), `${kernel} for sm_${architecture}`).toContain(kernel);
    }
  });

  it.runIf(existsSync(CHECK))('pass on a GPU, or it is said that there is none', () => {
    const { status, stdout, stderr } = spawnSync(CHECK, ['test'], { encoding: 'utf8' });
    if (status === 0) expect(stdout).toMatch(/^\d+ passed, 0 failed$/m);
    else
      expect([stdout, stderr]).toEqual([
        '',
        expect.stringMatching(/^there is no GPU to run the kernels on \(.+\): nothing was checked\n$/),
      ]);
  });
});

describe.runIf(info().gpu === undefined)('a device, without a GPU', () => {
  const missing = /this core was built without CUDA: run `wrpo setup --cuda`|no usable GPU \(.+\): check `nvidia-smi`/;

  it('is the CPU with `auto`, which says why, and with `cuda` an error that says what is missing', async () => {
    expect(chooseDevice('auto')).toEqual({ device: 'cpu', because: expect.stringMatching(missing) });
    await expectSentence(() => chooseDevice('cuda'), 'ERR_DEVICE', missing);
    await expectSentence(() => chooseDevice('tpu' as 'cpu'), 'ERR_CONFIG', 'expected cpu, cuda or auto');
    await expectSentence(() => Model.load(POLICY, { device: 'cuda' }), 'ERR_DEVICE', missing);
    await using model = await Model.load(POLICY, { device: 'auto' });
    expect(model.device).toBe('cpu');
    expect(model.parameters().values().next().value!.device).toBe('cpu');
  });

  it('of a run is checked before its data are read', async () => {
    const trainer = new Trainer({
      model: POLICY,
      trainDataset: join(TRACE, 'nowhere.jsonl'),
      args: { outputDir: scratch('run'), device: 'cuda' },
    });
    await expectSentence(() => trainer.train(), 'ERR_DEVICE', missing);
  });
});

describe('the memory of a GPU', () => {
  const config = readModelConfig(POLICY);
  const onGpu = { device: 'cuda', config, memory: () => ({ current: 2 ** 30, peak: 3 * 2 ** 30 }) } as unknown as Model;
  const args = resolveArgs({ outputDir: '', microbatchTokens: 4096 });
  const plan = forecast(config, 4096, 139e9);

  it('is forecast in a line, with what to change where it is not enough', () => {
    expect(plan.keptLayers).toBe(config.layers);
    // What the process' own tensors take is there for the run.
    expect(describePlan(plan, onGpu, args, 139e9)).toMatch(/^\S.*: needs \d\.\d GiB of 130\.5$/);
    const tight = forecast(config, 4096, plan.total - 1);
    expect(describePlan(tight, onGpu, args, 139e9)).toMatch(
      / GiB of 130\.5, with 1 of 2 layers computed again in backward$/,
    );
    expect(describePlan(plan, { ...onGpu, memory: () => ({ current: 0 }) } as unknown as Model, args, 1e6)).toMatch(
      /: it will probably run out; lower microbatch_tokens \(4096\), set gradient_checkpointing: true or train adapters/,
    );
  });

  it('when it is not enough, gives forecast, peak and the setting; other errors are left alone', () => {
    const full = new WrpoError('ERR_OUT_OF_MEMORY', 'CUDA out of memory');
    expect(explainOutOfMemory(full, args, { model: onGpu, memory: plan })).toMatchObject({
      code: 'ERR_OUT_OF_MEMORY',
      message: expect.stringMatching(
        /3\.0 GiB were in use at most, \d\.\d GiB were forecast; lower microbatch_tokens \(4096\), set /,
      ),
    });
    expect(explainOutOfMemory(full, args, { model: { ...onGpu, device: 'cpu' } as Model, memory: plan })).toBe(full);
    expect(explainOutOfMemory(full, args)).toBe(full);
    const other = new WrpoError('ERR_DATA', 'no');
    expect(explainOutOfMemory(other, args, { model: onGpu, memory: plan })).toBe(other);
  });
});

describe.runIf(existsSync(join(ROOT, 'build/Release/libwrpo_core_cu130.so')) && existsSync(cudaLibtorchCache()))(
  'the core for a CUDA libtorch',
  () => {
    it('loads without a driver, and computes on the CPU what the other does', () => {
      const script = `
        const { info, Model } = await import(${JSON.stringify(join(ROOT, 'dist/index.js'))});
        const model = await Model.load(${JSON.stringify(POLICY)});
        const batch = { tokens: [1, 5, 9, 2, 7], positions: [0, 1, 2, 3, 4], targets: [9, 2, 7],
          promptOffsets: [0, 2], responseOffsets: [0, 3], groupOffsets: [0, 1] };
        const packed = Object.fromEntries(Object.entries(batch).map(([key, value]) => [key, Int32Array.from(value)]));
        console.log(JSON.stringify([info().torchVersion, (await model.logProbs(packed)).sums[0]]));`;
      const ask = (libtorch: string | undefined) => {
        const env = { ...process.env, WRPO_LIBTORCH: libtorch, ...(libtorch ? {} : { WRPO_LIBTORCH: '' }) };
        const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
          encoding: 'utf8',
          env,
        });
        expect(stderr).toBe('');
        return JSON.parse(stdout) as [string, number];
      };
      const [version, sum] = ask(cudaLibtorchCache());
      expect(version).toMatch(/^2\.14\./);
      const [otherVersion, otherSum] = ask(undefined);
      expect(otherVersion).not.toBe(version);
      expect(sum).toBeCloseTo(otherSum, 4);
    });
  },
);
