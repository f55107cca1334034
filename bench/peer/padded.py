"""The authors' recipe: the sequences of some rows padded to the longest in one forward, log_softmax over all logits."""
import copy

import torch

from training import contests, roles


def padded(a, policy):
    """Micro-batches of a.batch rows of the policy, whose reference is a second model that runs in every one."""
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    if a.gradient_checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()

    def collate(batch):
        seqs = [r["prompt"] + r[k] for k in roles(a) for r in batch]
        asked = [len(r["prompt"]) for _ in roles(a) for r in batch]
        width = max(map(len, seqs))
        pad = lambda values, length: values + [0] * (width - length)
        ids = torch.tensor([pad(s, len(s)) for s in seqs], device=a.device)
        attended = torch.tensor([pad([1] * len(s), len(s)) for s in seqs], device=a.device)
        answers = torch.tensor([pad([0] * p + [1] * (len(s) - p), len(s)) for s, p in zip(seqs, asked)], device=a.device)
        return ids, attended, answers.bool(), sum(map(len, seqs))

    def log_probs(model, ids, attended, answers):
        logits = model(ids, attention_mask=attended, use_cache=False).logits[:, :-1]
        per_token = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        return (per_token * answers[:, 1:]).sum(-1)

    def micro_batches(rows):
        for first in range(0, len(rows), a.batch):
            *inputs, real = collate(rows[first : first + a.batch])
            values = log_probs(policy, *inputs)
            with torch.no_grad():
                base = log_probs(reference, *inputs)
            yield contests(a, (values - base).float().view(len(roles(a)), -1)), real

    return micro_batches
