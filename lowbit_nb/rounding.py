"""Progressive adaptive rounding: the variables that decide which of two marks each weight takes, and how they harden.

`SoftRounding` keeps the ruler and lets each weight slide between the mark below and the mark above, until it is made hard.
It gives a differentiable weight while it is learned and a stored form at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.fused import fused
from lowbit_nb.grid import Grid
from lowbit_nb.stored import AffineWeight

STRETCH_LO, STRETCH_HI = -0.1, 1.1  # the rectified sigmoid reaches 0 and 1 at finite arguments
DECIDED = 20.0  # where a hard variable is put: h is exactly 0 or 1, its gradient 0, and arithmetic stays finite
HANDCRAFTED_20 = (0.8, 0.65, 0.5, 0.43, 0.38, 0.34, 0.3, 0.27, 0.24, 0.21, 0.18, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04, 0.02,
                  0.01, 0.005)
SCHEDULES = ("handcrafted", "exponential", "geometric", "linear", "one_shot")


def rectified_sigmoid(nu: Tensor) -> Tensor:
    """h(nu) = clip(1.2 sigmoid(nu) - 0.1, 0, 1).

    Shapes:  any; returns the same.
    Units:   0 is the mark below, 1 the mark above.
    Raises:  nothing.
    Source:  AdaRound, Eq. 23; TesseraQ.
    Differs: no difference.

    >>> rectified_sigmoid(torch.tensor([0.0, 9.0])).tolist()
    [0.5, 1.0]
    """
    return (torch.sigmoid(nu) * (STRETCH_HI - STRETCH_LO) + STRETCH_LO).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The nu with h(nu) = h, for h in [0, 1].

    Shapes:  any; returns the same.
    Units:   between -ln 11 and ln 11.
    Raises:  nothing.
    Source:  AdaRound code.
    Differs: no difference.

    >>> inverse_rectified_sigmoid(torch.tensor(0.5)).item() == 0
    True
    """
    return -torch.log((STRETCH_HI - STRETCH_LO) / (h - STRETCH_LO) - 1)


def schedule(name: str = "handcrafted", rounds: int = 20, temperature: float = 4.0, last: float = 0.005) -> tuple[float, ...]:
    """The fraction of variables that may be soft in each round; what is left after the last is made hard by its sign.

    Hardening comes before a round's steps, so a last fraction of 0 learns scales only.

    Shapes:  a tuple with one fraction a round, not increasing.
    Units:   shares of a layer's variables.
    Raises:  ValueError for an unknown name or rounds < 1.
    Source:  TesseraQ code (handcrafted, 20 rounds); exponential as in its ablation.
    Differs: with another number of rounds the handcrafted curve is read off at evenly spaced points.

    >>> schedule("linear", 4)
    (0.75, 0.5, 0.25, 0.0)
    """
    if name not in SCHEDULES or rounds < 1:
        raise ValueError(f"schedule={name!r} with rounds={rounds}: use one of {', '.join(SCHEDULES)} and at least one round")
    steps = [k / rounds for k in range(1, rounds + 1)]
    if name == "handcrafted":
        return tuple(_read_off(HANDCRAFTED_20, t) for t in steps)
    if name == "exponential":
        return tuple(math.exp(-temperature * t) for t in steps)
    if name == "geometric":
        return tuple(0.8 * (last / 0.8) ** (k / max(1, rounds - 1)) for k in range(rounds))
    return tuple(1 - t for t in steps) if name == "linear" else (1.0,) * (rounds - 1) + (0.0,)


def _read_off(curve: Sequence[float], t: float) -> float:
    place = t * len(curve) - 1
    i = max(0, min(len(curve) - 2, math.floor(place)))
    return max(curve[-1], curve[i] + (place - i) * (curve[i + 1] - curve[i]))


