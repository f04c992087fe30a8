"""Codebooks: how a layer is cut into short vectors, which of a few vectors stands for each, and what that costs.

A piece is v consecutive output rows of one input column.  Columns fall into parts: outlier columns, whose codebook is finer,
and groups, each with a codebook of its own.  A second stage may correct the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import packing

OUTLIERS = 0  # the label of outlier columns; groups are 1, 2, ...


@dataclass(frozen=True)
class Codebook:
    """How a layer is cut: pieces of v rows, one of k vectors for each.

    k_res     vectors of a second stage, 0 for none              groups       ranges of columns with a codebook each
    outliers  share of columns with a codebook of their own      v_out, k_out its pieces and vectors

    Source: VPTQ, Sec. 3; v = 4, k = 256 is a row of its ablation (Table 10). Differs: 256 vectors for outliers by default; the
    paper's 4096 and 8192 are for layers of 4096 columns and more.

    >>> Codebook(4, 256).nominal, Codebook(8, 65536, k_res=256).nominal
    (2.0, 3.0)
    """

    v: int = 4
    k: int = 256
    k_res: int = 0
    groups: int = 1
    outliers: float = 0.0
    v_out: int = 4
    k_out: int = 256

    def __post_init__(self) -> None:
        sizes = {"v": self.v, "k": self.k - 1, "groups": self.groups, "v_out": self.v_out, "k_out": self.k_out - 1}
        if bad := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{self}: {', '.join(bad)} too small; pieces need a row and codebooks two vectors at least")
        if max(self.k, self.k_res, self.k_out) > 65536 or self.k_res == 1 or self.k_res < 0 or self.groups > 254:
            raise ValueError(f"{self}: codebooks hold 2 to 65536 vectors (k_res=0: no second stage); groups are 254 at most")
        if not 0 <= self.outliers < 1:
            raise ValueError(f"outliers={self.outliers} is a share of the columns, from 0 to below 1")

    @property
    def nominal(self) -> float:
        """Bits a weight of the indices alone, outliers left out."""
        return (math.log2(self.k) + (math.log2(self.k_res) if self.k_res else 0)) / self.v

    def n_out(self, d_in: int) -> int:
        """How many columns are outliers: the share, and what groups of equal size leave over.

        Shapes:  two ints.
        Units:   columns.
        Raises:  ValueError if groups of equal size leave columns over and there is no codebook for outliers.
        Source:  VPTQ code (quantize/group.py).
        Differs: its code keeps the columns left over in full precision when there is no codebook for them.
        """
        n = math.ceil(self.outliers * d_in - 1e-9)
        left = (d_in - n) % self.groups
        if left and not n:
            raise ValueError(f"groups={self.groups} do not divide d_in={d_in}; use a number that does, or outliers > 0, which "
                             "take the columns left over")
        if n + left >= d_in:
            raise ValueError(f"outliers={self.outliers} of d_in={d_in} columns leave none for {self.groups} groups")
        return n + left

    def labels(self, importance: Tensor) -> Tensor:
        """The part of every column: outliers are the most important ones, groups follow in order of importance.

        Shapes:  importance [d_in]; returns [d_in] uint8.
        Units:   0 for outliers, g + 1 for group g.
        Raises:  ValueError as `n_out`.
        Source:  VPTQ, Sec. 3.3 (outliers by diag(H)); its code cuts groups from the permuted columns.
        Differs: parts go by importance whatever the order in which columns are visited.

        >>> Codebook(groups=2, outliers=0.2).labels(torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0])).tolist()
        [2, 0, 2, 1, 1]
        """
        d_in = len(importance)
        n = self.n_out(d_in)
        rank = torch.empty(d_in, dtype=torch.int64, device=importance.device)
        rank[importance.argsort(descending=True, stable=True)] = torch.arange(d_in, device=importance.device)
        size = (d_in - n) // self.groups
        return torch.where(rank < n, OUTLIERS, 1 + (rank - n).div(size, rounding_mode="floor")).to(torch.uint8)

    def size(self, d_out: int, d_in: int, norm_bits: int = 0) -> budget.BitBudget:
        """What a layer of that shape would take on disk, words not filled left out; nothing is quantized.

        Shapes:  norm_bits of scale and bias a column (16 for float16 scales).
        Units:   bits, one line an item.
        Raises:  ValueError as `n_out`.
        Source:  VPTQ, App. C.2, with log2(k0) / v0 for outliers (the paper prints log2(k0 / v0)).
        Differs: scales, biases and labels are counted.
        """
        n = self.n_out(d_in)
        stages = [(d_in - n, self.v, self.k, self.groups)] + ([(n, self.v_out, self.k_out, 1)] if n else [])
        stages += [(d_in - n, self.v, self.k_res, self.groups)] if self.k_res else []
        total = budget.BitBudget((), d_out * d_in)
        for columns, v, k, groups in stages:
            count, each = -(-d_out // v) * columns, index_bits(k)
            books = groups * k * v
            items = budget.Item("codes", count, each, count * each), budget.Item("codebooks", books, 16, 16 * books)
            total += budget.BitBudget(items, 0)
        label = index_bits(self.groups + 1) if n or self.groups > 1 else 0
        rest = [budget.Item(name, d_in, each, d_in * each) for name, each in (("norms", norm_bits), ("labels", label)) if each]
        return total + budget.BitBudget(tuple(rest), 0)


def pieces(Wt: Tensor, v: int) -> Tensor:
    """Columns cut into pieces of v rows; a last, shorter piece is filled with zeros.

    Shapes:  Wt [n, d_out], a column of the weight in each row; returns [n * ceil(d_out / v), v], column after column.
    Units:   those of the weight.
    Raises:  nothing.
    Source:  VPTQ, Sec. 3.1.
    Differs: no difference.

    >>> pieces(torch.tensor([[1, 2, 3]]), 2).tolist()
    [[1, 2], [3, 0]]
    """
    Wt = torch.nn.functional.pad(Wt, (0, -Wt.shape[1] % v))
    return Wt.reshape(-1, v)


def index_bits(k: int) -> int:
    """How many bits the number of one of k vectors takes.

    Shapes:  two ints.
    Units:   bits.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.

    >>> index_bits(256), index_bits(4096), index_bits(300)
    (8, 12, 9)
    """
    return max(1, (k - 1).bit_length())


@dataclass(frozen=True)
class Stage:
    """Codebooks and who uses which of their vectors.

    C    [n_groups, k, v] float16
    idx  [ceil(d_out / v), n] int32: the columns of all groups of this stage, in the weight's order

    Source: VPTQ, Sec. 3. Differs: no difference.
    """

    C: Tensor
    idx: Tensor

    def value(self, group: Tensor, d_out: int) -> Tensor:
        """The numbers that the indices stand for, before scale and bias.

        Shapes:  group [n] int64: the codebook of each column; returns [d_out, n] float32.
        Units:   those of the normalised weight.
        Raises:  nothing.
        Source:  VPTQ code (layers/vqlinear.py: dequant).
        Differs: no difference.
        """
        picked = self.C.float()[group, self.idx.long()]  # [R, n, v]
        return picked.permute(0, 2, 1).reshape(-1, len(group))[:d_out]

    def pack(self, prefix: str) -> dict[str, Tensor]:
        """Index planes of at most eight bits each, and the codebooks.

        Shapes:  {prefix}index_0, _1, ... [R, n_words] int32; {prefix}codebook [n_groups, k, v] float16.
        Units:   packed indices, low bits first.
        Raises:  nothing.
        Source:  planar words, see `packing`.
        Differs: VPTQ packs a row of indices as one stream of bits; see `vptq_format`.
        """
        out = {f"{prefix}index_{i}": packing.pack((self.idx >> lo) & (2**width - 1), width)
               for i, (lo, width) in enumerate(_planes(self.C.shape[1]))}
        return out | {f"{prefix}codebook": self.C.contiguous()}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], prefix: str, shape: tuple[int, int, int], rows: int, n: int) -> Stage:
        """The stage from its tensors; the exact inverse of `pack`.

        Shapes:  shape (n_groups, k, v) of the codebooks; rows, n: those of the indices.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        k, idx = shape[1], None
        for i, (lo, width) in enumerate(_planes(k)):
            words = tensors.get(f"{prefix}index_{i}")
            if words is None or tuple(words.shape) != (rows, packing.n_words(n, width)):
                raise ValueError(f"{prefix}index_{i} of a vector weight is missing or not of {rows} rows and {n} columns; "
                                 "the file is truncated or edited")
            plane = packing.unpack(words, width, n).to(torch.int32) << lo
            idx = plane if idx is None else idx | plane
        C = tensors.get(f"{prefix}codebook")
        if C is None or tuple(C.shape) != shape or bool((idx >= k).any()):
            raise ValueError(f"the {prefix}codebook of a vector weight is missing, not {list(shape)}, or shorter than an index "
                             "says; the file is truncated or edited")
        return cls(C, idx)

    def bits(self, prefix: str, packed: dict[str, Tensor]) -> budget.BitBudget:
        """Indices and codebooks as they lie on disk. Bits; one line each."""
        on_disk = sum(8 * t.numel() * t.element_size() for name, t in packed.items() if name.startswith(f"{prefix}index"))
        codes = budget.Item("codes", self.idx.numel(), index_bits(self.C.shape[1]), on_disk)
        return budget.BitBudget((codes, budget.item("codebooks", self.C, self.C.numel(), 16)), 0)


def _planes(k: int) -> list[tuple[int, int]]:
    """(lowest bit, bits) of each index plane."""
    b = index_bits(k)
    return [(lo, min(8, b - lo)) for lo in range(0, b, 8)]
