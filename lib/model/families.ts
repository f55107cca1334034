/**
 * The model families, each as data: what its config.json is called by, what the decoder does differently for it, and, where
 * a checkpoint's tensors have other names than Llama's, how they are stored.
 */
import type { ModelShape, NamedTensor, Tensor } from '../native/addon.js';
import type { Reader } from './reader.js';
import { readRope, ropeOf } from './rope.js';

/** What every family must say, or take over from Llama. */
type Traits = Pick<
  ModelShape,
  | ('qkvBias' | 'headNorm' | 'branchNorms' | 'fusedProjections' | 'normPlus' | 'activation')
  | ('embeddingScale' | 'queryScale' | 'attentionSoftcap' | 'finalSoftcap' | 'windows' | 'rope' | 'localRope')
>;

/** A tensor of a checkpoint: `pieces`, one after the other, are its rows. */
export interface FileTensor {
  name: string;
  shape: number[];
  pieces: Tensor[];
}

interface Sizes {
  layers: number;
  hiddenSize: number;
  heads: number;
  kvHeads: number;
  headDim: number;
}

interface Family {
  /** Of a config.json that names no architecture. */
  architecture: string;
  /** Keys of its config.json that may have one value only. */
  fixed: Record<string, unknown>;
  /** Of a config.json that says nothing. */
  defaults?: { tied?: boolean; headDim?: number };
  /** Where it departs from Llama. */
  traits?: (config: Reader, sizes: Sizes) => Partial<Traits>;
  /** Its checkpoint's tensors, made of the parameters; without it they are the same. */
  stored?: (parameters: NamedTensor[], sizes: Sizes) => FileTensor[];
}

const SILU = { hidden_act: 'silu' };

export const FAMILIES: Record<string, Family> = {
  // Llama 2, 3, 3.1, 3.2; Yi; and the backbone of ArmoRM.
  llama: { architecture: 'LlamaForCausalLM', fixed: { ...SILU, attention_bias: false, mlp_bias: false } },
  mistral: {
    architecture: 'MistralForCausalLM',
    fixed: SILU,
    traits: (config, { layers }) => ({ windows: inEveryLayer(config, layers, 4096) }),
  },
  // Qwen2, 2.5
  qwen2: {
    architecture: 'Qwen2ForCausalLM',
    fixed: SILU,
    traits: (config, { layers }) => ({ qkvBias: true, windows: fromOneLayerOn(config, layers) }),
  },
  qwen3: {
    architecture: 'Qwen3ForCausalLM',
    fixed: { ...SILU, attention_bias: false },
    traits: (config, { layers }) => ({ headNorm: true, windows: fromOneLayerOn(config, layers) }),
  },
  phi3: {
    architecture: 'Phi3ForCausalLM',
    fixed: { ...SILU, embd_pdrop: 0, resid_pdrop: 0 },
    traits: (config, { layers, headDim }) => ({
      fusedProjections: true,
      windows: inEveryLayer(config, layers, 0),
      rope: readRope(config, headDim, { original: 4096 }),
    }),
  },
  gemma2: {
    architecture: 'Gemma2ForCausalLM',
    fixed: { hidden_activation: 'gelu_pytorch_tanh', attention_bias: false, use_bidirectional_attention: false },
    defaults: { tied: true, headDim: 256 },
    traits: (config, sizes) => ({
      ...gemma(config, sizes),
      attentionSoftcap: config.cap('attn_logit_softcapping', 50),
      finalSoftcap: config.cap('final_logit_softcapping', 30),
      windows: alternating(config, sizes.layers, 2),
    }),
  },
  gemma3_text: {
    architecture: 'Gemma3ForCausalLM',
    fixed: { hidden_activation: 'gelu_pytorch_tanh', attention_bias: false, use_bidirectional_attention: false },
    defaults: { tied: true, headDim: 256 },
    traits: (config, sizes) => ({
      ...gemma(config, sizes),
      headNorm: true,
      windows: alternating(config, sizes.layers, config.whole('sliding_window_pattern', 6)),
      ...gemma3Ropes(config, sizes.headDim),
    }),
  },
  // InternLM2, 2.5
  internlm2: {
    architecture: 'InternLM2ForCausalLM',
    fixed: { ...SILU, bias: false },
    stored: internlm2Tensors,
  },
};

/** Everything about a family's arithmetic that its config.json decides. */
export function traitsOf(family: Family, config: Reader, sizes: Sizes): Traits {
  for (const [key, expected] of Object.entries(family.fixed)) config.only(key, expected);
  const own = family.traits?.(config, sizes);
  return {
    ...{ qkvBias: false, headNorm: false, branchNorms: false, fusedProjections: false },
    ...{ normPlus: 0, activation: 'silu', embeddingScale: 1, queryScale: sizes.headDim ** -0.5 },
    ...{ attentionSoftcap: 0, finalSoftcap: 0, windows: new Int32Array(sizes.layers) },
    rope: own?.rope ?? readRope(config, sizes.headDim),
    ...own,
  };
}

