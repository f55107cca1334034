// node tracker.mjs MODEL ROWS.jsonl RUN MLFLOW-ADDRESS
// Sends every log line to an MLflow server (`mlflow server`), over the HTTP interface that it has beside its web pages.
import { Trainer } from 'wrpo';

const [model, trainDataset, outputDir, address] = process.argv.slice(2);
const args = { outputDir, learningRate: 1e-5, gradientAccumulationSteps: 1, loggingSteps: 1 };

const { run } = await post('runs/create', { experiment_id: '0', run_name: outputDir, start_time: Date.now() });
const run_id = run.info.run_id;
const params = Object.entries(args).map(([key, value]) => ({ key, value: String(value) }));
await post('runs/log-batch', { run_id, params });

// A listener returns at once and training goes on; a tracker that is down must not stop it.
const sent = [];
const send = ({ step, ...metrics }) => {
  const numbers = Object.entries(metrics).filter(([, value]) => Number.isFinite(value));
  const batch = numbers.map(([key, value]) => ({ key, value, step, timestamp: Date.now() }));
  sent.push(post('runs/log-batch', { run_id, metrics: batch }).catch((error) => console.warn(error.message)));
};
const trainer = new Trainer({ model, trainDataset, args, callbacks: { log: send, evaluate: send } });
let status = 'FAILED';
try {
  await trainer.train();
  status = 'FINISHED';
} finally {
  await Promise.all(sent);
  await post('runs/update', { run_id, status, end_time: Date.now() });
}

async function post(route, body) {
  const response = await fetch(`${address}/api/2.0/mlflow/${route}`, { method: 'POST', body: JSON.stringify(body) });
  if (!response.ok) throw new Error(`${route}: ${response.status} ${await response.text()}`);
  return response.json();
}
