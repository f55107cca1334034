/** Everything a run works on, loaded and encoded: the policy, its tokenizer, the reference, the rows. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fetchModel, isHubId, type ModelRequest } from '../data/hub.js';
import {
  type PreferenceRow,
  type ReadOptions,
  type Role,
  readPreferences,
  toPreferenceRow,
} from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { readModelConfig } from '../model/config.js';
import { chooseDevice } from '../model/device.js';
import { autoDtype } from '../model/dtype.js';
import { baseOf, isAdapter, type LoraOptions } from '../model/lora.js';
import { Model, type ModelOptions } from '../model/model.js';
import type { AdapterUse } from '../native/addon.js';
import { type EncodedRow, type EncodeOptions, type EncodeReport, encodeRows } from '../text/encode.js';
import { Tokenizer } from '../text/tokenizer.js';
import { readsWholeTexts, type TrainingArgs, usesField } from './args.js';
import type { MemoryPlan } from './memory-plan.js';
import { type Objective, objectiveOf, type Terms, termsOf } from './objective.js';
import { progressBar } from './progress.js';
import { hashRows, logProbsOf, type ReferenceColumn, referenceColumn } from './reference.js';
import { describePlan, freeMemory, planRun } from './run-memory.js';

export interface DataOptions {
  /**
   * A model directory in Hugging Face layout, one with a LoRA adapter, which is then trained further, a hub id
   * (`modelRevision` of it), or a model that is already loaded, to which `usePeft` adds adapters.
   */
  model: string | Model;
  /**
   * A JSONL, Parquet or Arrow file, a directory or a hub id (`datasetTrainSplit` of it), or rows as objects; the shapes of
   * rows are described in data/preferences.ts.
   */
  trainDataset: string | readonly unknown[];
  /** The same, with `datasetTestSplit`. */
  evalDataset?: string | readonly unknown[];
  /** Default: the one in the model's directory. Needed for rows of text only. */
  tokenizer?: Tokenizer;
  /**
   * The frozen reference, kept in memory. Default: the initial policy, whose log-probs are computed once (with `usePeft` by
   * the weights without the fresh adapters).
   */
  refModel?: string | Model;
  /** Where reference log-probs are kept, for several runs of the same rows and model. Default: the run's own `outputDir`. */
  referenceDir?: string;
  /** An objective of the caller's own, instead of `lossType`; as a function it follows alpha as the run ramps it. */
  objective?: Objective | ((at: { alpha: number }) => Objective);
}

/** The encoded rows of a data set with, once known, their reference log-probs. */
export interface Split {
  rows: EncodedRow[];
  /** Of every token id. */
  hash: string;
  reference?: ReferenceColumn;
}

export interface Prepared {
  model: Model;
  tokenizer?: Tokenizer;
  /** A resident reference; without one, the splits have columns. */
  refModel?: Model;
  roles: Role[];
  /** The objective at an alpha, and whether it has one. */
  termsAt(alpha: number): Terms;
  usesAlpha: boolean;
  /** Hash of the initial policy's weights. */
  fingerprint: string;
  /** Hash of the reference's; of the policy's own, which `referenceUse` says more of, without a resident one. */
  referenceFingerprint: string;
  referenceUse: Pick<AdapterUse, 'adapters'>;
  /** What training is expected to take of the device's memory. */
  memory: MemoryPlan;
  train: Split;
  eval?: Split;
}

