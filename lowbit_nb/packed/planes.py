"""The operand of `BinaryWeight`: two planes of bits, four levels a row and block.

With bits b (sign) and c (second), and column factors f, a weight is a sum of planes of 0 and 1 times levels of its block:

    near or far   (m0 - a0 f0) + 2 a0 f0 b + (m1 - m0 + a0 f0 - a1 f1) c + 2 (a1 f1 - a0 f0) b c
    salient       (m2 - a2 f0 - a3 f1) + 2 a2 f0 b + 2 a3 f1 c

so that a product needs planes b, c and b c (made once) with masked inputs, and sums of inputs for what has no plane.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb import packing
from lowbit_nb.onebit.binary import FAR, FIRST, NEAR, SECOND, BinaryWeight
from lowbit_nb.packed import choice
from lowbit_nb.packed.planar import Planar


class Planes:
    """Terms of one plane of bits each, and one term without.

    Source: this project. Differs: no difference.
    """

    def __init__(self, weight: BinaryWeight, words: dict[str, Tensor]) -> None:
        self.words, self.span, self.salient = words, weight.span, weight.salient
        self.parts = (weight.levels, weight.means, weight.factors)
        a = weight.levels.float()
        m = torch.zeros_like(a[..., :3]) if weight.means is None else weight.means.float()
        one = torch.ones(2, len(weight.salient), device=a.device) if weight.factors is None else weight.factors.float()
        rest, salient = (~weight.salient).float(), weight.salient.float()
        self.inputs = torch.stack([rest, rest * one[0], rest * one[1], salient, salient * one[0], salient * one[1]])
        plain, near, far, mean, first, second = range(6)  # rows of `inputs`
        terms = [("signs", near, 2 * a[..., NEAR]), ("seconds", plain, m[..., 1] - m[..., 0]),
                 ("seconds", near, a[..., NEAR]), ("seconds", far, -a[..., FAR]),
                 ("both", far, 2 * a[..., FAR]), ("both", near, -2 * a[..., NEAR]),
                 ("signs", first, 2 * a[..., FIRST]), ("seconds", second, 2 * a[..., SECOND])]
        self.base = [(plain, m[..., 0]), (near, -a[..., NEAR]), (mean, m[..., 2]), (first, -a[..., FIRST]),
                     (second, -a[..., SECOND])]
        self.terms = [(at, Planar(words[plane], 1, s, torch.zeros_like(s), weight.span, len(weight.salient)))
                      for plane, at, s in terms if weight.means is not None or at != plain]

    def product(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [n, d_in] -> [n, d_out] float32."""
        X = self.inputs[:, None] * x.float()  # [6, n, d_in]
        n_blocks = self.base[0][1].shape[1]
        sums = torch.nn.functional.pad(X, (0, n_blocks * self.span - x.shape[1]))
        sums = sums.reshape(*X.shape[:2], n_blocks, self.span).sum(3)
        y = sum(sums[at] @ level.T for at, level in self.base)
        for at, planar in self.terms:
            y = y + choice.product(X[at], planar)
        return y

    def dequantize(self) -> Tensor:
        """[d_out, d_in] float32."""
        bits = (packing.unpack(self.words[name], 1, len(self.salient)).bool() for name in ("signs", "seconds"))
        return BinaryWeight(*bits, self.salient, *self.parts, self.span).dequantize()


def operand(tensors: dict[str, Tensor], meta: dict) -> Planes:
    """The operand of a binary weight.

    Shapes:  tensors and meta as `BinaryWeight`.
    Units:   none.
    Raises:  nothing.
    Source:  BiLLM; ARB-LLM_RC.
    Differs: no difference.
    """
    words = {"signs": tensors["signs"], "seconds": tensors["seconds"], "both": tensors["signs"] & tensors["seconds"]}
    salient = packing.unpack(tensors["salient"], 1, meta["d_in"])[0].bool()
    empty = salient.new_zeros(meta["d_out"], 0)  # the planes stay packed
    weight = BinaryWeight(empty, empty, salient, tensors["levels"], tensors.get("means"), tensors.get("factors"), meta["span"])
    return Planes(weight, words)
