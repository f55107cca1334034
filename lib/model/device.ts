/** Where a model is computed. */
import { WrpoError } from '../errors.js';
import type { Device } from '../native/addon.js';
import { loadNative } from '../native/load.js';

/**
 * What `device` means: `auto` is the GPU where there is a usable one. Throws ERR_DEVICE, saying what is missing, for `cuda`
 * where there is none, and ERR_CONFIG for anything else.
 */
export function chooseDevice(device: Device | 'auto'): { device: Device; because: string } {
  if (device === 'cpu') return { device, because: 'cpu' };
  if (device !== 'cuda' && device !== 'auto') {
    throw new WrpoError('ERR_CONFIG', `device "${device}": expected cpu, cuda or auto`);
  }
  const { gpu, noGpu } = loadNative().info();
  if (gpu) return { device: 'cuda', because: device === 'cuda' ? gpu.name : `auto chose the GPU, ${gpu.name}` };
  if (device === 'auto') return { device: 'cpu', because: `auto chose the CPU: ${noGpu}` };
  throw new WrpoError('ERR_DEVICE', `device "cuda": ${noGpu}`);
}
