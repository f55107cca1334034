/** What a fusion has still to do, and about what it takes; nothing is asked and nothing written. */
import { existsSync } from 'node:fs';
import { readModelConfig } from '../model/config.js';
import { forecast as forecastMemory, parameterCount } from '../train/memory-plan.js';
import { objectiveOf, termsOf } from '../train/objective.js';
import type { RunInput } from './config.js';
import { LETTERS, type PromptLengths, planSampling } from './sampling-plan.js';
import { isImport, isLocal } from './schema.js';
import { argsOf } from './settings.js';
import { type Part, splitPrompts } from './split.js';
import type { Stage, StageState, Stages } from './stages.js';
import type { Work } from './work.js';

/** What cannot be known before, and is assumed. */
export interface Assumptions {
  /** Tokens of an answer. */
  answerTokens: number;
  /** Tokens a second that are written for one request. */
  speed: number;
  /** Answers scored a second. */
  rate: number;
  /** Tokens trained on a second. */
  trainSpeed: number;
}

export interface StageForecast {
  stage: string;
  state: StageState;
  /** Answers asked for or scored, or rows trained on. */
  count?: number;
  /** Tokens that are read, or trained on. */
  tokensRead?: number;
  tokensWritten?: number;
  seconds?: number;
  /** Of memory, where a model is run here. */
  bytes?: number;
  dollars?: number;
}

/** A forecast for each stage that is not done. Throws as the stages would when something has changed that they were done with. */
export async function forecastStages(
  { config, target, asked }: Work,
  stages: Stages,
  letters: PromptLengths,
  assumed: Assumptions,
  again: ReadonlySet<string> = new Set(),
): Promise<StageForecast[]> {
  const ids = [...letters.keys()];
  const parts = splitPrompts(ids, config);
  const tokensOf = (part: Part) =>
    ids.reduce((sum, id, i) => sum + (parts[i] === part ? Math.ceil(letters.get(id)! / LETTERS) : 0), 0);
  const countOf = (part: Part) => parts.filter((one) => one === part).length;
  const memory = memoryOf(target);

  const training = (input: RunInput, part: Part, share = 1) => {
    const args = argsOf(config, input);
    const responses = args.lossType === 'sft' ? 1 : termsOf(objectiveOf(args, args.alpha)).roles.length;
    const rows = countOf(part);
    const longest = args.maxLength * responses;
    const perRow = tokensOf(part) / (rows || 1) + responses * assumed.answerTokens;
    const tokensRead = Math.ceil(rows * Math.min(perRow, longest) * (share === 1 ? args.numTrainEpochs : 1));
    const seconds = Math.ceil((share * tokensRead) / assumed.trainSpeed);
    return { count: rows, tokensRead, seconds, bytes: memory(args.microbatchTokens, share === 1) };
  };
  const scoring = (models: readonly { n?: number }[], prompts: number, tokens: number) => {
    const answers = models.reduce((sum, { n = config.n }) => sum + prompts * n, 0);
    const read = models.length * tokens * config.n + answers * assumed.answerTokens;
    return { count: answers, tokensRead: read, seconds: Math.ceil(answers / assumed.rate) };
  };
  const sampling = (models: typeof config.sources, isTarget: boolean) => {
    const chosen = models.map((source) => ({ source, isTarget }));
    const plans = planSampling(config, chosen, letters, assumed);
    const sum = (of: (plan: (typeof plans)[number]) => number) => plans.reduce((all, plan) => all + of(plan), 0);
    const priced = plans.filter(({ dollars }) => dollars !== undefined);
    return {
      ...{ count: sum((plan) => plan.requests), tokensRead: sum((plan) => plan.promptTokens) },
      tokensWritten: sum((plan) => plan.completionTokens),
      seconds: Math.max(...plans.map((plan) => plan.seconds)), // all are asked at a time
      ...(priced.length > 0 && { dollars: sum((plan) => plan.dollars ?? 0) }),
    };
  };
  const learnt = countOf('train') + countOf('test');
  const ofStage = ({ name }: Stage): Omit<StageForecast, 'stage' | 'state'> => {
    if (name === 'sample-sources') return sampling(config.sources, false);
    if (name === 'sample-target') return sampling([asked], true);
    const all = tokensOf('train') + tokensOf('test');
    if (name === 'score-sources') {
      return scoring(
        config.sources.filter((source) => !isImport(source)) as { n?: number }[],
        ids.length,
        all + tokensOf('sft'),
      );
    }
    if (name === 'score-target') return scoring([asked as { n?: number }], learnt, all);
    if (name === 'sft') return training(config.sft!, 'sft');
    if (name === 'evaluate') {
      // Of prompts that are no part of the fusion's nothing is known before they are read.
      if (config.evaluate !== false && config.evaluate.prompts !== undefined) return {};
      const models = 1 + Number(config.sft !== undefined) + Object.keys(config.train).length;
      return { count: (models + config.sources.filter(isLocal).length) * countOf('test') };
    }
    if (name.startsWith('train/')) return training(config.train[name.slice('train/'.length)]!, 'train');
    if (name !== 'reference') return {};
    // A forward of a step's three passes.
    const runs = Object.values(config.train).map((input) => training(input, 'train', 1 / 3));
    return {
      count: countOf('train'),
      tokensRead: runs.reduce((sum, { tokensRead }) => sum + tokensRead, 0),
      seconds: runs.reduce((sum, { seconds }) => sum + seconds, 0),
      bytes: runs[0]!.bytes,
    };
  };
  const forecasts: StageForecast[] = [];
  const open = new Set<string>();
  for (const stage of stages.stages) {
    const waits = [...stage.reads, ...(stage.after ?? [])].some((name) => open.has(name));
    const state = waits || again.has(stage.name) ? 'open' : await stages.stateOf(stage);
    if (state !== 'done') open.add(stage.name);
    forecasts.push({ stage: stage.name, state, ...(state !== 'done' && ofStage(stage)) });
  }
  return forecasts;
}

/** Bytes that a model takes in training, or alone, by its configuration if it is here. */
function memoryOf(directory: string): (tokens: number, trains: boolean) => number | undefined {
  if (!existsSync(directory)) return () => undefined;
  const shape = readModelConfig(directory);
  return (tokens, trains) =>
    trains ? forecastMemory(shape, tokens, Number.POSITIVE_INFINITY).total : 4 * parameterCount(shape);
}
