/** What a run directory says about itself: `config.yaml` and `manifest.json`. */
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { writeFileAtomic } from '../data/files.js';
import { loadNative } from '../native/load.js';
import { type TrainingArgs, toRunFile } from './args.js';

/** The package's own version. */
export const VERSION: string = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;

/** Writes both files: the resolved arguments, and versions, hashes, seed and hardware. */
export async function describeRun(
  args: TrainingArgs,
  ownObjective: boolean,
  hashes: Record<string, string>,
): Promise<void> {
  const { stringify } = await import('yaml');
  writeFileAtomic(join(args.outputDir, 'config.yaml'), stringify(toRunFile(args, ownObjective)));
  const { torchVersion, cpuCapability, threads } = loadNative().info();
  const manifest = {
    wrpo: VERSION,
    node: process.version,
    libtorch: torchVersion,
    hardware: { cpu: cpus()[0]?.model, capability: cpuCapability, threads },
    seed: args.seed,
    hashes,
  };
  writeFileAtomic(join(args.outputDir, 'manifest.json'), `${JSON.stringify(manifest, null, 1)}\n`);
}
