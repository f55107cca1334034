/** Training arguments: TRL's names in camelCase; files and the command line may spell them in snake_case. */
import type { output, input as ZodInput } from 'zod';
import { nearest } from '../edit-distance.js';
import { WrpoError } from '../errors.js';
import { zod } from '../packages.js';
import { camel, FOREIGN_KEYS, snake, translate } from './compat.js';
import type { LossType } from './objective.js';

const WRPO = ['wrpo', 'wrpo_simpo', 'wrpo_ipo', 'wrpo_ls'] as const;
const PAIRS = ['sigmoid', 'simpo', 'ipo'] as const;
const LOSS_TYPES = [...WRPO, ...PAIRS, 'authors_sigmoid', 'sft'] as const satisfies readonly LossType[];
const PREFERENCE = LOSS_TYPES.filter((name) => name !== 'sft');
const SIMPO = ['simpo', 'wrpo_simpo'] as const;
const IPO = ['ipo', 'wrpo_ipo'] as const;

/** The losses that each argument of one belongs to. */
const LOSS_KEYS = {
  beta: PREFERENCE,
  sftWeight: PREFERENCE,
  labelSmoothing: PREFERENCE.filter((name) => !name.endsWith('ipo')),
  ...{ alpha: WRPO, isDynamic: WRPO, chosen: PAIRS },
  ...{ simpoGamma: SIMPO, gammaBetaRatio: SIMPO, ipoNormalization: IPO },
} as const satisfies Record<string, readonly LossType[]>;
type LossKey = keyof typeof LOSS_KEYS;

/** The arguments of adapters. */
const LORA_KEYS: readonly string[] = ['loraR', 'loraAlpha', 'loraDropout', 'loraTargetModules', 'useRslora'];

/** Whether a loss has an argument. */
export const usesField = (lossType: LossType, key: LossKey): boolean =>
  (LOSS_KEYS[key] as readonly LossType[]).includes(lossType);

/** The paper's Table 6, for Target-SFT. */
const PRESETS: Record<string, Record<string, unknown>> = {
  'table6/dpo': { lossType: 'dpo', beta: 0.01, learningRate: 3e-7 },
  'table6/simpo': { lossType: 'simpo', beta: 10, simpoGamma: 1, learningRate: 6e-7 },
  'table6/ipo': { lossType: 'ipo', beta: 0.01, learningRate: 1e-6 },
  'table6/wrpo': { lossType: 'wrpo', beta: 0.01, alpha: 0.1, learningRate: 3e-7 },
  'table6/wrpo-simpo': { lossType: 'wrpo_simpo', beta: 10, simpoGamma: 0, alpha: 0.5, learningRate: 6e-7 },
  'table6/wrpo-ipo': { lossType: 'wrpo_ipo', beta: 0.01, alpha: 0.1, learningRate: 1e-6 },
};
/** Defaults that a loss has of its own; the schema has those of the others. */
const LOSS_DEFAULTS: Record<string, Record<string, unknown>> = {
  simpo: { beta: 10, simpoGamma: 1 },
  wrpo_simpo: { beta: 10 },
};

