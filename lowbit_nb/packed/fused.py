"""Several layers that share an input as one product: query, key and value; gate and up.

Their rows are laid under one another, once; each layer's own words become a view of the whole, so nothing is kept twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.packed.linear import PackedLinear, product
from lowbit_nb.packed.operands import Affine
from lowbit_nb.packed.planar import Planar


class Fused:
    """One operand for several layers.

    Source: this project. Differs: no difference.
    """

    def __init__(self, operand: Affine, sizes: list[int]) -> None:
        self.operand, self.sizes = operand, sizes
        self.x: Tensor | None = None
        self.version, self.parts = -1, {}

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all layers, without biases.

        Shapes:  x [..., d_in]; returns one [..., d_out] a layer.
        Units:   those of the layers' outputs.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return product(self.operand, x).split(self.sizes, -1)

    def part(self, i: int, x: Tensor) -> Tensor:
        """Layer i's output; the others' wait for being asked with the very same tensor, each once.

        Shapes:  x [..., d_in]; returns [..., d_out of layer i].
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        version = 0 if x.is_inference() else x._version  # changed in place: another tensor
        if x is not self.x or version != self.version or i not in self.parts:
            self.x, self.version, self.parts = x, version, dict(enumerate(self(x)))
        y = self.parts.pop(i)
        if not self.parts:
            self.x = None
        return y


def fuse(linears: list[PackedLinear]) -> Fused | None:
    """Let layers share one product, if their forms allow it: planar words of one width, group and column order.

    Shapes:  layers with the same d_in.
    Units:   none.
    Raises:  nothing; None if they cannot be fused.
    Source:  fused query, key, value and gate, up of most inference engines.
    Differs: no difference.
    """
    if before := _fused_before(linears):
        return before
    made = [linear.operand for linear in linears]
    if not all(isinstance(o, Affine) and o.factors is None for o in made) or not _alike(made):
        return None
    first, planar = made[0].planar, [o.planar for o in made]
    words, s = torch.cat([p.words for p in planar]), torch.cat([p.s for p in planar])
    z = None if first.z is None else torch.cat([p.z for p in planar])
    whole = Planar(words, first.bits, s, z, first.group, first.d_in)
    fused = Fused(Affine(whole, lambda: torch.cat([linear.operand.dequantize() for linear in linears]), made[0].perm),
                  [len(p.words) for p in planar])
    for i, (linear, rows) in enumerate(zip(linears, words.split(fused.sizes), strict=True)):
        linear.exchange(planar[i].words, rows)
        linear._shared = fused, i
    return fused


def _fused_before(linears: list[PackedLinear]) -> Fused | None:
    """What these layers share already, all of them and in this order: two decoders of a model hold its words once."""
    shared = [linear._shared for linear in linears]
    if None in shared or [i for _, i in shared] != list(range(len(shared[0][0].sizes))):
        return None
    return shared[0][0] if all(fused is shared[0][0] for fused, _ in shared) else None


def _alike(made: list[Affine]) -> bool:
    first = made[0]
    return all((o.planar.bits, o.planar.group, o.planar.d_in, o.planar.s.dtype, o.planar.z is None)
               == (first.planar.bits, first.planar.group, first.planar.d_in, first.planar.s.dtype, first.planar.z is None)
               and (o.perm is first.perm or (o.perm is not None and first.perm is not None and torch.equal(o.perm, first.perm)))
               for o in made)
