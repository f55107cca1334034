/** LoRA as PEFT has it: which projections get adapters, and the files that hold them (native/model/lora.h computes). */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { isHubId } from '../data/hub.js';
import { WrpoError } from '../errors.js';
import type { LoraShape } from '../native/addon.js';

/** PEFT's LoraConfig, with TRL's defaults. */
export interface LoraOptions {
  /** The rank. Default 16. */
  r?: number;
  /** The product B A counts loraAlpha / r times. Default 32. */
  loraAlpha?: number;
  /** The share of an adapter's inputs that is dropped in training, in [0, 1). Default 0.05. */
  loraDropout?: number;
  /**
   * Projections by name, such as `q_proj`, or by a longer end of their path; `all-linear` means all of the layers. One
   * string may hold several between commas, or be a regular expression that whole paths match. Default: PEFT's for the
   * families there are here, `q_proj` and `v_proj`.
   */
  targetModules?: string | readonly string[];
  /** Divide loraAlpha by √r instead of r. Default false. */
  useRslora?: boolean;
  /** Of the first values of A. Default 42. */
  seed?: number;
  /** What adapter_config.json calls the base. Default: the path of the directory it was loaded from. */
  baseModelNameOrPath?: string;
}

/** The adapters of a model. */
export interface Lora extends Required<Omit<LoraOptions, 'seed' | 'baseModelNameOrPath'>> {
  /** The projections that have one, such as `model.layers.0.self_attn.q_proj`. */
  modules: readonly string[];
  baseModelNameOrPath?: string;
}

export const ADAPTER_CONFIG = 'adapter_config.json';
export const ADAPTER_WEIGHTS = 'adapter_model.safetensors';
const ALL_LINEAR = 'all-linear';
const DEFAULT_TARGETS = ['q_proj', 'v_proj'];

/** The name of a tensor in PEFT's files. */
export const peftName = (name: string): string => `base_model.model.${name}`;

/** What must hold of the numbers, which files and options spell differently. */
const NUMBERS: readonly [names: readonly string[], good: (value: number) => boolean, expected: string][] = [
  [['r'], (r) => Number.isInteger(r) && r >= 1, 'a whole number of at least 1'],
  [['loraAlpha', 'lora_alpha'], (alpha) => alpha > 0 && Number.isFinite(alpha), 'a positive number'],
  [['loraDropout', 'lora_dropout'], (share) => share >= 0 && share < 1, 'at least 0 and below 1'],
];

function faultOf(values: Record<string, unknown>): string | undefined {
  for (const [names, good, expected] of NUMBERS) {
    const name = names.find((key) => key in values)!;
    const value = values[name];
    if (typeof value !== 'number' || !good(value)) return `"${name}" must be ${expected}, found ${show(value)}`;
  }
  return undefined;
}

/**
 * Options with their defaults, for a model with these projections. `where` names them in errors. Throws ERR_CONFIG naming a
 * number at fault, or a target that is no projection and what there is.
 */
export function resolveLora(options: LoraOptions, projections: readonly string[], where: string): Lora {
  const { r = 16, loraAlpha = 32, loraDropout = 0.05, useRslora = false, baseModelNameOrPath } = options;
  const fault = faultOf({ r, loraAlpha, loraDropout });
  if (fault !== undefined) throw new WrpoError('ERR_CONFIG', `${where}: ${fault}`);
  const names = [...new Set(projections.map((path) => path.slice(path.lastIndexOf('.') + 1)))];
  const targetModules = targetsOf(options.targetModules ?? DEFAULT_TARGETS, names);
  const matches = typeof targetModules === 'string' ? [wholePath(targetModules, where)] : targetModules.map(ending);
  for (const { name, match } of matches) {
    if (projections.some(match)) continue;
    throw new WrpoError(
      'ERR_CONFIG',
      `${where}: the model has no projection "${name}"; it has ${names.join(', ')} (${ALL_LINEAR} means all of them)`,
    );
  }
  const modules = projections.filter((path) => matches.some(({ match }) => match(path)));
  if (modules.length === 0) throw new WrpoError('ERR_CONFIG', `${where}: there are no target modules`);
  return { r, loraAlpha, loraDropout, useRslora, targetModules, modules, baseModelNameOrPath };
}

/** A list of names, or a string that is a regular expression. */
function targetsOf(targets: string | readonly string[], all: readonly string[]): string | readonly string[] {
  if (typeof targets === 'string' && !/^[\w.,\s-]*$/.test(targets)) return targets;
  const list = typeof targets === 'string' ? targets.split(',').map((name) => name.trim()) : targets;
  return list.length === 1 && list[0] === ALL_LINEAR ? all : list;
}

const ending = (name: string) => ({ name, match: (path: string) => path === name || path.endsWith(`.${name}`) });

function wholePath(name: string, where: string) {
  try {
    const expression = new RegExp(`^(?:${name})$`);
    return { name, match: (path: string) => expression.test(path) };
  } catch (cause) {
    throw new WrpoError('ERR_CONFIG', `${where}: the target "${name}" is no regular expression`, { cause });
  }
}

