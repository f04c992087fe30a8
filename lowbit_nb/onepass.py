"""Logits of many windows in one pass over the blocks: for models that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lowbit_nb.blocks import catch, layers, resident
from lowbit_nb.blocks.hooks import Hooks
from lowbit_nb.blocks.ondisk import OnDisk
from lowbit_nb.spill import Room
from lowbit_nb.subject import Subject
from lowbit_nb.windows import Windows


@torch.no_grad()
def one_pass(subject: Subject, windows: Windows, batch: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ids, and what the model says about them; every block is read once for all windows.

    The windows go through a block together, and their stream stays in memory or on disk meanwhile; then the model is run batch
    by batch with blocks that hand on what the last of them has made.

    Shapes:  windows.ids [n, length]; yields ids [batch, length] and logits [batch, length, vocabulary].
    Units:   logits.
    Raises:  ValueError as `blocks.catch`.
    Source:  this project.
    Differs: no difference.
    """
    blocks, X = catch(subject.model, windows.ids, batch, Room(subject.device))
    for block in blocks:
        with resident([block.module]):
            block.run(X, out=X)
    for i in range(0, len(X), batch):
        ids = windows.ids[i : i + batch].to(subject.device)
        yield ids, behind(subject.model, X[i : i + batch], ids)


def behind(model: nn.Module, x: Tensor, ids: Tensor | None = None) -> Tensor:
    """The model's logits if x is what its last block gives; differentiable in x.

    Shapes:  x [batch, length, d_model]; ids [batch, length] or None, for models that look at them behind the blocks; returns
             [batch, length, vocabulary].
    Units:   logits.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    _, modules = layers(model)
    ids = x.new_zeros(x.shape[:2], dtype=torch.long) if ids is None else ids
    with _stepped_over(modules, x, _beside(model, modules)):
        return model(ids, use_cache=False).logits


@contextmanager
def _stepped_over(modules: nn.ModuleList, x: Tensor, beside: tuple | None) -> Iterator[None]:
    """Within this, every block gives x, whatever it is given, and what a block of this model gives beside its output."""
    for module in modules:
        module.forward = lambda *_, **__: x if beside is None else (x, *beside)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


_BESIDE: WeakKeyDictionary[nn.Module, tuple | None] = WeakKeyDictionary()


def _beside(model: nn.Module, modules: nn.ModuleList) -> tuple | None:
    """What the model's blocks return beside their output, if they return more; asked once, with one token."""
    if isinstance(modules[0], OnDisk):
        return modules[0].beside
    if model not in _BESIDE:
        kept: list = []
        with Hooks([(modules[0], lambda _, __, y: kept.append(y))], after=True), torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
        _BESIDE[model] = kept[0][1:] if isinstance(kept[0], tuple) else None
    return _BESIDE[model]
