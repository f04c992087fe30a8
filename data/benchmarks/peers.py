"""Other people's tools and this kit on the bundled subject: held-out KL, honest bits and seconds, in one run on a CPU, as JSON.

    python -m venv peers && peers/bin/pip install -e . auto-round llmcompressor hqq torchao
    peers/bin/python data/benchmarks/peers.py --threads 2 --out data/benchmarks/peers_cpu.json

Every tool gets the same float32 weights, the same token ids to calibrate on and the same number of threads; embedding and head
stay as they are.  What it gives back is read as codes, steps and zero points and kept in one stored form, so that all are
evaluated and counted alike: codes and integer zero points at `bits` bits, steps and real zero points at 16, and the norms that
a method has edited.  Weights that do not lie on the grid that their tool reports are refused.
Seconds are those of the quantization alone (tools are imported before); their ratios are to "TesseraQ, demo" on the same grid.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import importlib.metadata
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lowbit_nb as lb
from lowbit_nb.stored import AffineWeight

OFF_GRID = 0.02  # in steps: bfloat16 weights are off by up to 0.006
MODULES = {"auto-round": "auto_round", "llmcompressor": "llmcompressor.modifiers.transform.awq", "hqq": "hqq.core.quantize",
           "torchao": "torchao.quantization", "lowbit-nb": "lowbit_nb"}  # what to install: what to import first


@dataclass(frozen=True)
class Job:
    """One row of the table."""

    tool: str
    name: str
    grid: lb.Grid
    call: Callable[[lb.Subject, lb.text.Windows], lb.Quantized]
    settings: dict


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """The layers to quantize: every linear layer but the head (tools keep the class name, not always the class)."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}


def stored(W: Tensor, s: Tensor, z: Tensor, grid: lb.Grid) -> AffineWeight:
    """A tool's dequantized weight, with the steps and zero points that it reports, as integers; steps become float16.

    Shapes:  W [d_out, d_in]; s and z hold d_out * n_groups numbers.
    """
    s, z = (t.detach().float().reshape(len(W), -1) for t in (s, z))
    steps = W.detach().float().unflatten(1, (s.shape[1], -1)) / s[..., None]
    q = (steps + z[..., None]).round()
    off = float((q - z[..., None] - steps).abs().max())
    whole = grid.stored_zero == "real" or bool((z == z.round()).all() and z.min() >= 0 and z.max() <= grid.q_max)
    if off > OFF_GRID or q.min() < 0 or q.max() > grid.q_max or not whole:
        raise ValueError(f"the weights are not on the reported grid of {grid.levels} levels: {off:.3f} steps beside it, codes "
                         f"{q.min():.0f} to {q.max():.0f}, zero points {z.min():.2f} to {z.max():.2f}")
    return AffineWeight.of(q.flatten(1), s.half().float(), z, grid)


def record(name: str, subject: lb.Subject, weights: dict[str, AffineWeight], model: nn.Module | None = None) -> lb.Quantized:
    """The kit's record of what a tool did, with the norms that it has edited."""
    now = dict(model.named_parameters()) if model else {}
    kept = {k: (now[k].detach().float(), old) for k, old in subject.model.named_parameters()
            if k in now and k.removesuffix(".weight") not in weights}
    edited = {k: new.half() for k, (new, old) in kept.items() if not torch.equal(new, old)}
    grid = next(iter(weights.values())).grid
    return lb.Quantized(weights, {"method": name, "settings": {"grid": asdict(grid)}}, [], edited)


def autoround(grid: lb.Grid, subject: lb.Subject, text: lb.text.Windows, **settings: object) -> lb.Quantized:
    """Signed gradient descent on roundings and ranges, block by block."""
    from auto_round import AutoRound

    model, _ = AutoRound(copy.deepcopy(subject.model), subject.tokenizer, bits=grid.bits, group_size=grid.group,
                         sym=grid.symmetric, dataset=DataLoader(text.ids, batch_size=8), nsamples=len(text.ids),
                         seqlen=text.ids.shape[1], device_map="cpu", batch_size=8, **settings).quantize()
    weights = {k: stored(m.weight, m.scale, torch.as_tensor(m.zp).expand_as(m.scale), grid) for k, m in linears(model).items()}
    return record("auto-round", subject, weights, model)


