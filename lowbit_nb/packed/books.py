"""The operands of codebook forms: packed indices and codebooks, the columns of each stage looked up once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb import packing
from lowbit_nb.codebooks.across import AcrossWeight
from lowbit_nb.codebooks.codebook import OUTLIERS, Stage, index_bits
from lowbit_nb.packed import gpu


@dataclass(frozen=True)
class Book:
    """One stage: packed indices, codebooks, and which columns use which of them.

    words  planes of indices, each [R, n_words]      C  [n_groups, k, v] float16      columns, group  [n] int64

    Source: VPTQ, Sec. 3. Differs: no difference.
    """

    words: tuple[Tensor, ...]
    C: Tensor
    columns: Tensor
    group: Tensor

    def index(self) -> Tensor:
        """Which vector every piece uses. [R, n] int64"""
        b, idx = index_bits(self.C.shape[1]), 0
        for i, words in enumerate(self.words):
            idx = idx + (packing.unpack(words, min(8, b - 8 * i), len(self.columns)).long() << 8 * i)
        return idx

    def value(self, d_out: int) -> Tensor:
        """The numbers that the indices stand for. [d_out, n] float32"""
        return Stage(self.C, self.index()).value(self.group, d_out)


class Vectors:
    """A weight of codebook vectors along the output.

    Source: VPTQ, Sec. 3. Differs: no difference.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict) -> None:
        self.d_out, self.d_in, self.tensors, self.meta = meta["d_out"], meta["d_in"], tensors, meta
        groups, device = meta["main_shape"][0], tensors["codebook"].device
        label = torch.ones(self.d_in, dtype=torch.uint8, device=device)
        if "label" in tensors:
            label = packing.unpack(tensors["label"], index_bits(groups + 1), self.d_in)[0]
        inliers, outliers = (label != OUTLIERS).nonzero()[:, 0], (label == OUTLIERS).nonzero()[:, 0]
        group = label[inliers].long() - 1
        self.books = [_book(tensors, "", inliers, group)]
        if "residual_shape" in meta:
            self.books.append(_book(tensors, "residual_", inliers, group))
        if "outlier_shape" in meta:
            self.books.append(_book(tensors, "outlier_", outliers, torch.zeros_like(outliers)))
        self.s, self.m = (None if t is None else t.float() for t in (tensors.get("scale"), tensors.get("bias")))
        self.prepared: object | None = None  # what the GPU's kernel made of it

    def product(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [n, d_in] -> [n, d_out]."""
        kernel = gpu.kernel("gather") if x.is_cuda and gpu.why_not() is None else None
        if kernel is not None:
            if self.prepared is None:
                self.prepared = kernel.operand(self.tensors, self.meta)
            return kernel.product(x, self.prepared, dtype=dtype)
        x = x.float()
        x_s = x if self.s is None else x * self.s
        y = sum(x_s.index_select(1, book.columns) @ book.value(self.d_out).T for book in self.books)
        return y if self.m is None else y + (x @ self.m)[:, None]

    def dequantize(self) -> Tensor:
        """[d_out, d_in] float32."""
        W = torch.zeros(self.d_out, self.d_in, device=self.books[0].C.device)
        for book in self.books:
            W.index_add_(1, book.columns, book.value(self.d_out))
        W = W if self.s is None else W * self.s
        return W if self.m is None else W + self.m


class Across:
    """A weight of codebook vectors along the input: every vector meets every piece of x once, rows look sums up.

    Source: the tables of AQLM's CPU kernel and CodeGEMM. Differs: no difference.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict) -> None:
        n_pieces = meta["d_in"] // meta["shape"][2]
        pieces = torch.arange(n_pieces, device=tensors["codebook"].device)
        self.book, self.scale = _book(tensors, "", pieces, torch.zeros_like(pieces)), tensors.get("scale")

    def product(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [n, d_in] -> [n, d_out]."""
        x = x.float() if self.scale is None else x.float() * self.scale.float()
        C = self.book.C[0].float()
        table = x.reshape(len(x), -1, C.shape[1]) @ C.T  # [n, d_in / v, k]
        return table.transpose(1, 2).gather(1, self.book.index().expand(len(x), -1, -1)).sum(2)

    def dequantize(self) -> Tensor:
        """[d_out, d_in] float32."""
        return AcrossWeight(Stage(self.book.C, self.book.index()), self.scale).dequantize()


def vector(tensors: dict[str, Tensor], meta: dict) -> Vectors:
    """The operand of a vector weight.

    Shapes:  tensors and meta as `VectorWeight`.
    Units:   none.
    Raises:  nothing.
    Source:  VPTQ, Sec. 3.
    Differs: no difference.
    """
    return Vectors(tensors, meta)


def across(tensors: dict[str, Tensor], meta: dict) -> Across:
    """The operand of an across weight.

    Shapes:  tensors and meta as `AcrossWeight`.
    Units:   none.
    Raises:  nothing.
    Source:  GPTVQ, AQLM.
    Differs: no difference.
    """
    return Across(tensors, meta)


def _book(tensors: dict[str, Tensor], prefix: str, columns: Tensor, group: Tensor) -> Book:
    words, i = [], 0
    while f"{prefix}index_{i}" in tensors:
        words.append(tensors[f"{prefix}index_{i}"])
        i += 1
    return Book(tuple(words), tensors[f"{prefix}codebook"], columns, group)