function buildSchema({ z }: typeof import('zod')) {
  const positive = z.number().positive();
  const count = z.number().int().positive();
  const fraction = z.number().min(0).max(1);
  const interval = positive.refine(
    (n) => n < 1 || Number.isInteger(n),
    'expected whole steps, or a part of the run below 1',
  );
  const strategy = z.enum(['no', 'steps', 'epoch']);
  return z.object({
    /** A model directory in Hugging Face layout. */
    modelNameOrPath: z.string().optional(),
    /** Of a model on the hub: a branch, a tag or a commit. */
    modelRevision: z.string().optional(),
    /** The frozen reference, held in memory; without it the initial policy's log-probs are computed once and cached. */
    refModelNameOrPath: z.string().optional(),
    /** What is trained on: a file or directory (JSONL, Parquet, Arrow), or a hub id. */
    datasetName: z.string().optional(),
    /** Of a data set on the hub that has several. */
    datasetConfig: z.string().optional(),
    /** Of a data set on the hub: a branch, a tag or a commit. */
    datasetRevision: z.string().optional(),
    /** Of a data set that has splits. */
    datasetTrainSplit: z.string().default('train'),
    /** The evaluation data, where `evalDatasetName` names no others. */
    datasetTestSplit: z.string().optional(),
    /** What is evaluated on. */
    evalDatasetName: z.string().optional(),
    /** The run directory. */
    outputDir: z.string(),

    /** The values of the paper's Table 6 for a loss, such as `table6/wrpo`; other keys outweigh them. */
    preset: z.string().optional(),
    /** `dpo` is another name of `sigmoid`, and the only one with `templateMode: authors`. */
    lossType: z
      .enum([...LOSS_TYPES, 'dpo'])
      .default('wrpo')
      .transform((name) => (name === 'dpo' ? 'sigmoid' : name)),
    /** The paper's τ for IPO. Default 0.01, for SimPO 10. */
    beta: positive.default(0.01),
    /** The weight of the source's response; reached at the end of training when `isDynamic`. */
    alpha: fraction.default(0.1),
    /** Whether `alpha` rises from 0 with the steps done, or is what it is from the start. */
    isDynamic: z.boolean().default(true),
    /** Which chosen response of a quadruple meets the rejected one. */
    chosen: z.enum(['target', 'source']).default('target'),
    /** How likely it is that a row's responses are the wrong way round. */
    labelSmoothing: z.number().min(0).max(0.5).default(0),
    /** SimPO's target margin. Default 1 for `simpo`, 0 for `wrpo_simpo`. */
    simpoGamma: z.number().min(0).default(0),
    /** The same as a multiple of beta. */
    gammaBetaRatio: z.number().min(0).optional(),
    /** Whether the IPO losses compare sums or means over tokens. */
    ipoNormalization: z.enum(['sum', 'token_mean']).default('sum'),
    /** Adds so much of the mean token NLL of the chosen responses, weighted as in the loss. */
    sftWeight: z.number().min(0).default(0),

    /** Trains LoRA adapters beside the weights, which stay as they are and are the reference; saved as PEFT does. */
    usePeft: z.boolean().default(false),
    /** The rank of the adapters. */
    loraR: count.default(16),
    /** The adapters count `loraAlpha / loraR` times. */
    loraAlpha: positive.default(32),
    /** The share of their inputs that is dropped in training. */
    loraDropout: z.number().min(0).lt(1).default(0.05),
    /** Names of projections (`q_proj`), as a list or between commas, or `all-linear`. Default: `q_proj` and `v_proj`. */
    loraTargetModules: z.union([z.string(), z.array(z.string())]).optional(),
    /** Counts the adapters `loraAlpha / √loraR` times. */
    useRslora: z.boolean().default(false),

    /** At its height, after the warm-up. */
    learningRate: z.number().min(0).default(3e-7),
    /** Of these only `constant` never warms up. */
    lrSchedulerType: z.enum(['cosine', 'linear', 'constant', 'constant_with_warmup']).default('cosine'),
    /** The part of all steps in which the learning rate rises; rounded up. */
    warmupRatio: fraction.default(0.1),
    /** Overrides `warmupRatio`. */
    warmupSteps: z.number().int().min(0).optional(),
    /** Of AdamW; norms and biases have none. */
    weightDecay: z.number().min(0).default(0),
    adamBeta1: fraction.default(0.9),
    adamBeta2: fraction.default(0.999),
    adamEpsilon: positive.default(1e-8),
    /** Gradients with a larger norm are scaled down to it; 0 leaves them. */
    maxGradNorm: z.number().min(0).default(1),
    /**
     * What a loss or a gradient does that is no number: `stop` before the update, naming the rows, or `skip` the step, say
     * so, and count it (`skipped_steps`); ten in a row stop the run all the same.
     */
    nonFinite: z.enum(['stop', 'skip']).default('stop'),

    /** With `gradientAccumulationSteps` the rows of a step; how they are packed does not change the result. */
    perDeviceTrainBatchSize: count.default(2),
    /** So many times `perDeviceTrainBatchSize` rows are a step. */
    gradientAccumulationSteps: count.default(8),
    /** Passes over the data. */
    numTrainEpochs: positive.default(1),
    /** Overrides `numTrainEpochs` when positive. */
    maxSteps: z.number().int().default(-1),
    /** Tokens packed into one forward and backward: more is faster and takes more memory. */
    microbatchTokens: count.default(2048),
    /**
     * Layers that are computed again in backward, so that their activations need no memory: `true` all but the last, `false`
     * none, `auto` as few as fit the memory that is free. The result is the same, to the bit.
     */
    gradientCheckpointing: z.union([z.boolean(), z.literal('auto')], 'expected true, false or "auto"').default('auto'),
    /** Computes each prompt once for all its responses; the result is the same without. */
    sharePrompt: z.boolean().default(true),

    /** Tokens of prompt and response together; a longer response is cut. */
    maxLength: count.default(2048),
    /**
     * In tokens. By default a row with a longer prompt is dropped (default: `maxLength`). With `templateMode: authors` none
     * is: of a row that is over `maxLength` with its longest response, so many tokens of the prompt are kept, and if it
     * still is, `maxLength - maxPromptLength` of each response (default: the authors' 1800 of 2048, in proportion).
     * Fine-tuning on whole texts (`packingStrategy: wrapped`, or `sft` with `templateMode: authors`) does not use it.
     */
    maxPromptLength: count.optional(),
    /**
     * How text becomes tokens: `default` with one BOS, the answer's header in the prompt and one end of turn; `authors` to
     * the token as the paper's own scripts do it. Theirs also leave an epoch's incomplete last global batch out.
     */
    templateMode: z.enum(['default', 'authors']).default('default'),
    /** In place of the model's own chat template; saved with the model. */
    chatTemplate: z.string().optional(),
    /** The authors' rule: an empty system message first, where the template's source has the word (`authors` only). */
    autoInsertEmptySystemMsg: z.boolean().default(true),
    /** Which end of a prompt that is too long is kept, with `templateMode: authors`. */
    truncationMode: z.enum(['keep_end', 'keep_start']).default('keep_end'),
    /** `sft`: the loss on the response alone, or on all tokens. Default true, except on whole texts. */
    completionOnlyLoss: z.boolean().optional(),
    /**
     * `sft`: `wrapped` with `packing` joins all texts, an EOS behind each, and cuts them into blocks of `maxLength`; what
     * is left over is not trained on. Otherwise rows stay whole: they are packed without seeing each other anyway.
     */
    packing: z.boolean().default(false),
    /** See `packing`. */
    packingStrategy: z.enum(['bfd', 'wrapped']).default('bfd'),
    /** In which numbers the model computes; master weights and optimiser state are float32 at least. */
    dtype: z.enum(['float32', 'bfloat16', 'float64', 'auto']).default('float32'),
    /** Where the model is computed: `auto` is the GPU where there is a usable one, and says so. A GPU needs bfloat16. */
    device: z.enum(['cpu', 'cuda', 'auto']).default('cpu'),
    /** Whether each epoch has an order of its own, or that of the file. */
    shuffle: z.boolean().default(true),
    /** Of the order of rows, and of dropout. */
    seed: z.number().int().default(42),

    /** Steps between lines of metrics.jsonl. */
    loggingSteps: count.default(5),
    /** `tensorboard`, also in a list: metrics as event files too, in `tensorboard` in the run's directory. */
    reportTo: z.union([z.string(), z.array(z.string())]).optional(),
    /** Whether evaluation data are used; by default when there are any. */
    doEval: z.boolean().optional(),
    /** When to evaluate before the end: by default, with `evalSteps`. */
    evalStrategy: strategy.optional(),
    /** Steps between evaluations, or below 1 a part of the run. */
    evalSteps: interval.optional(),
    /**
     * When to write checkpoints: by default, with `saveSteps`; `best` only when an evaluation is the best so far. The final
     * model is always saved.
     */
    saveStrategy: z.enum(['no', 'steps', 'epoch', 'best']).optional(),
    /** Steps between checkpoints, or below 1 a part of the run. */
    saveSteps: interval.optional(),
    /** The latest checkpoint and the best one are always kept. */
    saveTotalLimit: count.optional(),
    /** The model of the best evaluation is the result; whenever one is the best so far, a checkpoint is written. */
    loadBestModelAtEnd: z.boolean().default(false),
    /** With or without `eval_`. Default `loss`. */
    metricForBestModel: z.string().optional(),
    /** Default: unless the metric's name ends in `loss`. */
    greaterIsBetter: z.boolean().optional(),
    /** Of the saved weights. */
    saveDtype: z.enum(['float32', 'bfloat16']).default('float32'),
    /** No progress bar. */
    disableTqdm: z.boolean().default(false),
  });
}

