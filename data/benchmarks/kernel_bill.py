"""The bills of two kernels for a packed product, counted in machine code for sm_90, as JSON. No GPU is needed; Triton is.

    pip install triton
    python data/benchmarks/kernel_bill.py --out data/benchmarks/kernel_bill.json --slots lowbit_nb/live/slots.json

The second file is a digest of the first, which the roofline explorer reads.

One shape, groups of 128, no zero points, rows of x in half precision.  The tensor-core kernel is billed by
`lowbit_nb.kernels.bill`, cut by the rule of `tiles` and not by its measured table; the plain one by the same count of its inner
loop, which takes as many columns as its widest slice has, for all rows of a program.  The count changes a little from one
version of Triton to the next; the version is in the file.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowbit_nb.kernels import bill, general, tiles

SHAPE, GROUP, WARPS = (8192, 28672), 128, 2
BITS = (8, 4, 3, 2, 1)
SERVED = {"plain": {1: 1, 2: 2, 4: 4}, "tensor cores": {1: 4, 8: 8, 16: 16}}  # rows of x -> rows that one pass can serve
NAMES = {"plain": "plain unpacking", "tensor cores": "tensor cores"}
NUMBERS = {"M": "i32", "d_out": "i32", "d_in": "i32", "n_words": "i32", "n_groups": "i32"}
TENSORS = {"X": "*fp16", "W": "*i32", "S": "*fp16", "Y": "*fp16"}


def tensorcore(bits: int, batch: int) -> dict:
    """The bill of the tensor-core kernel."""
    made = bill.bill(bits, *SHAPE, batch, GROUP)
    return row("tensor cores", bits, batch, made.slots, made.alu, made.counts)


def plain(bits: int, batch: int) -> dict:
    """The bill of the plain kernel: its longest loop, which is the one over whole slices."""
    constants = {"Z": None, "BITS": bits, "GROUP": GROUP, "ROWS": general.ROWS, "TOKENS": batch}
    names = general._product.arg_names
    types = {name: "constexpr" if name in constants else (TENSORS | NUMBERS)[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants and name != "M"}
    made = triton.compile(ASTSource(general._product, types, constexprs=constants, attrs=aligned),
                          target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS})
    code = listing(made.asm["cubin"])
    jumps = [(int(to.group(1), 16), at) for at, name, rest in code if name.startswith("BRA")
             and (to := re.search(r"0x([0-9a-f]+)", rest)) and int(to.group(1), 16) < at]
    low, high = max(jumps, key=lambda loop: loop[1] - loop[0])
    inside = [name for at, name, _ in code if low <= at <= high]
    columns = 2048 // (bits & -bits)
    weights = general.ROWS * columns / (32 * WARPS)
    alu = sum(name.split(".")[0] in bill.ALU for name in inside) / weights
    return row("plain", bits, batch, len(inside) / weights, alu, Counter(inside))


def listing(cubin: bytes) -> list[tuple[int, str, str]]:
    """Address, name and operands of every instruction."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([bill.tool(), "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return [(int(at, 16), name, rest) for at, name, rest in bill.INSTRUCTION.findall(said)]


def row(kernel: str, bits: int, batch: int, slots: float, alu: float, counts: Counter) -> dict:
    """One bill; instructions by the first part of their names."""
    short: Counter = Counter()
    for name, n in counts.items():
        short[name.split(".")[0]] += n
    return {"kernel": kernel, "bits": bits, "batch": batch, "slots": round(slots, 3), "half_rate": round(alu, 3),
            "counts": dict(short.most_common())}


def digest(rows: list[dict]) -> dict:
    """Kernel -> bits -> [rows of x that a pass serves, slots, half-rate slots], ascending."""
    return {name: {str(bits): [[SERVED[kernel][r["batch"]], r["slots"], r["half_rate"]] for r in rows
                               if (r["kernel"], r["bits"]) == (kernel, bits)] for bits in BITS}
            for kernel, name in NAMES.items()}


def main() -> None:
    """Count and write."""
    tiles.table = dict  # nothing measured: `plan` falls back on its rule
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--slots", type=Path, help="also write what the roofline explorer reads")
    a = parser.parse_args()
    makers = {"plain": plain, "tensor cores": tensorcore}
    rows = [make(bits, batch) for kernel, make in makers.items() for batch in SERVED[kernel] for bits in BITS]
    found = {"command": "python " + " ".join(sys.argv), "triton": triton.__version__, "arch": "sm_90",
             "shape": SHAPE, "group": GROUP, "zeros": False, "rows": rows}
    for one in rows:
        print({name: value for name, value in one.items() if name != "counts"})
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    if a.slots:
        a.slots.write_text(json.dumps(digest(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
