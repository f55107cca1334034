"""What the peers written here (not TRL's) share: a model, an optimiser, the loop of steps, and gradients to compare."""
import math
import time

import torch


def adamw(policy, a):
    """AdamW over the weights or, with --masters, over float32 copies of them, into which gradients are added up."""
    if not a.masters or a.dtype == "float32":
        return torch.optim.AdamW(policy.parameters(), lr=a.lr, weight_decay=0.0, fused=True)
    return Masters(policy, lr=a.lr, weight_decay=0.0, fused=True)


class Masters(torch.optim.AdamW):
    """Float32 weights, gradients and moments beside bfloat16 weights: the states that this package has, too."""

    def __init__(self, policy, **options):
        self.working = list(policy.parameters())
        masters = [w.detach().float() for w in self.working]
        for weight, master in zip(self.working, masters):
            master.grad = torch.zeros_like(master)
            weight.register_post_accumulate_grad_hook(lambda w, master=master: self._collect(w, master))
        super().__init__(masters, **options)

    @staticmethod
    def _collect(weight, master):
        master.grad.add_(weight.grad)
        weight.grad = None

    def step(self):
        super().step()
        with torch.no_grad():
            torch._foreach_copy_(self.working, [m for g in self.param_groups for m in g["params"]])

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=False)  # they are added to, so they stay


def contests(a, rewards):
    """Losses of rows from their log-ratios, [responses, rows] in the order of `roles`."""
    if len(rewards) == 3:
        z = a.beta * (a.alpha_now * rewards[0] + (1 - a.alpha_now) * rewards[1] - rewards[2])
    else:
        z = a.beta * (rewards[0] - rewards[1])
    return -torch.nn.functional.logsigmoid(z)


def roles(a):
    return ["source_chosen", "target_chosen", "rejected"] if a.mode.endswith("wrpo") else ["target_chosen", "rejected"]


def train(a, rows, policy, micro_batches):
    """
    Steps of a.batch * a.accumulate rows, cosine with warm-up; `micro_batches(rows)` yields the losses of some of them and
    their real tokens. Seconds, losses and real tokens of every step.
    """
    optimizer = adamw(policy, a)
    clipped = [p for group in optimizer.param_groups for p in group["params"]]
    per_step = a.batch * a.accumulate
    steps = len(rows) // per_step
    warm = math.ceil(0.1 * steps)
    sync = torch.cuda.synchronize if a.device == "cuda" else (lambda: None)
    times, losses, tokens = [], [], []
    for s in range(steps):
        sync()
        began, total, real = time.perf_counter(), 0.0, 0
        late = 0.5 * (1 + math.cos(math.pi * (s - warm) / max(1, steps - warm)))
        for group in optimizer.param_groups:
            group["lr"] = a.lr * (s / max(1, warm) if s < warm else late)
        a.alpha_now = a.alpha * s / steps
        for values, n in micro_batches(rows[s * per_step : (s + 1) * per_step]):
            loss = values.sum() / per_step
            loss.backward()
            total += loss.item()
            real += n
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sync()
        times.append(time.perf_counter() - began)
        losses.append(total)
        tokens.append(real)
    return times, losses, tokens


def first_gradients(a, rows, policy, micro_batches):
    """
    Loss and gradients of all rows in one batch, with the final alpha. Written to a.gradients in float32, or held against
    those of a.against: the cosine of the two, all parameters as one vector.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    gradients = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in policy.named_parameters()}
    for name, parameter in policy.named_parameters():
        def collect(p, total=gradients[name]):
            total.add_(p.grad)
            p.grad = None
        parameter.register_post_accumulate_grad_hook(collect)
    a.alpha_now, total = a.alpha, 0.0
    for values, _ in micro_batches(rows):
        loss = values.sum() / len(rows)
        loss.backward()
        total += loss.item()
    if a.gradients:
        save_file({name: g.cpu() for name, g in gradients.items()}, a.gradients)
        return {"loss": total}
    both = mine = theirs = 0.0
    with safe_open(a.against, "pt") as file:
        for name, gradient in gradients.items():
            g, other = gradient.double().flatten(), file.get_tensor(name).to(gradient.device).double().flatten()
            both += torch.dot(g, other).item()
            mine += torch.dot(g, g).item()
            theirs += torch.dot(other, other).item()
    return {"loss": total, "cosine": both / math.sqrt(mine * theirs)}
