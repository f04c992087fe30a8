"""One bit for most weights, eight for a few, anywhere: the stored form and the rounding of PB-LLM.

A bitmap says which weights keep their own code; all others are a sign with a mean and a level a row and group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import grid as grids
from lowbit_nb import packing, stored
from lowbit_nb.grid import Grid
from lowbit_nb.onebit import signs


@stored.readable
@dataclass(frozen=True)
class PartialWeight:
    """Codes where the bitmap says so, signs elsewhere.

    salient  [d_out, d_in] bool      q  [n_salient] uint8, row by row      s, z  [d_out, 1] float16 and uint8
    sign     [d_out, d_in] bool      a, mu  [d_out, n_groups] float16      bits  of a code

    Source: PB-LLM. Differs: the official code keeps dequantized float16 weights.
    """

    salient: Tensor
    q: Tensor
    s: Tensor
    z: Tensor
    sign: Tensor
    a: Tensor
    mu: Tensor
    bits_high: int = 8
    form: ClassVar[str] = "partial"

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.salient.shape)

    def _spread(self, x: Tensor) -> Tensor:
        return x.float().repeat_interleave(self.shape[1] // x.shape[1], 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that codes and signs stand for.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  PB-LLM.
        Differs: computed in float32, then cast.
        """
        a, mu = self._spread(self.a), self._spread(self.mu)
        W_hat = torch.where(self.sign, mu + a, mu - a)
        rows = self.salient.nonzero()[:, 0]
        W_hat[self.salient] = (self.q.float() - self.z[rows, 0].float()) * self.s[rows, 0].float()
        return W_hat.to(dtype)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x from the parts: signs without the salient places, then the codes.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        x_low = x.float() * ~self.salient
        parts = [t.reshape(*self.a.shape, -1).sum(-1) for t in (torch.where(self.sign, x_low, -x_low), x_low)]
        y = (self.a.float() * parts[0] + self.mu.float() * parts[1]).sum(1)
        rows, cols = self.salient.nonzero(as_tuple=True)
        return y.index_add_(0, rows, (self.q.float() - self.z[rows, 0].float()) * self.s[rows, 0].float() * x.float()[cols])

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk.

        Shapes:  salient [d_out, n_words]; codes, signs [1, n_words]; scales [d_out, 1]; zeros [1, n_words]; levels, means
                 [d_out, n_groups].
        Units:   packed bits; those of the weight.
        Raises:  nothing.
        Source:  planar words, see `packing`.
        Differs: a bitmap, which is smaller than addresses from about 1 salient weight in 16 on.
        """
        out = {"salient": packing.pack(self.salient.to(torch.uint8), 1), "codes": packing.pack(self.q[None], self.bits_high),
               "signs": packing.pack(self.sign[~self.salient][None].to(torch.uint8), 1), "scales": self.s,
               "zeros": packing.pack(self.z.reshape(1, -1), self.bits_high), "levels": self.a, "means": self.mu}
        return {name: t.contiguous() for name, t in out.items()}

    def meta(self) -> dict:
        return {"form": self.form, "d_out": self.shape[0], "d_in": self.shape[1], "n_salient": len(self.q),
                "n_groups": self.a.shape[1], "bits": self.bits_high}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> PartialWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        d_out, d_in, n, bits = meta["d_out"], meta["d_in"], meta["n_salient"], meta["bits"]
        words, groups = packing.n_words, (d_out, meta["n_groups"])
        wanted = {"salient": (d_out, words(d_in, 1)), "codes": (1, words(n, bits)), "signs": (1, words(d_out * d_in - n, 1)),
                  "scales": (d_out, 1), "zeros": (1, words(d_out, bits)), "levels": groups, "means": groups}
        for name, shape in wanted.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise ValueError(f"the {name} of a partial weight are missing or not {list(shape)}; "
                                 "the file is truncated or edited")
        salient = packing.unpack(tensors["salient"], 1, d_in).bool()
        if int(salient.sum()) != n:
            raise ValueError(f"the bitmap has {int(salient.sum())} salient weights and {n} codes; the file is edited")
        sign = torch.zeros_like(salient)
        sign[~salient] = packing.unpack(tensors["signs"], 1, d_out * d_in - n)[0].bool()
        q, z = packing.unpack(tensors["codes"], bits, n)[0], packing.unpack(tensors["zeros"], bits, d_out).reshape(-1, 1)
        return cls(salient, q, tensors["scales"], z, sign, tensors["levels"], tensors["means"], bits)

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        Shapes:  one line an item.
        Units:   bits.
        Raises:  nothing.
        Source:  PB-LLM: r + 8 (1 - r) + 1, with r the share of signs.
        Differs: scales and padding are counted.
        """
        packed, n, total = self.pack(), len(self.q), self.salient.numel()
        useful = total - n + self.bits_high * n
        stored_codes = 32 * (packed["codes"].numel() + packed["signs"].numel())
        items = [budget.Item("codes", total, useful / total, stored_codes), budget.item("bitmap", packed["salient"], total, 1)]
        counts = {"scales": 16, "zeros": self.bits_high, "levels": 16, "means": 16}
        items += [budget.item(k, packed[k], len(self.s) if k in ("scales", "zeros") else self.a.numel(), each)
                  for k, each in counts.items()]
        return budget.BitBudget(tuple(items), total)


