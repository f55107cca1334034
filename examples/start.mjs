/**
 * The demonstration behind `npm start`: a tiny Llama learns text skills (dates, clocks, units, lists) and a bad habit (echoing its input) by
 * supervised fine-tuning, then WRPO on quadruples of text turns it from the habit to the skills. Everything goes through the
 * public API and the files a user has.
 */
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { encodeRows, loadPreferences, Model, packRows, Tokenizer, Trainer } from 'wrpo';
import { writeQuadruples, writeSft } from './miniature/quadruples.mjs';
import { MODELS } from './miniature/skills.mjs';
import { trainTokenizer, writeTokenizer } from './miniature/tokenizer.mjs';

const dir = join('runs', 'start');
const path = (name) => join(dir, name);
const began = performance.now();
const say = (line = '') => process.stdout.write(`${line}\n`);

if (existsSync(dir)) rmSync(dir, { recursive: true });
mkdirSync(dir, { recursive: true });

say('1. A tiny Llama with its tokenizer, in Hugging Face layout');
const merges = trainTokenizer(MODELS.target);
await writeTokenizer(path('base'), merges);
const tokenizer = await Tokenizer.load(path('base'));
const base = await Model.create(
  {
    model_type: 'llama',
    vocab_size: tokenizer.vocabSize,
    hidden_size: 96,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    intermediate_size: 256,
    max_position_embeddings: 96,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: true,
    initializer_range: 0.1,
  },
  { seed: 1 },
);
await base.save(path('base'));
await base.close();
say(`   ${path('base')}: 4 layers, width 96, vocabulary ${tokenizer.vocabSize}`);

say('2. Supervised fine-tuning on the skills, with a habit of echoing the input mixed in');
await writeSft(path('sft.jsonl'), { n: 25600, habit: 0.45, families: 'F' });
const sft = await train({
  model: path('base'),
  trainDataset: path('sft.jsonl'),
  args: {
    outputDir: path('sft'),
    lossType: 'sft',
    learningRate: 3e-3,
    perDeviceTrainBatchSize: 64,
    gradientAccumulationSteps: 1,
    loggingSteps: 50,
  },
});
say(`   ${sft.globalStep} steps, loss ${sft.trainingLoss.toFixed(3)}`);

say('3. WRPO on quadruples (prompt, source_chosen, target_chosen, rejected) of text');
await writeQuadruples(path('quadruples.jsonl'), { seed: 5001, n: 6144, split: 'po', families: 'F' });
await writeQuadruples(path('held_out.jsonl'), { seed: 900, n: 1200, split: 'test', families: 'F' });
const before = await answers(path('sft'));
const wrpo = await train({
  model: path('sft'),
  trainDataset: path('quadruples.jsonl'),
  evalDataset: path('held_out.jsonl'),
  args: {
    outputDir: path('wrpo'),
    lossType: 'wrpo',
    beta: 0.5,
    alpha: 0.5,
    learningRate: 1e-4,
    perDeviceTrainBatchSize: 32,
    gradientAccumulationSteps: 1,
    loggingSteps: 8,
  },
});
const after = await answers(path('wrpo'));

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const evaluation = wrpo.metrics;
const table = (name, was, is) => say(`  ${name.padEnd(44)} ${was.padStart(9)} ${is.padStart(9)}`);
say();
table(`On ${before.rows.length} held-out prompts`, 'before', 'after');
table('answered right (greedy)', percent(before.accuracy), percent(after.accuracy));
table('rewards/margins', '0', evaluation['eval_rewards/margins'].toFixed(3));
table('rewards/accuracies', '-', percent(evaluation['eval_rewards/accuracies']));
say('  (before WRPO the policy is its own reference, so every reward is 0)');
say();
for (const i of [0, 1]) {
  const { prompt, responses } = before.rows[i];
  table(`log-probs for "${prompt}"`, 'before', 'after');
  for (const [role, text] of Object.entries(responses)) {
    table(`${role} "${text}"`, before.logps[i][role].toFixed(2), after.logps[i][role].toFixed(2));
  }
}
say();
say(`Model: ${path('wrpo')} (Hugging Face layout)   Metrics: ${path('wrpo/metrics.jsonl')}`);
say(`Done in ${((performance.now() - began) / 1000).toFixed(0)} s.`);

async function train(options) {
  const trainer = new Trainer(options);
  if (!process.stderr.isTTY) {
    trainer.on('log', (line) => {
      if (line.loss === undefined) return;
      const margin = line['rewards/margins'] === undefined ? '' : `  margin ${line['rewards/margins'].toFixed(3)}`;
      say(`   step ${line.step}  loss ${line.loss.toFixed(4)}${margin}  ${line.tokens_per_second.toFixed(0)} tokens/s`);
    });
  }
  const result = await trainer.train();
  await trainer.close();
  return result;
}

/** Held-out answers: log-probs of each response, and whether greedy decoding would have produced the right one. */
async function answers(modelDir) {
  const rows = await loadPreferences(path('held_out.jsonl'));
  const roles = ['source_chosen', 'target_chosen', 'rejected'];
  const model = await Model.load(modelDir);
  const encoded = await encodeRows(rows, { tokenizer, roles, maxLength: 96, vocabSize: tokenizer.vocabSize });
  const { sums, counts, greedy } = await model.logProbs(packRows(encoded.rows, roles), { greedy: true });
  await model.close();
  const logps = [];
  let right = 0;
  let token = 0;
  for (let i = 0; i < rows.length; i++) {
    logps.push(Object.fromEntries(roles.map((role, k) => [role, sums[i * 3 + k]])));
    for (const [k, role] of roles.entries()) {
      const tokens = greedy.subarray(token, token + counts[i * 3 + k]);
      token += tokens.length;
      // The arg max at every token: greedy decoding would write exactly this answer. Both chosen ones are right.
      if (role !== 'rejected' && tokens.every(Boolean)) right++;
    }
  }
  return { rows, logps, accuracy: right / rows.length };
}
