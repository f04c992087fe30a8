"""Two bit planes and a few numbers a row and block of columns: the stored form of BiLLM and ARB-LLM.

Every weight keeps a sign and a second bit.  In a salient column the second bit is the sign of a second plane; elsewhere it
says in which of two regions, near or far, the weight lies:

    salient        w_hat_ij = mu_sal,i + a_1,i f_1j B_ij + a_2,i f_2j B'_ij
    near or far    w_hat_ij = mu_k,i   + a_k,i f_kj B_ij                      k = near or far

Levels a and means mu belong to one row and one block of columns.  BiLLM has no column factors f, ARB-LLM_RC no means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import packing, stored

NEAR, FAR, FIRST, SECOND = range(4)  # places in `levels`; `means` has NEAR, FAR and one for salient columns


@stored.readable
@dataclass(frozen=True)
class BinaryWeight:
    """Signs, regions and salient columns.

    signs    [d_out, d_in] bool: True is +
    seconds  [d_out, d_in] bool: far, or the second sign is +
    salient  [d_in] bool
    levels   [d_out, n_blocks, 4] float16: near, far, first plane, second plane
    means    [d_out, n_blocks, 3] float16: near, far, salient; or None
    factors  [2, d_in] float16: of near and first, of far and second; or None
    span     columns a block; the last may be narrower

    Source: BiLLM; ARB-LLM_RC.
    Differs: a column needs the residual plane or the region map, never both, so two planes hold everything; a salient column
    keeps the sum of its two means.
    """

    signs: Tensor
    seconds: Tensor
    salient: Tensor
    levels: Tensor
    means: Tensor | None
    factors: Tensor | None
    span: int
    form: ClassVar[str] = "binary"

    @classmethod
    def join(cls, parts: list[BinaryWeight]) -> BinaryWeight:
        """Blocks of columns side by side.

        Shapes:  each part is one block; all but the last are equally wide.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        def side_by_side(name: str, dim: int) -> Tensor | None:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors, dim)

        fields = {"signs": 1, "seconds": 1, "salient": 0, "levels": 1, "means": 1, "factors": 1}
        return cls(**{name: side_by_side(name, dim) for name, dim in fields.items()}, span=parts[0].shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.signs.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that planes, levels, means and factors stand for.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  BiLLM.
        Differs: computed in float32, then cast.
        """
        code = 2 * self.signs.long() + self.seconds.long()
        return self.choices().gather(0, code[None])[0].to(dtype)

    def choices(self) -> Tensor:
        """The four values that each weight could have, in the order of the code 2 * sign + second.

        Shapes:  returns [4, d_out, d_in] float32.
        Units:   those of the weight.
        Raises:  nothing.
        Source:  this project: a table of four levels a row and block, one for salient columns and one for the others.
        Differs: no difference.
        """
        near, far, first, second = (self._step(k) for k in (NEAR, FAR, FIRST, SECOND))
        means = [torch.zeros_like(near)] * 3 if self.means is None else [self._spread(self.means[..., k]) for k in range(3)]
        rest = torch.stack([means[0] - near, means[1] - far, means[0] + near, means[1] + far])
        salient = means[2] + torch.stack([-first - second, second - first, first - second, first + second])
        return torch.where(self.salient, salient, rest)

    def _spread(self, x: Tensor) -> Tensor:
        """A number a row and block, at every column of the block. [d_out, d_in] float32"""
        return x.float().repeat_interleave(self.span, 1)[:, : self.shape[1]]

    def _step(self, k: int) -> Tensor:
        level = self._spread(self.levels[..., k])
        return level if self.factors is None else level * self.factors[k % 2].float()

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x from the parts: inputs meet the bits first, then the levels and means of their block.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        x = x.float()
        B, B2 = (torch.where(plane, 1.0, -1.0) for plane in (self.signs, self.seconds))
        far, near = self.seconds & ~self.salient, ~self.seconds & ~self.salient
        f = torch.ones(2, len(x), device=x.device) if self.factors is None else self.factors.float()
        parts = (near * B * f[0], far * B * f[1], self.salient * B * f[0], self.salient * B2 * f[1])
        y = sum((self.levels[..., k].float() * self._by_block(part * x)).sum(1) for k, part in enumerate(parts))
        if self.means is not None:
            where = (near, far, self.salient.expand_as(near))
            y = y + sum((self.means[..., k].float() * self._by_block(part * x)).sum(1) for k, part in enumerate(where))
        return y

    def _by_block(self, terms: Tensor) -> Tensor:
        n_blocks = self.levels.shape[1]
        terms = torch.nn.functional.pad(terms, (0, n_blocks * self.span - terms.shape[1]))
        return terms.reshape(len(terms), n_blocks, self.span).sum(-1)

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk.

        Shapes:  signs, seconds [d_out, n_words] int32; salient [1, n_words] int32; levels, means, factors as they are.
        Units:   packed bits; those of the weight.
        Raises:  nothing.
        Source:  planar words, see `packing`.
        Differs: the official code keeps dequantized float16 weights.
        """
        out = {name: packing.pack(t.to(torch.uint8), 1) for name, t in (("signs", self.signs), ("seconds", self.seconds))}
        out |= {"salient": packing.pack(self.salient[None].to(torch.uint8), 1), "levels": self.levels}
        out |= {name: t for name, t in (("means", self.means), ("factors", self.factors)) if t is not None}
        return {name: t.contiguous() for name, t in out.items()}

    def meta(self) -> dict:
        return {"form": self.form, "d_out": self.shape[0], "d_in": self.shape[1], "span": self.span,
                "means": self.means is not None, "factors": self.factors is not None}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> BinaryWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        d_out, d_in, span = meta["d_out"], meta["d_in"], meta["span"]
        words, n_blocks = packing.n_words(d_in, 1), -(-d_in // span)
        wanted = {"signs": (d_out, words), "seconds": (d_out, words), "salient": (1, words), "levels": (d_out, n_blocks, 4)}
        wanted |= {"means": (d_out, n_blocks, 3)} if meta["means"] else {}
        wanted |= {"factors": (2, d_in)} if meta["factors"] else {}
        for name, shape in wanted.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise ValueError(f"the {name} of a binary weight are missing or not {list(shape)}; "
                                 "the file is truncated or edited")
        signs, seconds, salient = (packing.unpack(tensors[n], 1, d_in).bool() for n in ("signs", "seconds", "salient"))
        return cls(signs, seconds, salient[0], tensors["levels"], tensors.get("means"), tensors.get("factors"), span)

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        "codes" are what the papers count as the weight's own bits: a sign each, and the second sign in salient columns.

        Shapes:  one line an item.
        Units:   bits.
        Raises:  nothing.
        Source:  BiLLM (1 + salient share); the other lines are what it leaves out.
        Differs: regions, levels, means, factors and padding are counted.
        """
        (d_out, d_in), packed = self.shape, self.pack()
        residual = d_out * int(self.salient.sum())
        plane = packed["signs"].numel() * 32
        items = [budget.Item("codes", d_out * d_in + residual, 1, plane + residual),
                 budget.Item("regions", d_out * d_in - residual, 1, plane - residual),
                 budget.item("salient columns", packed["salient"], d_in, 1)]
        items += [budget.item(name, t, t.numel(), 16) for name, t in packed.items() if name in ("levels", "means", "factors")]
        return budget.BitBudget(tuple(items), d_out * d_in)
