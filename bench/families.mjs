/**
 * `node bench/families.mjs [--rounds 5] [--dtype float32]`: training steps (forward, loss, backward) of every family
 * against Llama's at the same sizes, so that the matrix products are the same; all in turn, round after round. Prints one
 * JSON line a family: tokens/s relative to Llama in the same round, median and worst.
 */
import { parseArgs } from 'node:util';
import { Model, packRows, withContests } from '../dist/index.js';

const { values } = parseArgs({
  options: { rounds: { type: 'string', default: '5' }, dtype: { type: 'string', default: 'float32' } },
});

const SIZES = {
  ...{ vocab_size: 16000, hidden_size: 512, num_hidden_layers: 6, num_attention_heads: 8, num_key_value_heads: 4 },
  ...{ head_dim: 64, intermediate_size: 1376, max_position_embeddings: 4096, rope_theta: 500000 },
  tie_word_embeddings: true,
};
const gemma = { hidden_activation: 'gelu_pytorch_tanh', query_pre_attn_scalar: 64, sliding_window: 256 };
const factors = Array.from({ length: 32 }, (_, i) => 1 + i / 8);
const FAMILIES = {
  llama: { model_type: 'llama' },
  'llama, dynamic': { model_type: 'llama', max_position_embeddings: 512, rope_scaling: { type: 'dynamic', factor: 4 } },
  mistral: { model_type: 'mistral', sliding_window: 256 },
  qwen2: { model_type: 'qwen2' },
  qwen3: { model_type: 'qwen3' },
  phi3: {
    ...{ model_type: 'phi3', original_max_position_embeddings: 2048 },
    rope_scaling: { type: 'longrope', short_factor: factors, long_factor: factors },
  },
  gemma2: { ...gemma, model_type: 'gemma2', attn_logit_softcapping: 50, final_logit_softcapping: 30 },
  gemma3: { ...gemma, model_type: 'gemma3_text' },
  internlm2: { model_type: 'internlm2' },
};

let state = 1;
const random = () => {
  state = (state * 1103515245 + 12345) % 2147483648;
  return state / 2147483648;
};
const ids = (n) => Int32Array.from({ length: n }, () => Math.floor(random() * SIZES.vocab_size));
const ROLES = ['source_chosen', 'target_chosen', 'rejected'];
const rows = [120, 300, 60, 200].map((prompt, i) => ({
  where: `row ${i}`,
  prompt: ids(prompt),
  responses: Object.fromEntries(ROLES.map((role, k) => [role, ids(150 + 70 * ((i + k) % 4))])),
}));
const objective = { form: 'sigmoid', beta: 0.01, gamma: 0, labelSmoothing: 0, lengthNormalized: false };
const contest = { weight: 1, coefficients: { source_chosen: 0.1, target_chosen: 0.9, rejected: -1 } };
// Counted as without sharing prompts, which a rotation by length forbids.
const tokens = rows.reduce(
  (sum, { prompt, responses }) => sum + ROLES.reduce((n, role) => n + prompt.length + responses[role].length, 0),
  0,
);

const models = {};
for (const [name, config] of Object.entries(FAMILIES)) {
  models[name] = await Model.create({ ...SIZES, ...config }, { dtype: values.dtype });
}
const speeds = Object.fromEntries(Object.keys(models).map((name) => [name, []]));
for (let round = -1; round < Number(values.rounds); round++) {
  for (const [name, model] of Object.entries(models)) {
    const packed = packRows(rows, ROLES, { longestShared: model.longestShared });
    const batch = { ...withContests(packed, [contest]), reference: new Float64Array(rows.length * ROLES.length) };
    const start = performance.now();
    await model.accumulate(batch, { objective, normalizer: rows.length });
    // The first round touches all memory.
    if (round >= 0) speeds[name].push((1000 * tokens) / (performance.now() - start));
  }
}
for (const [name, list] of Object.entries(speeds)) {
  const ratios = list.map((speed, round) => speed / speeds.llama[round]).sort((a, b) => a - b);
  const digits = (x) => Number(x.toFixed(3));
  console.log(
    JSON.stringify({
      ...{ family: name, dtype: values.dtype, tokens_per_s: Math.round(list.sort((a, b) => a - b)[list.length >> 1]) },
      ...{ relative_to_llama: { median: digits(ratios[ratios.length >> 1]), worst: digits(ratios[0]) } },
    }),
  );
}
