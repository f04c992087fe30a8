"""Affine grids: which values a weight may take, and which of them each weight takes.

A grid is a ruler laid over one group of weights: `levels` evenly spaced marks, `s` apart, with mark number `z` at zero.
A weight is stored as the number of its nearest mark:

    q = clamp(round(w / s) + z, 0, 2**bits - 1)          w_hat = s * (q - z)

Three decisions make all the affine grids in the literature: how many marks (bits), how many neighbouring weights of a
row share one ruler (group), and how the ruler is laid (the range rule and the clip).  Each is a field of `Grid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_BITS = 8
SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Grid:
    """What may be stored: the marks of one ruler and how many weights share it.

    bits          1 to 8 bits a code
    group         weights of one row that share a ruler; None = the whole row
    symmetric     z is the constant 2**(bits-1) and is not stored
    zero_inside   the range is stretched to contain 0, so z is an integer code; without it z is real and stored as a float
    scale_dtype   how s (and a real z) is stored

    Source: range rules of the GPTQ code (zero inside) and of the SpQR code (zero not forced inside).
    Differs: s is rounded to its stored type before any code is chosen, so what is evaluated is what is stored.

    >>> Grid(2, group=64).levels, Grid(2, group=64).n_groups(256)
    (4, 4)
    """

    bits: int
    group: int | None = None
    symmetric: bool = False
    zero_inside: bool = True
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 1 <= self.bits <= MAX_BITS):
            raise ValueError(f"bits={self.bits!r} is not a whole number from 1 to {MAX_BITS}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1, or None for the whole row")
        if self.scale_dtype not in SCALE_DTYPES:
            raise ValueError(f"scale_dtype={self.scale_dtype!r} is unknown; use one of {', '.join(SCALE_DTYPES)}")
        if self.symmetric and not self.zero_inside:
            raise ValueError("a symmetric grid has its zero inside; leave zero_inside=True or set symmetric=False")

    @property
    def levels(self) -> int:
        return 2**self.bits

    @property
    def q_max(self) -> int:
        return self.levels - 1

    @property
    def stored_zero(self) -> str:
        """How the zero point is stored: "none", "integer" (bits each) or "real" (as wide as a scale)."""
        return "none" if self.symmetric else "integer" if self.zero_inside else "real"

    def g(self, d_in: int) -> int:
        """The group size in a row of d_in weights; ValueError if it does not divide d_in."""
        g = self.group or d_in
        if d_in % g:
            fits = [k for k in range(1, d_in + 1) if d_in % k == 0]
            near = sorted({max(k for k in fits if k <= g), min((k for k in fits if k > g), default=d_in)})
            raise ValueError(f"d_in={d_in} is not a multiple of g={g}; use g={' or g='.join(map(str, near))}")
        return g

    def n_groups(self, d_in: int) -> int:
        return d_in // self.g(d_in)


def grouped(W: Tensor, grid: Grid) -> Tensor:
    """The grouped view of a weight.

    Shapes:  W [d_out, d_in]; returns a view [d_out, n_groups, g].
    Units:   those of W.
    Raises:  ValueError if g does not divide d_in, with the nearest sizes that do.
    Source:  group-wise quantization as in GPTQ, Sec. 4 ("grouping").
    Differs: no difference.

    >>> grouped(torch.zeros(3, 8), Grid(2, group=4)).shape
    torch.Size([3, 2, 4])
    """
    return W.reshape(W.shape[0], -1, grid.g(W.shape[1]))


def codes(w: Tensor, s: Tensor, z: Tensor, grid: Grid) -> Tensor:
    """The number of the nearest mark, elementwise.

    q = clamp(round(w / s) + z, 0, 2**bits - 1), and round(w / s + z) inside the clamp when z is real.

    Shapes:  w, s, z broadcastable; returns their common shape, dtype of w.
    Units:   s is real units per integer step, z is in integer steps.
    Raises:  nothing: bad input is refused in `fit`.
    Source:  GPTQ code (quant.py), integer z; SpQR code (quant_groups.py), real z.
    Differs: no difference. Ties go to the even integer (torch.round).

    >>> codes(torch.tensor([-1.0, 0.4, 9.0]), torch.tensor(0.5), torch.tensor(2.0), Grid(2))
    tensor([0., 3., 3.])
    """
    if grid.stored_zero == "real":
        return torch.round(w / s + z).clamp_(0, grid.q_max)
    return torch.round(w / s).add_(z).clamp_(0, grid.q_max)


def quantize(W: Tensor, s: Tensor, z: Tensor, grid: Grid) -> Tensor:
    """Round each weight to the nearest code of its group.

    q = clamp(round(W / s) + z, 0, 2**bits - 1)

    Shapes:  W [d_out, d_in]; s, z [d_out, n_groups]; returns [d_out, d_in] uint8.
    Units:   s is real units per integer step, z is in integer steps.
    Raises:  ValueError if the group size does not divide d_in.
    Source:  GPTQ, Sec. 2; LLM.int8() and others use the same rule.
    Differs: no difference. Ties go to the even integer.

    >>> quantize(torch.tensor([[-1.0, 0.4]]), torch.tensor([[0.5]]), torch.tensor([[2.0]]), Grid(2)).tolist()
    [[0, 3]]
    """
    q = codes(grouped(W, grid), s[..., None], z[..., None], grid)
    return q.reshape(W.shape).to(torch.uint8)


def dequantize(q: Tensor, s: Tensor, z: Tensor, grid: Grid) -> Tensor:
    """The values that codes stand for: W_hat = s * (q - z).

    Exact in float32 on every device when z is an integer: s has at most 11 significant bits, q - z at most 9.

    Shapes:  q [d_out, d_in] integers; s, z [d_out, n_groups]; returns [d_out, d_in] float32.
    Units:   real units of the weight.
    Raises:  ValueError if the group size does not divide d_in.
    Source:  GPTQ, Sec. 2.
    Differs: no difference.

    >>> dequantize(torch.tensor([[0, 3]]), torch.tensor([[0.5]]), torch.tensor([[2.0]]), Grid(2)).tolist()
    [[-1.0, 0.5]]
    """
    steps = grouped(q.float(), grid) - z.float()[..., None]
    return (steps * s.float()[..., None]).reshape(q.shape)


def ruler(lo: Tensor, hi: Tensor, grid: Grid, nudge: int = 0) -> tuple[Tensor, Tensor]:
    """Step and zero point of a ruler from lo to hi.

    s = (hi - lo) / (2**bits - 1) rounded to its stored type;  z = round(-lo / s), or the next integer on the other side
    of -lo / s when nudge=1, or real.

    Shapes:  lo, hi any common shape; returns s, z of that shape, float32.
    Units:   s is real units per step, z is in integer steps.
    Raises:  ValueError if a step or a real zero point is too large or too small for grid.scale_dtype.
    Source:  GPTQ code (quant.py) and SpQR code (quant_groups.py).
    Differs: a group whose weights are all equal gets the smallest ruler that holds its value exactly or nearly; an
             all-zero group gets s = 1 and dequantizes to 0.

    >>> [t.tolist() for t in ruler(torch.tensor(-1.0), torch.tensor(2.0), Grid(2))]
    [1.0, 1.0]
    """
    s = _stored(_step(lo, hi, grid), grid)
    return s, _zero(lo, s, grid, nudge)


def shorter(lo: Tensor, hi: Tensor, grid: Grid, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Rulers over shares of a range; for an integer zero point with both integers next to the ideal one.

    Shapes:  lo, hi [d_out, n_groups]; returns s, z, both [candidates, d_out, n_groups] float32.
    Units:   s is real units per step, z is in integer steps.
    Raises:  ValueError if the scale type cannot hold the whole range; steps of shorter rulers stay above its least number.
    Source:  GPTQ code (quant.py, `mse=True`); GPTQModel (both neighbours).
    Differs: no difference.

    >>> [t.tolist() for t in shorter(torch.tensor([[-1.0]]), torch.tensor([[2.0]]), Grid(2), (1.0,))]
    [[[[1.0]], [[1.0]]], [[[1.0]], [[2.0]]]]
    """
    ruler(lo, hi, grid)
    shrink = torch.tensor(tuple(shares), device=lo.device).reshape(-1, 1, 1)
    s = as_stored(_step(lo, hi, grid) * shrink, grid, floor=True)
    nudges = (0, 1) if grid.stored_zero == "integer" else (0,)
    tried = [(s, _zero(lo * shrink, s, grid, nudge)) for nudge in nudges]
    return tuple(torch.cat(parts) for parts in zip(*tried, strict=True))


