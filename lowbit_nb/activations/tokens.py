"""Rounding activations: every token lays a ruler of its own, at the moment it passes.

A weight's ruler is laid once and stored.  What flows through a layer is known only when it flows, so its ruler is laid anew
for every token, from the token's own smallest and largest number; nothing is stored, and no token sees another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FULL = 16  # this many bits mean: left as they are
FLAT = 1e-6  # a token whose numbers differ by less than this share of their size is one number


@dataclass(frozen=True)
class Activations:
    """How many bits activations have, and where.

    bits       2 to 8, or 16: left as they are     symmetric  the ruler's middle mark is 0
    qkv        queries, keys and values are rounded too, token by token and head by head
    skip       full names of blocks whose activations are left as they are

    Source: OmniQuant and LRQuant code: inputs of all linear layers, queries, keys and values; dynamic, asymmetric, one ruler
    a token; attention weights stay. TesseraQ code: qkv=False. SmoothQuant code: symmetric.
    Differs: no difference.

    >>> Activations(4).name
    'A4'
    """

    bits: int = 4
    qkv: bool = True
    symmetric: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not (2 <= self.bits <= 8 or self.bits == FULL):
            raise ValueError(f"bits={self.bits!r} of activations must be a whole number from 2 to 8, or {FULL} to leave them")
        object.__setattr__(self, "skip", tuple(self.skip))

    @property
    def name(self) -> str:
        return f"A{self.bits}"

    def touches(self, block: str) -> bool:
        """Whether the activations of the block of that name are rounded at all."""
        return self.bits != FULL and block not in self.skip

    def __call__(self, x: Tensor, clip: Tensor | float | None = None) -> Tensor:
        return round_tokens(x, self.bits, self.symmetric, clip)


def round_tokens(x: Tensor, bits: int, symmetric: bool = False, clip: Tensor | float | None = None) -> Tensor:
    """Round every token to 2**bits evenly spaced marks between its own smallest and largest number.

    s = (hi - lo) / (2**bits - 1),  z = round(-lo / s),  x_hat = s * (clamp(round(x / s) + z, 0, 2**bits - 1) - z)

    Symmetric: s = max|x| / (2**(bits - 1) - 1), z = 0.  The gradient passes round, stops at clamp, and reaches the numbers
    that laid the ruler through s; z is a constant to it.

    Shapes:  x [..., d]; the last axis is one token (or one head of it); clip a number or a scalar tensor, or None; returns
             the shape and type of x.
    Units:   those of x; clip is the share of both ends that the ruler keeps.
    Raises:  nothing.
    Source:  OmniQuant code (dynamic, asymmetric, per token; zero need not be inside); ties go to the even integer.
    Differs: a token of equal numbers is kept exactly; the code returns another number. Arithmetic in float32 or wider.

    >>> round_tokens(torch.tensor([[0.0, 0.4, 3.0], [5.0, 5.0, 5.0]]), 2).tolist()
    [[0.0, 0.0, 3.0], [5.0, 5.0, 5.0]]
    """
    wide = x if x.dtype == torch.float64 else x.float()
    compiling = torch.compiler.is_compiling()
    lo, hi = (_ends_by_place if compiling else _ends)(wide)
    s, z, top = (_symmetric if symmetric else _asymmetric)(lo, hi, bits, clip)
    rounding = _plain if compiling else _Round.apply
    return rounding(wide, s, z, -top if symmetric else 0, top).to(x.dtype)


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)


def _ends_by_place(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same for compilers, which compute x twice, not always to the same bit: the gradient goes to a place, not a value."""
    return x.min(-1, keepdim=True).values, x.max(-1, keepdim=True).values


def _asymmetric(lo: Tensor, hi: Tensor, bits: int, clip: Tensor | float | None) -> tuple[Tensor, Tensor, int]:
    peak, top = torch.maximum(-lo, hi).detach(), 2**bits - 1
    flat = (hi - lo).detach() <= FLAT * peak
    alone = torch.where(peak > 0, peak, 1.0)  # the one mark beside 0 that holds a flat token
    if clip is not None:
        lo, hi = lo * clip, hi * clip
    s = torch.where(flat, alone, (hi - lo) / top)
    z = torch.where(flat, (hi < 0).to(lo.dtype), (-lo / s).round()).detach()
    return s, z, top


def _symmetric(lo: Tensor, hi: Tensor, bits: int, clip: Tensor | float | None) -> tuple[Tensor, Tensor, int]:
    peak, top = torch.maximum(-lo, hi), 2 ** (bits - 1) - 1
    s = torch.where(peak > 0, peak if clip is None else peak * clip, 1.0) / top
    return s, torch.zeros_like(s), top


def _plain(x: Tensor, s: Tensor, z: Tensor, low: int, top: int) -> Tensor:
    """What `_Round` computes, for compilers: PyTorch 2.11 compiles that class without the gradient of s on a GPU."""
    t = x / s
    return s * ((t + (t.round() - t).detach() + z).clamp(low, top) - z)


class _Round(torch.autograd.Function):
    """s * (clamp(round(x / s) + z, low, top) - z) in few passes over the tokens; straight through round, none through z."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, s: Tensor, z: Tensor, low: int, top: int) -> Tensor:
        q = (x / s).round_().add_(z)
        inside = (q >= low) & (q <= top)
        y = q.clamp_(low, top).sub_(z).mul_(s)
        ctx.save_for_backward(x, s, y, inside)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, s, y, inside = ctx.saved_tensors
        passed = grad * inside
        slope = (grad * y - passed * x).sum(-1, keepdim=True) / s if ctx.needs_input_grad[1] else None
        return passed, slope, None, None, None
