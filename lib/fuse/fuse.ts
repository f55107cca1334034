/** `fuse`: the paper's method from prompts to models, a stage after the other, each done once. */
import { join } from 'node:path';
import { stringify } from 'yaml';
import { makeDirectory, writeFileAtomic } from '../data/files.js';
import { writeReport } from '../report/call.js';
import { snake } from '../train/compat.js';
import type { Metrics } from '../train/metrics.js';
import { type ComparisonRow, readComparison } from './comparison.js';
import type { FusionConfig } from './config.js';
import { type Assumptions, forecastStages, type StageForecast } from './forecast.js';
import { lock } from './lock.js';
import { promptsOf } from './models.js';
import { lettersOf } from './prompts.js';
import type { Scorer } from './score.js';
import { type StageRecord, Stages } from './stages.js';
import { selectedDirectory, Work } from './work.js';

export interface FuseOptions {
  /** Beside those of the configuration; see `functionScorer`. */
  scorers?: readonly Scorer[];
  /** Does this stage and all that follow from it again. What was sampled and scored is moved to `superseded`. */
  from?: string;
  /** Does nothing but these stages. */
  only?: readonly string[];
  /** Stops what goes on, leaving it so that it can be gone on with; rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Takes lines of words. */
  say?: (line: string) => void;
  /** How far a stage is, in prompts or answers. */
  onProgress?: (progress: { stage: string; done: number; total: number }) => void;
  /** A line of a training run's log. */
  onLog?: (stage: string, line: Metrics) => void;
}

export interface FuseResult {
  directory: string;
  stages: StageRecord[];
  /** Of the last stage, if it is done. */
  results?: ComparisonRow[];
}

/** `fuse`, of a configuration that is checked. */
export async function runFusion(config: FusionConfig, options: FuseOptions = {}): Promise<FuseResult> {
  const { from, only, say = () => {}, signal = new AbortController().signal } = options;
  const work = new Work(config, options);
  const stages = stagesOf(work);
  const asked = only?.map((name) => stages.named(name, '--only').name);
  const again = from === undefined ? new Set<string>() : stages.from(from);
  makeDirectory(config.outputDir);
  const unlock = lock(join(config.outputDir, 'fuse.lock'), config.outputDir);
  try {
    writeFileAtomic(join(config.outputDir, 'config.yaml'), stringify(toFile(config)));
    stages.forget(again);
    for (const stage of stages.stages) {
      signal.throwIfAborted();
      if (asked && !asked.includes(stage.name)) continue;
      const state = await stages.stateOf(stage);
      if (state === 'done') say(`${stage.name}: done before`);
      else {
        say(`${stage.name}${state === 'changed' ? ': again, since what it is made from has changed' : ''}`);
        await stages.do(stage, signal);
        work.hashes.save();
      }
    }
    work.hashes.save(); // of stages that were done before, of which it may have known nothing
    await writeReport(config.outputDir);
  } finally {
    unlock();
  }
  const records = stages.stages.flatMap(({ name }) => stages.record(name) ?? []);
  const evaluated = records.some(({ stage }) => stage === 'evaluate');
  return {
    ...{ directory: config.outputDir, stages: records },
    ...(evaluated && { results: readComparison(join(config.outputDir, 'evaluation')) }),
  };
}

/** What of a fusion is done, and about what the rest takes; `from` as for `fuse`. Nothing is asked and nothing written. */
export async function forecastFusion(
  config: FusionConfig,
  options: FuseOptions,
  assumptions: Assumptions,
): Promise<{ prompts: number; stages: StageForecast[] }> {
  const work = new Work(config, options);
  const stages = stagesOf(work);
  const letters = await lettersOf(promptsOf(config, options.say ?? (() => {})));
  const again = options.from === undefined ? undefined : stages.from(options.from);
  return { prompts: letters.size, stages: await forecastStages(work, stages, letters, assumptions, again) };
}

/** The stages of a fusion, in their order. */
function stagesOf(work: Work): Stages {
  const { config } = work;
  const { sources, sft, train } = config;
  const tuned = sft === undefined ? [] : ['sft'];
  const selected = (selection?: string) => (selection === undefined ? 'select' : `select/${selection}`);
  const stages = [
    // 1. Every source answers every prompt; the best answer is y_ws.
    work.sampling('sample-sources', sources, { reads: [] }),
    work.scoring('score-sources', sources, { reads: ['sample-sources'] }),
  ];
  const ofSources = ['sample-sources', 'score-sources'];
  if (sft !== undefined) {
    // 2. The target is fine-tuned on y_ws of a part of the prompts: Target-SFT, which is the reference as well.
    const rows = { directory: 'selected-sft', isTuning: true };
    stages.push(work.selecting('select-sft', { reads: ofSources }, rows));
    stages.push(work.tuning('sft', { reads: ['select-sft'] }, sft));
  }
  // 3. It answers the other prompts; of its answers the best is y_wt and the worst y_l.
  stages.push(work.sampling('sample-target', [work.asked], { reads: tuned, after: ['sample-sources'] }));
  stages.push(work.scoring('score-target', [work.asked], { reads: ['sample-target'] }));
  for (const selection of [undefined, ...Object.keys(config.selections)]) {
    const reads = [...ofSources, 'sample-target', 'score-target'];
    const rows = { directory: selectedDirectory(selection), selection };
    stages.push(work.selecting(selected(selection), { reads }, rows));
  }
  // 4. Preferences are learnt from the quadruples, by each objective that is asked for.
  const runs = Object.entries(train);
  const selections = [...new Set(runs.map(([, run]) => selected(run.selection)))];
  stages.push(work.reference('reference', { reads: [...selections, ...tuned] }));
  for (const [name, run] of runs) {
    const order = { reads: [selected(run.selection), ...tuned], after: ['reference'] };
    stages.push(work.learning(name, order));
  }
  const trained = runs.map(([name]) => `train/${name}`);
  const comparison = work.comparing('evaluate', { reads: ['select', ...tuned, ...trained] });
  return new Stages(config.outputDir, comparison ? [...stages, comparison] : stages, work.hashes);
}

// What these hold goes by names of the user's own.
const NAMED = ['train', 'selections', 'groups', 'extraBody'];

/** As a run file that would do the same. */
function toFile(value: unknown, spell = snake): unknown {
  if (Array.isArray(value)) return value.map((one) => toFile(one));
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).filter(([, one]) => one !== undefined);
  return Object.fromEntries(
    entries.map(([key, one]) => [spell(key), toFile(one, NAMED.includes(key) ? (name) => name : snake)]),
  );
}