def compressor(grid: lb.Grid, subject: lb.Subject, text: lb.text.Windows, method: str, **weight: object) -> lb.Quantized:
    """llm-compressor's `oneshot`. Without an accelerator its AWQ fails when it pins memory, so nothing is pinned here."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from loguru import logger

    logger.remove()  # hundreds of lines
    scheme = {"num_bits": grid.bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": grid.group} | weight
    groups = {"config_groups": {"all": {"targets": ["Linear"], "weights": scheme}}, "ignore": ["lm_head"]}
    recipe = [GPTQModifier(**groups)] if method == "GPTQ" else [AWQModifier(), QuantizationModifier(**groups)]
    data = Dataset.from_dict({"input_ids": text.ids.tolist(), "attention_mask": torch.ones_like(text.ids).tolist()})
    model = copy.deepcopy(subject.model)
    with mock.patch.object(IntermediatesCache, "pin_memory"):
        oneshot(model=model, tokenizer=subject.tokenizer, dataset=data, recipe=recipe, num_calibration_samples=len(data),
                shuffle_calibration_samples=False, max_seq_length=text.ids.shape[1], batch_size=8)
    weights = {}
    for name, m in linears(model).items():  # codes are -2..1 there and 0..3 here
        W = fake_quantize(m.weight, m.weight_scale, m.weight_zero_point, m.quantization_scheme.weights)
        weights[name] = stored(W, m.weight_scale, m.weight_zero_point.float() + grid.levels // 2, grid)
    return record(f"llm-compressor {method}", subject, weights, model)


def hqq(grid: lb.Grid, subject: lb.Subject, text: lb.text.Windows) -> lb.Quantized:
    """Half-quadratic search of a real zero point."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=grid.bits, group_size=grid.group)
    weights = {}
    for name, m in linears(subject.model).items():
        done = HQQLinear(m, config, del_orig=False, compute_dtype=torch.float16, device="cpu")
        weights[name] = stored(done.dequantize(), done.meta["scale"], done.meta["zero"], grid)
    return record("hqq", subject, weights)


