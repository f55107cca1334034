/**
 * The CUDA libtorch: PyPI's torch and the nvidia packages that it loads, unpacked side by side, since its libraries look
 * for theirs in `../../nvidia`. Imports nothing but Node's own modules: setup.mjs runs the compiled form.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { WrpoError } from '../errors.js';

/** The CUDA libtorch this version of wrpo compiles and loads with. */
export const CUDA_LIBTORCH = { version: '2.14.1', variant: 'cu130' } as const;

// What libtorch_cuda.so needs to be loaded; cusolver and others are only for what is not computed here.
const PACKAGES = [
  `torch==${CUDA_LIBTORCH.version}`,
  'nvidia-cublas==13.1.1.3',
  'nvidia-cuda-cupti==13.0.85',
  'nvidia-cuda-nvrtc==13.0.88',
  'nvidia-cuda-runtime==13.0.96',
  'nvidia-cudnn-cu13==9.24.0.43',
  'nvidia-cufft==12.0.0.61',
  'nvidia-cufile==1.15.1.6',
  'nvidia-curand==10.4.0.35',
  'nvidia-cusparse==12.6.3.3',
  'nvidia-cusparselt-cu13==0.8.1',
  'nvidia-nccl-cu13==2.30.7',
  'nvidia-nvjitlink==13.4.92',
  'nvidia-nvshmem-cu13==3.4.5',
];

/** The libtorch directory that `wrpo setup --cuda` makes; its packages' common one is the parent. */
export function cudaLibtorchCache(): string {
  const caches = process.env.XDG_CACHE_HOME || join(homedir(), '.cache');
  return join(caches, 'wrpo', `libtorch-${CUDA_LIBTORCH.version}-${CUDA_LIBTORCH.variant}`, 'torch');
}

/** Whether this machine has an NVIDIA driver, and with it perhaps a GPU. */
export const hasNvidiaDriver = (): boolean => ['/dev/nvidiactl', '/dev/dxg'].some((path) => existsSync(path));

/** Fetches it with pip. Throws ERR_NATIVE_LOAD with pip's reason. */
export function fetchCudaLibtorch({ log }: { log: (line: string) => void }): string {
  const target = dirname(cudaLibtorchCache());
  mkdirSync(dirname(target), { recursive: true });
  const work = mkdtempSync(`${target}.partial-`);
  log(`libtorch ${CUDA_LIBTORCH.version}+${CUDA_LIBTORCH.variant}: downloading (2 GB)…`);
  try {
    // For whichever Python, since only the libraries count: this one's, which a mirror is likely to have, or one that all
    // releases are for.
    const install = (...python: string[]) => {
      const where = ['--target', work, '--no-deps', '--no-compile', '--only-binary=:all:', ...python];
      return spawnSync('python3', ['-m', 'pip', 'install', ...where, ...PACKAGES], {
        encoding: 'utf8',
        stdio: ['ignore', 'ignore', 'pipe'],
      });
    };
    const own = install();
    const { error, status, stderr } = own.status === 0 ? own : install('--python-version', '3.12');
    if (error || status !== 0) {
      const reason = error?.message ?? [...stderr.matchAll(/^ERROR: (.+)$/gm)].at(-1)?.[1] ?? stderr.trim();
      throw new WrpoError(
        'ERR_NATIVE_LOAD',
        `pip could not install ${PACKAGES[0]} and the nvidia packages it loads (${reason}): check the network and pip's configuration, or set WRPO_LIBTORCH to the torch directory of an installed CUDA wheel.`,
      );
    }
    rmSync(target, { recursive: true, force: true });
    renameSync(work, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return cudaLibtorchCache();
}
