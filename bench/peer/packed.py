"""
The strongest peer that plain torch and transformers give: no padding (all sequences in one line, attention by ATen's
variable-length flash kernel, on the CPU sequence by sequence), Liger's RMSNorm, RoPE and SwiGLU on a GPU where it is
installed, a head over response rows alone whose logits are never kept, and the reference computed once. A prompt is in
every one of its sequences: sharing it is what this package does beside all this.
"""
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from training import contests, roles


def prepare(a):
    """Before the model is made."""
    from transformers import AttentionInterface

    AttentionInterface.register("segments", flash if a.device == "cuda" else by_sequence)
    a.attn = "segments"
    if a.device == "cuda" and find_spec("liger_kernel"):
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False)


def flash(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **_):
    """[1, heads, T, d] -> [1, T, heads, d]; key and value may have fewer heads. `mask` is None: segments are causal."""
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, 0.0, True, False, scale=scaling
    )
    return out[0][None], None


def by_sequence(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, **_):
    ends = cu_seq_lens_q.tolist()
    parts = [
        F.scaled_dot_product_attention(
            *(t[:, :, first:last] for t in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
        )
        for first, last in zip(ends, ends[1:])
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


class ChunkedLogProb(torch.autograd.Function):
    """log p(target), [R] float32, of hidden [R, H]; the logits of `chunk` rows at a time, in backward computed again."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        values, sums = [], []
        for h, y in zip(hidden.split(chunk), targets.split(chunk)):
            z = (h @ weight.T).float()
            sums.append(z.logsumexp(-1))
            values.append(z.gather(1, y[:, None])[:, 0] - sums[-1])
        ctx.save_for_backward(hidden, weight, targets, torch.cat(sums))
        ctx.chunk = chunk
        return torch.cat(values)

    @staticmethod
    def backward(ctx, slopes):
        hidden, weight, targets, sums = ctx.saved_tensors
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for first in range(0, len(targets), ctx.chunk):
            part = slice(first, first + ctx.chunk)
            z = (hidden[part] @ weight.T).float()
            z.sub_(sums[part, None]).exp_().neg_()
            z.scatter_add_(1, targets[part, None], torch.ones_like(z[:, :1]))
            dz = z.mul_(slopes[part, None]).to(weight.dtype)
            torch.mm(dz, weight, out=of_hidden[part])
            of_weight += dz.T @ hidden[part]
        return of_hidden, of_weight.to(weight.dtype), None, None


class Pack:
    """Rows in one line: of every sequence all but its last token, which predicts nothing."""

    def __init__(self, a, rows):
        ids, positions, ends, targets, predicting, owners = [], [], [0], [], [], []
        self.real = 0
        for row in rows:
            for role in roles(a):
                sequence = row["prompt"] + row[role]
                self.real += len(sequence)
                predicting += range(len(ids) + len(row["prompt"]) - 1, len(ids) + len(sequence) - 1)
                owners += [len(ends) - 1] * len(row[role])
                targets += row[role]
                ids += sequence[:-1]
                positions += range(len(sequence) - 1)
                ends.append(len(ids))
        self.sequences = len(ends) - 1
        tensor = lambda values: torch.tensor(values, device=a.device)
        self.ids, self.positions = tensor(ids)[None], tensor(positions)[None]
        self.targets, self.predicting, self.owners = tensor(targets), tensor(predicting), tensor(owners)
        self.ends, self.longest = tensor(ends).int(), max(last - first for first, last in zip(ends, ends[1:]))

    def log_probs(self, model, chunk):
        """[rows, roles]."""
        hidden = model.model(
            self.ids, position_ids=self.positions, use_cache=False, cu_seq_lens_q=self.ends, max_length_q=self.longest
        ).last_hidden_state[0]
        values = ChunkedLogProb.apply(hidden[self.predicting], model.lm_head.weight, self.targets, chunk)
        return torch.zeros(self.sequences, device=values.device).index_add(0, self.owners, values)


def packed(a, policy):
    """
    Micro-batches of at most a.microbatch_tokens tokens, and what fills in the reference's log-probs of rows, to be called
    before the first step with the rows of each.
    """
    if a.gradient_checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    weight = policy.lm_head.weight
    chunk = max(1, (2**30 if a.device == "cuda" else 2**28) // (weight.shape[0] * weight.element_size()))

    def packs(rows):
        part, filled = [], 0
        for row in rows:
            length = sum(len(row["prompt"]) + len(row[role]) - 1 for role in roles(a))
            if part and filled + length > a.microbatch_tokens:
                yield part
                part, filled = [], 0
            part.append(row)
            filled += length
        yield part

    def look_up(rows):
        with torch.no_grad():
            for part in packs(rows):
                values = Pack(a, part).log_probs(policy, chunk).view(len(part), -1)
                for row, value in zip(part, values):
                    row["reference"] = value

    def micro_batches(rows):
        for part in packs(rows):
            pack = Pack(a, part)
            values = pack.log_probs(policy, chunk).view(len(part), -1)
            yield contests(a, (values - torch.stack([row["reference"] for row in part])).T), pack.real

    return micro_batches, look_up
