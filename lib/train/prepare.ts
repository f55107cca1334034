/** Everything a run works on, loaded and encoded: the policy, its tokenizer, the reference, the rows. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { loadPreferences, type PreferenceRow, type Role, toPreferenceRow } from '../data/preferences.js';
import { WrpoError } from '../errors.js';
import { Model } from '../model/model.js';
import { type EncodedRow, encodeRows } from '../text/encode.js';
import { Tokenizer } from '../text/tokenizer.js';
import type { TrainingArgs } from './args.js';
import { rolesOf, usesReference } from './objective.js';
import { progressBar } from './progress.js';
import { hashRows, logProbsOf, type ReferenceColumn, referenceColumn } from './reference.js';

export interface DataOptions {
  /** A model directory in Hugging Face layout, or a model that is already loaded. */
  model: string | Model;
  /** A JSONL file, or its rows as objects (the shapes are described in data/preferences.ts). */
  trainDataset: string | readonly unknown[];
  evalDataset?: string | readonly unknown[];
  /** Default: the one in the model's directory. Needed for rows of text only. */
  tokenizer?: Tokenizer;
  /** The frozen reference, kept in memory. Default: the initial policy, whose log-probs are computed once. */
  refModel?: string | Model;
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
  /** Hash of the initial policy's weights. */
  fingerprint: string;
  /** Hash of the reference's; the policy's own without a resident one. */
  referenceFingerprint: string;
  train: Split;
  eval?: Split;
}

/** Reads, checks and encodes. Rows are validated before the model is loaded. */
export async function prepare(
  options: DataOptions,
  args: TrainingArgs,
  say: (line: string) => void,
): Promise<Prepared> {
  const { trainDataset, evalDataset, refModel: reference = args.refModelNameOrPath } = options;
  const roles = rolesOf(args.lossType);
  const trainRows = await readRows(trainDataset, 'trainDataset', args);
  const evalRows = evalDataset === undefined ? undefined : await readRows(evalDataset, 'evalDataset', args);
  const model = await open(options.model, args);
  const tokenizer = options.tokenizer ?? (await tokenizerOf(model));
  const encode = async (rows: PreferenceRow[], name: string): Promise<Split> => {
    const { maxLength, maxPromptLength } = args;
    const limits = { maxLength, maxPromptLength, vocabSize: model.config.vocabSize };
    const { rows: encoded, dropped, truncated } = await encodeRows(rows, { tokenizer, roles, ...limits });
    if (encoded.length === 0) {
      throw new WrpoError('ERR_DATA', `${name}: no row is left: the prompts of all ${rows.length} are too long`);
    }
    if (dropped + truncated > 0) {
      say(
        `${name}: ${rows.length} rows, ${dropped} dropped (prompt too long), ${truncated} responses cut to max_length`,
      );
    }
    return { rows: encoded, hash: hashRows(encoded, roles) };
  };
  const train = await encode(trainRows, 'training data');
  const evalSplit = evalRows && (await encode(evalRows, 'evaluation data'));
  const resident = usesReference(args.lossType) && reference !== undefined;
  const refModel = resident ? await open(reference, args) : undefined;
  const fingerprint = await model.fingerprint();
  const referenceFingerprint = refModel ? await refModel.fingerprint() : fingerprint;
  return { model, tokenizer, refModel, roles, fingerprint, referenceFingerprint, train, eval: evalSplit };
}

/** Fills in the reference columns, unless a resident model answers for every batch; returns how many rows it filled. */
export async function fillReference(run: Prepared, args: TrainingArgs, signal?: AbortSignal): Promise<number> {
  if (!usesReference(args.lossType) || run.refModel) return 0;
  let filled = 0;
  for (const [name, split] of Object.entries({ train: run.train, eval: run.eval })) {
    if (!split || split.reference) continue;
    const bar = progressBar('reference log-probs', split.rows.length, !args.disableTqdm);
    try {
      split.reference = await referenceColumn({
        file: join(args.outputDir, `reference-${name}.jsonl`),
        key: {
          'model weights': run.fingerprint,
          'token ids': split.hash,
          roles: run.roles.join(),
          dtype: run.model.dtype,
        },
        model: run.model,
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

async function open(model: string | Model, { dtype }: TrainingArgs): Promise<Model> {
  return typeof model === 'string' ? Model.load(model, { dtype }) : model;
}

/** The tokenizer in the directory a model came from, if there is one. */
export async function tokenizerOf({ directory }: Model): Promise<Tokenizer | undefined> {
  return directory && existsSync(join(directory, 'tokenizer.json')) ? Tokenizer.load(directory) : undefined;
}

/** The rows of a file or of objects in memory; fine-tuning takes the best response a row has as its completion. */
async function readRows(
  source: string | readonly unknown[],
  name: string,
  { lossType }: TrainingArgs,
): Promise<PreferenceRow[]> {
  const rows =
    typeof source === 'string'
      ? await loadPreferences(source)
      : source.map((row, i) => toPreferenceRow(row, `${name}[${i}]`));
  if (rows.length === 0) throw new WrpoError('ERR_DATA', `${name} is empty`);
  if (lossType !== 'sft') return rows;
  return rows.map((row) => {
    const { completion, source_chosen, target_chosen } = row.responses;
    return { ...row, responses: { completion: completion ?? source_chosen ?? target_chosen } };
  });
}