def _step(lo: Tensor, hi: Tensor, grid: Grid) -> Tensor:
    """The ideal step; a group of equal weights gets |w|, an all-zero one 1."""
    equal = torch.where(lo == 0, torch.ones_like(lo), lo.abs())
    return torch.where(hi > lo, (hi - lo) / grid.q_max, equal)


def _zero(lo: Tensor, s: Tensor, grid: Grid, nudge: int) -> Tensor:
    ideal = -lo / s
    if grid.stored_zero == "none":
        return torch.full_like(s, grid.levels // 2)
    if grid.stored_zero == "real":
        z = ideal.to(SCALE_DTYPES[grid.scale_dtype]).float()
        if not torch.isfinite(z).all():
            raise ValueError(f"a zero point of {float(ideal.abs().max()):.3g} steps does not fit in {grid.scale_dtype}: the "
                             "weights of a group are nearly equal and far from 0; use zero_inside=True or a wider type")
        return z
    z = torch.round(ideal)
    if nudge:
        z = torch.where(ideal >= z, z + 1, z - 1)
    return z.clamp(0, grid.q_max)


def _stored(s: Tensor, grid: Grid) -> Tensor:
    """s as its stored type holds it; what will be evaluated is what will be stored."""
    kept = as_stored(s, grid)
    if not torch.isfinite(kept).all() or (kept <= 0).any():
        raise ValueError(f"a step between {float(s.min()):.3g} and {float(s.max()):.3g} does not fit in {grid.scale_dtype} "
                         f"({_least(grid):.2g} to {torch.finfo(SCALE_DTYPES[grid.scale_dtype]).max:.3g}); "
                         "use scale_dtype='float32' or rescale the weight")
    return kept


def as_stored(s: Tensor, grid: Grid, floor: bool = False) -> Tensor:
    """s rounded to its stored type, in float32.

    Shapes:  any; returns the same.
    Units:   real units per step.
    Raises:  nothing; floor=True replaces steps that would vanish by the smallest positive number of the type.
    Source:  this project.
    Differs: no difference.
    """
    kept = s.to(SCALE_DTYPES[grid.scale_dtype]).float()
    return kept.clamp(min=_least(grid)) if floor else kept


def _least(grid: Grid) -> float:
    """The smallest positive number of the scale type."""
    info = torch.finfo(SCALE_DTYPES[grid.scale_dtype])
    return info.smallest_normal * info.eps
