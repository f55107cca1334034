import { mkdirSync, writeFileSync } from 'node:fs';
import { describe, expect, it, vi } from 'vitest';
import { plan } from '../lib/cli/plan.ts';
import { parseModelConfig } from '../lib/model/config.ts';
import { bestPlan, forecast, GPUS, layerBytes, parameterCount, planMemory } from '../lib/train/memory-plan.ts';
import { scratchDirectory } from './training.ts';

const LLAMA_3_8B = {
  model_type: 'llama',
  vocab_size: 128256,
  hidden_size: 4096,
  intermediate_size: 14336,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  max_position_embeddings: 8192,
};
const config = parseModelConfig(LLAMA_3_8B);
const GIB = 2 ** 30;

describe('the memory of a GPU', () => {
  it('counts parameters as the models have them', () => {
    expect(parameterCount(config)).toBe(8_030_261_248);
    const qwen = { ...LLAMA_3_8B, model_type: 'qwen2', vocab_size: 151936, hidden_size: 896, intermediate_size: 4864 };
    const small = { num_hidden_layers: 24, num_attention_heads: 14, num_key_value_heads: 2, tie_word_embeddings: true };
    expect(parameterCount(parseModelConfig({ ...qwen, ...small }))).toBe(494_032_768);
  });

  // Llama-3-8B: worked out by hand, in decimal GB.
  it('counts what a token keeps', () => {
    const { input, kept } = layerBytes(config);
    expect(input).toBe(8192);
    expect(kept).toBe(8192 + 12288 + 8192 + 128 + 8192 + 57344 + 8);
    expect((input * 32 * 16384) / 1e9).toBeCloseTo(4.3, 1);
    expect((kept * 32 * 16384) / 1e9).toBeCloseTo(49.46, 1);
    expect((kept * 32 * 4096) / 1e9).toBeCloseTo(12.36, 1);
  });

  it('fits an 8B model on one H200 with little recomputation, and says how much', () => {
    const { H200 } = GPUS as { H200: number };
    expect(forecast(config, 4096, H200).states / GIB).toBeCloseTo(119.7, 1);
    const plans = planMemory(config, H200);
    const kept = Object.fromEntries(plans.map((plan) => [plan.tokens, plan.keptLayers]));
    expect(kept[4096]).toBe(32);
    expect(kept[6144]).toBe(32);
    expect(kept[8192]).toBeGreaterThanOrEqual(18);
    expect(kept[8192]).toBeLessThanOrEqual(24);
    expect(kept[16384]).toBeLessThan(10);
    expect(bestPlan(plans)).toMatchObject({ tokens: 6144, recomputed: 0 });
    for (const plan of plans) {
      expect(plan.total).toBeLessThanOrEqual(H200);
      const { states, reference, activations, workspace, reserve } = plan;
      expect(states + reference + activations + workspace + reserve).toBe(plan.total);
    }
    // 15 GiB more do not fit beside float32 gradients.
    expect(planMemory(config, H200, { tokens: 16384, residentReference: true })).toEqual([]);
  });

  it('keeps one layer more when there is just room for it', () => {
    const before = forecast(config, 8192, 130 * GIB);
    const next = before.total + 8192 * (layerBytes(config).kept - layerBytes(config).input);
    expect(forecast(config, 8192, next).keptLayers).toBe(before.keptLayers + 1);
    expect(forecast(config, 8192, next - 1).keptLayers).toBe(before.keptLayers);
  });
});

describe('wrpo plan', () => {
  const path = scratchDirectory('plan');
  const model = (changes: object = {}) => {
    const directory = path(`model-${Object.keys(changes).join('-')}`);
    mkdirSync(directory, { recursive: true });
    writeFileSync(`${directory}/config.json`, JSON.stringify({ ...LLAMA_3_8B, ...changes }));
    return directory;
  };
  const said = (options: Parameters<typeof plan>[0]) => {
    let text = '';
    const write = vi.spyOn(process.stdout, 'write').mockImplementation((part) => {
      text += part;
      return true;
    });
    try {
      plan(options);
    } finally {
      write.mockRestore();
    }
    return text;
  };

  it('says what is needed of what there is, by directory or by file', () => {
    const text = said({ model: model(), gpu: 'h200' });
    expect(text).toMatch(/^8\.03 billion parameters on one H200: needs 13\d\.\d GiB of 139\.0\n/);
    expect(text).toMatch(/119\.7 GiB {2}weights 2, /);
    expect(text).toMatch(/^4096 +32 of 32 .*\+0\.0 %/m);
    expect(text).not.toContain('reference');
    expect(said({ model: `${model()}/config.json`, gpu: 'H200' })).toBe(text);
    const { best, available } = JSON.parse(said({ model: model(), gpu: 'B300', memory: 268, json: true }));
    expect(available).toBe(268 * GIB);
    expect(best).toMatchObject({ tokens: 16384, keptLayers: 32, recomputed: 0 });
  });

  it('refuses what does not fit, and a GPU it does not know', () => {
    const expectError = (options: Partial<Parameters<typeof plan>[0]>, code: string, message: RegExp) =>
      expect(() => plan({ model: model(), gpu: 'H100', ...options })).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(message) }),
      );
    expectError({}, 'ERR_OUT_OF_MEMORY', /^full training needs 12\d\.\d GiB of 79\.0 with 4096 tokens .*use_peft/);
    expectError({ gpu: 'H800' }, 'ERR_CONFIG', /"H800": expected H200, H100, A100, A800, or .*--memory/);
    expectError({ model: path('none') }, 'ERR_MODEL', /config\.json/);
  });
});
