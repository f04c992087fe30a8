"""One decoder block: its linear layers, which of them share an input, running it with exchanged weights, what flows in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowbit_nb import spill
from lowbit_nb.blocks.hooks import Hooks, Stop
from lowbit_nb.experts import experts, opened, routers
from lowbit_nb.hessian import Hessian


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
    compiled: ClassVar[bool] = True  # whether it is worth compiling where it is run many times

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

        Shapes:  X [n, length, d_model]; weights {linear name: [d_out, d_in]}; out may be X itself (overwritten), and lies
                 where X does if it is not given.
        Units:   those of the residual stream.
        Raises:  ValueError if an output is not finite (message names the block).
        Source:  this project.
        Differs: no difference.
        """
        out = spill.like(X) if out is None else out
        for i in range(0, len(X), self.batch):
            y = self.forward(X[i : i + self.batch], weights)
            if not torch.isfinite(y).all():
                raise ValueError(f"{self.name} gives non-finite outputs; run in float32 or bfloat16, "
                                 "or check the model's weights")
            out[i : i + self.batch] = y
            spill.forget(X, out)
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
        first = {name: Hessian(self.linears[name].in_features, spill.home(X)) for name in names}
        last = names[-1]

        def add(name: str, inputs: Tensor) -> None:
            with self.naming(name):
                first[name].add(inputs)
            if name == last:
                raise Stop

        with self._watching(list(first), add):
            for i in range(0, len(X), self.batch):
                try:
                    self.forward(X[i : i + self.batch], weights)
                except Stop:
                    pass
                spill.forget(X)
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
            raise Stop

        with self._watching([name], keep), opened(self.module, [name]):
            try:
                self.forward(x, weights)
            except Stop:
                pass
        return seen[0].flatten(0, -2)

    def _watching(self, names: list[str], see: Callable[[str, Tensor], None]) -> Hooks:
        return Hooks([(self.linears[name], lambda m, args, name=name: see(name, args[0])) for name in names])
