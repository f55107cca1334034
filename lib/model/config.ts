/** Hugging Face `config.json` to what the engine needs, in the spellings of transformers 4 and 5. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import type { ModelShape, RewardShape } from '../native/addon.js';

/** A model's shape, and the config.json it came from, which is saved again with the weights. */
export interface ModelConfig extends ModelShape {
  rewardHead?: RewardConfig;
  huggingFace: Record<string, unknown>;
}

/** A reward head, and the token ids whose last occurrence begins where a conversation is gated. */
export interface RewardConfig extends RewardShape {
  pattern: readonly number[];
}

type Json = Record<string, unknown>;

/** A value as errors show it. */
const show = (value: unknown) => JSON.stringify(value) ?? 'none';

/** Reads `dir/config.json`. Throws ERR_MODEL naming the file and the key at fault. */
export function readModelConfig(dir: string): ModelConfig {
  const path = join(dir, 'config.json');
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new WrpoError('ERR_MODEL', `no model in ${dir}: cannot read ${path}`, { cause });
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new WrpoError('ERR_MODEL', `${path} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new WrpoError('ERR_MODEL', `${path} must hold a JSON object`);
  }
  return parseModelConfig(json as Json, path);
}

/** The same from an object; `where` names it in errors. */
export function parseModelConfig(json: Json, where = 'config'): ModelConfig {
  const fail = (message: string): never => {
    throw new WrpoError('ERR_MODEL', `${where}: ${message}`);
  };
  const whole = (key: string, fallback?: number): number => {
    const value = json[key] ?? fallback;
    if (!Number.isInteger(value) || (value as number) < 1) {
      return fail(`"${key}" must be a positive whole number, found ${show(json[key])}`);
    }
    return value as number;
  };
  const positive = (object: Json, key: string, fallback?: number): number => {
    const value = object[key] ?? fallback;
    if (typeof value !== 'number' || !(value > 0) || !Number.isFinite(value)) {
      return fail(`"${key}" must be a positive number, found ${show(object[key])}`);
    }
    return value;
  };

  if (json.model_type !== 'llama') fail(`model family ${show(json.model_type)} is not supported; supported: "llama"`);
  if ((json.hidden_act ?? 'silu') !== 'silu') fail(`"hidden_act" ${JSON.stringify(json.hidden_act)}; expected "silu"`);
  for (const key of ['attention_bias', 'mlp_bias']) if (json[key] === true) fail(`"${key}": true is not supported`);

  const hiddenSize = whole('hidden_size');
  const heads = whole('num_attention_heads');
  const kvHeads = whole('num_key_value_heads', heads);
  if (json.head_dim == null && hiddenSize % heads !== 0)
    fail('"hidden_size" must be a multiple of "num_attention_heads"');
  if (heads % kvHeads !== 0) fail('"num_attention_heads" must be a multiple of "num_key_value_heads"');
  const headDim = whole('head_dim', hiddenSize / heads);
  if (headDim % 2 !== 0) fail('"head_dim" must be even');
  const maxPositions = whole('max_position_embeddings', 2048);

  // transformers 5 gathers everything in rope_parameters; 4 had rope_theta beside rope_scaling (null = default).
  const ropeKey = json.rope_parameters == null ? 'rope_scaling' : 'rope_parameters';
  const rope = (json[ropeKey] ?? {}) as Json;
  if (typeof rope !== 'object' || Array.isArray(rope)) fail(`"${ropeKey}" must be an object, found ${show(rope)}`);
  const type = (rope.rope_type ?? rope.type ?? 'default') as string;
  if (type !== 'default' && type !== 'linear' && type !== 'llama3') {
    return fail(`rope type ${JSON.stringify(type)} is not supported; supported: "default", "linear", "llama3"`);
  }
  const scaled = type !== 'default';
  const llama3 = type === 'llama3';
  const ropeShape: ModelShape['rope'] = {
    type,
    theta: positive(rope.rope_theta == null ? json : rope, 'rope_theta', 10000),
    factor: scaled ? positive(rope, 'factor') : 1,
    lowFrequencyFactor: llama3 ? positive(rope, 'low_freq_factor') : 1,
    highFrequencyFactor: llama3 ? positive(rope, 'high_freq_factor') : 4,
    originalMaxPosition: llama3 ? positive(rope, 'original_max_position_embeddings', maxPositions) : maxPositions,
  };
  return {
    vocabSize: whole('vocab_size'),
    hiddenSize,
    layers: whole('num_hidden_layers'),
    heads,
    kvHeads,
    headDim,
    intermediateSize: whole('intermediate_size'),
    maxPositions,
    rmsNormEps: positive(json, 'rms_norm_eps', 1e-6),
    initializerRange: positive(json, 'initializer_range', 0.02),
    tieWordEmbeddings: json.tie_word_embeddings === true,
    rope: ropeShape,
    ...(isReward(json) && { rewardHead: rewardHeadOf(json) }),
    huggingFace: json,
  };

  /** ArmoRM's head. */
  function rewardHeadOf({ token_pattern_for_tests: pattern = USER_TURN_ENDS }: Json): RewardConfig {
    if (!Array.isArray(pattern) || pattern.length === 0 || !pattern.every((id) => Number.isInteger(id) && id >= 0)) {
      return fail(`"token_pattern_for_tests" must be a list of token ids, found ${show(pattern)}`);
    }
    return {
      objectives: whole('num_objectives', 19),
      gatingHidden: whole('gating_hidden_dim', 1024),
      gatingLayers: whole('gating_n_hidden', 3),
      temperature: positive(json, 'gating_temperature', 10),
      pattern,
    };
  }
}

/** `<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n` of Llama 3, which is built into ArmoRM. */
const USER_TURN_ENDS = [128009, 128006, 78191, 128007, 271];

const isReward = ({ architectures }: Json): boolean =>
  Array.isArray(architectures) && architectures.includes('LlamaForRewardModelWithGating');
