"""LoRA-Rounding: which of two marks every weight takes, decided by the product of two thin matrices.

W_hat = s k (clamp(floor(W / (s k)) + h(V) + z) - z),  V = V0 + A1 A2: (d_out + d_in) r variables instead of d_out d_in.
V0 is the fraction that floor cuts off, so that W_hat starts at W; the literal form of the paper has V0 = 0 and starts every
weight half-way between its marks.  The curve h grows steeper round by round until every weight is decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.grid import Grid
from lowbit_nb.rounding import STRETCH_HI, STRETCH_LO, inverse_rectified_sigmoid
from lowbit_nb.stored import AffineWeight

WARM = 0.2  # the share of a layer's rounds before anything is made steeper
BETA = (20.0, 2.0)  # exponent of the regulariser, first and last


@dataclass(frozen=True)
class Undecided:
    """A weight that stays soft: it stands for itself while the blocks before it are judged with hard weights.

    Source: this project. Differs: no difference.
    """

    W_hat: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.W_hat.to(dtype)


class LoRARounding:
    """A learnable of the engine: roundings by low rank, and the step size.

    rank       of the product; None: one free variable a weight          literal    V0 = 0, as the paper writes it
    sharpness  how many times steeper h is in the last round             gamma      weight of the regulariser (a sum), 0: none
    life       rounds that this layer will be learned for, in all its windows; `plan` says so anew in every window
    stays      whether it goes on to a later window: `finish` then gives the soft weight

    Source: CBQ, Sec. 3.3; AdaRound, Eq. 23-25.
    Differs: V0 (the paper's start rounds everything up); steeper curves instead of the regulariser; steps are learned as the
    logarithm of a multiplier and are always such as float16 holds them; it ages by rounds, not by windows.
    """

    def __init__(self, W: Tensor, s: Tensor, z: Tensor, grid: Grid, *, rank: int | None = 5, literal: bool = False,
                 life: int = 20, sharpness: float = 10.0, gamma: float = 0.0, tune_step: bool = True,
                 generator: torch.Generator | None = None) -> None:
        self.grid, self.W, self.shape, self.literal = grid, W.detach().float(), W.shape, literal
        self.s, self.z = s.float()[..., None], z.float()[..., None]
        self.life, self.sharpness, self.gamma, self.age, self.stays = life, sharpness, gamma, 0, False
        self.kappa = torch.ones((), device=W.device)  # on the device, changed in place: a captured step reads it
        self.beta = torch.full((), BETA[0], device=W.device)
        if rank is None:
            self.factors = [torch.zeros(W.shape, device=W.device, requires_grad=True)]
        else:
            A1 = torch.randn(W.shape[0], rank, generator=generator) / rank**0.5
            A2 = torch.zeros(rank, W.shape[1], device=W.device)
            self.factors = [A1.to(W.device).requires_grad_(), A2.requires_grad_()]
        self.log_k = torch.zeros_like(self.s, requires_grad=tune_step)
        self.nearest = grids.quantize(self.W, self.s[..., 0], self.z[..., 0], grid)
        if gamma:
            self.penalty = self._penalty

    def parameters(self) -> list[dict]:
        """The factors, and the logarithm of the step's multiplier.

        Shapes:  optimiser groups.
        Units:   none.
        Raises:  nothing.
        Source:  CBQ, Sec. 3.3.
        Differs: no difference.
        """
        return [{"params": self.factors, "role": "rounding"},
                *([{"params": [self.log_k], "role": "step"}] if self.log_k.requires_grad else [])]

    def _step(self) -> Tensor:
        """The step as it is stored, with the gradient of the one that is learned."""
        s = self.s * self.log_k.exp()
        return s + (grids.as_stored(s.detach(), self.grid, floor=True) - s.detach())

    def weight(self, W: Tensor | None = None) -> Tensor:
        """The differentiable weight. The layer's weight was fixed at the start; W is ignored.

        Shapes:  returns [d_out, d_in], bfloat16 under autocast.
        Units:   those of the weight.
        Raises:  nothing.
        Source:  CBQ, Eq. 8.
        Differs: no difference.
        """
        on = torch.is_autocast_enabled(self.W.device.type)
        dtype = torch.get_autocast_dtype(self.W.device.type) if on else torch.float32
        return _Rounded.apply(self._step(), self, dtype, *self.factors).reshape(self.shape)

    def soft(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights in steps, the mark below (before the zero point), and h.

        Shapes:  s [d_out, n_groups, 1]; returns three of [d_out, n_groups, g].
        Units:   steps; h is between 0 and 1.
        Raises:  nothing.
        Source:  AdaRound, Eq. 23.
        Differs: no difference.
        """
        t = grids.grouped(self.W, self.grid) / s
        below = t.floor()
        return t, below, self._h(self.kappa * self._logits(t - below))

    def _logits(self, fraction: Tensor) -> Tensor:
        V = self.factors[0] if len(self.factors) == 1 else self.factors[0] @ self.factors[1]
        V = V.float().reshape(fraction.shape)
        return V if self.literal else V + inverse_rectified_sigmoid(fraction)

    @staticmethod
    def _h(V: Tensor) -> Tensor:
        return (torch.sigmoid(V) * (STRETCH_HI - STRETCH_LO) + STRETCH_LO).clamp(0, 1)

    def _penalty(self) -> Tensor:
        """gamma sum(1 - |2 h - 1|**beta), off while the layer is young."""
        h = self.soft(self._step().detach())[2]
        on = (self.beta < BETA[0]).float()
        return self.gamma * on * (1 - (2 * h - 1).abs().clamp(min=1e-6) ** self.beta).sum()

    @torch.no_grad()
    def harden(self, soft_fraction: float) -> None:
        """One round older: h steeper, the regulariser's exponent smaller. The share is ignored.

        Shapes:  none.
        Units:   none.
        Raises:  nothing.
        Source:  AdaRound (exponent from 20 to 2 after a fifth of the steps); the steepness is this project's.
        Differs: by the layer's own age, so that a block in two windows goes on where it was.
        """
        self.age += 1
        self._settle()

    @torch.no_grad()
    def _settle(self) -> None:
        old = (max(0, self.age - 1) / max(1, self.life - 1) - WARM) / (1 - WARM)
        old = min(1.0, max(0.0, old))
        self.kappa.fill_(self.sharpness**old)
        self.beta.fill_(BETA[0] + (BETA[1] - BETA[0]) * old)

    def plan(self, rounds: int, stays: bool = False) -> None:
        """How many rounds are still to come, and whether another window follows this one.

        Shapes:  none.
        Units:   rounds.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        self.life, self.stays = self.age + rounds, stays
        self._settle()

    def tell(self) -> dict:
        """The share of weights that are undecided, and that are not at their nearest mark; how steep h is.

        Shapes:  plain numbers.
        Units:   shares.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        with torch.no_grad():
            h = self.soft(self._step())[2]
        return {"soft": float(((h > 0) & (h < 1)).float().mean()), "flips": self.flips(), "sharpness": float(self.kappa)}

    def flips(self) -> float:
        return float((self.hard().q != self.nearest).float().mean())

    @torch.no_grad()
    def finish(self, W: Tensor | None = None) -> AffineWeight | Undecided:
        """The stored form, or the soft weight if this layer stays. W is ignored.

        Shapes:  see `AffineWeight`.
        Units:   none.
        Raises:  ValueError if a step does not fit its type.
        Source:  this project.
        Differs: no difference.
        """
        return Undecided(self.weight().detach()) if self.stays else self.hard()

    @torch.no_grad()
    def hard(self) -> AffineWeight:
        """The stored form: the mark above where h is at least a half. The factors are thrown away.

        Shapes:  see `AffineWeight`.
        Units:   none.
        Raises:  ValueError if a step does not fit its type.
        Source:  CBQ, Sec. 3.3.
        Differs: no difference.
        """
        s = self._step()
        t = grids.grouped(self.W, self.grid) / s
        q = t.floor() + (self._logits(t - t.floor()) >= 0) + self.z
        return AffineWeight.of(q.clamp_(0, self.grid.q_max).reshape(self.shape), s[..., 0], self.z[..., 0], self.grid)

    def state(self) -> dict[str, Tensor]:
        """Everything that a later window needs to go on.

        Shapes:  {name: tensor}.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        own = {"W": self.W, "s": self.s[..., 0], "z": self.z[..., 0], "log_k": self.log_k, "age": torch.tensor(float(self.age))}
        return {name: t.detach().clone() for name, t in (own | {f"A{i}": f for i, f in enumerate(self.factors)}).items()}

    @torch.no_grad()
    def go_on(self, state: dict[str, Tensor]) -> None:
        """Put variables and age back to where `state` had them.

        Shapes:  as `state`.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        for i, factor in enumerate(self.factors):
            factor.copy_(state[f"A{i}"])
        self.log_k.copy_(state["log_k"])
        self.age = int(state["age"])
        self._settle()


class _Rounded(torch.autograd.Function):
    """W_hat and its gradient, keeping thin matrices only: marks and sigmoids are computed again on the way back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, s: Tensor, own: LoRARounding, dtype: torch.dtype,
                *factors: Tensor) -> Tensor:
        ctx.save_for_backward(s, *factors)
        ctx.own = own
        _, below, h = own.soft(s)
        return below.add_(h).add_(own.z).clamp_(0, own.grid.q_max).sub_(own.z).mul_(s).to(dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        s, *factors = ctx.saved_tensors
        own, top = ctx.own, ctx.own.grid.q_max
        grad = grad.float()
        t, below, h = own.soft(s)
        mark = below.add_(h).add_(own.z)
        inside = (mark > 0) & (mark < top)
        grad_s = (grad * (mark.clamp(0, top) - own.z - t * inside)).sum(-1, keepdim=True)
        sigma = (h - STRETCH_LO) / (STRETCH_HI - STRETCH_LO)
        slope = sigma * (1 - sigma) * (STRETCH_HI - STRETCH_LO) * own.kappa * ((h > 0) & (h < 1) & inside)
        grad_V = (grad * slope * s).reshape(own.shape)
        if len(factors) == 1:
            return grad_s, None, None, grad_V
        return grad_s, None, None, grad_V @ factors[1].T, factors[0].T @ grad_V
