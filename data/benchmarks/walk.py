"""The walk over the bundled subject with GPTQ: seconds by phase, and peak memory against the model and its inputs.

    python data/benchmarks/walk.py --threads 2
"""

from __future__ import annotations

import argparse
import time

import torch

import lowbit_nb as lb


def peak_bytes(call: object) -> int:
    """The most tensor bytes alive at once during a call, beyond those alive before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    now = peak = 0
    for event in sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
                        key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--windows", type=int, default=64)
    a = p.parse_args()
    print(lb.setup(threads=a.threads))
    subject = lb.load()
    text = lb.text.calibration(subject.tokenizer, a.windows, 256)
    start = time.perf_counter()
    run = lb.quantize(subject, lb.GPTQ(lb.Grid(2, group=64)), text, progress=False)
    seconds = time.perf_counter() - start
    phases = {name: round(sum(t["phases"][name] for t in run.trace), 2) for name in run.trace[0]["phases"]}
    print(f"GPTQ W2 g64, {a.windows} x 256 tokens: {seconds:.1f} s, of which {phases}")
    model = sum(t.nbytes for t in subject.model.parameters())
    stream = text.ids.numel() * subject.model.config.hidden_size * 4
    peak = peak_bytes(lambda: lb.quantize(subject, lb.GPTQ(lb.Grid(2, group=64)), text, progress=False))
    print(f"peak {(model + peak) / 1e6:.0f} MB = {(model + peak) / (model + stream):.2f} x (model {model / 1e6:.0f} MB "
          f"+ one block's inputs {stream / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