/** Reads, checks and encodes: all rows are tokens before any weights are loaded. */
export async function prepare(
  options: DataOptions,
  args: TrainingArgs,
  say: (line: string) => void,
): Promise<Prepared> {
  const { trainDataset, evalDataset, objective, refModel: reference = args.refModelNameOrPath } = options;
  const termsAt = (alpha: number) => {
    const own = typeof objective === 'function' ? objective({ alpha }) : objective;
    return termsOf(own ?? objectiveOf(args, alpha));
  };
  const usesAlpha = objective ? typeof objective === 'function' : usesField(args.lossType, 'alpha');
  const { roles, reference: usesReference } = termsAt(args.alpha);
  const { device, because } = chooseDevice(args.device); // a GPU that is missing is said before any data are read
  if (args.device === 'auto') say(`device: ${because}`);
  // A reference that is another model has revisions of its own.
  const find = (model: string | Model) =>
    locate(model, { revision: model === options.model ? args.modelRevision : undefined, say });
  const located = await find(options.model);
  if (args.usePeft && (typeof located === 'string' ? isAdapter(located) : located.lora)) {
    const what = typeof located === 'string' ? located : 'the model';
    throw new WrpoError('ERR_CONFIG', `use_peft: ${what} has adapters already; leave use_peft out to train those`);
  }
  if (!args.usePeft && typeof located !== 'string' && located.frozen && !located.lora) {
    throw new WrpoError(
      'ERR_CONFIG',
      'the model was loaded frozen: load it without `frozen`, or set use_peft, to train it',
    );
  }
  const source = typeof located === 'string' ? await sourceOf(located, { say }) : located;
  if (source.config.rewardHead) {
    const what = typeof located === 'string' ? located : 'the model';
    throw new WrpoError(
      'ERR_MODEL',
      `${what} is a reward model, without a language-model head: it scores, and is not trained`,
    );
  }
  const { chatTemplate } = args;
  if (options.tokenizer && chatTemplate !== undefined) {
    const how = 'load it with that template: Tokenizer.load(dir, { chatTemplate })';
    throw new WrpoError('ERR_CONFIG', `chatTemplate is not for a tokenizer that is loaded already; ${how}`);
  }
  const tokenizer = options.tokenizer ?? (await tokenizerOf(source, chatTemplate));
  const encoding = { ...encodingOf(args, source.config.vocabSize, roles), tokenizer };
  const encode = async (
    data: string | readonly unknown[],
    key: string,
    name: string,
    split: ReadOptions,
  ): Promise<Split> => {
    const report = await encodeRows(readRows(data, key, args, { ...split, say }), encoding);
    if (report.read === 0) throw new WrpoError('ERR_DATA', `${key} is empty`);
    if (report.rows.length === 0) throw new WrpoError('ERR_DATA', `${name}: ${nothingLeft(report, encoding)}`);
    const line = describeReport(report, encoding);
    if (line !== undefined) say(`${name}: ${line}`);
    return { rows: report.rows, hash: hashRows(report.rows, roles) };
  };
  const train = await encode(trainDataset, 'trainDataset', 'training data', trainSplit(args));
  const evalSplit =
    evalDataset === undefined
      ? undefined
      : await encode(evalDataset, 'evalDataset', 'evaluation data', {
          // Data of another name have configurations and revisions of their own.
          ...(evalDataset === trainDataset ? trainSplit(args) : {}),
          split: args.datasetTestSplit ?? 'test',
        });
  const model = await open(located, args, say, { lora: loraOf(args, options.model) });
  if (args.dtype === 'auto' && located !== model) say(`dtype: ${autoDtype(device).because}`);
  const resident = usesReference && reference !== undefined;
  const refModel = resident ? await open(await find(reference), args, say, { frozen: true }) : undefined;
  const fingerprint = await model.fingerprint();
  const referenceUse = { adapters: !args.usePeft };
  const referenceFingerprint = await (refModel ? refModel.fingerprint() : model.fingerprint(referenceUse));
  const free = freeMemory(model);
  const memory = planRun({ model, refModel, rows: train.rows, roles }, args, free);
  const words = describePlan(memory, model, args, free);
  if (words !== undefined) say(words);
  return {
    ...{ model, tokenizer, refModel, roles, termsAt, usesAlpha, referenceUse, memory },
    ...{ fingerprint, referenceFingerprint, train, eval: evalSplit },
  };
}

/** The fresh adapters that a run trains, if it does. */
function loraOf(args: TrainingArgs, model: string | Model): LoraOptions | undefined {
  if (!args.usePeft) return undefined;
  return {
    ...{ r: args.loraR, loraAlpha: args.loraAlpha, loraDropout: args.loraDropout, useRslora: args.useRslora },
    ...{ targetModules: args.loraTargetModules, seed: args.seed },
    baseModelNameOrPath: typeof model === 'string' && !existsSync(model) ? model : undefined,
  };
}