/** A family that is known and not computed, with the reason. */
export function whyNot(modelType: unknown): string {
  const supported = `supported: ${Object.keys(FAMILIES).join(', ')}`;
  if (typeof modelType !== 'string') return `"model_type" must name the model family; ${supported}`;
  if (/^deepseek_v\d|moe|mixtral|^dbrx|^grok/.test(modelType)) {
    return (
      `model family "${modelType}" (a mixture of experts) is not computed here: serve it with an OpenAI-compatible ` +
      `server and sample from that; ${supported}`
    );
  }
  return `model family "${modelType}" is not supported; ${supported}`;
}

// ---- windows: of each layer, how many keys a row sees, itself included; 0 = all before it

const isSliding = (type: unknown) => type === 'sliding_attention';

function windows(config: Reader, layers: number, sliding: (layer: number) => boolean): Int32Array {
  const types = config.json.layer_types;
  if (types != null && (!Array.isArray(types) || types.length !== layers)) {
    config.fail(`"layer_types" must name the attention of ${layers} layers`);
  }
  const unknown = (types as unknown[] | undefined)?.find((type) => !isSliding(type) && type !== 'full_attention');
  if (unknown !== undefined) config.fail(`"layer_types" names ${JSON.stringify(unknown)}, which is not supported`);
  const slides = Array.isArray(types) ? (layer: number) => isSliding(types[layer]) : sliding;
  return Int32Array.from({ length: layers }, (_, layer) => (slides(layer) ? config.whole('sliding_window') : 0));
}

/** `fallback`: of a config.json that does not have the key. */
function inEveryLayer(config: Reader, layers: number, fallback: number): Int32Array {
  const { sliding_window: window } = config.json;
  const size = window === undefined ? fallback : window === null ? 0 : config.whole('sliding_window');
  return new Int32Array(layers).fill(size);
}

function fromOneLayerOn(config: Reader, layers: number): Int32Array {
  const used = config.flag('use_sliding_window') && config.json.sliding_window != null;
  if (!used) return new Int32Array(layers);
  const first = Number.isInteger(config.json.max_window_layers) ? (config.json.max_window_layers as number) : 28;
  return windows(config, layers, (layer) => layer >= first);
}

/** All layers but every `pattern`th. */
function alternating(config: Reader, layers: number, pattern: number): Int32Array {
  if (config.json.sliding_window === null) return new Int32Array(layers);
  return windows(config, layers, (layer) => (layer + 1) % pattern !== 0);
}

// ---- Gemma

function gemma(config: Reader, { hiddenSize }: Sizes): Partial<Traits> {
  return {
    branchNorms: true,
    normPlus: 1,
    activation: 'gelu_tanh',
    embeddingScale: Math.sqrt(hiddenSize),
    queryScale: config.positive('query_pre_attn_scalar', 256) ** -0.5,
    attentionSoftcap: config.cap('attn_logit_softcapping'),
    finalSoftcap: config.cap('final_logit_softcapping'),
  };
}

/** Layers with a window rotate by another theta; only the others are scaled. */
function gemma3Ropes(config: Reader, headDim: number): Pick<Traits, 'rope' | 'localRope'> {
  const [global, local] = [1e6, 1e4];
  if (config.json.rope_parameters == null) {
    return {
      rope: readRope(config, headDim, { theta: global }),
      localRope: {
        ...ropeOf(config, config.object('none'), headDim),
        theta: config.positive('rope_local_base_freq', local),
      },
    };
  }
  const parameters = config.object('rope_parameters');
  return {
    rope: ropeOf(config, parameters.object('full_attention'), headDim, { theta: global }),
    localRope: ropeOf(config, parameters.object('sliding_attention'), headDim, { theta: local }),
  };
}

// ---- InternLM2

/**
 * Other names, and one `wqkv`, whose rows hold for each key-value head its queries, the key and the value (arXiv 2403.17297,
 * section 2.2).
 */
function internlm2Tensors(parameters: NamedTensor[], { heads, kvHeads, headDim }: Sizes): FileTensor[] {
  const names: [RegExp, string][] = [
    [/^lm_head/, 'output'],
    [/embed_tokens/, 'tok_embeddings'],
    [/self_attn\.o_proj/, 'attention.wo'],
    [/mlp\.gate_proj/, 'feed_forward.w1'],
    [/mlp\.down_proj/, 'feed_forward.w2'],
    [/mlp\.up_proj/, 'feed_forward.w3'],
    [/input_layernorm/, 'attention_norm'],
    [/post_attention_layernorm/, 'ffn_norm'],
  ];
  const byName = new Map(parameters.map(({ name, tensor }) => [name, tensor]));
  return parameters.flatMap(({ name, tensor }): FileTensor[] => {
    if (/self_attn\.[kv]_proj/.test(name)) return [];
    if (!name.includes('q_proj')) {
      const stored = names.reduce((text, [from, to]) => text.replace(from, to), name);
      return [{ name: stored, shape: tensor.shape, pieces: [tensor] }];
    }
    const [k, v] = ['k_proj', 'v_proj'].map((part) => byName.get(name.replace('q_proj', part))!);
    const queries = (heads / kvHeads) * headDim;
    const pieces = Array.from({ length: kvHeads }, (_, g) => [
      tensor.rows(g * queries, queries),
      k!.rows(g * headDim, headDim),
      v!.rows(g * headDim, headDim),
    ]).flat();
    const shape = [(heads + 2 * kvHeads) * headDim, tensor.shape[1]!];
    return [{ name: name.replace('self_attn.q_proj', 'attention.wqkv'), shape, pieces }];
  });
}
