"""The one product that almost every stored form comes down to: planar words with a ruler for every group of columns.

    y = sum over groups of s_g (q_g . x_g - z_g sum x_g)

Several lanes can work it out; `choice` takes one.  What a lane needs beside the words (scales in its own layout) is made at
the first product and kept; the words themselves are the buffers of the packed layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb import packing


class Planar:
    """Packed codes and their rulers.

    words  [d_out, n_words] int32 as `packing.pack`      s  [d_out, n_groups] any float
    z      the same shape, any type, or None: 2**(bits - 1)    group  columns of a ruler; the last group may be narrower

    Source: this project. Differs: no difference.
    """

    def __init__(self, words: Tensor, bits: int, s: Tensor, z: Tensor | None, group: int, d_in: int) -> None:
        self.words, self.bits, self.s, self.z, self.group, self.d_in = words, bits, s, z, group, d_in
        self.prepared: dict[str, object] = {}  # what each lane made of it

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.words), self.d_in

    @property
    def offset(self) -> Tensor:
        """-s z: what a code of 0 stands for. [d_out, n_groups] float32"""
        z = 2.0 ** (self.bits - 1) if self.z is None else self.z.float()
        return -self.s.float() * z

    @classmethod
    def levels(cls, words: Tensor, low: Tensor, step: Tensor, group: int, d_in: int) -> Planar:
        """One bit a weight: low, or low + step.

        Shapes:  words [d_out, n_words]; low, step [d_out, n_groups].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  this project.
        Differs: a group whose two levels are equal gets a step that is lost in the rounding of float32.
        """
        low, step = low.float(), step.float()
        tiny = torch.where(low == 0, torch.ones_like(low), low) * 2.0**-26
        s = torch.where(step == 0, tiny, step)
        return cls(words, 1, s, -low / s, group, d_in)

    def dequantize(self) -> Tensor:
        """s (q - z), [d_out, d_in] float32."""
        q = torch.nn.functional.pad(packing.unpack(self.words, self.bits, self.d_in).float(),
                                    (0, self.s.shape[1] * self.group - self.d_in))
        z = 2.0 ** (self.bits - 1) if self.z is None else self.z.float()[..., None]
        W_hat = (q.reshape(len(q), -1, self.group) - z) * self.s.float()[..., None]
        return W_hat.reshape(len(q), -1)[:, : self.d_in]
