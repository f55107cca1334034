#!/usr/bin/env python3
"""The peer of generate.mjs: transformers' generate, prompts sorted by length and left-padded, several samples each.

    bench_generate.py --model DIR --prompts prompts.json --samples 5 --max-tokens 128 --batch 16 --threads 2

prompts.json: {"prompts": [[ids], ...], "stop": [ids]}. The last line printed is one JSON object: tokens (new ones, up to
and with the first stop id), seconds, tokens_per_s, peak_rss_mb. Reading the weights is not timed.
"""
import argparse, json, resource, time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    a = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype)).eval()
    data = json.load(open(a.prompts))
    stop = set(data["stop"])
    prompts = sorted(data["prompts"], key=len)
    how = dict(do_sample=True, temperature=0.8, top_p=0.95, top_k=0, num_return_sequences=a.samples,
               max_new_tokens=a.max_tokens, pad_token_id=0, eos_token_id=sorted(stop) or None)

    def run(some, **over):
        width = max(map(len, some))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
        with torch.inference_mode():
            return model.generate(input_ids=ids, attention_mask=mask, **{**how, **over})[:, width:].tolist()

    run(prompts[:1], max_new_tokens=4)  # warms up
    tokens = 0
    began = time.perf_counter()
    for i in range(0, len(prompts), a.batch):
        for row in run(prompts[i:i + a.batch]):
            tokens += next((k + 1 for k, token in enumerate(row) if token in stop), len(row))
    seconds = time.perf_counter() - began
    print(json.dumps({
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }))


if __name__ == "__main__":
    main()
