// node fuse.mjs TARGET PROMPTS.jsonl RUN SERVER-ADDRESS MODEL-NAME...
// Fuses the models NAME... of a server into TARGET, a directory or hub id: samples, scores, selects, fine-tunes, trains by
// WRPO and compares. What is done is not done again, so the command can be stopped and given once more at any time.
import { functionScorer, fuse } from 'wrpo';

const [target, prompts, outputDir, baseUrl, ...names] = process.argv.slice(2);
// In place of a reward model: short answers are good. `scorers` in the configuration names real ones (armorm, http, judge).
const brevity = functionScorer('brevity', ({ response }) => -response.length);

const { results } = await fuse(
  {
    ...{ outputDir, prompts, n: 2, maxTokens: 8, heldOut: 0.2, keepTies: true },
    modelNameOrPath: target,
    sources: names.map((model, i) => ({ name: `source-${i + 1}`, baseUrl, model })),
    scorer: 'brevity',
    sft: { learningRate: 1e-4, maxLength: 96, perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1 },
    train: {
      wrpo: { lossType: 'wrpo', learningRate: 1e-5, maxLength: 96, gradientAccumulationSteps: 1 },
      dpo: { lossType: 'sigmoid', learningRate: 1e-5, maxLength: 96, gradientAccumulationSteps: 1 },
    },
  },
  { scorers: [brevity], say: (line) => console.error(line) },
);
for (const { name, reward, win_rate } of results ?? []) console.log(name, reward.toFixed(3), win_rate.toFixed(3));
