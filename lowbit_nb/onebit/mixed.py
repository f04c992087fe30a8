"""Two stored forms that share a weight by input channel: the stored form of PTQ1.61.

Some input channels (the salient ones) are kept in one form, the rest in another; one bit a channel says which.  A kernel
reads either part by itself: channels of one kind lie side by side on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import packing, stored
from lowbit_nb.stored import StoredWeight


@stored.readable
@dataclass(frozen=True)
class MixedWeight:
    """One form for the salient input channels, another for the rest, each in rising order of channels.

    salient  [d_in] bool        high  [d_out, number of salient channels]        low  [d_out, all others]

    Source: PTQ1.61 (one-dimensional structured mask). Differs: the two parts are any stored forms.
    """

    salient: Tensor
    high: StoredWeight
    low: StoredWeight
    form: ClassVar[str] = "mixed"

    @classmethod
    def of(cls, salient: Tensor, high: StoredWeight | None, low: StoredWeight | None) -> StoredWeight:
        """The form, or simply the part that has all channels.

        Shapes:  salient [d_in] bool; high None if no channel is salient, low None if all are.
        Units:   none.
        Raises:  ValueError if the parts do not fit the mask.
        Source:  this project.
        Differs: no difference.
        """
        n_high = int(salient.sum())
        for part, n in ((high, n_high), (low, len(salient) - n_high)):
            if (part is None) != (n == 0) or (part and part.shape[1] != n):
                raise ValueError(f"the mask has {n_high} salient of {len(salient)} channels; "
                                 f"the parts hold {high.shape[1] if high else 0} and {low.shape[1] if low else 0}")
        return cls(salient, high, low) if high and low else high or low

    @property
    def shape(self) -> tuple[int, int]:
        return self.high.shape[0], len(self.salient)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Both parts, every channel in its place.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  PTQ1.61, Eq. 9.
        Differs: computed in float32, then cast.
        """
        W_hat = torch.empty(self.shape, device=self.salient.device)
        W_hat[:, self.salient], W_hat[:, ~self.salient] = self.high.dequantize(), self.low.dequantize()
        return W_hat.to(dtype)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x: each part meets its own channels.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return self.high.matvec(x[self.salient]) + self.low.matvec(x[~self.salient])

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk: the mask, and both parts' own.

        Shapes:  salient [1, n_words] int32; `high.*` and `low.*` as the parts' own.
        Units:   those of the parts.
        Raises:  nothing.
        Source:  this project.
        Differs: the official code keeps dequantized float16 weights.
        """
        out = {"salient": packing.pack(self.salient[None].to(torch.uint8), 1)}
        for part in ("high", "low"):
            out |= {f"{part}.{name}": t for name, t in getattr(self, part).pack().items()}
        return out

    def meta(self) -> dict:
        return {"form": self.form, "d_in": len(self.salient), "high": self.high.meta(), "low": self.low.meta()}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> MixedWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if the mask is missing or does not fit the parts, or as the parts' own `unpack`.
        Source:  this project.
        Differs: no difference.
        """
        high, low = (stored.unpack({name.removeprefix(f"{part}."): t for name, t in tensors.items()
                                    if name.startswith(f"{part}.")}, meta[part]) for part in ("high", "low"))
        words = tensors.get("salient")
        mask = None if words is None else packing.unpack(words, 1, meta["d_in"])[0].bool()
        if mask is None or (int(mask.sum()), int((~mask).sum())) != (high.shape[1], low.shape[1]):
            raise ValueError("the mask of salient channels is missing or does not fit the parts; "
                             "the file is truncated or edited")
        return cls(mask, high, low)

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        Shapes:  one line an item; lines of one name are added up over the parts.
        Units:   bits.
        Raises:  nothing.
        Source:  PTQ1.61.
        Differs: the paper divides its mask and scales by the number of bits, not of weights.
        """
        mask = budget.item("salient channels", self.pack()["salient"], len(self.salient), 1)
        return self.high.bits() + self.low.bits() + budget.BitBudget((mask,), 0)