type Schema = ReturnType<typeof buildSchema>;

/** Everything with its default filled in. */
export type TrainingArgs = Omit<output<Schema>, 'gammaBetaRatio'>;
/** What a caller writes. */
export type TrainingArgsInput = ZodInput<Schema>;

let loaded: Schema | undefined;
/** What checks arguments; their documentation is made of it. */
export function argumentSchema(): Schema {
  loaded ??= buildSchema(zod());
  return loaded;
}

/** Where a key stands, for errors: one place for all of them, or each its own. */
export type Where = string | ((key?: string) => string);
const at = (where: Where, key?: string) => (typeof where === 'string' ? where : where(key));

/** Takes a line of words about the arguments. */
type Say = (line: string) => void;

/**
 * Our arguments of one source (a file, a command line), under camelCase keys; foreign keys become ours, are refused or go
 * to `say` (see compat.ts). `overridden` names arguments that another source gives, which are not looked at here.
 * Throws ERR_CONFIG on an unknown key, with the nearest name.
 */
export function readKeys(
  input: Record<string, unknown>,
  where: Where,
  say: Say,
  overridden: ReadonlySet<string> = new Set(),
): Record<string, unknown> {
  const ours = Object.keys(argumentSchema().shape);
  const theirs = new Set(FOREIGN_KEYS.map(camel));
  const own: Record<string, unknown> = {};
  const foreign: Record<string, unknown> = {};
  const spelling: Record<string, string> = {};
  for (const [key, value] of Object.entries(input)) {
    const name = camel(key);
    if (!ours.includes(name) && !theirs.has(name)) {
      const near = nearest(name, [...ours, ...theirs]);
      const hint = near === undefined ? '' : `; did you mean "${key === name ? near : snake(near)}"?`;
      throw new WrpoError('ERR_CONFIG', `${at(where, key)}: unknown key "${key}"${hint}`);
    }
    if (overridden.has(name)) continue;
    if (ours.includes(name)) own[name] = value;
    else if (value !== null && value !== undefined) foreign[name] = value;
    spelling[name] = key;
  }
  const { values, notices } = translate(foreign, own, overridden, (name, sentence) => {
    const key = spelling[name]!;
    throw new WrpoError('ERR_CONFIG', `${at(where, key)}: "${key}": ${sentence} (found ${show(foreign[name])})`);
  });
  for (const line of notices) say(`${at(where)}: ${line}`);
  return { ...own, ...values };
}

