"""One optimiser step, again and again: as it is written on the CPU, captured once and replayed on a GPU.

A step of a small block is hundreds of kernels that each take longer to launch than to run.  Captured as one graph, forward,
backward and Adam run without Python in between.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]  # of the numbers of the windows in a minibatch


class Steps:
    """Adam on some groups of variables, begun anew whenever asked.

    groups  {"params", "role", "weight_decay"} each      rates  {role: learning rate}

    Source: this project. Differs: no difference.
    """

    def __init__(self, loss: Loss, groups: list[dict], rates: dict[str, float]) -> None:
        self.loss, self.groups, self.rates = loss, groups, rates

    def restart(self, speed: float = 1.0) -> None:
        """Forget the moments; go on at `speed` times the rates.

        Shapes:  none.
        Units:   a factor.
        Raises:  nothing.
        Source:  TesseraQ code: a new optimiser every round.
        Differs: no difference.
        """
        self.optimiser = _adam(self.groups, {role: rate * speed for role, rate in self.rates.items()})

    def take(self, pick: Tensor) -> Tensor:
        """One step on the windows picked; returns the loss before it.

        Shapes:  pick [batch] int64; returns a scalar.
        Units:   those of the loss.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        loss = self.loss(pick)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach()


class CapturedSteps(Steps):
    """The same step as a CUDA graph; variables, moments and rates are changed in place between replays.

    Source: CUDA graphs of PyTorch. Differs: no difference.
    """

    WARM = 3

    def __init__(self, loss: Loss, groups: list[dict], rates: dict[str, float], pick: Tensor) -> None:
        super().__init__(loss, groups, rates)
        self.pick = pick.clone()
        self.optimiser = _adam(groups, {role: torch.tensor(float(rate), device=pick.device) for role, rate in rates.items()},
                               capturable=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARM):
                super().take(self.pick)
        torch.cuda.current_stream().wait_stream(side)
        self.optimiser.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with _capturing(self.graph):
            self.out = super().take(self.pick)

    def restart(self, speed: float = 1.0) -> None:
        """Forget the moments, in place; go on at `speed` times the rates.

        Shapes:  none.
        Units:   a factor.
        Raises:  nothing.
        Source:  TesseraQ code: a new optimiser every round.
        Differs: no difference.
        """
        for state in self.optimiser.state.values():
            for tensor in state.values():
                tensor.zero_()
        for group in self.optimiser.param_groups:
            group["lr"].fill_(self.rates[group["role"]] * speed)

    def take(self, pick: Tensor) -> Tensor:
        """One step on the windows picked, replayed; returns the loss before it.

        Shapes:  pick [batch] int64, of the size captured; returns a scalar.
        Units:   those of the loss.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        self.pick.copy_(pick)
        self.graph.replay()
        return self.out.clone()


def steps(loss: Loss, groups: list[dict], rates: dict[str, float], pick: Tensor) -> Steps:
    """Captured steps where the windows are on a GPU, plain ones elsewhere.

    Shapes:  pick [batch] int64: any minibatch, as an example.
    Units:   none.
    Raises:  what the loss raises; a block that cannot be captured (it waits for the GPU in its forward pass) is run plainly.
    Source:  this project.
    Differs: no difference.
    """
    if not pick.is_cuda:
        return Steps(loss, groups, rates)
    variables = [p for g in groups for p in g["params"]]
    before = [p.detach().clone() for p in variables]
    try:
        return CapturedSteps(loss, groups, rates, pick)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "CUDA error" in str(error) and "captur" not in str(error):
            raise  # the device, not the capture
        warnings.warn(f"a step of this block cannot be captured and runs slower: {error}", stacklevel=2)
        return Steps(loss, groups, rates)
    finally:  # warming up has taken steps
        with torch.no_grad():
            for p, was in zip(variables, before, strict=True):
                p.copy_(was)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """A capture while Python's collector rests, since a graph that it destroys would break this one."""
    on, stream = gc.isenabled(), torch.cuda.current_stream()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            yield
    except BaseException:
        torch.cuda.set_stream(stream)  # a capture that fails at its end stays on its own
        raise
    finally:
        if on:
            gc.enable()


def _adam(groups: list[dict], rates: dict, capturable: bool = False) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": g["params"], "role": g["role"], "lr": rates[g["role"]],
                              "weight_decay": g.get("weight_decay", 0.0)} for g in groups], fused=True, capturable=capturable)
