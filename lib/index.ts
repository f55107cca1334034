/** The public API, and nothing else. Importing it loads no native code. */

export { type AnswerRow, readAnswers } from './data/answers.js';
export { type Contest, type PackedBatch, packRows, withContests } from './data/pack.js';
export { loadPreferences, type Message, type PreferenceRow, type Role } from './data/preferences.js';
export { WrpoError, type WrpoErrorCode } from './errors.js';
export { lengthControlled, pairwiseRate, summarise as alpacaEval } from './evaluate/alpaca-eval.js';
export { compareSamples } from './evaluate/analyses.js';
export { rate as arenaHard } from './evaluate/arena-hard.js';
export { judge, type Question, type Reader } from './evaluate/judge.js';
export { comparePairs, summarise as mtBench } from './evaluate/mt-bench.js';
export { readFinished } from './evaluate/runs.js';
export { tablesOf } from './evaluate/tables.js';
export { fuse } from './fuse/call.js';
export type { FusionInput } from './fuse/config.js';
export { endpointSampler } from './fuse/endpoint.js';
export type { FuseOptions, FuseResult } from './fuse/fuse.js';
export { judgeScorer } from './fuse/judge.js';
export { type LocalOptions, localSampler } from './fuse/local.js';
export { type Prompt, readPrompts } from './fuse/prompts.js';
export { type Selection, type SelectOptions, selectRows } from './fuse/quadruples.js';
export { type Sampler, sampleModel } from './fuse/sample.js';
export { functionScorer, type Scorer, scoreModel } from './fuse/score.js';
export { Store } from './fuse/store.js';
export type { ModelConfig } from './model/config.js';
export type {
  GeneratedSample,
  GeneratedSamples,
  GenerateOptions,
  GenerationPrompt,
  Generator,
  GeneratorOptions,
  SampleOptions,
  SamplingOptions,
  TokenNews,
} from './model/generator.js';
export { selectedLogProbs, selectedLogProbsBackward } from './model/head.js';
export type { Lora, LoraOptions } from './model/lora.js';
export { type LoadOptions, Model, type ModelOptions } from './model/model.js';
export { gatingPosition, type Score, type ScoreOptions } from './model/reward.js';
export type { AdapterUse, Batch, ContestForm, Dtype, LogProbs, NativeInfo } from './native/addon.js';
export { info, Tensor } from './native/surface.js';
export { writeReport } from './report/call.js';
export type { ExtraSection, ReportOptions } from './report/report.js';
export { encodeConversations, type RowConversations } from './text/conversations.js';
export { type EncodedRow, encodeRows } from './text/encode.js';
export { encodePrompt } from './text/prompt.js';
export { Tokenizer } from './text/tokenizer.js';
export { AdamW, type AdamWOptions } from './train/adamw.js';
export type { TrainingArgs, TrainingArgsInput } from './train/args.js';
export type { Metrics } from './train/metrics.js';
export {
  type ContestObjective,
  contestsOf,
  type FunctionObjective,
  formOf,
  type LossType,
  type NamedObjective,
  type Objective,
  type PromptLogProbs,
  preferenceLoss,
} from './train/objective.js';
export {
  type StepResult,
  Trainer,
  type TrainerEvents,
  type TrainerOptions,
  type TrainOptions,
  type TrainResult,
} from './train/trainer.js';
export { allWarnings, type Warning } from './train/warnings.js';
