/** `fuse` as programs call it. */
import type { FusionInput } from './config.js';
import type { FuseOptions, FuseResult } from './fuse.js';

/**
 * Fuses models into one, in `outputDir`. A stage is passed over when nothing that it depends on has changed. Rejects with
 * ERR_CONFIG on what cannot be meant, ERR_CHECKPOINT naming what changed since a stage was done, and what stages throw:
 * whatever is finished stays, and the same call goes on from there.
 */
export async function fuse(config: FusionInput, options: FuseOptions = {}): Promise<FuseResult> {
  // Not before: its schema takes longer to load than the rest of the package.
  const [{ resolveFusion }, { runFusion }] = await Promise.all([import('./config.js'), import('./fuse.js')]);
  const where = (...path: PropertyKey[]) => ['config', ...path].map(String).join('.');
  return runFusion(resolveFusion(config as Record<string, unknown>, where), options);
}
