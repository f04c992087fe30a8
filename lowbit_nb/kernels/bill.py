"""Read your kernel's bill: what the inner loop issues for a weight, counted in machine code compiled here, no GPU needed.

    python -m lowbit_nb.kernels.bill 2 8192 28672 1        (bits, d_out, d_in, rows of x)

A warp's instruction takes one issue slot for 32 threads.  Slots a weight = instructions of the loop times warps times 32, over
the weights of a tile.  Triton's wheel carries the assembler and `cuobjdump`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lowbit_nb.kernels import shares, tensorcore, tiles

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*?);", re.M)
ALU = {"LOP3", "SHF", "PRMT", "IADD3", "LEA", "VIADD", "ISETP", "SEL", "I2FP", "VIMNMX", "MOV"}  # half rate on sm_90
POINTERS = {"x": "*fp16", "y": "*fp16", "q": "*i32", "z": "*i64", "s": "*i64", "bytes": "*i8", "sums": "*fp32",
            "steps": "*fp32", "partial": "*fp32", "tickets": "*i32"}


@dataclass(frozen=True)
class Bill:
    """What the inner loop costs.

    slots, alu  issued instructions a weight, and those of the half-rate integer unit
    counts      how many of each instruction in the loop        products  those of the tensor core
    registers, stack (bytes spilled), shared (bytes)

    Source: this project. Differs: no difference.
    """

    slots: float
    alu: float
    registers: int
    stack: int
    shared: int
    counts: Counter
    products: Counter

    @property
    def copies(self) -> int:
        """Asynchronous copies of 16 bytes in the loop: the words on their way past the registers."""
        return sum(n for name, n in self.counts.items() if name.startswith("LDGSTS") and name.endswith("128"))

    @property
    def conversions(self) -> int:
        """Conversions on the slow unit (I2F, not I2FP)."""
        return sum(n for name, n in self.counts.items() if name.split(".")[0] in ("I2F", "F2I"))


def tool() -> Path | None:
    """Triton's own cuobjdump, or None.

    Shapes:  none.
    Units:   none.
    Raises:  nothing.
    Source:  the wheel of Triton.
    Differs: no difference.
    """
    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return found if found.exists() else None


def bill(bits: int, d_out: int, d_in: int, batch: int = 1, group: int = 128, arch: int = 90) -> Bill:
    """Compile the product for a GPU and count.

    Shapes:  ints.
    Units:   slots a weight.
    Raises:  ValueError without cuobjdump.
    Source:  this project.
    Differs: no difference.
    """
    if tool() is None:
        raise ValueError("Triton has no cuobjdump beside it; install Triton for Linux")
    plan = tiles.plan(bits, d_out, d_in, batch)
    plan = plan if plan.lane == "tensorcore" else tiles.candidates(bits, d_out, d_in, 1)[0]
    wide = tensorcore.WIDTHS[bits]
    n_tiles, grid, n_slices = d_out // plan.rows, min(plan.shares, d_out // plan.rows), -(-d_in // wide)
    constants = {"BITS": bits, "SEG": min(group, wide), "HALF": True, "ZERO": False, "SLICES": n_slices, "PARTS": plan.parts,
                 "M": batch, "C": 2, "R": max(4, triton.next_power_of_2(batch)), "BN": plan.rows, "TILES": n_tiles,
                 "RB": -(-n_tiles // grid), "GRID": grid, "NS": plan.stages, "APART": plan.apart, "ASM": True, "PDL": True}
    scale = {1: "*fp16", 2: "*i32"}.get(wide // min(group, wide), "*i64")
    made = compiled(shares.product, constants, POINTERS | {"s": scale, "z": scale}, arch,
                    num_warps=plan.warps, num_stages=plan.stages, maxnreg=plan.registers)
    return _read(made.asm["cubin"], plan.rows * wide / plan.parts / (32 * plan.warps), made.metadata.shared)


def compiled(kernel: triton.JITFunction, constants: dict, pointers: dict[str, str], arch: int = 90,
             **options: int | None) -> triton.compiler.CompiledKernel:
    """A kernel compiled for a GPU that need not be there; pointers and numbers are multiples of 16.

    Shapes:  names of constants and of pointers ("*fp16"); what is neither is an int32.
    Units:   none.
    Raises:  as Triton.
    Source:  Triton's ahead-of-time compilation.
    Differs: no difference.
    """
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name] not in ("constexpr", "fp32")}
    return triton.compile(ASTSource(kernel, types, constexprs=constants, attrs=aligned), target=GPUTarget("cuda", arch, 32),
                          options=options)


def _read(cubin: bytes, weights: float, shared: int) -> Bill:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing, usage = (subprocess.run([tool(), flag, file.name], capture_output=True, text=True, check=True).stdout
                          for flag in ("-sass", "-res-usage"))
    code = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(listing)]
    lo, hi = _products_loop(code)
    inside = [name for at, name, _ in code if lo <= at <= hi]
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return Bill(len(inside) / weights, sum(name.split(".")[0] in ALU for name in inside) / weights, registers, stack, shared,
                Counter(inside), Counter(name for name in inside if "MMA" in name))


def _products_loop(code: list[tuple[int, str, str]]) -> tuple[int, int]:
    """First and last address of the shortest loop that holds all tensor-core products of any loop; else of everything."""
    jumps = [(int(to.group(1), 16), at) for at, name, rest in code if name.startswith("BRA")
             and (to := re.search(r"0x([0-9a-f]+)", rest)) and int(to.group(1), 16) < at]
    held = {loop: sum("MMA" in name for at, name, _ in code if loop[0] <= at <= loop[1]) for loop in jumps}
    most = max(held.values(), default=0)
    return min((loop for loop in held if held[loop] == most), key=lambda loop: loop[1] - loop[0]) if most else (0, code[-1][0])


if __name__ == "__main__":
    made = bill(*map(int, sys.argv[1:]))
    print(f"{made.slots:.2f} issue slots a weight, {made.alu:.2f} of them half-rate; {made.registers} registers, "
          f"{made.stack} bytes spilled, {made.shared} bytes shared; {made.copies} asynchronous copies; {dict(made.products)}")
    print(dict(made.counts.most_common(20)))
