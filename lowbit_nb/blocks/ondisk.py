"""Blocks whose weights lie on disk: in memory only while somebody works with them.

The parameters of such a block are placeholders without numbers.  `resident` puts the real ones in their place and takes them
away again; a block that is simply called does that for itself.  So a model runs as it always does, and holds one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class Shelf(Protocol):
    """Whatever can read the tensors of one block, {name inside the block: tensor}, to where they are wanted.

    Source: this project. Differs: no difference.
    """

    def read(self, block: str) -> dict[str, Tensor]: ...


@dataclass
class Loan:
    """What a block on disk knows about its own weights.

    shelf    reads them, by the block's full name      users  how many work with them now
    instead  {parameter: a call that makes its value}: dequantized weights, edited norms; the rest is read from the shelf
    away     the placeholders, while the block is resident
    passed   hand on what comes in instead of computing

    Source: this project; the idea of accelerate's offloading hooks. Differs: a whole block at once, and weights can be
    exchanged functionally while it is there.
    """

    shelf: Shelf
    block: str
    instead: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    users: int = 0
    away: dict[str, nn.Parameter] = field(default_factory=dict)
    passed: bool = False

    def __deepcopy__(self, memo: dict) -> Loan:
        return replace(self, instead=dict(self.instead), away=dict(self.away))


class OnDisk:
    """Mixed into the class of a decoder block; see `put_on_disk`.

    beside  what a block of this class returned beside its output, the last time that one was called by itself

    Source: this project. Differs: no difference.
    """

    loan: Loan
    beside: ClassVar[tuple | None] = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output; its weights are there while it runs.

        Shapes:  as the block.
        Units:   those of the residual stream.
        Raises:  as `resident`.
        Source:  this project.
        Differs: no difference.
        """
        loan = self.loan
        if loan.passed:
            x = args[0] if args else kwargs["hidden_states"]
            return x if self.beside is None else (x, *self.beside)
        if loan.users:
            return super().forward(*args, **kwargs)
        with resident([self]):
            y = super().forward(*args, **kwargs)
        type(self).beside = y[1:] if isinstance(y, tuple) else None
        return y


_CLASSES: dict[type, type] = {}  # one class a kind of block: compiled code is told apart by class


def put_on_disk(module: nn.Module, shelf: Shelf, block: str) -> None:
    """Make a block, in place, one whose weights are read from a shelf; those it has are given up.

    Shapes:  block: its full name in the model.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    kind = type(module)
    if kind not in _CLASSES:
        _CLASSES[kind] = type(kind.__name__, (OnDisk, kind), {"__module__": kind.__module__})
    module.__class__, module.loan = _CLASSES[kind], Loan(shelf, block)
    for name, p in module.named_parameters():
        put(module, name, nn.Parameter(p.detach().to("meta"), requires_grad=False))


@contextmanager
def resident(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this, the weights of these blocks are in memory; those of ordinary blocks always are.

    Shapes:  any modules; only blocks on disk are looked at.
    Units:   none.
    Raises:  ValueError if a tensor is missing or not finite, or the block's weights were exchanged while they were away.
    Source:  this project.
    Differs: no difference.
    """
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, OnDisk):
                _fetch(module)
                stack.callback(_release, module)
        yield


@contextmanager
def handing_on(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this, blocks on disk hand on what they are given, and nothing is read; other blocks compute as always.

    Shapes:  any modules.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    loans = [m.loan for m in modules if isinstance(m, OnDisk)]
    try:
        for loan in loans:
            loan.passed = True
        yield
    finally:
        for loan in loans:
            loan.passed = False


@torch.no_grad()
def _fetch(module: nn.Module) -> None:
    loan = module.loan
    if not loan.users:
        placeholders = dict(module.named_parameters())
        if swapped := [name for name, p in placeholders.items() if not p.is_meta]:
            raise ValueError(f"{loan.block}.{swapped[0]} was exchanged while the block's weights are on disk; load the subject "
                             "without blockwise=True, or work inside `with lb.blocks.resident([block.module]):`")
        if lost := [name for name, t in module.named_buffers() if t.is_meta]:
            raise ValueError(f"{loan.block}.{lost[0]} was made while the block's weights are on disk: a blockwise subject is "
                             "not for packing; load it without blockwise=True")
        found, values = loan.shelf.read(loan.block) if placeholders.keys() - loan.instead.keys() else {}, {}
        for name, old in placeholders.items():
            value = loan.instead[name]() if name in loan.instead else found.pop(name, None)
            if value is None:
                raise ValueError(f"{loan.block}.{name} is not in the checkpoint that this blockwise subject reads; load it "
                                 "without blockwise=True to pack or edit its layers")
            if value.shape != old.shape:
                raise ValueError(f"{loan.block}.{name} is {tuple(old.shape)} in the subject, and {tuple(value.shape)} in what "
                                 "was to take its place")
            values[name] = nn.Parameter(value, requires_grad=False)
        for name, value in values.items():  # all or none
            put(module, name, value)
        loan.away = placeholders
    loan.users += 1


def give_back(model: nn.Module) -> None:
    """Put the placeholders of all blocks on disk back: for a copy of a model that was made while some were in memory.

    Shapes:  a model, changed in place.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    for module in model.modules():
        if isinstance(module, OnDisk) and module.loan.users:
            module.loan.users = 1
            _release(module)


def _release(module: nn.Module) -> None:
    loan = module.loan
    loan.users -= 1
    if not loan.users:
        for name, placeholder in loan.away.items():
            put(module, name, placeholder)
        loan.away = {}


def put(module: nn.Module, name: str, p: nn.Parameter) -> None:
    """Exchange a parameter for another object, whatever its shape or type.

    Shapes:  name inside the module.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    path, _, last = name.rpartition(".")
    module.get_submodule(path)._parameters[last] = p
