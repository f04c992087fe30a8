"""A model's blocks, and what flows into the first of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowbit_nb.blocks.block import Block
from lowbit_nb.blocks.hooks import Hooks, Stop
from lowbit_nb.blocks.ondisk import handing_on
from lowbit_nb.experts import routers
from lowbit_nb.spill import Room


def layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder's blocks: the longest ModuleList of equal modules, and its name.

    Shapes:  one model in; name and list out.
    Units:   none.
    Raises:  ValueError if the model has no such list.
    Source:  this project.
    Differs: GPTQ and its relatives list model families by name.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len({type(b) for b in m}) == 1]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of equal blocks; this kit reads decoder-only language models")
    return max(lists, key=lambda item: len(item[1]))


def block_of(name: str) -> str:
    """The block that a layer belongs to: its full name up to the first number.

    Shapes:  a name in, a name out.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.

    >>> block_of("model.layers.3.mlp.up_proj")
    'model.layers.3'
    """
    parts = name.split(".")
    return ".".join(parts[: next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 0)])


@torch.no_grad()
def catch(model: nn.Module, ids: Tensor, batch: int = 4, room: Room | None = None) -> tuple[list[Block], Tensor]:
    """The model's blocks, ready to run one by one, and what flows into the first of them.

    room  where the stream is kept; None: beside the model

    Shapes:  ids [n, length] int64; returns the blocks and X [n, length, d_model].
    Units:   those of the residual stream.
    Raises:  ValueError if the model has no list of equal blocks, or blocks whose weights are not linear layers.
    Source:  the "catcher" of the GPTQ code.
    Differs: catches every block's own arguments, so blocks may differ in mask or rotary table; of blocks that lie on disk only
             the first is run for that.
    """
    prefix, modules = layers(model)
    for module in modules:
        _check_linear(prefix, module)
    ids = ids.to(next(p.device for p in model.parameters() if not p.is_meta))
    caught: list[tuple[tuple, dict]] = [((), {}) for _ in modules]

    def keep(index: int) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            rest = {k: v for k, v in kwargs.items() if "past_key" not in k and k not in ("use_cache", "hidden_states")}
            caught[index] = (args[1:], rest)
        return hook

    with Hooks([(m, keep(i)) for i, m in enumerate(modules)], with_kwargs=True), handing_on(modules[1:]):
        model(ids[:1], use_cache=False)
    blocks = [Block(m, i, f"{prefix}.{i}", *caught[i], batch, i == len(modules) - 1) for i, m in enumerate(modules)]
    first = _first_input(model, modules[0], ids[:1])
    shape = (len(ids), *first.shape[1:])
    X = room.empty(shape, first.dtype) if room else first.new_empty(shape)
    for i in range(0, len(ids), batch):
        X[i : i + batch] = _first_input(model, modules[0], ids[i : i + batch])
    return blocks, X


def _check_linear(prefix: str, module: nn.Module) -> None:
    """Refuse what would silently stay in full precision; routers of experts do so by intent."""
    linear = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    known = linear | {id(m.weight) for m in routers(module)}
    other = [n for n, p in module.named_parameters() if p.ndim >= 2 and id(p) not in known]
    if not linear or other:
        raise ValueError(f"the blocks {prefix} keep weights outside linear layers ({', '.join(other[:3])}): Conv1D and experts "
                         "of unusual layout are not supported; use a model whose blocks are built of nn.Linear, and make an "
                         "lb.Subject of a model with experts, which unfolds them")


def _first_input(model: nn.Module, module: nn.Module, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise Stop

    with Hooks([(module, stop)], with_kwargs=True):
        try:
            model(ids, use_cache=False)
        except Stop:
            pass
    return seen[0]
