"""One sign plane with scales: the stored form of a plain sign code and of the one-bit part of PTQ1.61.

    w_hat_ij = v_j (a_i B_ij + mu_i)        B_ij = +1 or -1

Levels a and means mu belong to a row, or to a row and group of columns; the column factors v are optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import packing, stored
from lowbit_nb.onebit import signs


@stored.readable
@dataclass(frozen=True)
class SignWeight:
    """A sign a weight.

    sign  [d_out, d_in] bool, True is +        a, mu  [d_out, n_groups] float16        v  [d_in] float16, or None

    Source: XNOR-Net, Sec. 3.1; PTQ1.61, Eq. 9 and its code (the mean).
    Differs: the code's two row scales are one here, folded into a and mu.
    """

    sign: Tensor
    a: Tensor
    mu: Tensor
    v: Tensor | None = None
    form: ClassVar[str] = "sign"

    @classmethod
    def of(cls, sign: Tensor, a: Tensor, mu: Tensor, v: Tensor | None = None) -> SignWeight:
        """The form with every number in the type it has on disk.

        Shapes:  sign [d_out, d_in] bool; a, mu [d_out, n_groups]; v [d_in] or None.
        Units:   those of the weight; v has none.
        Raises:  ValueError if a number does not fit float16.
        Source:  this project.
        Differs: no difference.
        """
        kept = [None if t is None else t.to(torch.float16) for t in (a, mu, v)]
        if not all(t is None or torch.isfinite(t).all() for t in kept):
            raise ValueError("a level, mean or column factor does not fit float16; check the weight and the learning rates")
        return cls(sign.bool(), *kept)

    @classmethod
    def nearest(cls, W: Tensor, group: int | None = None) -> SignWeight:
        """The plain sign code: mean, mean deviation and signs of every group.

        Shapes:  W [d_out, d_in].
        Units:   those of the weight.
        Raises:  ValueError if the group size does not divide d_in, or a number does not fit float16.
        Source:  XNOR-Net, Sec. 3.1; centred as in the BiLLM code.
        Differs: no difference.
        """
        g = group or W.shape[1]
        if W.shape[1] % g:
            raise ValueError(f"d_in={W.shape[1]} is not a multiple of g={g}")
        W_g = W.float().reshape(-1, g)
        mu, a = signs.one_plane(W_g)
        sign = (W_g - mu[:, None] >= 0).reshape(W.shape)
        return cls.of(sign, a.reshape(len(W), -1), mu.reshape(len(W), -1))

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.sign.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_hat = v (a B + mu).

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  PTQ1.61, Eq. 9.
        Differs: computed in float32, then cast.
        """
        a, mu = self.a.float()[..., None], self.mu.float()[..., None]
        grouped = self.sign.reshape(*self.a.shape, -1)
        W_hat = torch.where(grouped, mu + a, mu - a).reshape(self.shape)
        return (W_hat if self.v is None else W_hat * self.v.float()).to(dtype)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x from the parts: a sum with signs and a plain sum a group.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  this project: a (2 sum of the inputs with a + minus sum of all) + mu sum of all.
        Differs: no difference.
        """
        x = x.float() if self.v is None else x.float() * self.v.float()
        x_g = x.reshape(self.a.shape[1], -1)
        plus = torch.einsum("ogc,gc->og", self.sign.reshape(*self.a.shape, -1).float(), x_g)
        return (self.a.float() * (2 * plus - x_g.sum(1)) + self.mu.float() * x_g.sum(1)).sum(1)

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk.

        Shapes:  signs [d_out, n_words] int32; levels, means [d_out, n_groups]; factors [d_in].
        Units:   packed bits; those of the weight.
        Raises:  nothing.
        Source:  planar words, see `packing`.
        Differs: no difference.
        """
        out = {"signs": packing.pack(self.sign.to(torch.uint8), 1), "levels": self.a, "means": self.mu}
        out |= {} if self.v is None else {"factors": self.v}
        return {name: t.contiguous() for name, t in out.items()}

    def meta(self) -> dict:
        return {"form": self.form, "d_out": self.shape[0], "d_in": self.shape[1], "n_groups": self.a.shape[1],
                "factors": self.v is not None}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> SignWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        d_out, d_in, n_groups = meta["d_out"], meta["d_in"], meta["n_groups"]
        wanted = {"signs": (d_out, packing.n_words(d_in, 1)), "levels": (d_out, n_groups), "means": (d_out, n_groups)}
        wanted |= {"factors": (d_in,)} if meta["factors"] else {}
        for name, shape in wanted.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise ValueError(f"the {name} of a sign weight are missing or not {list(shape)}; "
                                 "the file is truncated or edited")
        sign = packing.unpack(tensors["signs"], 1, d_in).bool()
        return cls(sign, tensors["levels"], tensors["means"], tensors.get("factors"))

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        Shapes:  one line an item.
        Units:   bits.
        Raises:  nothing.
        Source:  this project.
        Differs: padding is counted.
        """
        packed = self.pack()
        items = [budget.item("codes", packed["signs"], self.sign.numel(), 1)]
        items += [budget.item(name, t, t.numel(), 16) for name, t in packed.items() if name != "signs"]
        return budget.BitBudget(tuple(items), self.sign.numel())
