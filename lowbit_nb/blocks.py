"""A decoder block as this kit sees it: its linear layers, which of them share an input, how to run it, what flows in.

Nothing here knows a model by name.  The decoder's blocks are its longest list of equal modules; what each block needs
beside its input (masks, rotary tables) is caught once from the model itself; layers that are handed the very same tensor
share an input.  Weights are exchanged functionally, so the model under study is never edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowbit_nb.experts import experts, opened, routers
from lowbit_nb.hessian import Hessian


class _Stop(Exception):
    """Raised by a hook to leave a forward pass once it has seen enough."""


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


@dataclass
class Block:
    """One decoder block and what it needs to run.

    Source: this project. Differs: no difference.
    """

    module: nn.Module
    index: int
    name: str  # full name in the model, e.g. "model.layers.3"
    args: tuple = field(repr=False)  # beside the hidden states, as the model passes them
    kwargs: dict = field(repr=False)
    batch: int = 4
    last: bool = False  # of the model
    few_tokens: dict[str, int] = field(default_factory=dict, repr=False)  # expert layers that calibration hardly reached

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """The block's linear layers by name inside the block, in module order; routers of experts are none."""
        apart = routers(self.module)
        return {name: m for name, m in self.module.named_modules() if isinstance(m, nn.Linear) and m not in apart}

    def weight(self, name: str) -> Tensor:
        return self.linears[name].weight.detach()

    @contextmanager
    def naming(self, *names: str) -> Iterator[None]:
        """Errors raised inside name this block and these layers.

        Shapes:  none.
        Units:   none.
        Raises:  ValueError, the one that was raised, with the layer's full name in front.
        Source:  this project.
        Differs: no difference.
        """
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.name}.{'+'.join(names)}: {error}") from error

    @torch.no_grad()
    def run(self, X: Tensor, weights: dict[str, Tensor] | None = None, out: Tensor | None = None) -> Tensor:
        """The block's output for every window, batch by batch, with some weights exchanged.

        Shapes:  X [n, length, d_model]; weights {linear name: [d_out, d_in]}; out may be X itself (overwritten).
        Units:   those of the residual stream.
        Raises:  ValueError if an output is not finite (message names the block).
        Source:  this project.
        Differs: no difference.
        """
        out = torch.empty_like(X) if out is None else out
        for i in range(0, len(X), self.batch):
            y = self.forward(X[i : i + self.batch], weights)
            if not torch.isfinite(y).all():
                raise ValueError(f"{self.name} gives non-finite outputs; run in float32 or bfloat16, "
                                 "or check the model's weights")
            out[i : i + self.batch] = y
        return out

    def forward(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The block's output for one batch; differentiable in the exchanged tensors.

        Shapes:  x [batch, length, d_model]; weights {linear name: [d_out, d_in]}, or {parameter name: its shape} for what
                 is not a linear layer's weight (norms, biases); returns the shape of x.
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        swapped = {f"{name}.weight" if name in self.linears else name: t for name, t in (weights or {}).items()}
        y = functional_call(self.module, swapped, (x, *self.args), self.kwargs)
        return y[0] if isinstance(y, tuple) else y

    @torch.no_grad()
    def shared_inputs(self, x: Tensor) -> list[list[str]]:
        """The linear layers grouped by the tensor they are handed, in the order the block calls them.

        Shapes:  x [1, length, d_model], any window.
        Units:   none.
        Raises:  ValueError if a linear layer is not called at all (message names it).
        Source:  this project.
        Differs: found by identity of the tensors, not from a list of names; experts that the window misses are asked too.
        """
        seen: list[tuple[Tensor, list[str]]] = []

        def note(name: str, X: Tensor) -> None:
            mates = next((names for tensor, names in seen if tensor is X), None)
            seen.append((X, [name])) if mates is None else mates.append(name)

        with self._watching(list(self.linears), note), opened(self.module):
            self.forward(x)
        called = [names for _, names in seen]
        if idle := set(self.linears) - {name for names in called for name in names}:
            raise ValueError(f"{self.name} does not call {', '.join(sorted(idle))} on this window, "
                             "so nothing is known about its inputs")
        return called

    @torch.no_grad()
    def hessians(self, X: Tensor, groups: list[list[str]], weights: dict[str, Tensor] | None = None) -> list[Hessian]:
        """Input Hessians, one a group of layers that share an input, from one pass over the windows.

        The pass stops at the last group asked for.  An expert's layer that is handed fewer tokens than it has inputs counts
        the missing ones as average tokens of the whole layer, from a second pass with those experts open; `few_tokens` tells
        how many it had.

        Shapes:  X [n, length, d_model]; groups of linear names, in calling order.
        Units:   see `Hessian`.
        Raises:  ValueError if a layer's input is not finite (message names the layer).
        Source:  GPTQ code (`true_sequential` when called once a group with the earlier groups' weights exchanged).
        Differs: experts with few tokens.
        """
        found = self._moments(X, [names[0] for names in groups], weights)
        routed = experts(self.module)
        few = {name: h for name, h in found.items() if name.rpartition(".")[0] in routed and h.n < len(h.sum)}
        self.few_tokens.update({name: h.n for name, h in few.items()})
        if few:
            with opened(self.module, few):
                typical = self._moments(X, list(few), weights)
            for name, h in few.items():
                h.top_up(typical[name], len(h.sum))
        return list(found.values())

    def _moments(self, X: Tensor, names: list[str], weights: dict[str, Tensor] | None) -> dict[str, Hessian]:
        """Hessians of the inputs of layers, in calling order, from one pass that stops at the last."""
        first = {name: Hessian(self.linears[name].in_features, X.device) for name in names}
        last = names[-1]

        def add(name: str, inputs: Tensor) -> None:
            with self.naming(name):
                first[name].add(inputs)
            if name == last:
                raise _Stop

        with self._watching(list(first), add):
            for i in range(0, len(X), self.batch):
                try:
                    self.forward(X[i : i + self.batch], weights)
                except _Stop:
                    pass
        return first

    @torch.no_grad()
    def inputs(self, x: Tensor, name: str, weights: dict[str, Tensor] | None = None) -> Tensor:
        """What one linear layer is handed when x flows into the block; an expert's layer, as if all tokens were sent to it.

        Shapes:  x [batch, length, d_model]; returns [batch * length, d_in].
        Units:   those of the activations.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        seen: list[Tensor] = []

        def keep(_: str, inputs: Tensor) -> None:
            seen.append(inputs)
            raise _Stop

        with self._watching([name], keep), opened(self.module, [name]):
            try:
                self.forward(x, weights)
            except _Stop:
                pass
        return seen[0].flatten(0, -2)

    def _watching(self, names: list[str], see: Callable[[str, Tensor], None]) -> _Hooks:
        return _Hooks([(self.linears[name], lambda m, args, name=name: see(name, args[0])) for name in names])


class _Hooks:
    """Forward pre-hooks that are gone when the `with` ends, whatever happens inside."""

    def __init__(self, wanted: list[tuple[nn.Module, Callable]], with_kwargs: bool = False) -> None:
        self.wanted, self.with_kwargs, self.handles = wanted, with_kwargs, []

    def __enter__(self) -> None:
        self.handles = [m.register_forward_pre_hook(f, with_kwargs=self.with_kwargs) for m, f in self.wanted]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def catch(model: nn.Module, ids: Tensor, batch: int = 4) -> tuple[list[Block], Tensor]:
    """The model's blocks, ready to run one by one, and what flows into the first of them.

    Shapes:  ids [n, length] int64; returns the blocks and X [n, length, d_model].
    Units:   those of the residual stream.
    Raises:  ValueError if the model has no list of equal blocks, or blocks whose weights are not linear layers.
    Source:  the "catcher" of the GPTQ code.
    Differs: catches every block's own arguments, so blocks may differ in mask or rotary table.
    """
    prefix, modules = layers(model)
    for module in modules:
        _check_linear(prefix, module)
    ids = ids.to(next(model.parameters()).device)
    caught: list[tuple[tuple, dict]] = [((), {}) for _ in modules]

    def keep(index: int) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            rest = {k: v for k, v in kwargs.items() if "past_key" not in k and k not in ("use_cache", "hidden_states")}
            caught[index] = (args[1:], rest)
        return hook

    with _Hooks([(m, keep(i)) for i, m in enumerate(modules)], with_kwargs=True):
        model(ids[:1], use_cache=False)
    blocks = [Block(m, i, f"{prefix}.{i}", *caught[i], batch, i == len(modules) - 1) for i, m in enumerate(modules)]
    first = _first_input(model, modules[0], ids[:1])
    X = first.new_empty(len(ids), *first.shape[1:])
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
        raise _Stop

    with _Hooks([(module, stop)], with_kwargs=True):
        try:
            model(ids, use_cache=False)
        except _Stop:
            pass
    return seen[0]
