/** The CUDA kernels as far as a machine without a GPU can tell; on one with a GPU, `npm run test:gpu` runs them. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ROOT } from './training.ts';

const KERNELS = join(ROOT, 'native/kernels');
const LIBRARY = join(ROOT, 'build/cmake/libwrpo_kernels.a');
const CHECK = join(ROOT, 'build/Release/gpu_check');
const works = (command: string) => spawnSync(command, ['--version']).status === 0;
const sources = readdirSync(KERNELS).filter((name) => name.endsWith('.cu'));

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

  const inspectable = existsSync(LIBRARY) && works('cuobjdump');
  it.runIf(inspectable)('are compiled for sm_80 and sm_90, all of them', () => {
    const text = sources.map((name) => readFileSync(join(KERNELS, name), 'utf8')).join('\n');
    const kernels = [...text.matchAll(/__global__ void\s+(?:__launch_bounds__\(\w+\)\s+)?(\w+)\(/g)].map(
      ([, name]) => name!,
    );
    expect(kernels.length).toBe(text.split('__global__').length - 1);
    for (const architecture of ['sm_80', 'sm_90']) {
      const { stdout } = spawnSync('cuobjdump', ['-symbols', '-arch', architecture, LIBRARY], { encoding: 'utf8' });
      for (const kernel of kernels) expect(stdout, `${kernel} for ${architecture}`).toContain(kernel);
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
