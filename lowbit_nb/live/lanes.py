"""How a warp reads packed words: which lane holds what of a tensor core's operand, and what frees a field of a word.

Two numbers that a tensor core multiplies can be made of a field.  int8, as in `kernels.unpacking`: the same byte of four words
lies in one register, and four weights are freed together.  fp16: the same half of two words, with the bits of 1024 beside the
field.  Either way a field is masked where it stands, or after a shift that it shares with others, and not at the bottom of its
number; the inputs of its plane are divided by that power of two instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowbit_nb import packing, show
from lowbit_nb.packing import PLANE

BITS, ORDERS, ROWS = (1, 2, 3, 4, 8), ("planar", "interleaved"), 16


@dataclass(frozen=True)
class Number:
    """What the tensor core multiplies: its size, and where in it a field may sit. Source, Differs: this project."""

    name: str
    size: int  # bits
    pos: dict[int, tuple[int, ...]]  # by bits: the lowest bit of a field in the number, plane after plane
    one: dict[int, int]  # by bits: what is put into the bits beside the field; 0 unless named
    bias: dict[int, int]  # by bits: what that adds to the value

    @property
    def pack(self) -> int:
        """Numbers in a register, and words that are unpacked together."""
        return 32 // self.size

    @property
    def step(self) -> int:
        """Columns that one tensor-core instruction takes."""
        return 8 * self.pack


INT8 = Number("int8", 8, {1: (0, 1, 2, 3), 2: (0, 2), 3: (0, 2), 4: (0,), 8: (0,)}, {8: 0x80}, {8: -128})
FP16 = Number("fp16", 16, {1: (4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 4, 5, 6, 7, 8, 9), 2: (4, 6, 4, 6, 8, 4, 6, 8), 3: (4, 6), 4: (4,),
                           8: (2,)}, dict.fromkeys(BITS, 0x6400), dict.fromkeys(BITS, 1024))
NUMBERS = {number.name: number for number in (INT8, FP16)}


@dataclass(frozen=True)
class Piece:
    """The bits that one word holds of a code, and where they go. Source, Differs: this project."""

    width: int
    low: int  # the code's bit that is lowest here
    block: int  # which 64 words of the row
    bit: int  # lowest bit in the word
    pos: int  # lowest bit in the number
    size: int  # bits of the number

    @property
    def part(self) -> int:
        """Which half or byte of the word."""
        return self.bit // self.size

    @property
    def shift(self) -> int:
        """To the left, within its half or byte."""
        return self.pos - self.bit % self.size

    @property
    def mask(self) -> int:
        return (2**self.width - 1) << self.pos


def n_planes(bits: int) -> int:
    """Planes of a tile: one slice of the narrowest words."""
    return 32 // min(packing.WIDTHS[bits])


def pieces(bits: int, plane: int, number: Number = INT8) -> list[Piece]:
    """What is unpacked of each part for the codes of a plane, low bits first.

    >>> [(p.block, p.bit, p.part, p.shift, hex(p.mask)) for p in pieces(2, 7)]
    [(0, 14, 1, -4, '0xc')]
    """
    found, low, block = [], 0, 0
    for width in packing.WIDTHS[bits]:
        turn, field = divmod(plane, 32 // width)
        pos = number.pos[bits][plane % len(number.pos[bits])] + low
        found.append(Piece(width, low, block + turn, field * width, pos, number.size))
        low, block = low + width, block + n_planes(bits) * width // 32
    return found


def column_of(bits: int, order: str, word: int, plane: int) -> int:
    """The column whose low bits are field `plane` of the words numbered `word`."""
    fields = 32 // packing.WIDTHS[bits][0]
    turn, field = divmod(plane, fields)
    return turn * fields * PLANE + (field * PLANE + word if order == "planar" else word * fields + field)


def lane_of(row: int, word: int, number: Number = INT8) -> tuple[int, int, int]:
    """(lane, register, place in it) that holds this word's weights of a row, if words are places of the operand.

    >>> lane_of(0, 5), lane_of(9, 26), lane_of(0, 5, FP16)
    ((1, 0, 1), (6, 3, 2), (2, 0, 1))
    """
    half, at = divmod(word % number.step, 4 * number.pack)
    return row % 8 * 4 + at // number.pack, row // 8 + half * 2, at % number.pack


def copier_of(row: int, word: int) -> int:
    """The lane that copies a word to shared memory: 16 bytes each, so that a warp takes two rows of 64 words at once."""
    return row % 2 * 16 + word // 4


def counted(bits: int, number: Number = INT8) -> dict[str, Any]:
    """Instructions a weight, counted from the table, for words unpacked together and for one code after the other."""
    every = [piece for j in range(n_planes(bits)) for piece in pieces(bits, j, number)]
    weights = n_planes(bits)
    together = {"join": len({(p.block, p.part) for p in every}) * (number.pack // 2),  # 1 a half, 2 a byte of four words
                "shift": len({(p.block, p.part, p.shift) for p in every if p.shift}), "mask": len(every)}
    single = {"join": weights * (1 - 1 / number.pack), "shift": sum(p.bit != p.low for p in every),
              "mask": sum(p.low > 0 or p.bit + p.width < 32 for p in every), "convert": weights}
    counts = {"together": {name: n / (weights * number.pack) for name, n in together.items()},
              "single": {name: n / weights for name, n in single.items()}}
    return {how: {"kinds": kinds, "sum": show.digits(sum(kinds.values()))} for how, kinds in counts.items()}


def costs(bits: int, number: Number) -> str:
    """Both counts in words."""
    told = counted(bits, number)
    return f"{number.name} {told['together']['sum']} against {told['single']['sum']}"


def at_home(bits: int, order: str, number: Number = INT8) -> float:
    """The share of codes that lie with the lane whose operand they are, if columns are multiplied in their order."""
    every = [(w, column_of(bits, order, w, j)) for w in range(PLANE) for j in range(n_planes(bits))]
    return sum(lane_of(0, w, number)[0] == lane_of(0, c, number)[0] for w, c in every) / len(every)


@dataclass(frozen=True)
class Setting:
    """One field of one word, and how it is read. Source, Differs: this project."""

    bits: int
    order: str
    number: Number
    row: int
    word: int
    plane: int
    code: int

    @property
    def column(self) -> int:
        return column_of(self.bits, self.order, self.word, self.plane)

    @property
    def value(self) -> int:
        """What the number in the register stands for."""
        return (self.code << pieces(self.bits, self.plane, self.number)[0].pos) + self.number.bias.get(self.bits, 0)

    @property
    def title(self) -> str:
        order = f"{self.bits} bit{'s' * (self.bits > 1)}, {self.order}, {self.number.name}"
        return f"{order}: plane {self.plane} of word {self.word} in row {self.row} is column {self.column}"

    @property
    def words(self) -> str:
        lane, register, _ = lane_of(self.row, self.word, self.number)
        needs = lane_of(self.row, self.column, self.number)[0]
        share = 100 * at_home(self.bits, self.order, self.number)
        pos, bias = pieces(self.bits, self.plane, self.number)[0].pos, self.number.bias.get(self.bits, 0)
        sums = f" = {self.code} * 2**{pos}" + (f" {'+' if bias > 0 else '-'} {abs(bias)}" if bias else "")
        return (f"{self.title}; lane {copier_of(self.row, self.word)} copies the word, lane {lane} unpacks the code to "
                f"{self.value}{sums} in register {register}, and lane {needs} needs it; {show.digits(share)} % of the codes "
                "lie where they are needed")
