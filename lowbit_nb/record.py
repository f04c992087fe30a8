"""The record of a run: stored weights, every setting, the story of each block.  All methods return this one type."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor, nn

from lowbit_nb.activations import Activations, add_parameter, apply_to
from lowbit_nb.bits import BitBudget, item
from lowbit_nb.blocks import block_of, give_back
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

    weights   {full name of the linear layer: stored weight}; of a large model they may stay in the files of its blocks
    settings  what decided the integers: method, its fields, subject and calibration fingerprints
    trace     one dict a block: seconds in all and by phase, peak memory on a GPU, losses, whatever the method tells
    params    {full name: tensor} of other parameters that a transform has edited (norms, biases), as stored

    Source: this project. Differs: no difference.
    """

    weights: Mapping[str, StoredWeight]
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
        if counted := getattr(self.weights, "bits", None):  # weights that stay in files
            return counted() + BitBudget(edited, 0)
        return reduce(add, (w.bits() for w in self.weights.values())) + BitBudget(edited, 0)

    def apply(self, subject: Subject) -> Subject:
        """A subject that computes with the dequantized weights, and rounds its activations if the record says so.

        It shares all other parameters with the original.

        Shapes:  as the subject.
        Units:   none.
        Raises:  ValueError if a layer is missing from the subject or has another shape.
        Source:  this project.
        Differs: no difference.
        """
        model = copy.deepcopy(subject.model, memo={id(p): p for p in subject.model.parameters()})
        for name in self.params:
            _make_room(model, name)
        if subject.blockwise:
            self._lend(model)
        else:
            self._exchange(model)
        if self.activations:
            apply_to(model, {block_of(name): None for name in self.weights}, self.weights, self.activations)
        return dataclasses.replace(subject, model=model, name=f"{subject.name}, {self.title}")

    def _exchange(self, model: nn.Module) -> None:
        """Put dequantized weights and edited parameters where the original ones are."""
        for name, stored in self.weights.items():
            linear = _layer(model, name, stored)
            W_hat = stored.dequantize(linear.weight.dtype).to(linear.weight.device)
            linear.weight = nn.Parameter(W_hat, requires_grad=False)
        for name, value in self.params.items():
            owner, own = _owner(model, name, value)
            setattr(owner, name.rpartition(".")[2], nn.Parameter(value.to(own.device, own.dtype), requires_grad=False))

    def _lend(self, model: nn.Module) -> None:
        """The same for blocks on disk: nothing is made before a block is asked for."""
        give_back(model)
        device = next(p.device for p in model.parameters() if not p.is_meta)
        for name in [f"{name}.weight" for name in self.weights] + list(self.params):
            own = _parameter(model, name)
            block = block_of(name)
            loan = model.get_submodule(block).loan
            loan.instead[name.removeprefix(f"{block}.")] = partial(self._now, name, own.dtype, device)

    def _now(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        if name in self.params:
            return self.params[name].to(device, dtype)
        return self.weights[name.removesuffix(".weight")].dequantize(dtype).to(device)

    @property
    def activations(self) -> Activations | None:
        """How activations are rounded: as the method or its start did, or as `with_activations` said; None: not at all."""
        said, method = self.settings.get("activations"), self.settings["settings"]
        while not said and isinstance(method, dict):
            said, method = method.get("activations"), method.get("start") or method.get("backend")
        return Activations(**said) if said else None

    def with_activations(self, activations: Activations) -> Quantized:
        """The same stored weights, with activations rounded too: what a method gives that knew nothing of them.

        Shapes:  as the record.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        said = {"activations": dataclasses.asdict(activations)}
        return dataclasses.replace(self, settings=self.settings | said)

    @property
    def title(self) -> str:
        """Method and bits in a few words, for tables and legends."""
        own = self.settings["settings"]
        grid = next((part["grid"] for part in (own, own.get("start"), own.get("backend")) if part and "grid" in part), {})
        group = f" g{grid['group']}" if grid.get("group") else ""
        bits = self.activations.name if self.activations else ""
        return f"{self.settings['method']} W{grid['bits']}{bits}{group}" if "bits" in grid else self.settings["method"]

    @property
    def seconds(self) -> float:
        return sum(t.get("seconds", 0.0) for t in self.trace)


def _make_room(model: nn.Module, name: str) -> None:
    """A bias or an input clip that the subject has not."""
    try:
        model.get_parameter(name)
    except AttributeError:
        try:
            add_parameter(model, name)
        except (AttributeError, ValueError):
            pass  # refused below, with the name


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    try:
        return model.get_parameter(name)
    except AttributeError:
        raise ValueError(f"the subject has no parameter {name}; these weights belong to another model") from None


def _owner(model: nn.Module, name: str, value: Tensor) -> tuple[nn.Module, nn.Parameter]:
    own = _parameter(model, name)
    owner = model.get_submodule(name.rpartition(".")[0])
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
