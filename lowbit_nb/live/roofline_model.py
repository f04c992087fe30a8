"""The two limits of a packed product: bytes that must move, instructions that must be issued.

    floor   bytes / bandwidth              nothing moves faster
    issue   weights * slots a weight / slots a second       a warp's instruction takes one slot for each of 32 threads
    time    launch + the larger of the two          what a kernel would take that waits for nothing else

Slots were counted in machine code for sm_90 (8192 x 28672, groups of 128, no zero points): `slots.json` is written by
data/benchmarks/kernel_bill.py; those of 16 bits are of a tiled product in Triton 3.6.  The integer unit takes half as many
instructions a second, so a weight is charged the larger of all slots and twice the integer ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lowbit_nb import packing
from lowbit_nb.onebit.channels import salient_count

BITS = (16, 8, 4, 3, 2, 1.61, 1)
WIDTHS = (8, 4, 3, 2, 1)  # what the line of a kernel goes through; 1.61 is a mixture of 4 and 1
FULL, MIXED, SHARE = 16, 1.61, 0.2
Counts = Mapping[int, tuple[tuple[int, float, float], ...]]  # bits -> (rows of x served by one pass, slots, integer slots)

HALF = ((8, 1.08, 0.12), (64, 1.45, 0.08))
KERNELS: dict[str, Counts] = {kernel: {int(bits): tuple(map(tuple, rows)) for bits, rows in counts.items()} for kernel, counts
                              in json.loads(Path(__file__).with_name("slots.json").read_text()).items()}
OWN = "own count"


@dataclass(frozen=True)
class Machine:
    """bandwidth in TB/s of reads; slots in 10^12 a second; launch in microseconds; where the numbers are from.

    Source: `source`. Differs: no difference.
    """

    name: str
    bandwidth: float
    slots: float
    launch: float
    source: str


MACHINES = (
    Machine("NVIDIA H200", 4.27, 132 * 4 * 32 * 1.98e-3, 2.1,
            "read bandwidth and launch measured; 132 SMs × 4 schedulers × 32 threads × 1.98 GHz"),
    Machine("NVIDIA A100 80 GB", 2.039, 108 * 4 * 32 * 1.41e-3, 2.1,
            "bandwidth of the data sheet, not measured; 108 SMs × 4 × 32 × 1.41 GHz; launch as on the H200"),
    Machine("NVIDIA RTX 4090", 1.008, 128 * 4 * 32 * 2.52e-3, 2.1,
            "bandwidth of the data sheet, not measured; 128 SMs × 4 × 32 × 2.52 GHz; launch as on the H200"),
)


@dataclass(frozen=True)
class Roofline:
    """A product y = x W^T with packed W on a machine. group 0: a scale a row. Source, Differs: this project.

    bandwidth TB/s, rate 10^12 slots a second, launch microseconds, own: slots a weight of the kernel `OWN`
    """

    d_out: int
    d_in: int
    bits: float
    group: int = 128
    zeros: bool = False
    batch: int = 1
    kernel: str = "tensor cores"
    bandwidth: float = MACHINES[0].bandwidth
    rate: float = MACHINES[0].slots
    launch: float = MACHINES[0].launch
    own: float = 2.0
    kernels: Mapping[str, Counts] | None = None

    def at(self, bits: float) -> Roofline:
        """The same at another width."""
        return replace(self, bits=bits)

    @property
    def weights(self) -> int:
        return self.d_out * self.d_in

    @property
    def salient(self) -> int:
        """Input channels that the mixed form keeps in 4 bits."""
        return salient_count(self.d_in, SHARE)

    @property
    def bytes(self) -> dict[str, float]:
        """What is read and written once: words of codes, scales, zero points (as the kernels read them), x and y."""
        vectors, rows = 2 * self.batch * (self.d_in + self.d_out), self.d_out
        if self.bits == FULL:
            return {"codes": 2.0 * self.weights, "scales": 0.0, "zeros": 0.0, "vectors": vectors}
        if self.bits == MIXED:  # a scale and a zero point a row for 4 bits; a level and a mean a row, a factor a column for 1
            low = self.d_in - self.salient
            words = packing.n_words(self.salient, 4) + packing.n_words(low, 1)
            other = 4 * rows + 2 * low + 4 * packing.n_words(self.d_in, 1)  # and the mask of salient channels
            return {"codes": 4.0 * rows * words, "scales": other, "zeros": 4.0 * rows, "vectors": vectors}
        numbers = rows * (math.ceil(self.d_in / self.group) if self.group else 1)
        words = packing.n_words(self.d_in, int(self.bits)) if self.bits in WIDTHS else self.d_in * self.bits / 32
        return {"codes": 4.0 * rows * words, "scales": 2.0 * numbers, "zeros": 2.0 * numbers * self.zeros, "vectors": vectors}

    @property
    def stored(self) -> float:
        """Bits a weight, scales and zero points included."""
        parts = self.bytes
        return 8 * (sum(parts.values()) - parts["vectors"]) / self.weights

    @property
    def slots(self) -> float:
        """Issue slots a weight, for all rows of x."""
        if self.kernel == OWN:
            return self.own
        counts = (self.kernels or KERNELS)[self.kernel]
        if self.bits == FULL:
            return charge(HALF, self.batch)
        if self.bits == MIXED:
            share = self.salient / self.d_in
            return share * charge(counts[4], self.batch) + (1 - share) * charge(counts[1], self.batch)
        return charge(counts[int(self.bits)], self.batch)

    @property
    def budget(self) -> float:
        """Slots a weight that go by while its bytes arrive."""
        return self.floor * self.rate * 1e6 / self.weights

    @property
    def floor(self) -> float:
        return sum(self.bytes.values()) / self.bandwidth / 1e6

    @property
    def issue(self) -> float:
        return self.weights * self.slots / self.rate / 1e6

    @property
    def time(self) -> float:
        return self.launch + max(self.floor, self.issue)

    @property
    def binds(self) -> str:
        return "memory" if self.floor >= self.issue else "instructions"

    @property
    def faster(self) -> dict[str, float]:
        """How many times as fast as 4 bits, one effect after another."""
        four = self.at(4)
        limits = [max(r.floor, r.issue) for r in (four, self)]
        return {"bits": 4 / self.bits, "bytes": four.floor / self.floor, "limits": limits[0] / limits[1],
                "time": four.time / self.time}

    @property
    def crossings(self) -> list[float]:
        """Stored bits a weight at which this kernel's two limits are equal, on the lines drawn between `WIDTHS`."""
        line = [(r.stored, math.log(r.issue / r.floor)) for r in map(self.at, WIDTHS)]
        return [math.exp(math.log(b) + (math.log(b2) - math.log(b)) * a / (a - a2))
                for (b, a), (b2, a2) in pairwise(line) if (a > 0) != (a2 > 0)]

    @property
    def verdict(self) -> str:
        """Which limit binds where, in words."""
        bound = [b for b in WIDTHS if self.at(b).binds == "instructions"]
        if not bound:
            return "memory limits this kernel at every width"
        if len(bound) == len(WIDTHS):
            return "instructions limit this kernel at every width"
        if len(self.crossings) == 1 and bound[-1] == WIDTHS[-1]:
            return f"below {self.crossings[0]:.2f} stored bits a weight this kernel is limited by instructions, not by memory"
        return f"instructions limit this kernel at {', '.join(map(str, bound))} bits, memory at the other widths"


def charge(counts: tuple[tuple[int, float, float], ...], batch: int) -> float:
    """Slots a weight for `batch` rows of x: as many full passes as are needed, and one that is just wide enough.

    Shapes:  counts (rows served by one pass, slots, integer slots), ascending; returns a number.
    Units:   slots a weight.
    Raises:  nothing.
    Source:  this project; half rate of integer instructions: CUDA's table of arithmetic throughput, 9.0.
    Differs: no difference.

    >>> charge(((1, 3.0, 1.0), (4, 5.0, 4.0)), 9)    # two passes of four rows at 2 * 4 slots, one of one row
    19.0
    """
    cost = {rows: max(slots, 2 * integer) for rows, slots, integer in counts}
    full, rest = divmod(batch, max(cost))
    return full * cost[max(cost)] + (cost[min(rows for rows in cost if rows >= rest)] if rest else 0)