/** How a run turns rows into ids. */
export function encodingOf(args: TrainingArgs, vocabSize: number, roles: readonly Role[]): EncodeOptions {
  const { lossType, packing, packingStrategy } = args;
  return {
    ...{ roles, vocabSize },
    ...{ maxLength: args.maxLength, maxPromptLength: args.maxPromptLength, truncationMode: args.truncationMode },
    ...{ templateMode: args.templateMode, autoInsertEmptySystemMsg: args.autoInsertEmptySystemMsg },
    allTokens: lossType === 'sft' && (readsWholeTexts(args) || args.completionOnlyLoss === false),
    blocks: packing && packingStrategy === 'wrapped',
  };
}

/** What of a data set with splits is trained on. */
export const trainSplit = ({ datasetTrainSplit, datasetConfig, datasetRevision }: TrainingArgs): ReadOptions => ({
  split: datasetTrainSplit,
  config: datasetConfig,
  revision: datasetRevision,
});

/** What was left out, or made of the rows; nothing when they are all there and whole. */
function describeReport(report: EncodeReport, { maxLength, blocks }: EncodeOptions): string | undefined {
  const { read, rows, tokens, dropped, truncated, truncatedPrompts, leftOver } = report;
  if (blocks) {
    return `${read} rows make ${rows.length} blocks of ${maxLength} tokens (${tokens} in all); ${leftOver} tokens at the end are left out`;
  }
  const lost = [
    dropped > 0 && `${dropped} dropped (the prompt is too long)`,
    truncatedPrompts > 0 && `${truncatedPrompts} prompts cut to max_prompt_length`,
    truncated > 0 && `${truncated} responses cut to max_length`,
  ].filter((part) => part !== false);
  return lost.length === 0 ? undefined : `${read} rows (${tokens} tokens kept), ${lost.join(', ')}`;
}

function nothingLeft({ read, leftOver }: EncodeReport, { maxLength, blocks }: EncodeOptions): string {
  return blocks
    ? `the ${read} rows have ${leftOver} tokens together, too few for one block of max_length ${maxLength}`
    : `no row is left: the prompts of all ${read} are too long`;
}

/**
 * Fills in the reference columns, unless a resident model answers for every batch; returns how many rows it filled. They are
 * kept in `shared`, under names of what they hang on, or in the run's own directory.
 */
export async function fillReference(
  run: Prepared,
  args: TrainingArgs,
  { shared, signal }: { shared?: string; signal?: AbortSignal } = {},
): Promise<number> {
  if (!run.termsAt(args.alpha).reference || run.refModel) return 0;
  let filled = 0;
  for (const [name, split] of Object.entries({ train: run.train, eval: run.eval })) {
    if (!split || split.reference) continue;
    const bar = progressBar('reference log-probs', split.rows.length, !args.disableTqdm);
    const key = {
      'model weights': run.referenceFingerprint,
      'token ids': split.hash,
      roles: run.roles.join(),
      dtype: run.model.dtype,
    };
    const packing = [args.microbatchTokens, args.sharePrompt];
    const digest = createHash('sha256')
      .update(JSON.stringify([key, packing]))
      .digest('hex')
      .slice(0, 16);
    try {
      split.reference = await referenceColumn({
        file: shared ? join(shared, `${name}-${digest}.jsonl`) : join(args.outputDir, `reference-${name}.jsonl`),
        key,
        model: run.model,
        use: run.referenceUse,
        rows: split.rows,
        roles: run.roles,
        microbatchTokens: args.microbatchTokens,
        sharePrompt: args.sharePrompt,
        onProgress: (done) => bar.update(done, {}),
        signal,
      });
      filled += split.rows.length;
    } finally {
      bar.stop();
    }
  }
  return filled;
}

