"""Logits of many windows in one pass over the blocks: for models that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowbit_nb.blocks import catch, handing_on, layers, resident
from lowbit_nb.blocks.hooks import Hooks
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

    def give(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    with Hooks([(modules[0], give)], with_kwargs=True), handing_on(modules):
        return model(ids, use_cache=False).logits
