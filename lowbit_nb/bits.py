"""The bit budget: every bit that a stored form puts on disk, item by item.

A method's "2 bits" are the codes alone.  What a reader pays for is the codes *and* the scales, zero points, masks,
codebooks, permutations and padding that make them weights again.  A `BitBudget` lists them all, and its total is the size
of the file (a test compares the two, byte for byte).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Item:
    """One line of a budget: `count` numbers of `each` useful bits, kept in `bits` bits on disk.

    `bits` can exceed `count * each` by padding only.

    Source: itemisation as in the size table of ARB-LLM; this project. Differs: padding is counted.
    """

    name: str
    count: int
    each: float
    bits: int

    @property
    def padding(self) -> float:
        return self.bits - self.count * self.each


@dataclass(frozen=True)
class BitBudget:
    """The itemised size of one or more stored weights.

    Source: this project; the totals follow GPTQ's b + (16 + b) / g for an affine grid. Differs: no difference.

    >>> b = BitBudget((Item("codes", 256, 2, 512), Item("scales", 4, 16, 64)), n_weights=256)
    >>> b.per_weight, b.bytes
    (2.25, 72.0)
    """

    items: tuple[Item, ...]
    n_weights: int

    @property
    def bits(self) -> int:
        return sum(item.bits for item in self.items)

    @property
    def bytes(self) -> float:
        return self.bits / 8

    @property
    def per_weight(self) -> float:
        return self.bits / self.n_weights

    @property
    def nominal(self) -> float:
        """Bits a weight of the codes alone: the number in a paper's title."""
        return sum(i.count * i.each for i in self.items if i.name == "codes") / self.n_weights

    def __add__(self, other: BitBudget) -> BitBudget:
        merged: dict[str, Item] = {}
        for item in self.items + other.items:
            old = merged.get(item.name, Item(item.name, 0, item.each, 0))
            count = old.count + item.count
            each = (old.count * old.each + item.count * item.each) / count if count else item.each
            merged[item.name] = Item(item.name, count, each, old.bits + item.bits)
        return BitBudget(tuple(merged.values()), self.n_weights + other.n_weights)

    def rows(self) -> list[dict]:
        """One row an item, for a table.

        Shapes:  a list with one dict an item and a last one for the total.
        Units:   bits, and bits per weight of the whole budget.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        rows = [{"item": i.name, "count": i.count, "bits each": i.each, "padding bits": i.padding, "bits": i.bits,
                 "bits/weight": i.bits / self.n_weights} for i in self.items]
        total = {"item": "total", "count": "", "bits each": "", "padding bits": sum(i.padding for i in self.items),
                 "bits": self.bits, "bits/weight": self.per_weight}
        return rows + [total]


def item(name: str, stored: Tensor, count: int, each: float) -> Item:
    """A budget line for a tensor that goes to disk as it is.

    Shapes:  any tensor; returns one Item.
    Units:   bits.
    Raises:  nothing.
    Source:  this project: the bits are those of the stored tensor, never of a formula.
    Differs: no difference.

    >>> import torch
    >>> item("scales", torch.zeros(4, dtype=torch.float16), 4, 16).bits
    64
    """
    return Item(name, count, each, stored.numel() * stored.element_size() * 8)
