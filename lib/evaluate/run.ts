/** An evaluation from its run file to its results. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { evaluateAlpaca } from './run-alpaca.js';
import { evaluateArena } from './run-arena.js';
import { evaluateMt } from './run-mt.js';
import { type JudgedConfig, type Results, type RunOptions, writeJson } from './work.js';

/** Evaluates, writes `results.json` into `output_dir` and returns it; of a dry run, an estimate. */
export async function evaluateJudged(config: JudgedConfig, options: RunOptions): Promise<Results> {
  mkdirSync(config.outputDir, { recursive: true });
  const results =
    config.benchmark === 'alpaca_eval'
      ? await evaluateAlpaca(config, options)
      : config.benchmark === 'arena_hard'
        ? await evaluateArena(config, options)
        : await evaluateMt(config, options);
  if (!options.dryRun) writeJson(join(config.outputDir, 'results.json'), results);
  return results;
}
