/**
 * Makes miniature/models: three sources and a target, each with a tokenizer of its own, trained from nothing by this
 * project's own trainer on its stream of skills.mjs. They are shipped, so this runs only to make them anew:
 *
 *     node miniature/pretrain.mjs [NAME…]
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Model, Tokenizer, Trainer } from 'wrpo';
import { BATCH, HABIT_FROM, MODELS, pretrainStream, Rng, TOKENIZER_EXAMPLES, take } from './skills.mjs';
import { trainTokenizer, writeTokenizer } from './tokenizer.mjs';

const WORK = join('runs', 'pretraining');
const SHIPPED = fileURLToPath(new URL('./models', import.meta.url));

const names = /** @type {(keyof typeof MODELS)[]} */ (process.argv.slice(2));
for (const name of names.length > 0 ? names : Object.keys(MODELS)) await pretrain(name);

/** @param {keyof typeof MODELS} name */
async function pretrain(name) {
  const began = performance.now();
  const spec = MODELS[name];
  const dir = join(WORK, name);
  rmSync(dir, { recursive: true, force: true });
  writeTokenizer(dir, trainTokenizer(spec));
  const tokenizer = await Tokenizer.load(dir);
  const model = await create(spec, tokenizer.vocabSize);
  const stream = pretrainStream(spec);
  take(stream, TOKENIZER_EXAMPLES);

  const skilled = spec.family ? spec.steps : HABIT_FROM * spec.steps;
  await learn(take(stream, skilled * BATCH), { learningRate: 2e-3, warmupSteps: 50 }, 'skills');
  // The target's bad habit. A schedule of its own, since the one before ends at a learning rate of 0.
  const habit = take(stream, spec.steps * BATCH);
  if (habit.length > 0) await learn(habit, { learningRate: 2e-4, warmupSteps: 0 }, 'habit');

  await model.save(join(SHIPPED, name), { dtype: 'bfloat16' });
  writeTokenizer(join(SHIPPED, name), trainTokenizer(spec));
  await model.close();
  process.stdout.write(`${name}: ${((performance.now() - began) / 1000).toFixed(0)} s\n`);

  async function learn(examples, schedule, phase) {
    const trainer = new Trainer({
      model,
      tokenizer,
      trainDataset: examples.map(({ prompt, response }) => ({ prompt, completion: response })),
      args: {
        ...{ outputDir: join(dir, phase), lossType: 'sft', ...schedule, adamBeta2: 0.98 },
        ...{ perDeviceTrainBatchSize: BATCH, gradientAccumulationSteps: 1, shuffle: false, maxLength: 96 },
        ...{ loggingSteps: 50, microbatchTokens: 4096 },
      },
    });
    trainer.on('log', ({ step, loss }) => {
      if (loss !== undefined) process.stdout.write(`${name}, ${phase}: step ${step}, loss ${loss.toFixed(4)}\n`);
    });
    await trainer.train();
  }
}

/** Fresh weights; the engine's own initialisation knows one deviation for all, where each wants its fan-in's. */
async function create(spec, vocabSize) {
  const { width, layers, heads, kvHeads, ffn } = spec.shape;
  const model = await Model.create({
    ...{ model_type: 'llama', architectures: ['LlamaForCausalLM'], vocab_size: vocabSize, hidden_size: width },
    ...{ num_hidden_layers: layers, num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: width / heads },
    ...{ intermediate_size: ffn, max_position_embeddings: 96, rms_norm_eps: 1e-5, rope_theta: 10000 },
    ...{ tie_word_embeddings: true, bos_token_id: null, eos_token_id: 3, pad_token_id: 0 },
  });
  const rng = new Rng(spec.seed);
  for (const [name, tensor] of model.parameters({ master: true })) {
    if (tensor.shape.length < 2) continue;
    const [rows, columns] = tensor.shape;
    const isOutput = /(o_proj|down_proj)\.weight$/.test(name);
    const deviation = 1 / Math.sqrt(columns) / (isOutput ? Math.sqrt(2 * layers) : 1);
    const values = /** @type {Float32Array} */ (tensor.view());
    for (let i = 0; i < rows * columns; i++) values[i] = deviation * normal(rng);
  }
  await model.syncWork();
  return model;
}

/** A draw of the standard normal distribution, by Box and Muller. @param {Rng} rng */
function normal(rng) {
  const radius = Math.sqrt(-2 * Math.log((rng.u32() + 1) / 2 ** 32));
  return radius * Math.cos((2 * Math.PI * rng.u32()) / 2 ** 32);
}