/**
 * Checks arguments and fills in defaults. `where` names their source in errors; `say` takes notices about foreign keys.
 * Throws ERR_CONFIG: an unknown key with the nearest name, a bad value with its key and what was expected.
 */
export function resolveArgs(input: Record<string, unknown>, where: Where = 'args', say: Say = () => {}): TrainingArgs {
  const given = Object.entries(readKeys(input, where, say)).filter(
    ([, value]) => value !== undefined && value !== null,
  );
  const all = Object.fromEntries(given);
  // Resolved before, as a trainer's `args` are: they hold keys of every loss, of which this one's were meant.
  const isResolved = Object.keys(argumentSchema().parse({ outputDir: '' })).every((key) => key in all);
  const own = isResolved ? readKeys(toRunFile(all as TrainingArgs), where, say) : all;
  const values = withDefaults(own, where);
  let result = argumentSchema().safeParse(values);
  // As Python's YAML reads 1e-6, and as a shell gives every value: a number in quotes.
  for (const { path, expected } of (result.error?.issues ?? []) as { path: PropertyKey[]; expected?: string }[]) {
    const value = values[String(path[0])];
    if (expected === 'number' && typeof value === 'string' && value.trim() !== '' && Number.isFinite(Number(value))) {
      values[String(path[0])] = Number(value);
    }
  }
  if (!result.success) result = argumentSchema().safeParse(values);
  if (result.success) {
    const { gammaBetaRatio, ...args } = result.data;
    const fault = strayLossKey(args, own) ?? contradiction(args, values);
    if (fault) throw new WrpoError('ERR_CONFIG', `${at(where)}: ${fault}`);
    const idle = args.usePeft ? [] : LORA_KEYS.filter((key) => own[key] !== undefined && own[key] !== false);
    const trackers = [args.reportTo ?? []].flat().filter((name) => !['tensorboard', 'all', 'none'].includes(name));
    if (trackers.length > 0)
      say(
        `${at(where)}: ignored report_to ${trackers.join(', ')}: metrics go to metrics.jsonl, and with tensorboard there`,
      );
    if (idle.length > 0) say(`${at(where)}: ignored ${idle.map(snake).join(', ')}: only use_peft: true makes adapters`);
    return gammaBetaRatio === undefined ? args : { ...args, simpoGamma: gammaBetaRatio * args.beta };
  }
  const issue = result.error.issues[0]!;
  const key = String(issue.path[0]);
  const found = key in values ? show(values[key]) : 'nothing';
  throw new WrpoError('ERR_CONFIG', `${at(where, key)}: "${snake(key)}": ${issue.message} (found ${found})`);
}

