/** Seeds that depend on what is sampled, never on when or beside what. */
import { createHash } from 'node:crypto';

/**
 * The seed of sample `index` (from 0) of a prompt by a model: 31 bits, which every server takes. The same whatever the
 * batch, the order and the number of samples.
 */
export function seedOf(runSeed: number, promptId: string, model: string, index: number): number {
  const digest = createHash('sha256')
    .update(JSON.stringify([runSeed, promptId, model, index]))
    .digest();
  return digest.readUInt32BE() >>> 1;
}
