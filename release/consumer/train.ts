// What a TypeScript user writes; compiled under every module resolution, and the result run.
import { type Metrics, Trainer, type TrainingArgsInput, type TrainResult, WrpoError } from 'wrpo';

const args: TrainingArgsInput = {
  outputDir: 'run-ts',
  lossType: 'wrpo',
  perDeviceTrainBatchSize: 2,
  gradientAccumulationSteps: 1,
  learningRate: 1e-3,
};

async function main(): Promise<void> {
  const trainer = new Trainer({ model: 'model', trainDataset: 'rows.jsonl', args });
  trainer.on('log', (line: Metrics) => console.error(line.loss));
  const { globalStep, trainingLoss }: TrainResult = await trainer.train();
  console.log(JSON.stringify({ globalStep, trainingLoss }));
}

main().catch((error: unknown) => {
  console.error(error instanceof WrpoError ? error.code : error);
  process.exitCode = 1;
});