/** What a preset and the loss itself say, under what was given. */
function withDefaults(given: Record<string, unknown>, where: Where): Record<string, unknown> {
  const name = given.preset as string | undefined;
  const preset = name === undefined ? {} : PRESETS[name];
  if (preset === undefined) {
    const near = nearest(String(name), Object.keys(PRESETS));
    const hint = near === undefined ? `expected ${Object.keys(PRESETS).join(', ')}` : `did you mean "${near}"?`;
    throw new WrpoError('ERR_CONFIG', `${at(where, 'preset')}: unknown preset "${name}"; ${hint}`);
  }
  const lossType = given.lossType ?? preset.lossType ?? lossOfKeys(given);
  return { ...LOSS_DEFAULTS[String(lossType)], ...preset, lossType, ...given };
}

/** The loss that keys without a `lossType` are written for, where they tell: SimPO's files do not name theirs. */
export function lossOfKeys(given: Record<string, unknown>): LossType | undefined {
  if (typeof given.preset === 'string') return PRESETS[given.preset]?.lossType as LossType | undefined;
  return 'simpoGamma' in given || 'gammaBetaRatio' in given ? 'simpo' : undefined;
}

/** A key of another loss, unless it is 0 and means nothing; `given` is as the caller wrote it. */
function strayLossKey(args: Omit<TrainingArgs, 'gammaBetaRatio'>, given: Record<string, unknown>): string | undefined {
  if (given.simpoGamma !== undefined && given.gammaBetaRatio !== undefined)
    return 'simpo_gamma and gamma_beta_ratio (simpo_gamma / beta) say the same; leave one of them out';
  const stray = (Object.keys(LOSS_KEYS) as LossKey[]).find(
    (key) => given[key] !== undefined && Number(given[key]) !== 0 && !usesField(args.lossType, key),
  );
  if (stray === undefined) return undefined;
  return `"${snake(stray)}" belongs to loss_type ${LOSS_KEYS[stray].join(', ')}; found "${given.lossType ?? args.lossType}"`;
}

