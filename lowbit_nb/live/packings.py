"""The packing explorer: which bit of which word holds a column, and what one shift of all words gives."""

from __future__ import annotations

from dataclasses import dataclass

import traitlets
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from lowbit_nb import packing, show
from lowbit_nb.live.base import Explorer, Frame, module, styles

SIZES = (16, 64, 100, 256, 300, 768, 1100)
LAYOUTS = ("planar", "interleaved")
RAMP = (
    "#00224e",
    "#35456c",
    "#666970",
    "#948e77",
    "#c8b866",
    "#fee838",
)  # cividis, in six stops; packing.js has the same
STEPS = 40  # shades in a stored picture: few enough that the ring keeps its colour


@dataclass(frozen=True)
class Part:
    """The words of one power-of-two width: `where[field][word]` is the column there, or -1 for padding."""

    width: int
    low: int  # the code's bit that is lowest in these words
    starts: tuple[int, ...]  # first word of every slice
    where: tuple[tuple[int, ...], ...]

    @property
    def n_words(self) -> int:
        return len(self.where[0])

    @property
    def padding(self) -> int:
        """Bits that hold no code."""
        return self.width * sum(c < 0 for row in self.where for c in row)

    def slice_of(self, word: int) -> tuple[int, int]:
        """(first word, number of words) of the slice that holds a word."""
        first = max(start for start in self.starts if start <= word)
        return first, min([s for s in self.starts if s > first], default=self.n_words) - first

    def place(self, column: int) -> tuple[int, int]:
        """(word, field) of a column."""
        return next((row.index(column), j) for j, row in enumerate(self.where) if column in row)


def parts(bits: int, d_in: int, layout: str = "planar") -> list[Part]:
    """The words of one row, part by part, in the order in which they are stored.

    >>> [(p.width, p.n_words, p.place(200)) for p in parts(3, 256)]
    [(2, 16, (8, 12)), (1, 8, (0, 25))]
    """
    found, low = [], 0
    for width in packing.WIDTHS[bits]:
        fields, starts, rows = 32 // width, [], [[] for _ in range(32 // width)]
        for first, plane in packing.slices(d_in, width):
            starts.append(len(rows[0]))
            for w in range(plane):
                for j, row in enumerate(rows):
                    column = first + (j * plane + w if layout == "planar" else w * fields + j)
                    row.append(column if column < d_in else -1)
        found.append(Part(width, low, tuple(starts), tuple(map(tuple, rows))))
        low += width
    return found


class PackingExplorer(Explorer):
    """Four numbers; everything is computed and drawn in the browser. Source, Differs: this project."""

    _esm = module("dom", "packing")
    _css = styles("base", "packing")
    heading = "Packing explorer"
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    bits = traitlets.Int(2).tag(sync=True)
    d_in = traitlets.Int(256).tag(sync=True)
    layout_name = traitlets.Enum(LAYOUTS, "planar").tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)

    def sentence(self) -> str:
        first, *others = [self._title(*setting) for setting in self._stored()]
        return f"Packing explorer. {first}. Others: {'; '.join(others)}."

    def frames(self) -> list[Frame]:
        return [self._frame(*setting) for setting in self._stored()]

    def _stored(self) -> list[tuple[int, int, str, int]]:
        """The first setting, the other layout, three bits, a row that does not fill its words."""
        start = (self.bits, self.d_in, self.layout_name, self.column)
        other = LAYOUTS[1 - LAYOUTS.index(self.layout_name)]
        return [
            start,
            (self.bits, self.d_in, other, self.column),
            (3, 256, "planar", 200),
            (2, 100, "planar", 99),
        ]

    def _title(self, bits: int, d_in: int, layout: str, column: int) -> str:
        places = " and ".join(_place(part, column) for part in parts(bits, d_in, layout))
        return f"{bits} bits, {d_in} columns, {layout}: column {column} sits in {places}"

    def _frame(self, bits: int, d_in: int, layout: str, column: int) -> Frame:
        title, found = self._title(bits, d_in, layout, column), parts(bits, d_in, layout)
        tall = [1.1 + min(2.1, 0.12 * len(p.where)) for p in found]
        fig, axes = show.subplots(8, sum(tall), rows=len(found), squeeze=False, height_ratios=tall)
        for ax, part in zip(axes[:, 0], found, strict=True):
            _draw(ax, part, d_in, column)
        words, padding = sum(p.n_words for p in found), sum(p.padding for p in found)
        alt = (
            f"{title}. The row takes {words} words, {padding} of their bits are padding. "
            f"The shift that frees this column also frees {run_of(found[0], column)}."
        )
        return Frame(title, alt, fig)


