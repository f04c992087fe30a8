"""The layout explorer: which lane loads which word, and which lane unpacks which plane into which operand register."""

from __future__ import annotations

from typing import Any

import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from lowbit_nb import packing, show
from lowbit_nb.live.base import Explorer, Frame, module, styles
from lowbit_nb.live.lanes import (
    BITS,
    NUMBERS,
    ORDERS,
    ROWS,
    Number,
    Setting,
    at_home,
    column_of,
    copier_of,
    costs,
    counted,
    lane_of,
    n_planes,
    pieces,
)
from lowbit_nb.packing import PLANE

FILLS = ("#c7dcec", "#f6d7a0", "#bfe5d8", "#e3d0e4", "#eeeeee")


class LayoutExplorer(Explorer):
    """Words of 16 rows, the tables and the lanes; drawn in the browser. Source, Differs: this project."""

    _esm = module("dom", "lanes", "layout")
    _css = styles("base", "layout")
    heading = "Layout explorer"
    bits = traitlets.Int(2).tag(sync=True)
    order = traitlets.Enum(ORDERS, "planar").tag(sync=True)
    number = traitlets.Enum(tuple(NUMBERS), "int8").tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    word = traitlets.Int(0).tag(sync=True)
    plane = traitlets.Int(0).tag(sync=True)
    words = traitlets.Dict().tag(sync=True)  # by bits: rows of words, block after block
    table = traitlets.Dict().tag(sync=True)  # by number: its size, its lanes; by bits: what `pieces`, `counted`, `at_home` say
    copiers = traitlets.List().tag(sync=True)  # [row][word]

    def at(self, bits: int, order: str, number: str, row: int, word: int, plane: int) -> Setting:
        """A setting with its code: that of the column which lies there, so another one in each order."""
        words = torch.tensor(self.words[str(bits)][row : row + 1]).to(torch.int32)
        code = packing.unpack(words, bits, n_planes(bits) * PLANE)[0, column_of(bits, order, word, plane)]
        return Setting(bits, order, NUMBERS[number], row, word, plane, int(code))

    def sentence(self) -> str:
        first, *others = [setting.words for setting in self._stored()]
        both = [f"{b} bit{'s' * (b > 1)} " + " and ".join(costs(b, number) for number in NUMBERS.values()) for b in BITS]
        return (f"Layout explorer, {self.about}. {first}. Others: {'; '.join(others)}. Instructions to unpack a weight, "
                f"counted from the tables, words together against one code after the other: {'; '.join(both)}.")

    def frames(self) -> list[Frame]:
        return [_frame(at) for at in self._stored()]

    def _stored(self) -> list[Setting]:
        """The first setting, the other order, the other number, another width."""
        order, number = ORDERS[1 - ORDERS.index(self.order)], next(n for n in NUMBERS if n != self.number)
        bits, place = 3 if self.bits != 3 else 2, (self.row, self.word, self.plane)
        return [self.at(self.bits, self.order, self.number, *place), self.at(self.bits, order, self.number, *place),
                self.at(self.bits, self.order, number, *place),
                self.at(bits, "planar", self.number, self.row, self.word, self.plane % n_planes(bits))]


def _frame(at: Setting) -> Frame:
    fig, (top, below) = show.subplots(8, 4.6, rows=2, height_ratios=[1, 3.6])
    _draw_word(top, at)
    _draw_lanes(below, at)
    return Frame(at.title, f"{at.words}.", fig)