/** Throws ERR_CONFIG on arguments that an objective of the caller's own leaves no meaning. */
export function refuseLossKeys(given: Record<string, unknown>): void {
  const ours = ['lossType', 'preset', ...Object.keys(LOSS_KEYS).filter((key) => !/^(alpha|isDynamic)$/.test(key))];
  const stray = Object.keys(given).find((key) => given[key] !== undefined && ours.includes(camel(key)));
  if (stray !== undefined)
    throw new WrpoError('ERR_CONFIG', `args: "${stray}" has no meaning beside the option "objective"; leave one out`);
}

/** Whether evaluation data, if there are any, are to be used; as transformers has it, a strategy outweighs `doEval`. */
export function evaluates({ doEval, evalStrategy }: TrainingArgs): boolean {
  return evalStrategy === 'steps' || evalStrategy === 'epoch' || (doEval ?? evalStrategy === undefined);
}

/** Whether the metrics go to TensorBoard's files as well. */
export const reportsToTensorboard = ({ reportTo }: TrainingArgs): boolean =>
  [reportTo].flat().some((name) => name === 'tensorboard' || name === 'all');

/** When to evaluate before the end, if at all. */
const evaluatesBeforeEnd = ({ evalStrategy, evalSteps }: TrainingArgs): boolean =>
  evalStrategy === undefined ? evalSteps !== undefined : evalStrategy !== 'no';

/** Whether fine-tuning reads whole texts, as the authors do, so that the loss is on all tokens. */
export function readsWholeTexts(args: TrainingArgs): boolean {
  const { lossType, templateMode, packing, packingStrategy } = args;
  return lossType === 'sft' && (templateMode === 'authors' || (packing && packingStrategy === 'wrapped'));
}

/** What in arguments, each good by itself, cannot be meant together; `given` is as the caller wrote it. */
function contradiction(args: TrainingArgs, given: Record<string, unknown>): string | undefined {
  const { lossType, templateMode, maxLength, maxPromptLength = 1 } = args;
  if (templateMode === 'authors' && given.lossType === 'sigmoid') {
    return 'with template_mode authors, loss_type "sigmoid" would mean what it does in the authors\' own files, the mean over both chosen responses; spell "authors_sigmoid" for that, or "dpo" for DPO';
  }
  if ((args.loadBestModelAtEnd || args.saveStrategy === 'best') && !evaluatesBeforeEnd(args)) {
    const what = args.loadBestModelAtEnd ? 'load_best_model_at_end' : 'save_strategy best';
    return `${what} needs evaluations before the end: set eval_strategy or eval_steps`;
  }
  if (readsWholeTexts(args) && args.completionOnlyLoss) {
    const what =
      args.packing && args.packingStrategy === 'wrapped' ? 'packing_strategy wrapped' : 'template_mode authors';
    return `completion_only_loss true contradicts ${what}, whose loss is on all tokens; leave it out or set it to false`;
  }
  if (lossType !== 'sft' && (args.packing || args.completionOnlyLoss === false)) {
    return `${args.packing ? 'packing' : 'completion_only_loss false'} is for loss_type "sft", found "${given.lossType ?? lossType}"`;
  }
  if (templateMode === 'authors' && lossType !== 'sft' && maxPromptLength >= maxLength) {
    return `with template_mode authors max_prompt_length (${maxPromptLength}) must be below max_length (${maxLength}), or responses would be cut to nothing`;
  }
  return undefined;
}

/** Resolved arguments as a run file would spell them, each loss with its own, adapters where there are any; one of the caller's own has no name here. */
export function toRunFile(args: TrainingArgs, ownObjective = false): Record<string, unknown> {
  const dpo = args.lossType === 'sigmoid' && args.templateMode === 'authors';
  const lossType = ownObjective ? 'own' : dpo ? 'dpo' : args.lossType;
  const has = (key: string) => {
    if (LORA_KEYS.includes(key)) return args.usePeft;
    return !(key in LOSS_KEYS) || usesField(args.lossType, key as LossKey);
  };
  return Object.fromEntries(
    Object.entries({ ...args, lossType }).flatMap(([key, value]) => (has(key) ? [[snake(key), value]] : [])),
  );
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing';
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}
