// A user's ES module: a tiny model of its own, a handful of rows, two steps.
import { writeFileSync } from 'node:fs';
import { Model, Trainer } from 'wrpo';

const model = await Model.create({
  ...{ model_type: 'llama', vocab_size: 64, hidden_size: 16, intermediate_size: 32, max_position_embeddings: 64 },
  ...{ num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1 },
});
await model.save('model');
await model.close();
const row = { prompt: [1, 2, 3], source_chosen: [4, 5], target_chosen: [6, 7], rejected: [8, 9] };
writeFileSync('rows.jsonl', `${JSON.stringify(row)}\n`.repeat(4));

const trainer = new Trainer({
  model: 'model',
  trainDataset: 'rows.jsonl',
  args: { outputDir: 'run', perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 1, learningRate: 1e-3 },
});
const { globalStep, trainingLoss } = await trainer.train();
console.log(JSON.stringify({ globalStep, trainingLoss }));