def _draw_word(ax: Axes, at: Setting) -> None:
    """The fields of a word, highest first, coloured by the shift that frees them; columns below."""
    width = packing.WIDTHS[at.bits][0]
    fields = 32 // width
    first = at.plane - at.plane % fields
    shifts = [pieces(at.bits, first + j, at.number)[0].shift for j in range(fields)]
    kinds = sorted(set(shifts), reverse=True)
    ax.imshow([[to_rgb(FILLS[kinds.index(shifts[bit // width]) % len(FILLS)]) for bit in reversed(range(32))]], aspect="auto")
    for j in range(fields):
        left, mine = 31.5 - (j + 1) * width, first + j == at.plane
        ax.axvline(left, color="white", lw=1.5)
        ax.text(left + width / 2, 0, f"{shifts[j]:+d}" if shifts[j] else "0", ha="center", va="center", fontsize=9)
        if mine:
            _ring(ax, left, -0.5, width)
    every = range(0, fields, 1 + fields // 17)
    columns = [column_of(at.bits, at.order, at.word, first + j) for j in every]
    ax.set_xticks([31.5 - (j + 0.5) * width for j in every], columns, fontsize=9)
    ax.set(yticks=[], title=f"Word {at.word}: the column of every field, and the shift that frees it (left is +)")
    ax.tick_params(length=0)


def _draw_lanes(ax: Axes, at: Setting) -> None:
    """The lane of every place of the operand; the lane that unpacks is dark, the place that needs the code is ringed."""
    lane, k, step, pack = lane_of(at.row, at.word, at.number)[0], at.column % at.number.step, at.number.step, at.number.pack
    who = [[lane_of(r, c, at.number)[0] for c in range(step)] for r in range(ROWS)]
    ax.imshow([[to_rgb("#0173b2" if one == lane else "#dddddd") for one in row] for row in who], aspect="auto")
    for r in range(ROWS):
        for c in range(0, step, pack):
            ink = "white" if who[r][c] == lane else "#222222"
            ax.text(c + (pack - 1) / 2, r, who[r][c], ha="center", va="center", fontsize=9, color=ink)
    _ring(ax, k - 0.5, at.row - 0.5)
    ax.set_xticks(range(0, step, pack), [at.column - k + c for c in range(0, step, pack)], fontsize=9)
    ax.set(yticks=[0, 4, 8, 12], ylabel="row", xlabel="column that is multiplied there",
           title=f"Whose place it is in the operand. Dark: lane {lane}, ring: column {at.column} of row {at.row}")
    ax.tick_params(length=0)


def _ring(ax: Axes, x: float, y: float, width: float = 1) -> None:
    box = [x, x + width, x + width, x, x], [y, y, y + 1, y + 1, y]
    ax.plot(*box, color="#d55e00", lw=2.4, clip_on=False, solid_joinstyle="miter")


def layout_explorer(q: Tensor | None = None, bits: int = 2, order: str = "planar", number: str = "int8", row: int = 0,
                    word: int = 5, plane: int = 1, name: str = "made-up codes") -> LayoutExplorer:
    """A widget about how a warp reads packed words; make it the last expression of a cell.

    Shapes:  q [rows, d_in] codes of `bits` bits, at least 16 rows and one tile of columns, or None.
    Units:   bits a code; row, word and plane count from 0, in the first tile of 16 rows and 64 words a plane.
    Raises:  ValueError if a setting is not offered, or q does not fill a tile (message names both).
    Source:  this project; whose place is whose in m16n8k16 and m16n8k32: NVIDIA's PTX manual, matrix fragments.
    Differs: no difference.
    """
    if bits not in BITS or order not in ORDERS or number not in NUMBERS:
        raise ValueError(f"bits={bits}, order={order!r}, number={number!r} is not offered here; use bits of {list(BITS)}, "
                         f"one of {', '.join(ORDERS)} and one of {', '.join(NUMBERS)}")
    for what, given, end in (("row", row, ROWS), ("word", word, PLANE), ("plane", plane, n_planes(bits))):
        if not 0 <= given < end:
            raise ValueError(f"{what}={given} is not in a tile of {bits} bits; use 0 to {end - 1}")
    if q is not None and (q.ndim != 2 or q.shape[0] < ROWS or q.shape[1] < n_planes(bits) * PLANE):
        raise ValueError(f"codes of shape {list(q.shape)} do not fill a tile of {bits} bits; use at least {ROWS} rows of "
                         f"{n_planes(bits) * PLANE} columns, or no q for made-up codes")
    return LayoutExplorer(
        bits=bits, order=order, number=number, row=row, word=word, plane=plane,
        words={str(b): _words(q if b == bits else None, b) for b in BITS},
        table={of.name: _table(of) for of in NUMBERS.values()},
        copiers=[[copier_of(r, w) for w in range(PLANE)] for r in range(ROWS)],
        about=name if q is None else f"{name}: {bits}-bit codes of its first tile, made-up codes at other widths")


def _table(number: Number) -> dict[str, Any]:
    """What the browser needs to know about a number."""
    by_bits = {str(b): {"widths": packing.WIDTHS[b], "counted": counted(b, number), "one": number.one.get(b, 0),
                        "bias": number.bias.get(b, 0), "home": {order: at_home(b, order, number) for order in ORDERS},
                        "planes": [[vars(p) | {"shift": p.shift, "mask": p.mask, "part": p.part} for p in pieces(b, j, number)]
                                   for j in range(n_planes(b))]} for b in BITS}
    lanes = [[lane_of(r, k, number) for k in range(number.step)] for r in range(ROWS)]
    return {"size": number.size, "pack": number.pack, "step": number.step, "lanes": lanes, "bits": by_bits}


def _words(q: Tensor | None, bits: int) -> list[list[int]]:
    """Packed words of the first tile, without signs."""
    columns = n_planes(bits) * PLANE
    if q is None:
        q = torch.randint(0, 2**bits, (ROWS, columns), generator=torch.Generator().manual_seed(bits))
    return (packing.pack(q[:ROWS, :columns].cpu(), bits).to(torch.int64) & 0xFFFFFFFF).tolist()
