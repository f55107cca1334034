/** Where a run goes on from, and what a checkpoint can be continued with. */
import { createHash } from 'node:crypto';
import type { TrainingArgs } from './args.js';
import { type Checkpoint, listCheckpoints, type ResumeKey, readCheckpoint, recoverCheckpoints } from './checkpoint.js';
import type { DataOptions, Prepared } from './prepare.js';

/** The arguments that change what a step computes, or which step is the best. */
const RESUME_ARGS = [
  ...(['lossType', 'beta', 'alpha', 'isDynamic', 'labelSmoothing', 'shuffle', 'seed'] as const),
  ...(['chosen', 'simpoGamma', 'ipoNormalization', 'sftWeight'] as const),
  ...(['learningRate', 'lrSchedulerType', 'warmupRatio', 'warmupSteps', 'weightDecay', 'maxGradNorm'] as const),
  ...(['adamBeta1', 'adamBeta2', 'adamEpsilon', 'microbatchTokens', 'sharePrompt', 'templateMode'] as const),
  ...(['metricForBestModel', 'greaterIsBetter'] as const),
];

/**
 * Reads the checkpoint that a run goes on from: the directory `from`, or for `true` the run's latest. Undefined for a run
 * from the start. Throws ERR_CHECKPOINT on one that cannot be continued.
 */
export async function openCheckpoint(
  from: string | boolean | undefined,
  { outputDir }: TrainingArgs,
  resume: ResumeKey,
  say: (line: string) => void,
): Promise<Checkpoint | undefined> {
  recoverCheckpoints(outputDir);
  const dir = from === true ? listCheckpoints(outputDir).at(-1) : from || undefined;
  if (dir !== undefined) {
    const checkpoint = await readCheckpoint(dir, resume);
    say(`going on from ${dir}, after step ${checkpoint.step} of ${resume['the number of steps']}`);
    return checkpoint;
  }
  if (from === true) say(`no checkpoint in ${outputDir}: starting at step 0`);
  return undefined;
}

/** What must be equal for a checkpoint to be continued to the same bits. */
export function resumeKey(
  { model, fingerprint, referenceFingerprint, train }: Prepared,
  args: TrainingArgs,
  objective: DataOptions['objective'],
  totalSteps: number,
): ResumeKey {
  return {
    // As far as it can be seen from outside.
    'the objective': createHash('sha256').update(sourceOf(objective)).digest('hex').slice(0, 16),
    ...Object.fromEntries(RESUME_ARGS.map((name) => [name, args[name] ?? 'default'])),
    dtype: model.dtype,
    ...{ loraR: model.lora?.r, loraAlpha: model.lora?.loraAlpha, loraDropout: model.lora?.loraDropout },
    ...{ useRslora: model.lora?.useRslora, loraTargetModules: model.lora?.modules.join() },
    'the global batch': args.perDeviceTrainBatchSize * args.gradientAccumulationSteps,
    // After the settings that they follow from, so that an error names the cause first.
    'the initial model': fingerprint,
    'the reference model': referenceFingerprint,
    'the training data': train.hash,
    'the number of steps': totalSteps,
  };
}

const sourceOf = (objective: unknown): string =>
  JSON.stringify(objective ?? null, (_, value) => (typeof value === 'function' ? String(value) : value));
