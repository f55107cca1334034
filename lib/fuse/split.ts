/** Which prompts serve what: held out, fine-tuning, preferences. */
import { createHash } from 'node:crypto';

/** The split of the quadruples that are trained on, of those that are held out, and that of fine-tuning rows. */
export type Part = 'train' | 'test' | 'sft';

export interface SplitRule {
  seed: number;
  /** The share of prompts that are held out or, from 1 on, their number. */
  heldOut: number;
  /** The share of the others that Target-SFT learns from; the paper's is a third. */
  sftRatio: number;
}

/**
 * The part of each prompt, in the order of `ids`. Prompts are drawn in the order of a hash of seed and id: how they stand
 * in a file does not matter.
 */
export function splitPrompts(ids: readonly string[], { seed, heldOut, sftRatio }: SplitRule): Part[] {
  const keys = ids.map((id) => createHash('sha256').update(`${seed} ${id}`).digest('hex'));
  const drawn = ids.map((_, index) => index).sort((a, b) => (keys[a]! < keys[b]! ? -1 : 1));
  const held = Math.min(ids.length, heldOut < 1 ? Math.round(heldOut * ids.length) : heldOut);
  const tuned = Math.round(sftRatio * (ids.length - held));
  const parts = new Array<Part>(ids.length).fill('train');
  for (const index of drawn.slice(0, held)) parts[index] = 'test';
  for (const index of drawn.slice(held, held + tuned)) parts[index] = 'sft';
  return parts;
}
