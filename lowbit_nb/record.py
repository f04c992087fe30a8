"""The record of a run: stored weights, every setting, the story of each block.  All methods return this one type."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from lowbit_nb.bits import BitBudget, item
from lowbit_nb.stored import StoredWeight
from lowbit_nb.subject import Subject


class Phases(dict):
    """Seconds by phase, added up; on a GPU each phase waits for its kernels.

    Source: this project. Differs: no difference.

    >>> phases = Phases()
    >>> with phases("solve"):
    ...     pass
    >>> list(phases)
    ['solve']
    """

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = _now()
        yield
        self[name] = self.get(name, 0.0) + _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Quantized:
    """A quantized model: everything needed to evaluate, save, draw and run it, and nothing derived.

    weights   {full name of the linear layer: stored weight}
    settings  what decided the integers: method, its fields, subject and calibration fingerprints
    trace     one dict a block: seconds in all and by phase, peak memory on a GPU, losses, whatever the method tells
    params    {full name: tensor} of other parameters that a transform has edited (norms, biases), as stored

    Source: this project. Differs: no difference.
    """

    weights: dict[str, StoredWeight]
    settings: dict
    trace: list[dict]
    params: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Quantized({self.title}: {len(self.weights)} layers, {self.bits().per_weight:.3f} bits a weight)"

    def bits(self) -> BitBudget:
        """The itemised size of all stored weights.

        Shapes:  one line an item, summed over layers.
        Units:   bits.
        Raises:  nothing.
        Source:  this project.
        Differs: counts everything that is stored, edited norms too; parts that stay as they were are not in it.
        """
        edited = tuple(item("norms", t, t.numel(), 8 * t.element_size()) for t in self.params.values())
        return reduce(add, (w.bits() for w in self.weights.values())) + BitBudget(edited, 0)

    def apply(self, subject: Subject) -> Subject:
        """A subject that computes with the dequantized weights; it shares all other parameters with the original.

        Shapes:  as the subject.
        Units:   none.
        Raises:  ValueError if a layer is missing from the subject or has another shape.
        Source:  this project.
        Differs: no difference.
        """
        model = copy.deepcopy(subject.model, memo={id(p): p for p in subject.model.parameters()})
        for name, stored in self.weights.items():
            linear = _layer(model, name, stored)
            W_hat = stored.dequantize(linear.weight.dtype).to(linear.weight.device)
            linear.weight = nn.Parameter(W_hat, requires_grad=False)
        for name, value in self.params.items():
            owner, own = _owner(model, name, value)
            setattr(owner, name.rpartition(".")[2], nn.Parameter(value.to(own.device, own.dtype), requires_grad=False))
        return dataclasses.replace(subject, model=model, name=f"{subject.name}, {self.title}")

    @property
    def title(self) -> str:
        """Method and bits in a few words, for tables and legends."""
        own = self.settings["settings"]
        grid = next((part["grid"] for part in (own, own.get("start"), own.get("backend")) if part and "grid" in part), {})
        group = f" g{grid['group']}" if grid.get("group") else ""
        return f"{self.settings['method']} W{grid['bits']}{group}" if "bits" in grid else self.settings["method"]

    @property
    def seconds(self) -> float:
        return sum(t.get("seconds", 0.0) for t in self.trace)


def _owner(model: nn.Module, name: str, value: Tensor) -> tuple[nn.Module, nn.Parameter]:
    try:
        owner, own = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
    except AttributeError:
        raise ValueError(f"the subject has no parameter {name}; these weights belong to another model") from None
    if own.shape != value.shape:
        raise ValueError(f"{name} is {tuple(own.shape)} in the subject and {tuple(value.shape)} in the record")
    return owner, own


def _layer(model: nn.Module, name: str, stored: StoredWeight) -> nn.Linear:
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the subject has no layer {name}; these weights belong to another model") from None
    if tuple(linear.weight.shape) != stored.shape:
        raise ValueError(f"{name} is {tuple(linear.weight.shape)} in the subject and {stored.shape} in the stored weights")
    return linear
