/** The scorers of a fusion, by what its run file says of them. */
import { readFileSync } from 'node:fs';
import { WrpoError } from '../errors.js';
import { armormScorer } from './armorm.js';
import type { FusionConfig } from './config.js';
import { httpScorer } from './http-scorer.js';
import { judgeScorer } from './judge.js';
import type { ScorerConfig } from './schema.js';
import type { Scorer } from './score.js';

/** How answers are scored. Throws ERR_CONFIG or ERR_MODEL: a template that lacks something, a model that is not there. */
export async function scorerOf(
  one: ScorerConfig,
  { seed }: FusionConfig,
  say: (line: string) => void,
): Promise<Scorer> {
  if (one.kind === 'armorm') return armormScorer(one);
  if (one.kind === 'http') return httpScorer(one);
  return judgeScorer({ ...one, scale: one.scale, template: templateOf(one), seed, say });
}

function templateOf({ name, template }: Extract<ScorerConfig, { kind: 'judge' }>): string | undefined {
  if (template === undefined) return undefined;
  let text: string;
  try {
    text = readFileSync(template, 'utf8');
  } catch (cause) {
    throw new WrpoError('ERR_CONFIG', `${name}: the template ${template} cannot be read`, { cause });
  }
  const missing = ['{prompt}', '{response}'].find((part) => !text.includes(part));
  if (missing === undefined) return text;
  throw new WrpoError('ERR_CONFIG', `${name}: the template ${template} has no ${missing}`);
}
