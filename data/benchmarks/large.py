"""A model quantized block by block from disk, and the ordinary way: peak memory of the process and of the GPU, and seconds.

    python data/benchmarks/large.py --shape 7B --folder runs/large --device cuda --out data/benchmarks/large_h200.json

Random weights, written to the folder first.  Each way runs in a process of its own.  The process' peak is the largest resident
set the system has seen; file pages that are mapped count while they are mapped.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import lowbit_nb as lb
from lowbit_nb.windows import Windows

TOKENIZER = Path(__file__).resolve().parents[1] / "subject"
METHODS = {"RTN": lb.RTN(lb.Grid(2, group=128)), "GPTQ": lb.GPTQ(lb.Grid(2, group=128))}
SHAPES = {
    "7B": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
               vocab_size=32000),
    "0.7B": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=14, num_attention_heads=16, num_key_value_heads=16,
                 vocab_size=4096),
    "tiny": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 vocab_size=1000),
}


def make(folder: Path, shape: str, device: str) -> None:
    """A checkpoint of random bfloat16 weights, one file a block, never as a whole in memory."""
    config = LlamaConfig(max_position_embeddings=4096, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
                         dtype="bfloat16", **SHAPES[shape])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True)
    files: dict[str, dict] = {}
    for name, t in model.state_dict().items():
        files.setdefault(f"model-{'.'.join(name.split('.')[:3])}.safetensors", {})[name] = t.shape
    g = torch.Generator(device).manual_seed(0)
    for file, shapes in files.items():
        tensors = {name: torch.ones(s) if len(s) == 1 else torch.randn(s, generator=g, device=device).mul_(0.02).cpu()
                   for name, s in shapes.items()}
        save_file({name: t.bfloat16() for name, t in tensors.items()}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)
    for file in TOKENIZER.glob("*token*"):
        shutil.copy(file, folder)


def peak_resident() -> float:
    """GB; getrusage would begin with the size of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) * 1024 / 1e9, 2)


def measure(a: argparse.Namespace) -> dict:
    """One way, in this process."""
    cuda = a.device == "cuda"
    start, peak = time.perf_counter(), {}
    took: dict[str, float] = {}

    def note(what: str) -> None:
        nonlocal start
        if cuda:
            torch.cuda.synchronize()
        took[what] = round(time.perf_counter() - start, 1)
        peak[what] = peak_resident()
        print(what, took[what], peak[what], file=sys.stderr, flush=True)
        start = time.perf_counter()

    note("import")
    subject = lb.load(a.folder, dtype=torch.bfloat16, device=a.device, blockwise=a.way == "blockwise")
    note("load")
    ids = torch.randint(subject.model.config.vocab_size, (a.n, a.length), generator=torch.Generator().manual_seed(0))
    work = a.folder.parent / f"work_{a.way}_{a.method}"
    shutil.rmtree(work, ignore_errors=True)
    run = lb.quantize(subject, METHODS[a.method], Windows(ids, "random tokens"), work, progress=False, batch=a.batch,
                      where=a.where if a.way == "blockwise" else None)
    note("quantize")
    row = {"way": a.way, "where": a.where if a.way == "blockwise" else None, "method": a.method, "layers": len(run.weights),
           "bits_per_weight": run.bits().per_weight}
    lb.save_quantized(run, work / "saved")
    note("count bits and save")
    if a.way == "blockwise" and a.evaluate:
        from lowbit_nb.onepass import one_pass

        held = Windows(ids[: a.evaluate], "random tokens")
        row["finite"] = all(bool(torch.isfinite(y).all()) for _, y in one_pass(run.apply(subject), held, a.batch))
        note("logits")
    row |= {"block_seconds": round(sum(t["seconds"] for t in run.trace) / len(run.trace), 2)}
    row |= {"seconds": took, "process_peak_GB_so_far": peak}
    return row | ({"gpu_peak_GB": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if cuda else {})


def sizes(a: argparse.Namespace) -> dict:
    """What is to be compared with the peaks."""
    s, item = SHAPES[a.shape], 2
    block = (2 * s["hidden_size"] ** 2 * (1 + s["num_key_value_heads"] / s["num_attention_heads"])
             + 3 * s["hidden_size"] * s["intermediate_size"]) * item
    ends = 2 * s["vocab_size"] * s["hidden_size"] * item
    return {"model_GB": (block * s["num_hidden_layers"] + ends) / 1e9, "one_block_GB": block / 1e9,
            "embeddings_and_head_GB": ends / 1e9, "one_stream_GB": a.n * a.length * s["hidden_size"] * item / 1e9}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path)
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--shape", default="7B", choices=SHAPES)
    p.add_argument("--device", default="cuda")
    p.add_argument("--where", help="streams of the blockwise run")
    p.add_argument("--threads", type=int)
    p.add_argument("--n", type=int, default=128)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--evaluate", type=int, default=16, help="windows whose logits the blockwise subject is asked for; 0: none")
    p.add_argument("--methods", nargs="+", default=["GPTQ"], choices=METHODS)
    p.add_argument("--ways", nargs="+", default=["blockwise", "ordinary"])
    p.add_argument("--way", help="measure this way in this process")
    p.add_argument("--method", default="GPTQ")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.way:
        print(json.dumps(measure(a)))
        return
    start = time.perf_counter()
    if not (a.folder / "config.json").is_file():
        make(a.folder, a.shape, a.device)
    print(f"checkpoint made in {time.perf_counter() - start:.0f} s", flush=True)
    table = {"what": f"a {a.shape} model in bfloat16, {a.n} x {a.length} tokens", "torch": torch.__version__,
             "device": torch.cuda.get_device_name() if a.device == "cuda" else platform.machine(),
             "threads": torch.get_num_threads(), "sizes": {k: round(v, 3) for k, v in sizes(a).items()}, "rows": []}
    print(table, flush=True)
    for method in a.methods:
        for way in a.ways:
            command = [sys.executable, *sys.argv, "--way", way, "--method", method]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            table["rows"].append(json.loads(done.stdout.splitlines()[-1]))
            print(table["rows"][-1], flush=True)
            a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