class PartialRounder:
    """Signs and codes column by column with feedback; bitmap, levels and ranges are those of the original weight.

    share   of weights that keep a code        metric  hessian: w**2 D | magnitude: |w|        g  columns that share levels

    Source: PB-LLM and its code.
    Differs: means and levels are those of the weights with a sign only (the code divides by all), ranges those of the
    weights with a code; exactly the share asked for.
    """

    span = 0

    def __init__(self, share: float, metric: str, bits: int, g: int) -> None:
        self.share, self.metric, self.grid, self.g = share, metric, Grid(bits), g

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """Choose bitmap, ranges and levels.

        Shapes:  Wt [d_in, d_out]; D [d_in].
        Units:   those of the weight.
        Raises:  ValueError as `grid.fit`.
        Source:  PB-LLM code.
        Differs: see the class.
        """
        W = Wt.T.contiguous()
        score = W.square() * D if self.metric == "hessian" else W.abs()
        self.salient = torch.zeros_like(W, dtype=torch.bool)
        self.salient.view(-1)[score.reshape(-1).topk(round(self.share * W.numel())).indices] = True
        self.s, self.z = (t[:, 0] for t in grids.fit(W * self.salient, self.grid))
        W_g, low = W.reshape(len(W), -1, self.g), (~self.salient).reshape(len(W), -1, self.g)
        self.mu = signs.row_mean(W_g, low).half()
        self.a = signs.row_mean((W_g - self.mu[..., None].to(W.dtype)).abs(), low).half()
        self.sign, self.q = torch.zeros_like(self.salient), torch.zeros(W.shape, dtype=torch.uint8, device=W.device)

    def start(self, j: int, now: Tensor) -> None:
        """Nothing: levels are those of the original weight."""

    def round(self, j: int, t: Tensor) -> Tensor:
        """A code or a sign for every row of column j.

        Shapes:  t [d_out]; returns [d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  PB-LLM.
        Differs: no difference.
        """
        mu, a = (x[:, j // self.g].to(t.dtype) for x in (self.mu, self.a))
        s, z = self.s.to(t.dtype), self.z.to(t.dtype)
        q = grids.codes(t, s, z, self.grid)
        self.sign[:, j], self.q[:, j] = t >= mu, q.to(torch.uint8)
        return torch.where(self.salient[:, j], (q - z) * s, mu + a * signs.sgn(t - mu))

    def result(self) -> PartialWeight:
        """The stored form.

        Shapes:  [d_out, d_in].
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        s, z = self.s[:, None].half(), self.z[:, None].to(torch.uint8)
        sign = self.sign & ~self.salient
        return PartialWeight(self.salient, self.q[self.salient], s, z, sign, self.a, self.mu, self.grid.bits)
