/** Hugging Face `config.json` to what the engine needs, in the spellings of transformers 4 and 5. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { WrpoError } from '../errors.js';
import type { ModelShape, NamedTensor, RewardShape } from '../native/addon.js';
import { FAMILIES, type FileTensor, traitsOf, whyNot } from './families.js';
import { type Json, Reader, show } from './reader.js';
import { wholeTensor } from './safetensors.js';

/** A model's shape, and the config.json it came from, which is saved again with the weights. */
export interface ModelConfig extends ModelShape {
  /** Of ./families.ts. */
  family: string;
  rewardHead?: RewardConfig;
  huggingFace: Record<string, unknown>;
  /** Its keys whose values are floats even where they are whole, which transformers tells from integers and JSON does not. */
  floatKeys: readonly string[];
}

/** A reward head, and the token ids whose last occurrence begins where a conversation is gated. */
export interface RewardConfig extends RewardShape {
  pattern: readonly number[];
}

const MOST_LAYERS = 10_000;

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
  const floats = text.matchAll(/"([^"\\]*)"\s*:\s*-?\d+\.0+(?![\deE])/g);
  return { ...parseModelConfig(json as Json, path), floatKeys: [...new Set([...floats].map(([, key]) => key!))] };
}

/** The same from an object; `where` names it in errors. */
export function parseModelConfig(json: Json, where = 'config'): ModelConfig {
  const config = new Reader(json, where);
  const family = Object.hasOwn(FAMILIES, String(json.model_type)) && FAMILIES[String(json.model_type)];
  if (!family) return config.fail(whyNot(json.model_type));
  const { tied = false, headDim: usualHeadDim } = family.defaults ?? {};
  const hiddenSize = config.whole('hidden_size');
  const layers = config.whole('num_hidden_layers');
  // Each layer has memory of its own before any weights are read.
  if (layers > MOST_LAYERS) config.fail(`"num_hidden_layers" must be at most ${MOST_LAYERS}, found ${layers}`);
  const heads = config.whole('num_attention_heads');
  const kvHeads = config.whole('num_key_value_heads', heads);
  if (json.head_dim == null && !usualHeadDim && hiddenSize % heads !== 0)
    config.fail('"hidden_size" must be a multiple of "num_attention_heads"');
  if (heads % kvHeads !== 0) config.fail('"num_attention_heads" must be a multiple of "num_key_value_heads"');
  const headDim = config.whole('head_dim', usualHeadDim ?? hiddenSize / heads);
  if (headDim % 2 !== 0) config.fail('"head_dim" must be even');
  return {
    family: String(json.model_type),
    vocabSize: config.whole('vocab_size'),
    ...{ hiddenSize, layers, heads, kvHeads, headDim },
    intermediateSize: config.whole('intermediate_size'),
    maxPositions: config.whole('max_position_embeddings', 2048),
    rmsNormEps: config.positive('rms_norm_eps', 1e-6),
    initializerRange: config.positive('initializer_range', 0.02),
    tieWordEmbeddings: config.flag('tie_word_embeddings', tied),
    ...traitsOf(family, config, { layers, hiddenSize, heads, kvHeads, headDim }),
    ...(isReward(json) && { rewardHead: rewardHeadOf(config) }),
    huggingFace: json,
    floatKeys: ['attn_logit_softcapping', 'final_logit_softcapping'],
  };
}

/**
 * What belongs to a config.json beside it, by file name: how to generate, and the code that it names (`auto_map`), without
 * which transformers cannot load a model whose class it does not have.
 */
export function companions({ huggingFace }: ModelConfig, directory: string | undefined): Record<string, string> {
  if (directory === undefined) return {};
  const { auto_map: classes } = huggingFace;
  const modules = Object.values(classes ?? {})
    .flat()
    .map((name) => /^(\w+)\.\w+$/.exec(String(name))?.[1]);
  const names = ['generation_config.json', ...modules.flatMap((module) => (module ? [`${module}.py`] : []))];
  const there = names.filter((name) => existsSync(join(directory, name)));
  return Object.fromEntries(there.map((name) => [name, readFileSync(join(directory, name), 'utf8').trimEnd()]));
}

/** The config.json of a model that is saved in `dtype`. */
export function configText({ huggingFace, floatKeys, family }: ModelConfig, dtype: string): string {
  const { torch_dtype: v4, dtype: v5, ...rest } = huggingFace;
  const key = v4 !== undefined && v5 === undefined ? 'torch_dtype' : 'dtype';
  const config = { architectures: [FAMILIES[family]!.architecture], ...rest, [key]: dtype };
  return JSON.stringify(config, null, 2).replace(/"([^"\\]*)": (-?\d+)(?=,?$)/gm, (whole, name, value) =>
    floatKeys.includes(name) ? `"${name}": ${value}.0` : whole,
  );
}

/** The tensors of a model's checkpoint, made of its parameters. */
export function fileTensors(config: ModelConfig, parameters: NamedTensor[]): FileTensor[] {
  const { stored } = FAMILIES[config.family]!;
  return stored?.(parameters, config) ?? parameters.map(wholeTensor);
}

/** The longest sequence whose prompt may be shared with others: how a longer one is rotated depends on its length. */
export function longestShared({ rope }: ModelConfig): number {
  return rope.type === 'dynamic' || rope.type === 'longrope' ? rope.originalMaxPosition : Infinity;
}

/** ArmoRM's head. */
function rewardHeadOf(config: Reader): RewardConfig {
  const pattern = config.json.token_pattern_for_tests ?? USER_TURN_ENDS;
  if (!Array.isArray(pattern) || pattern.length === 0 || !pattern.every((id) => Number.isInteger(id) && id >= 0)) {
    return config.fail(`"token_pattern_for_tests" must be a list of token ids, found ${show(pattern)}`);
  }
  return {
    objectives: config.whole('num_objectives', 19),
    gatingHidden: config.whole('gating_hidden_dim', 1024),
    gatingLayers: config.whole('gating_n_hidden', 3),
    temperature: config.positive('gating_temperature', 10),
    pattern,
  };
}

/** `<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n` of Llama 3, which is built into ArmoRM. */
const USER_TURN_ENDS = [128009, 128006, 78191, 128007, 271];

const isReward = ({ architectures }: Json): boolean =>
  Array.isArray(architectures) && architectures.includes('LlamaForRewardModelWithGating');
