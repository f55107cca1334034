/**
 * One run of this package as process.mjs starts it: rows, model, mode, dtype, output directory, and as JSON training
 * arguments that differ from these; prints one JSON line. The final model is not saved, as the peers' are not.
 */
import { Trainer } from '../../dist/index.js';

const [trainDataset, model, mode, dtype, outputDir, others] = process.argv.slice(2);
const trainer = new Trainer({
  model,
  trainDataset,
  args: {
    outputDir,
    lossType: mode === 'wrpo' ? 'wrpo' : 'sigmoid',
    dtype,
    beta: 0.01,
    alpha: mode === 'wrpo' ? 0.1 : undefined,
    learningRate: 1e-5,
    perDeviceTrainBatchSize: 2,
    gradientAccumulationSteps: 4,
    shuffle: false,
    loggingSteps: 1,
    disableTqdm: true,
    maxLength: 4096,
    ...JSON.parse(others),
  },
});
let referenceSeconds = 0;
trainer.on('reference', ({ seconds }) => {
  referenceSeconds = seconds;
});
const losses = [];
const steps = [];
let previous = Number.NaN;
for await (const { step, totalSteps, metrics, tokens } of trainer.steps()) {
  const now = performance.now();
  steps.push({ seconds: (now - previous) / 1000, tokens });
  losses.push(metrics.loss);
  if (step === totalSteps) break;
  previous = performance.now();
}
const sum = (list, key) => list.reduce((total, step) => total + step[key], 0);
// The first step warms up, as the peers' does.
const timed = steps.slice(1);
const [tokens, seconds] = [sum(timed, 'tokens'), sum(timed, 'seconds')];
const reference = (referenceSeconds * timed.length) / steps.length;
const sorted = timed.map((step) => step.seconds).sort((a, b) => a - b);
const policy = await trainer.model();
console.log(
  JSON.stringify({
    tokens: Math.round(sum(steps, 'tokens') / steps.length),
    tokens_per_s: Number((tokens / seconds).toFixed(1)),
    tokens_per_s_with_reference: Number((tokens / (seconds + reference)).toFixed(1)),
    seconds: Number(seconds.toFixed(4)),
    step_s: Number(sorted[sorted.length >> 1].toFixed(4)),
    reference_s: Number(referenceSeconds.toFixed(3)),
    peak_rss_mb: Math.round(process.resourceUsage().maxRSS / 1024),
    ...(policy.device === 'cuda' && { peak_gpu_mb: Math.round(policy.memory().peak / 2 ** 20) }),
    losses,
  }),
);