def run_of(part: Part, column: int) -> str:
    """What one shift and mask of the words of this column's slice gives, in words."""
    word, j = part.place(column)
    first, plane = part.slice_of(word)
    row = [c for c in part.where[j][first : first + plane] if c >= 0]
    if row == list(range(row[0], row[0] + len(row))):
        return f"columns {row[0]} to {row[-1]}, in order" if len(row) > 1 else f"column {row[0]} alone"
    return f"columns {', '.join(map(str, row[:3]))}, … {row[-1]}, every {row[1] - row[0]}th"


def _place(part: Part, column: int) -> str:
    word, j = part.place(column)
    top = f" to {j * part.width + part.width - 1}" if part.width > 1 else ""
    return f"bit{'s' if top else ''} {j * part.width}{top} of {part.width}-bit word {word}"


def _draw(ax: Axes, part: Part, d_in: int, column: int) -> None:
    """Words across, fields down, colour by column; the chosen column is ringed."""
    pixels = [[_colour(c, d_in) for c in row] for row in part.where]
    ax.imshow(pixels, aspect="auto", interpolation="nearest")
    word, j = part.place(column)
    first, plane = part.slice_of(word)
    ring = {"fill": False, "clip_on": False}
    ax.add_patch(Rectangle((first - 0.5, j - 0.5), plane, 1, edgecolor="black", linewidth=1.2, **ring))
    ax.add_patch(Rectangle((word - 0.5, j - 0.5), 1, 1, edgecolor="#d55e00", linewidth=2.4, **ring))
    for start in part.starts[1:]:
        ax.axvline(start - 0.5, color="white", linewidth=2)
    if part.n_words <= 20 and part.width > 1:
        for y, row in enumerate(part.where):
            for x, c in enumerate(row):
                ink = "white" if c < 0.55 * d_in else "black"
                ax.text(x, y, str(c) if c >= 0 else "", ha="center", va="center", fontsize=8, color=ink)
    bits = f"bit {part.low}" if part.width == 1 else f"bits {part.low} to {part.low + part.width - 1}"
    title = f"{bits} of every code: {part.n_words} words of {len(part.where)} fields"
    ax.set(title=title, xlabel="word", ylabel="field")


def _colour(column: int, d_in: int) -> tuple[float, ...]:
    """Dark to light along the row; light grey for padding."""
    if column < 0:
        return to_rgb("#e4e4e4")
    at = round(column / max(1, d_in - 1) * STEPS) / STEPS * (len(RAMP) - 1)
    k = min(int(at), len(RAMP) - 2)
    return tuple(a + (b - a) * (at - k) for a, b in zip(to_rgb(RAMP[k]), to_rgb(RAMP[k + 1]), strict=True))


def packing_explorer(
    bits: int = 2, d_in: int = 256, layout: str = "planar", column: int = 0
) -> PackingExplorer:
    """A widget about where the bits of a column sit; make it the last expression of a cell.

    Shapes:  a row of d_in codes.
    Units:   bits a code; the column counts from 0.
    Raises:  ValueError if bits, d_in, layout or column is not offered.
    Source:  this project.
    Differs: no difference.
    """
    if bits not in packing.WIDTHS or layout not in LAYOUTS or not 1 <= d_in <= SIZES[-1]:
        raise ValueError(
            f"bits={bits}, d_in={d_in}, layout={layout!r} is not offered here; "
            f"use 1 to 8 bits, at most {SIZES[-1]} columns and one of {', '.join(LAYOUTS)}"
        )
    if not 0 <= column < d_in:
        raise ValueError(f"column={column} is not in a row of {d_in}; use 0 to {d_in - 1}")
    return PackingExplorer(
        sizes=sorted({*SIZES, d_in}),
        bits=bits,
        d_in=d_in,
        layout_name=layout,
        column=column,
        about="one row of codes in 32-bit words",
    )
