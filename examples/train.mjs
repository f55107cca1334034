// node train.mjs MODEL ROWS.jsonl HELD_OUT.jsonl RUN
// Trains MODEL by WRPO; after Ctrl-C the same command goes on where it stopped.
import { Trainer, WrpoError } from 'wrpo';

const [model, trainDataset, evalDataset, outputDir] = process.argv.slice(2);
const trainer = new Trainer({
  model,
  trainDataset,
  evalDataset,
  args: {
    ...{ outputDir, preset: 'table6/wrpo', perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1 },
    ...{ loggingSteps: 2, evalSteps: 4, saveSteps: 4, saveTotalLimit: 2 },
  },
});
trainer.on('log', ({ step, loss, ...line }) => console.log(step, loss, line['rewards/margins']));
trainer.on('evaluate', (line) => console.log('held out', line.eval_loss, line['eval_rewards/accuracies']));
trainer.on('warning', ({ message }) => console.warn(message));

const stop = new AbortController();
process.once('SIGINT', () => stop.abort());
try {
  const { globalStep } = await trainer.train({ resumeFromCheckpoint: true, signal: stop.signal });
  console.log(`${globalStep} steps; the model is in ${outputDir}`);
} catch (error) {
  if (stop.signal.aborted) console.log('stopped; the same command goes on from the last step');
  else if (error instanceof WrpoError) console.error(`${error.code}: ${error.message}`);
  else throw error;
  process.exitCode = 1;
}
