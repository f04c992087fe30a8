"""What can be learned about a vector-quantized layer: the codebook vectors and the scales of columns, never the indices.

A vector's gradient is the sum of the gradients of all pieces that use it.  Few numbers are learned, and each of them moves
hundreds of weights together.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lowbit_nb.blocks import Block
from lowbit_nb.codebooks.codebook import Stage
from lowbit_nb.codebooks.kmeans import Segments
from lowbit_nb.codebooks.vector import VectorWeight


class _Take(torch.autograd.Function):
    """Rows of a codebook by number; on the way back, sums over sorted segments: the same on every run."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, C: Tensor, key: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return C[key]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.segments.sum(grad).to(grad.dtype), None, None


class LearnedCodebooks:
    """The codebooks, scales and biases of a stored weight, learned; its indices stay.

    Variables are relative, so that one rate serves all layers: vectors in units of their codebook's spread, factors on scales
    that start at 1, shifts of biases, in units of the scale, that start at 0.

    Source: VPTQ, Sec. 3.4 (centroids and norms of a block; its code has not been published).
    Differs: scales and biases of columns are learned too; float16 numbers at the end; vectors that no piece uses stay.
    """

    def __init__(self, weight: VectorWeight, scales: bool = True) -> None:
        self.start = weight
        self.parts, self.units, self.C = [], [], []
        for name, columns, stage in weight.stages():
            key, C = weight.uses(columns, stage), stage.C.float().flatten(0, 1)
            self.parts.append((name, columns, key, Segments(key, len(C))))
            self.units.append(C.square().mean().sqrt().clamp(min=1e-8))
            self.C.append((C / self.units[-1]).requires_grad_())
        own = weight.main.C.new_ones(weight.shape[1], dtype=torch.float32)
        self.factor = own.clone().requires_grad_(scales and weight.s is not None)
        self.shift = (0 * own).requires_grad_(scales and weight.m is not None)

    def parameters(self) -> list[dict]:
        """Codebooks, and factors and shifts if there are scales and biases.

        Shapes:  optimiser groups.
        Units:   none.
        Raises:  nothing.
        Source:  VPTQ, Sec. 3.4.
        Differs: no difference.
        """
        moved = [t for t in (self.factor, self.shift) if t.requires_grad]
        return [{"params": self.C, "role": "centroids"}] + ([{"params": moved, "role": "scale"}] if moved else [])

    def weight(self, W: Tensor | None = None) -> Tensor:
        """The differentiable weight; W is ignored, for indices were chosen at the start.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  VPTQ code (layers/vqlinear.py: dequant).
        Differs: no difference.
        """
        d_out, d_in = self.start.shape
        total: Tensor | None = None
        for C, unit, (_, columns, key, segments) in zip(self.C, self.units, self.parts, strict=True):
            part = _Take.apply(C * unit, key, segments).reshape(len(columns), -1)[:, :d_out]  # [n, d_out]
            whole = part if len(columns) == d_in else part.new_zeros(d_in, d_out).index_copy(0, columns, part)
            total = whole if total is None else total + whole
        s, m = self._scale()
        total = total if s is None else total * s[:, None]
        return (total if m is None else total + m[:, None]).T

    def _scale(self) -> tuple[Tensor | None, Tensor | None]:
        s, m = self.start.s, self.start.m
        moved = None if m is None else m.float() + self.shift * (1.0 if s is None else s.float())
        return None if s is None else s.float() * self.factor, moved

    def harden(self, soft_fraction: float) -> None:
        """Nothing here is soft: indices are settled."""

    @torch.no_grad()
    def finish(self, W: Tensor | None = None) -> VectorWeight:
        """The stored form, numbers rounded to float16.

        Shapes:  W is ignored; see `VectorWeight`.
        Units:   none.
        Raises:  ValueError if a number does not fit.
        Source:  this project.
        Differs: no difference.
        """
        stages = {}
        for C, unit, (name, *_) in zip(self.C, self.units, self.parts, strict=True):
            was = getattr(self.start, name)
            stages[name] = Stage((C * unit).half().reshape(was.C.shape), was.idx)
        s, m = (None if t is None else t.half() for t in self._scale())
        return replace(self.start, **stages, s=s, m=m)

    @torch.no_grad()
    def tell(self) -> dict:
        """How far vectors and scales have moved.

        Shapes:  plain numbers, one a stage.
        Units:   root mean square, in units of the codebook's spread or of the scale.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        moved = {name: C - getattr(self.start, name).C.float().reshape(C.shape) / unit
                 for C, unit, (name, *_) in zip(self.C, self.units, self.parts, strict=True)} | {"scale": self.factor - 1}
        return {name: float(t.square().mean().sqrt()) for name, t in moved.items()}


class LearnedNorms:
    """The weights of a block's norms, learned; numbers of a half type at the end.

    Source: VPTQ, Sec. 3.4. Differs: no difference.
    """

    def __init__(self, block: Block) -> None:
        found = norm_weights(block.module)
        self.own = {name: p.detach().float().clone().requires_grad_() for name, p in found.items()}
        self.kept = {name: half_type(p) for name, p in found.items()}

    def parameters(self) -> list[dict]:
        return [{"params": list(self.own.values()), "role": "norm"}] if self.own else []

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.own)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        return {name: t.to(self.kept[name]).float() for name, t in self.own.items()}


def norm_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of one axis that are weights and not biases: what a decoder's norms are made of.

    Shapes:  {name: [d]}.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return {name: p for name, p in module.named_parameters() if p.ndim == 1 and name.endswith("weight")}


def half_type(p: Tensor) -> torch.dtype:
    """The half type in which a learned norm is kept: its own, or float16.

    Shapes:  any.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return p.dtype if p.dtype in (torch.float16, torch.bfloat16) else torch.float16
