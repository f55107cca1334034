/** One run of this package as bench/peer.mjs times it: rows, model, mode, dtype, output directory; prints one JSON line. */
import { Trainer } from '../dist/index.js';

const [trainDataset, model, mode, dtype, outputDir] = process.argv.slice(2);
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
  },
});
let referenceSeconds = 0;
trainer.on('reference', ({ seconds }) => {
  referenceSeconds = seconds;
});
const losses = [];
const steps = [];
let previous;
for await (const { metrics, tokens } of trainer.steps()) {
  const now = performance.now();
  // The first step warms up, as the peer's does.
  if (previous !== undefined) steps.push({ seconds: (now - previous) / 1000, tokens });
  losses.push(metrics.loss);
  previous = performance.now();
}
const sum = (key) => steps.reduce((total, step) => total + step[key], 0);
// The authors' recipe computes the reference within every step, TRL before training: ours is counted with the former.
const reference = mode === 'wrpo' ? (referenceSeconds * steps.length) / (steps.length + 1) : 0;
console.log(
  JSON.stringify({
    tokens_per_s: Number((sum('tokens') / (sum('seconds') + reference)).toFixed(1)),
    step_s: Number((sum('seconds') / steps.length).toFixed(4)),
    reference_s: Number(referenceSeconds.toFixed(3)),
    peak_rss_mb: Math.round(process.resourceUsage().maxRSS / 1024),
    losses,
  }),
);
