/** AlpacaEval 2 from its run file to annotations.json and leaderboard.csv. */
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import * as alpaca from './alpaca-eval.js';
import type { AlpacaConfig } from './config.js';
import { readCsv, writeCsv } from './csv.js';
import type { JudgedRow, Question } from './judge.js';
import {
  addToTable,
  answers,
  judgments,
  lacking,
  planned,
  type Results,
  type RunOptions,
  readText,
  rowsOf,
  sha256,
  writeJson,
} from './work.js';

const ALPACA_ANSWERS = { temperature: 0.9, topP: 1, maxTokens: 4096 };

/** Annotations, win rates, a row of the leaderboard. */
export async function evaluateAlpaca(config: AlpacaConfig, options: RunOptions): Promise<Results> {
  const { outputDir, limit, annotator } = config;
  const annotations = config.annotations ? await rowsOf<alpaca.Annotation>(config.annotations) : [];
  const reference = config.referenceOutputs && (await rowsOf<alpaca.Output>(config.referenceOutputs));
  const all = reference
    ? alpaca.pairOutputs(reference, ...(await alpacaOutputs(config, reference, options)))
    : annotations;
  const pairs = all.slice(0, limit);
  if (pairs.length === 0) throw lacking(config, 'reference_outputs, or annotations');
  const known = new Map(annotations.map((row) => [keyOf(row), row]));
  const asks = (pair: alpaca.Pair) => !known.has(keyOf(pair)) && pair.output_1 !== pair.output_2;
  const asked = pairs.filter(asks);
  let judged = new Map<string, JudgedRow<number>>();
  let questionOf: (pair: alpaca.Pair) => Question = () => ({ id: '', messages: [] });
  if (asked.length > 0) {
    if (config.prompt === undefined) throw lacking(config, 'prompt');
    const { text, hash } = readText(config.prompt);
    const official = hash === alpaca.OFFICIAL_PROMPT;
    if (!official) options.say(`${config.prompt} is not the public tool's prompt (sha256 ${hash.slice(0, 12)}…)`);
    const prompt = alpaca.parsePrompt(text, config.prompt);
    questionOf = (pair) => alpaca.questionOf(pair, prompt);
    const questions = all.filter(({ output_1, output_2 }) => output_1 !== output_2).map(questionOf);
    const work = {
      questions,
      asked: asked.map(questionOf),
      reader: alpaca.readPreference,
      settings: alpaca.JUDGE_SETTINGS,
    };
    if (options.dryRun) return planned(config, all[0]!.generator_2, work);
    judged = await judgments(config, options, { ...work, promptHash: hash });
  } else if (options.dryRun) return planned(config, all[0]!.generator_2, undefined);
  const rows = pairs.map(
    (pair) => known.get(keyOf(pair)) ?? alpaca.annotationOf(pair, judged.get(questionOf(pair).id), annotator),
  );
  writeJson(join(outputDir, 'annotations.json'), rows);
  const summary = alpaca.summarise(rows);
  const { fits: controlled, difficulty } = lengthControl(config, rows, all.length, options);
  const best = controlled[0];
  if (best && alpaca.isExtremeChange(summary.win_rate, best.length_controlled_winrate)) {
    options.say(
      `length control changes the win rate from ${summary.win_rate.toFixed(1)} to ${best.length_controlled_winrate.toFixed(1)}: its fit may have failed`,
    );
  }
  const model = rows[0]!.generator_2;
  // Without the difficulties of instructions there is a rate of another name only, which no leaderboard has.
  const official = controlled.find(({ variant }) => variant === 'length_controlled_v1');
  const row = {
    ...summary,
    ...(official && {
      length_controlled_winrate: official.length_controlled_winrate,
      lc_standard_error: official.lc_standard_error,
    }),
  };
  addToTable(config.leaderboard ?? join(outputDir, 'leaderboard.csv'), model, alpaca.LEADERBOARD_COLUMNS, {
    mode: 'community',
    ...row,
  });
  if (official) {
    const weights = Object.fromEntries(
      alpaca.FEATURES.map((feature, j) => [feature, official.fit.weights[j]!.toFixed(16)]),
    );
    addToTable(join(outputDir, 'weights.csv'), model, alpaca.FEATURES, weights);
    // What the weights mean depends on it; with it they can be compared with any other model's.
    const numbered = difficulty.map((value, i) => ({ '': i, instruction_difficulty: value }));
    writeCsv(join(outputDir, alpaca.DIFFICULTY), ['', 'instruction_difficulty'], numbered);
  }
  const variants = controlled.map(({ variant, length_controlled_winrate, lc_standard_error }) => [
    variant,
    { length_controlled_winrate, lc_standard_error },
  ]);
  const nulls = rows.filter(({ preference }) => preference === null).length;
  return { benchmark: 'alpaca_eval', model, ...row, n_null: nulls, variants: Object.fromEntries(variants) };
}

const keyOf = ({ instruction, output_1, output_2 }: alpaca.Pair): string =>
  JSON.stringify([instruction, output_1, output_2]);

async function alpacaOutputs(
  config: AlpacaConfig,
  reference: alpaca.Output[],
  options: RunOptions,
): Promise<[alpaca.Output[], string]> {
  if (config.outputs !== undefined) return [await rowsOf<alpaca.Output>(config.outputs), config.outputs];
  const { model } = config;
  if (!model) throw lacking(config, 'outputs, or model');
  const prompts = reference.map(({ instruction }) => ({
    promptId: sha256(instruction),
    messages: [{ role: 'user', content: instruction }],
  }));
  const texts = await answers(config, options, prompts, 'answers', ALPACA_ANSWERS);
  const path = join(config.outputDir, 'model_outputs.json');
  const outputs = reference.map(({ instruction, dataset }, i) => ({
    dataset,
    instruction,
    output: texts[i]!,
    generator: model.name,
  }));
  writeJson(path, outputs);
  return [outputs, path];
}

/** The variants that the files at hand allow, the public one first, and the difficulties that they are fitted to. */
function lengthControl(
  config: AlpacaConfig,
  rows: alpaca.Annotation[],
  count: number,
  { say }: RunOptions,
): { fits: alpaca.LengthControlled[]; difficulty: readonly number[] } {
  const table = (path: string | undefined) => (path === undefined ? undefined : readCsv(path));
  const [gamed, difficulty] = [table(config.gamed), table(config.difficulty)];
  const data = gamed || difficulty ? alpaca.readGlmData(gamed, difficulty, count) : undefined;
  const lengths = rows.map(({ preference, output_1, output_2 }, index) => ({
    ...{ preference, index, lengths: [alpaca.lengthOf(output_1), alpaca.lengthOf(output_2)] as const },
  }));
  const variants: alpaca.GlmVariant[] = ['length_controlled_minimal'];
  if (data) variants.unshift('length_controlled_noreg');
  if (gamed) variants.unshift('length_controlled_v1');
  else
    say('without the file gamed (df_gamed.csv) there is no length_controlled_v1: the rates beside it have other names');
  const difficulties = data?.difficulty ?? [];
  try {
    return {
      fits: variants.map((variant) => alpaca.lengthControlled(lengths, data, variant)),
      difficulty: difficulties,
    };
  } catch (error) {
    if (!(error instanceof WrpoError)) throw error;
    say(`no length-controlled win rate: ${error.message}`);
    return { fits: [], difficulty: difficulties };
  }
}
