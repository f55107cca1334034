/** Rotary embeddings of a config.json, in the spellings of transformers 4 and 5. */
import type { RopeShape } from '../native/addon.js';
import { type Reader, show } from './reader.js';

const TYPES = ['default', 'linear', 'llama3', 'yarn', 'dynamic', 'longrope'] as const;

/**
 * Where the rotation is described: transformers 5 gathers everything in `rope_parameters`, 4 has `rope_theta` beside
 * `rope_scaling` (null: none).
 */
export function readRope(config: Reader, headDim: number, defaults: RopeDefaults = {}): RopeShape {
  const rope = config.object(config.json.rope_parameters == null ? 'rope_scaling' : 'rope_parameters');
  return ropeOf(config, rope, headDim, defaults);
}

/** What a family's configuration means when it does not say so. */
interface RopeDefaults {
  theta?: number;
  /** The original context; otherwise `max_position_embeddings`. */
  original?: number;
}

/** The rotation that `rope` describes; what it lacks is looked up in `config`. */
export function ropeOf(config: Reader, rope: Reader, headDim: number, defaults: RopeDefaults = {}): RopeShape {
  const name = rope.json.rope_type ?? rope.json.type ?? 'default';
  // Early files of Phi-3 call it "su" or "yarn".
  const long = name === 'su' || (name === 'yarn' && rope.json.short_factor != null);
  const type = TYPES.find((known) => known === (long ? 'longrope' : name));
  if (!type) {
    return rope.fail(`rope type ${show(name)} is not supported; supported: ${TYPES.map(show).join(', ')}`);
  }
  const has = (key: string) => (rope.json[key] == null ? config : rope);
  const part = has('partial_rotary_factor').positive('partial_rotary_factor', 1);
  const dim = Math.trunc(headDim * part);
  if (part > 1 || dim < 2 || dim % 2 !== 0) {
    rope.fail(`"partial_rotary_factor" ${part} of a head of ${headDim} must rotate an even number of at least 2`);
  }
  const theta = has('rope_theta').positive('rope_theta', defaults.theta ?? 10000);
  const maxPositions = config.whole('max_position_embeddings', 2048);
  const shape: RopeShape = {
    ...{ type, dim, theta, factor: 1, attentionFactor: 1, originalMaxPosition: maxPositions },
    ...{ lowFrequencyFactor: 1, highFrequencyFactor: 4, rampLow: 0, rampHigh: 1 },
  };
  const original = () =>
    has('original_max_position_embeddings').whole(
      'original_max_position_embeddings',
      defaults.original ?? maxPositions,
    );
  switch (type) {
    case 'default':
      return shape;
    case 'linear':
    case 'dynamic':
      // A dynamic theta grows once a sequence is longer than max_position_embeddings itself.
      if (type === 'dynamic' && dim < 4) rope.fail(`a dynamic rotation of ${dim} dimensions; expected 4 or more`);
      return { ...shape, factor: rope.positive('factor') };
    case 'llama3':
      return {
        ...{ ...shape, factor: rope.positive('factor'), originalMaxPosition: original() },
        lowFrequencyFactor: rope.positive('low_freq_factor'),
        highFrequencyFactor: rope.positive('high_freq_factor'),
      };
    case 'yarn':
      return { ...shape, ...yarn(rope, dim, theta, original(), maxPositions) };
    case 'longrope':
      return { ...shape, ...longrope(rope, dim, original(), maxPositions) };
  }
}

/**
 * YaRN (arXiv 2309.00071): pairs that turn more than `beta_fast` times in the original context keep their frequency, those
 * that turn less than `beta_slow` times are divided by the factor, those between are blended.
 */
function yarn(rope: Reader, dim: number, theta: number, original: number, maxPositions: number) {
  const factor = rope.positive('factor', maxPositions / original);
  const growth = (weight: number) => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  const { mscale, mscale_all_dim: ofAll } = rope.json;
  const derived =
    mscale && ofAll ? growth(rope.positive('mscale')) / growth(rope.positive('mscale_all_dim')) : growth(1);
  // The pair that turns so many times over the original context.
  const pairOf = (turns: number) => (dim * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [fast, slow] = [pairOf(rope.positive('beta_fast', 32)), pairOf(rope.positive('beta_slow', 1))];
  const whole = rope.flag('truncate', true);
  const rampLow = Math.max(whole ? Math.floor(fast) : fast, 0);
  const rampHigh = Math.min(whole ? Math.ceil(slow) : slow, dim - 1);
  return {
    ...{ factor, originalMaxPosition: original, attentionFactor: rope.positive('attention_factor', derived), rampLow },
    rampHigh: rampHigh === rampLow ? rampHigh + 0.001 : rampHigh,
  };
}

/** LongRoPE (arXiv 2402.13753): a factor for every pair, one set for sequences within the original context, one beyond. */
function longrope(rope: Reader, dim: number, original: number, maxPositions: number) {
  const factors = (key: string) => {
    const list = rope.json[key];
    const fits = Array.isArray(list) && list.length === dim / 2 && list.every((x) => typeof x === 'number' && x > 0);
    return fits ? Float64Array.from(list) : rope.fail(`"${key}" must be a list of ${dim / 2} positive numbers`);
  };
  const factor = rope.positive('factor', maxPositions / original);
  const derived = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original));
  return {
    ...{ factor, originalMaxPosition: original, attentionFactor: rope.positive('attention_factor', derived) },
    ...{ shortFactors: factors('short_factor'), longFactors: factors('long_factor') },
  };
}
