#!/usr/bin/env python3
"""The peer of loglikelihood.mjs: lm-evaluation-harness with transformers, its own batching and sorting.

    bench_loglikelihood.py --model DIR --requests requests.json --batch 16 --threads 2

requests.json: {task: [[context, continuation], ...]}. Every line on standard input starts a round, which prints one JSON
line: {task: seconds}, tokenising included, and "sums", the log-likelihoods of the first task.
"""
import argparse, json, os, sys, time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(a.threads)
    lm = HFLM(pretrained=a.model, dtype="float32", batch_size=a.batch, device="cpu")
    tasks = json.load(open(a.requests))
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds, sums = {}, None
        for task, pairs in tasks.items():
            requests = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)]
            began = time.perf_counter()
            found = lm.loglikelihood(requests, disable_tqdm=True)
            seconds[task] = time.perf_counter() - began
            sums = sums or [value for value, _ in found]
        print(json.dumps({"seconds": seconds, "sums": sums}), flush=True)


main()