class SoftRounding:
    """PAR: every weight between two marks, W_hat = s k (clamp(b + h(nu)) - z), hardened a fraction at a time.

    b = floor(W / s + z); h(nu) starts at the fraction that was cut off, so that W_hat starts at W (inside the ruler).
    k = 2 h(v) multiplies the step on dequantization only; k starts at 1.

    Source: TesseraQ, progressive adaptive rounding and dequantization scale tuning.
    Differs: hard variables are a mask, not infinities; variables that cannot matter (both marks clamp to the same) are hard
    from the start; exactly the intended number is hardened in each round; a tie goes to the mark below.
    """

    def __init__(self, W: Tensor, s: Tensor, z: Tensor, grid: Grid, tune_scale: bool = True) -> None:
        self.grid, self.shape = grid, W.shape
        self.s, self.z = s.float()[..., None], z.float()[..., None]
        t = grids.grouped(W.float(), grid) / self.s + self.z
        fraction = t - t.floor()
        self.base = t.floor().clamp_(-1, grid.q_max).to(torch.int8 if grid.bits < 7 else torch.int16)
        self.hard = self.dead
        nu = inverse_rectified_sigmoid(fraction)
        self.nu = torch.where(self.hard, torch.where(nu > 0, DECIDED, -DECIDED), nu).requires_grad_()
        self.nearest = self.codes()
        self.v = torch.zeros_like(self.s, requires_grad=tune_scale)

    def parameters(self) -> list[dict]:
        """nu, and v if the scale is tuned, each with its role; v has an L2 decay of 1e-4.

        Shapes:  optimiser groups.
        Units:   none.
        Raises:  nothing.
        Source:  TesseraQ code.
        Differs: no difference.
        """
        tuned = [{"params": [self.v], "role": "scale", "weight_decay": 1e-4}] if self.v.requires_grad else []
        return [{"params": [self.nu], "role": "rounding"}, *tuned]

    @property
    def dead(self) -> Tensor:
        """Variables that cannot matter: both marks clamp to the same one. [d_out, n_groups, g] bool"""
        return (self.base < 0) | (self.base == self.grid.q_max)

    def multiplier(self) -> Tensor:
        """k = 2 h(v), between 0 and 2.

        Shapes:  returns [d_out, n_groups, 1].
        Units:   no unit.
        Raises:  nothing.
        Source:  TesseraQ code; the paper writes 2 sigmoid(v).
        Differs: as the code.
        """
        return 2 * rectified_sigmoid(self.v)

    def weight(self, W: Tensor | None = None) -> Tensor:
        """The differentiable weight: soft where undecided, hard elsewhere.  The marks were fixed at the start; W is ignored.

        Shapes:  returns [d_out, d_in], bfloat16 under autocast.
        Units:   those of the weight.
        Raises:  nothing.
        Source:  TesseraQ.
        Differs: no difference.
        """
        on = torch.is_autocast_enabled(self.nu.device.type)
        dtype = torch.get_autocast_dtype(self.nu.device.type) if on else torch.float32
        return _SoftWeight.apply(self.nu, self.v, self, dtype).reshape(self.shape)

    def soft_fraction(self) -> float:
        return 1 - float(self.hard.float().mean())

    def tell(self) -> dict:
        """What a reader may watch: the share that is soft and flipped, where all stand, and a strip of the first 48.

        Shapes:  plain numbers: `histogram` 20 counts of h of the soft, `hard` the counts below and above, `dead` a count;
                 `strip` h, `state` one letter each (s soft, h hard, d dead), `nearest` the mark of nearest rounding (0 or 1).
        Units:   shares and counts.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        h = rectified_sigmoid(self.nu.detach())
        made_hard, above = self.hard & ~self.dead, self.nu.detach() > 0
        dead, hard, up = (t.flatten()[:48].tolist() for t in (self.dead, self.hard, self.nearest > self.base))
        return {"soft": self.soft_fraction(), "flips": self.flips(),
                "histogram": torch.histc(h.masked_fill(self.hard, -1), 20, 0, 1).int().tolist(),
                "hard": [int((made_hard & ~above).sum()), int((made_hard & above).sum())], "dead": int(self.dead.sum()),
                "strip": [round(x, 3) for x in h.flatten()[:48].tolist()],
                "state": "".join("d" if d else "h" if x else "s" for d, x in zip(dead, hard, strict=True)),
                "nearest": "".join("1" if x else "0" for x in up)}

    @torch.no_grad()
    def harden(self, soft_fraction: float) -> None:
        """Make the most decided variables hard until only `soft_fraction` of all is soft.

        Shapes:  none.
        Units:   a share of the layer's variables; dead ones count as hard.
        Raises:  nothing.
        Source:  TesseraQ: largest |h - 1/2| first (the authors confirm that the paper's "lowest" is a slip).
        Differs: an exact top-k among the soft ones instead of a quantile over all; ties go to the lowest index.
        """
        n_more = round((1 - soft_fraction) * self.hard.numel()) - int(self.hard.sum())
        if n_more <= 0:
            return
        score = (rectified_sigmoid(self.nu) - 0.5).abs().masked_fill(self.hard, -1).flatten()
        chosen = score.argsort(descending=True, stable=True)[:n_more]
        self.nu.view(-1)[chosen] = torch.where(self.nu.view(-1)[chosen] > 0, DECIDED, -DECIDED)
        self.hard.view(-1)[chosen] = True

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The integers if every soft variable were made hard now.

        Shapes:  returns [d_out, n_groups, g] uint8.
        Units:   codes.
        Raises:  nothing.
        Source:  TesseraQ: by sign after the last round.
        Differs: no difference.
        """
        return (self.base + (self.nu > 0)).clamp_(0, self.grid.q_max).to(torch.uint8)

    @torch.no_grad()
    def finish(self, W: Tensor | None = None) -> AffineWeight:
        """The stored form: integers, s * k and z; nothing is derived from float weights.

        Shapes:  W is ignored; see `AffineWeight`.
        Units:   none.
        Raises:  ValueError if a step does not fit its type.
        Source:  TesseraQ.
        Differs: the reference's export recomputes steps from merged weights and gets other integers.
        """
        s = grids.as_stored(self.s * self.multiplier(), self.grid, floor=True)
        return AffineWeight.of(self.codes().reshape(self.shape), s[..., 0], self.z[..., 0], self.grid)

    def flips(self) -> float:
        """The share of weights whose integer is not the nearest one."""
        return float((self.codes() != self.nearest).float().mean())


class _SoftWeight(torch.autograd.Function):
    """W_hat and its gradient, keeping only nu and v: codes and sigmoids are computed again on the way back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, nu: Tensor, v: Tensor, own: SoftRounding,
                dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(nu, v)
        ctx.own = own
        return _dequantized(nu, own.base, own.z, own.s * own.multiplier(), own.grid.q_max, dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        nu, v = ctx.saved_tensors
        own = ctx.own
        grad_nu, grad_k = _gradients(grad, nu, own.base, own.z, own.s * own.multiplier(), own.grid.q_max)
        if not ctx.needs_input_grad[1]:
            return grad_nu, None, None, None
        sigma = torch.sigmoid(v)
        inside = (own.multiplier() > 0) & (own.multiplier() < 2)
        slope = 2 * (STRETCH_HI - STRETCH_LO) * sigma * (1 - sigma) * inside
        return grad_nu, grad_k * own.s * slope, None, None


@fused
def _dequantized(nu: Tensor, base: Tensor, z: Tensor, step: Tensor, q_max: int, dtype: torch.dtype) -> Tensor:
    """step * (clamp(base + h(nu)) - z): one pass over the weights where it is compiled."""
    h = torch.sigmoid(nu).mul_(STRETCH_HI - STRETCH_LO).add_(STRETCH_LO).clamp_(0, 1)
    return h.add_(base).clamp_(0, q_max).sub_(z).mul_(step).to(dtype)


@fused
def _gradients(grad: Tensor, nu: Tensor, base: Tensor, z: Tensor, step: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """The gradients of nu and, summed over each group, of the step. Hard variables lie where h is clamped: no slope."""
    sigma = torch.sigmoid(nu)
    stretched = sigma * (STRETCH_HI - STRETCH_LO) + STRETCH_LO
    h = stretched.clamp(0, 1)
    slope = torch.addcmul(sigma, sigma, sigma, value=-1).mul_(stretched == h)  # sigma (1 - sigma), where h is not clamped
    grad_nu = slope.mul_(step * (STRETCH_HI - STRETCH_LO)).mul_(grad)
    return grad_nu, h.add_(base).clamp_(0, q_max).sub_(z).mul_(grad).sum(-1, keepdim=True)