def torchao(grid: lb.Grid, subject: lb.Subject, text: lb.text.Windows) -> lb.Quantized:
    """Rounding to nearest on an asymmetric integer grid."""
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_

    model = copy.deepcopy(subject.model)
    dtype = getattr(torch, f"int{grid.bits}")
    config = IntxWeightOnlyConfig(dtype, PerGroup(grid.group), MappingType.ASYMMETRIC, scale_dtype=torch.float16)
    quantize_(model, config, filter_fn=lambda m, name: isinstance(m, nn.Linear) and name != "lm_head")
    weights = {k: stored(m.weight.dequantize(), m.weight.scale, m.weight.zero_point.float() + grid.levels // 2, grid)
               for k, m in linears(model).items()}
    return record("torchao", subject, weights)


def own_jobs(grid: lb.Grid, budgets: dict[str, lb.reconstruct.Budget]) -> Iterator[Job]:
    def job(name: str, method: lb.methods.Method, dtype: torch.dtype = torch.float32) -> Job:
        def call(subject: lb.Subject, text: lb.text.Windows) -> lb.Quantized:
            model = subject.model if dtype == torch.float32 else copy.deepcopy(subject.model).to(dtype)
            return lb.quantize(replace(subject, model=model), method, text, progress=False)
        return Job("lowbit-nb", name, grid, call, asdict(method) | {"dtype": str(dtype).removeprefix("torch.")})

    clip = lb.AWQ(grid, scaling=False)
    yield job("RTN", lb.RTN(grid))
    yield job("GPTQ", lb.GPTQ(grid))
    yield job("AWQ", lb.AWQ(grid))
    yield job("OmniQuant, demo", lb.OmniQuant(grid, "demo"))
    yield job("TesseraQ, demo", lb.TesseraQ(clip, "demo"))
    for name, budget in budgets.items():  # auto-round computes in bfloat16 by default
        yield job(f"TesseraQ, {name}, bfloat16", lb.TesseraQ(clip, budget), torch.bfloat16)


def peer_jobs(grid: lb.Grid, a: argparse.Namespace) -> Iterator[Job]:
    def job(tool: str, name: str, call: Callable, grid: lb.Grid = grid, **settings: object) -> Job:
        return Job(tool, name, grid, functools.partial(call, grid, **settings), settings)

    for amp in (True, False) if a.float32 else (True,):
        for n in a.iterations:
            name = f"auto-round, {n} iterations" + ("" if amp else ", float32")
            yield job("auto-round", name, autoround, iters=n, amp=amp, enable_torch_compile=a.compile)
    for n in a.extension:
        yield job("auto-round", f"auto-round, {n} iterations, symmetric, extension", autoround, replace(grid, symmetric=True),
                  iters=n, enable_alg_ext=True, enable_torch_compile=a.compile)
    yield job("llmcompressor", "llm-compressor GPTQ", compressor, method="GPTQ")
    yield job("llmcompressor", "llm-compressor GPTQ, mse observer", compressor, method="GPTQ", observer="mse")
    yield job("llmcompressor", "llm-compressor AWQ", compressor, method="AWQ")
    for group in (grid.group, 2 * grid.group):  # its zero points take 16 bits: twice the group is the row at equal bits
        yield job("hqq", f"hqq, group {group}", hqq, lb.Grid(grid.bits, group, zero_inside=False))
    yield job("torchao", "torchao", torchao)


@functools.cache
def installed(tool: str) -> bool:
    """Import a tool; say what to install if that fails."""
    try:
        return bool(importlib.import_module(MODULES[tool]))
    except ImportError as error:
        print(f"{tool} is not installed: pip install {tool} ({error})", flush=True)
        return False


def row(job: Job, subject: lb.Subject, text: lb.text.Windows, held_out: lb.text.Windows) -> dict:
    start = time.perf_counter()
    run = job.call(subject, text)
    seconds = time.perf_counter() - start
    bits = run.bits()
    return {"tool": job.tool, "version": importlib.metadata.version(job.tool), "method": job.name, "bits": job.grid.bits,
            "group": job.grid.group, "bits_per_weight": round(bits.per_weight, 4),
            "bits_of": {i.name: round(i.bits / bits.n_weights, 4) for i in bits.items}, "seconds": round(seconds, 2),
            "settings": job.settings} | asdict(lb.evaluate.compare(subject, run.apply(subject), held_out))


def rows(jobs: list[Job], subject: lb.Subject, text: lb.text.Windows, held_out: lb.text.Windows) -> Iterator[dict]:
    """One row a job; a tool that fails gives a line and no row. Ratios of seconds are to the last "TesseraQ, demo"."""
    threads, reference = torch.get_num_threads(), None
    for job in jobs:
        if not installed(job.tool):
            continue
        torch.set_num_threads(threads)  # a tool may have changed it
        try:
            out = row(job, subject, text, held_out)
        except Exception as error:  # theirs to fail: the other rows still count
            print(f"{job.name} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        reference = out["seconds"] if job.name == "TesseraQ, demo" else reference
        out["seconds_ratio"] = round(out["seconds"] / reference, 3) if reference else None
        print({k: v for k, v in out.items() if k not in ("settings", "bits_of")}, flush=True)
        yield out


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = p.add_argument
    add("--out", required=True)
    add("--threads", type=int, default=2)
    add("--windows", type=int, default=128, help="held-out windows of 256 tokens")
    add("--calibration", type=int, default=128, help="calibration windows of 256 tokens")
    add("--iterations", type=int, nargs="+", default=[30, 200], help="of auto-round")
    add("--budgets", nargs="+", default=["6x8x4", "9x12x4"], help="TesseraQ in bfloat16: rounds x steps x windows a step")
    add("--more", action="store_true", help="also 2 bits with group 128, and 3 bits with group 64")
    add("--float32", action="store_true", help="auto-round also without its mixed precision")
    add("--extension", type=int, nargs="*", default=[], help="iterations of auto-round symmetric with its algorithm extension")
    add("--compile", action="store_true", help="auto-round with torch.compile, its default; compiling takes a minute or more")
    add("--only", default="", help="only rows whose method matches this expression")
    return p.parse_args()


def main() -> None:
    a = arguments()
    threads = lb.setup(threads=a.threads).threads
    subject = lb.load()
    text = lb.text.calibration(subject.tokenizer, a.calibration, 256)
    held_out = lb.text.evaluation(subject.tokenizer, n=a.windows)
    grids = [lb.Grid(2, group=64)] + ([lb.Grid(2, group=128), lb.Grid(3, group=64)] if a.more else [])
    budgets = {name: lb.reconstruct.Budget(*map(int, name.split("x"))) for name in a.budgets}
    jobs = [job for grid in grids for job in (*own_jobs(grid, budgets), *peer_jobs(grid, a))]
    table = {"what": "the bundled subject, weights only, by this kit and by other tools", "device": "CPU", "threads": threads,
             "torch": torch.__version__, "transformers": importlib.metadata.version("transformers"),
             "python": platform.python_version(), "command": "python " + " ".join(sys.argv), "calibration": text.protocol,
             "evaluation": held_out.protocol, "original_perplexity": lb.evaluate.perplexity(subject, held_out), "rows": []}
    for out in rows([job for job in jobs if re.search(a.only, job.name)], subject, text, held_out):
        table["rows"].append(out)
        Path(a.out).write_text(json.dumps(table, indent=1) + "\n")  # after every row: a long run may be stopped


if __name__ == "__main__":
    main()