/** What the engine needs to know of adapters. */
export function loraShape({ r, loraAlpha, loraDropout, useRslora, modules }: Lora): LoraShape {
  return { rank: r, scale: loraAlpha / (useRslora ? Math.sqrt(r) : r), dropout: loraDropout, modules: [...modules] };
}

/** Keys of PEFT's that would make something else of the adapters, and what. */
const UNSUPPORTED: Record<string, string> = {
  ...{ modules_to_save: 'whole modules trained beside them', use_dora: 'DoRA', lora_bias: 'biases of adapters' },
  ...{ rank_pattern: 'ranks by module', alpha_pattern: 'scales by module', layer_replication: 'replicated layers' },
  ...{ layers_to_transform: 'a choice of layers', exclude_modules: 'excluded modules', fan_in_fan_out: 'Conv1D' },
  ...{ trainable_token_indices: 'trained tokens', target_parameters: 'adapters of parameters', use_qalora: 'QALoRA' },
  ...{ alora_invocation_tokens: 'activated LoRA', use_bdlora: 'BD-LoRA', kasa_config: 'KaSA', velora_config: 'VeLoRA' },
  ...{ arrow_config: 'Arrow', monteclora_config: 'MonteCLoRA' },
};

/** Whether a directory holds an adapter instead of a whole model. */
export const isAdapter = (dir: string): boolean => existsSync(join(dir, ADAPTER_CONFIG));

/** Reads `dir/adapter_config.json`. Throws ERR_MODEL naming the file and what in it is not known here. */
export function readAdapterConfig(dir: string): LoraOptions {
  const path = join(dir, ADAPTER_CONFIG);
  const fail = (message: string, cause?: unknown): never => {
    throw new WrpoError('ERR_MODEL', `${path}: ${message}`, { cause });
  };
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    return fail(`cannot be read as JSON: ${(cause as Error).message}`, cause);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json)) return fail('must hold a JSON object');
  if (json.peft_type !== 'LORA') fail(`"peft_type" ${show(json.peft_type)} is not supported; supported: "LORA"`);
  if ((json.bias ?? 'none') !== 'none') fail(`"bias" ${show(json.bias)} is not supported; supported: "none"`);
  for (const [key, what] of Object.entries(UNSUPPORTED)) {
    if (!isNothing(json[key])) fail(`"${key}" ${show(json[key])} (${what}) is not supported`);
  }
  const { init_lora_weights: start = true } = json;
  if (typeof start === 'string' && !['gaussian', 'eva', 'orthogonal'].includes(start)) {
    fail(`"init_lora_weights" ${show(start)} is not supported: it changes the weights of the base`);
  }
  const { r, lora_alpha, lora_dropout = 0, target_modules, use_rslora = false, base_model_name_or_path: base } = json;
  const fault = faultOf({ r, lora_alpha, lora_dropout });
  if (fault !== undefined) fail(fault);
  if (typeof use_rslora !== 'boolean') fail(`"use_rslora" must be true or false, found ${show(use_rslora)}`);
  const names = Array.isArray(target_modules) ? target_modules : [target_modules];
  if (!names.every((name) => typeof name === 'string')) {
    fail(`"target_modules" must be a string or a list of names, found ${show(target_modules)}`);
  }
  if (!isNothing(base) && typeof base !== 'string') {
    fail(`"base_model_name_or_path" must be a string, found ${show(base)}`);
  }
  return {
    ...{ r, loraAlpha: lora_alpha, loraDropout: lora_dropout, useRslora: use_rslora, targetModules: target_modules },
    baseModelNameOrPath: isNothing(base) ? undefined : base,
  } as LoraOptions;
}

/**
 * Where the base of an adapter directory lies, or the hub id it goes by: a path is taken from the working directory or,
 * where nothing is there, from the adapter's. Throws ERR_MODEL when neither leads anywhere.
 */
export function baseOf(dir: string): string {
  const { baseModelNameOrPath: base } = readAdapterConfig(dir);
  const what = `${join(dir, ADAPTER_CONFIG)} names`;
  if (base === undefined) {
    throw new WrpoError('ERR_MODEL', `${what} no base model ("base_model_name_or_path"); say where it is`);
  }
  const found = [resolve(base), resolve(dir, base)].find((path) => existsSync(path));
  if (found !== undefined) return found;
  if (isHubId(base)) return base;
  throw new WrpoError('ERR_MODEL', `${what} the base model "${base}", where nothing is; say where it is`);
}

/** adapter_config.json of a model's adapters. */
export function adapterConfigOf({ r, loraAlpha, loraDropout, targetModules, useRslora, baseModelNameOrPath }: Lora) {
  return {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: baseModelNameOrPath ?? null,
    ...{ r, lora_alpha: loraAlpha, lora_dropout: loraDropout, use_rslora: useRslora, target_modules: targetModules },
    ...{ bias: 'none', fan_in_fan_out: false, init_lora_weights: true, inference_mode: true, modules_to_save: null },
  };
}

const show = (value: unknown) => JSON.stringify(value) ?? 'none';
const isNothing = (value: unknown) =>
  value === undefined ||
  value === null ||
  value === false ||
  value === '' ||
  (typeof value === 'object' && Object.keys(value).length === 0);