/** Reference log-probs of some of a split's rows: the column's, or the resident model's; empty without a reference. */
export async function referenceOf(
  run: Prepared,
  split: Split,
  part: EncodedRow[],
  indices: readonly number[],
  sharePrompt: boolean,
): Promise<ReferenceColumn> {
  if (run.refModel) return logProbsOf(run.refModel, part, run.roles, sharePrompt);
  return indices.map((i) => split.reference?.[i] ?? {});
}

/** A model's directory, fetched if it is a hub id; a model that is loaded stays what it is. */
export async function locate<M extends string | Model>(model: M, request: ModelRequest): Promise<M | string> {
  if (typeof model !== 'string' || existsSync(model) || !isHubId(model)) return model;
  return fetchModel(model, request);
}

async function open(
  model: string | Model,
  { dtype, device }: TrainingArgs,
  say: (line: string) => void,
  how: Pick<ModelOptions, 'lora' | 'frozen'>,
): Promise<Model> {
  if (typeof model === 'string') {
    const { baseDirectory } = await sourceOf(model, { say });
    return Model.load(model, { dtype, device, baseModel: baseDirectory, ...how });
  }
  if (how.lora) await model.addAdapters(how.lora);
  return model;
}

/**
 * A model's directory, its base's if it is an adapter's (unless it is given, the one that the adapter names, fetched if it
 * is a hub id), and the configuration.
 */
export async function sourceOf(directory: string, request: ModelRequest, base?: string) {
  const baseDirectory = base ?? (isAdapter(directory) ? await locate(baseOf(directory), request) : undefined);
  return { directory, baseDirectory, config: readModelConfig(baseDirectory ?? directory) };
}

/** The tokenizer in the directory of a model or of its base, if there is one. */
export async function tokenizerOf(
  { directory, baseDirectory }: { directory?: string; baseDirectory?: string },
  chatTemplate?: string,
): Promise<Tokenizer | undefined> {
  const found = [directory, baseDirectory].find((dir) => dir !== undefined && existsSync(join(dir, 'tokenizer.json')));
  return found === undefined ? undefined : Tokenizer.load(found, { chatTemplate });
}

/** The same, which there must be. Throws ERR_MODEL. */
export async function requireTokenizer(source: { directory: string; baseDirectory?: string }): Promise<Tokenizer> {
  const found = await tokenizerOf(source);
  if (found) return found;
  throw new WrpoError('ERR_MODEL', `${source.directory}: there is no tokenizer.json, which text needs`);
}

/** The rows of a file or of objects in memory. */
async function* readRows(
  source: string | readonly unknown[],
  name: string,
  { lossType, chosen }: TrainingArgs,
  { say, ...options }: ReadOptions & { say: (line: string) => void },
): AsyncGenerator<PreferenceRow> {
  // A loss of pairs leaves one of the two chosen responses of a quadruple out.
  const [used, other] = chosen === 'target' ? ['target_chosen', 'source'] : ['source_chosen', 'target'];
  const words = `loss_type ${lossType} takes ${used} of rows that have both chosen responses (chosen: ${other} the other)`;
  let choice = usesField(lossType, 'chosen') ? words : undefined;
  const rows = typeof source === 'string' ? readPreferences(source, { ...options, say }) : objects(source, name);
  for await (const row of rows) {
    if (choice && 'source_chosen' in row.responses && 'target_chosen' in row.responses) {
      say(choice);
      choice = undefined;
    }
    yield rowFor(lossType, row);
  }
}

/** A row as a loss takes it: fine-tuning has the best response of a row as its completion. */
export function rowFor(lossType: TrainingArgs['lossType'], row: PreferenceRow): PreferenceRow {
  if (lossType !== 'sft') return row;
  const { completion, source_chosen, target_chosen } = row.responses;
  return { ...row, responses: { completion: completion ?? source_chosen ?? target_chosen } };
}

function* objects(rows: readonly unknown[], name: string): Generator<PreferenceRow> {
  for (const [i, row] of rows.entries()) yield toPreferenceRow(row, `${name}[${i}]`);
}
