"""Vectors along the input, the other way to cut a layer: a piece is v consecutive columns of one output row.

Inside such a piece every column has its own cost, so the nearest vector is nearest in a metric: rate goes where errors are
dear.  Rounding v columns at once, error feedback hands them over as they would best be, given the columns before:

    W_hat[i, c v + e] = s_{c v + e} C[idx[i, c], e]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import stored
from lowbit_nb.codebooks.codebook import Stage
from lowbit_nb.codebooks.kmeans import kmeans, nearest


@stored.readable
@dataclass(frozen=True)
class AcrossWeight:
    """A weight of codebook vectors that lie along its rows.

    stage  C [1, k, v] float16, idx [d_out, d_in / v] int32          s  [d_in] float16 scale of columns, or None

    Source: GPTVQ, AQLM (vectors along the input). Differs: one codebook a layer, columns of one scale.
    """

    stage: Stage
    s: Tensor | None = None
    form: ClassVar[str] = "across"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.stage.idx), self.stage.idx.shape[1] * self.stage.C.shape[2]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_hat = s * C[idx].

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  GPTVQ, Sec. 3.
        Differs: computed in float32, then cast.
        """
        W_hat = self.stage.C[0].float()[self.stage.idx.long()].flatten(1)
        return (W_hat if self.s is None else W_hat * self.s.float()).to(dtype)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x: every vector meets every piece of x once; rows then only look sums up.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  the tables of AQLM's CPU kernel and CodeGEMM.
        Differs: no difference.
        """
        x = x.float() if self.s is None else x.float() * self.s.float()
        table = x.reshape(-1, self.stage.C.shape[2]) @ self.stage.C[0].float().T  # [d_in / v, k]
        return table.T.gather(0, self.stage.idx.long()).sum(1)

    def pack(self) -> dict[str, Tensor]:
        """Index planes, the codebook and, if there are any, scales; as `Stage.pack`."""
        return self.stage.pack("") | ({} if self.s is None else {"scale": self.s.contiguous()})

    def meta(self) -> dict:
        return {"form": self.form, "d_out": self.shape[0], "d_in": self.shape[1], "shape": list(self.stage.C.shape),
                "scale": self.s is not None}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> AcrossWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        d_in = meta["d_in"]
        if ("scale" in tensors) != meta["scale"] or (meta["scale"] and tuple(tensors["scale"].shape) != (d_in,)):
            raise ValueError(f"scale is missing or not of {d_in} columns; the file is truncated or edited")
        stage = Stage.unpack(tensors, "", tuple(meta["shape"]), meta["d_out"], d_in // meta["shape"][2])
        return cls(stage, tensors.get("scale"))

    def bits(self) -> budget.BitBudget:
        """The itemised size, equal to the bytes of `pack()`. Bits; one line an item."""
        rest = () if self.s is None else (budget.item("scales", self.s, self.shape[1], 16),)
        return budget.BitBudget(self.stage.bits("", self.pack()).items + rest, self.shape[0] * self.shape[1])


class AcrossRounder:
    """Take the nearest vector for every row of v columns, under the costs D of those columns.

    perm    visiting order that keeps the v columns of a piece together and in their own order (`whole`)
    metric  False: the plain nearest vector, to see what the metric is worth
    k, iterations, generator   of k-means over all pieces, weighted by D

    Source: GPTVQ, Alg. 1. Differs: its metric is 1 / U_jj (here its square, the cost itself), and columns inside a piece do not
    make up for one another there; here the piece is handed over as it would best be.
    """

    def __init__(self, perm: Tensor, v: int, k: int, generator: torch.Generator, iterations: int = 20, start: str = "gaussian",
                 metric: bool = True) -> None:
        if len(perm) % v:
            raise ValueError(f"pieces of {v} columns do not divide d_in={len(perm)}")
        self.perm, self.span, self.k, self.generator, self.metric = perm, v, k, generator, metric
        self.iterations, self.start_with = iterations, start
        self.idx: list[Tensor] = []

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """Learn the codebook.

        Shapes:  Wt [d_in, d_out]; D [d_in].
        Units:   those of the weight; D of a squared error.
        Raises:  ValueError as `kmeans`.
        Source:  GPTVQ, Sec. 3.2 (weighted EM).
        Differs: k-means with a metric in the assignment too.
        """
        self.D = D.reshape(-1, self.span) if self.metric else torch.ones_like(D).reshape(-1, self.span)
        points = Wt.reshape(len(self.D), self.span, -1).transpose(1, 2).reshape(-1, self.span)
        metric = self.D.repeat_interleave(Wt.shape[1], 0)
        found = kmeans(points, torch.ones_like(points[:, 0]), self.k, generator=self.generator, start=self.start_with,
                       iterations=self.iterations, metric=metric)
        self.C = found.C.half().to(Wt)

    def start(self, j: int, now: Tensor) -> None:
        """Choose the vectors of the piece that begins at column j.

        Shapes:  now [v, d_out], the best values of the piece's columns given those before.
        Units:   those of the weight.
        Raises:  nothing.
        Source:  GPTVQ, Alg. 1.
        Differs: see the class.
        """
        self.idx.append(nearest(now.T, self.C, self.D[j // self.span]))
        self.piece = self.C[self.idx[-1]].T

    def round(self, j: int, t: Tensor) -> Tensor:
        """The chosen vectors' numbers for column j; [d_out]."""
        return self.piece[j % self.span]

    def result(self, s: Tensor | None) -> AcrossWeight:
        """The stored form; pieces stayed whole, so no order is kept. s [d_in] or None."""
        home = self.perm[:: self.span].div(self.span, rounding_mode="floor")
        idx = torch.empty_like(torch.stack(self.idx)).index_copy_(0, home, torch.stack(self.idx))
        return AcrossWeight(Stage(self.C[None].half(), idx.T.to(torch.int32).contiguous()), None if s is None else s.half())


def whole(H: Tensor, v: int) -> Tensor:
    """The order of pieces by the largest diag(H) in each, columns inside as they are.

    Shapes:  H [d_in, d_in]; v divides d_in; returns [d_in] int64.
    Units:   none.
    Raises:  ValueError if v does not divide d_in.
    Source:  group-aware reordering as in `feedback.order`.
    Differs: columns inside a piece keep their order, so that a vector's coordinates do.

    >>> whole(torch.diag(torch.tensor([1.0, 3.0, 2.0, 9.0])), 2).tolist()
    [2, 3, 0, 1]
    """
    if len(H) % v:
        raise ValueError(f"pieces of {v} columns do not divide d_in={len(H)}")
    first = H.diagonal().reshape(-1, v).amax(1).argsort(descending=True, stable=True) * v
    return (first[:, None] + torch.arange(v, device=H.device)).flatten()
