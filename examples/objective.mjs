// node objective.mjs MODEL ROWS.jsonl RUN
// A loss that wrpo does not have: a hinge on the margin, in which a source's answer counts by how much longer it is.
import { Trainer } from 'wrpo';

const beta = 0.1;
const objective = {
  roles: ['source_chosen', 'target_chosen', 'rejected'],
  loss({ policy, reference, lengths }) {
    const weight = lengths.source_chosen / (lengths.source_chosen + lengths.target_chosen);
    const gain = (role) => policy[role] - reference[role];
    const margin = beta * (weight * gain('source_chosen') + (1 - weight) * gain('target_chosen') - gain('rejected'));
    const slope = margin < 1 ? -beta : 0;
    return {
      loss: Math.max(0, 1 - margin),
      gradients: { source_chosen: slope * weight, target_chosen: slope * (1 - weight), rejected: -slope },
    };
  },
};
check(objective);

const [model, trainDataset, outputDir] = process.argv.slice(2);
const trainer = new Trainer({
  model,
  trainDataset,
  args: { outputDir, learningRate: 1e-5, perDeviceTrainBatchSize: 4, gradientAccumulationSteps: 1 },
  objective,
});
console.log((await trainer.train()).trainingLoss);

/** Throws unless the gradients are those of the loss, at a few points. */
function check({ roles, loss }) {
  const columns = (value) => Object.fromEntries(roles.map((role, i) => [role, value(i)]));
  for (const at of [0, 1, 2]) {
    const lengths = columns((i) => 3 + i);
    const policy = columns((i) => -5 - at * i);
    const reference = columns(() => -6);
    const { gradients } = loss({ policy, reference, lengths });
    for (const role of roles) {
      const moved = (by) => loss({ policy: { ...policy, [role]: policy[role] + by }, reference, lengths }).loss;
      const difference = (moved(1e-4) - moved(-1e-4)) / 2e-4;
      if (Math.abs(difference - gradients[role]) > 1e-6)
        throw new Error(`d loss / d ${role} is ${difference}, not ${gradients[role]}`);
    }
  }
}
