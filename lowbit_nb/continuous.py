"""What stays continuous in a stored weight, made learnable: its steps, levels, means, factors and vectors; integers stay.

Every stored form is integers and some numbers of a floating-point type.  `LearnedNumbers` finds those numbers in any form, also
in the parts of a form, lets them move, and asks the form itself what weight they stand for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.stored import StoredWeight


class LearnedNumbers:
    """The floating-point numbers of a stored weight, learned; codes, signs, indices, masks and integer zero points stay.

    A number moves in units of itself if all of its kind are positive (steps, levels), else in units of their root mean square
    (means, vectors), so that one rate serves all layers.  A differentiable weight while it is learned, a stored form at the
    end, as `rounding.SoftRounding` gives.

    Source: this project; the step that is learned after rounding is TesseraQ's dequantization scale.
    Differs: any stored form; the type on disk is the form's own.
    """

    def __init__(self, weight: StoredWeight) -> None:
        self.start = weight
        self.own = _numbers(weight)
        self.units = {name: _unit(t) for name, t in self.own.items()}
        self.moved = {name: torch.zeros_like(t, dtype=torch.float32).requires_grad_() for name, t in self.own.items()}

    def parameters(self) -> list[dict]:
        """How far each number has moved, in its units.

        Shapes:  one optimiser group, role "number".
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return [{"params": list(self.moved.values()), "role": "number"}] if self.moved else []

    def weight(self, W: Tensor | None = None) -> Tensor:
        """The differentiable weight; W is ignored, for the integers were chosen at the start.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return _exchanged(self.start, self._now()).dequantize()

    def _now(self) -> dict[str, Tensor]:
        return {name: t.float() + self.units[name] * self.moved[name] for name, t in self.own.items()}

    def harden(self, soft_fraction: float) -> None:
        """Nothing here is soft: integers are settled."""

    @torch.no_grad()
    def tell(self) -> dict:
        """How far the numbers of each kind have moved.

        Shapes:  plain numbers.
        Units:   root mean square, in their units.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return {name: float(t.square().mean().sqrt()) for name, t in self.moved.items() if t.numel()}

    @torch.no_grad()
    def finish(self, W: Tensor | None = None) -> StoredWeight:
        """The stored form, every number in the type it had; what was positive stays positive.

        Shapes:  W is ignored; as the form.
        Units:   none.
        Raises:  ValueError if a number does not fit its type.
        Source:  this project.
        Differs: no difference.
        """
        kept = {}
        for name, now in self._now().items():
            was, info = self.own[name], torch.finfo(self.own[name].dtype)
            kept[name] = torch.where(was > 0, now.clamp(min=info.smallest_normal * info.eps), now).to(was.dtype)
            if not torch.isfinite(kept[name]).all():
                raise ValueError(f"{name} of a learned weight do not fit {was.dtype}; use a smaller learning rate")
        return _exchanged(self.start, kept)


def with_tensors(form: object, change: Callable[[str, Tensor], Tensor], path: str = "") -> object:
    """The form with every tensor of it and of its parts replaced by what `change` makes of its path and itself.

    Shapes:  paths are "s", "low.a", "scale.lo".
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    changes = {}
    for field in dataclasses.fields(form):
        value, name = getattr(form, field.name), f"{path}{field.name}"
        if isinstance(value, Tensor):
            changes[field.name] = change(name, value)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_tensors(value, change, f"{name}.")
    return dataclasses.replace(form, **changes)


def _numbers(form: object) -> dict[str, Tensor]:
    """The floating-point tensors of a form and of its parts, by their path."""
    found: dict[str, Tensor] = {}
    with_tensors(form, lambda name, t: found.setdefault(name, t) if t.is_floating_point() else t)
    return found


def _exchanged(form: object, numbers: dict[str, Tensor]) -> object:
    return with_tensors(form, lambda name, t: numbers.get(name, t))


def _unit(t: Tensor) -> Tensor:
    t = t.float()
    if not t.numel() or (t > 0).all():
        return t
    return t.square().mean().sqrt().clamp(min=1e-8).expand_as(t)
