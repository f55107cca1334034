// The same from CommonJS, on the model and the rows that train.mjs left.
const { Trainer } = require('wrpo');

const trainer = new Trainer({
  model: 'model',
  trainDataset: 'rows.jsonl',
  args: { outputDir: 'run-cjs', perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 1, learningRate: 1e-3 },
});
trainer.train().then(({ globalStep, trainingLoss }) => console.log(JSON.stringify({ globalStep, trainingLoss })));
