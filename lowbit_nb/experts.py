"""Mixtures of experts: fused experts unfolded into linear layers, with the same function.

Decoders with experts keep them as two tensors, gate_up_proj [E, 2 m, d] and down_proj [E, d, m].  Here each expert is three
linear layers of its own, which are views of those tensors, so that everything that knows linear layers knows experts.

A linear layer of an expert is called with the tokens that the router sent to it: maybe few, maybe none.  An *open* expert is
handed every token, those of others with weight 0: the same output, and inputs that can be looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """down(act(gate(x)) * up(x)).

    Source: this project. Differs: no difference.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (_linear(W) for W in gate_up.chunk(2))
        self.down_proj, self.act_fn, self.open = _linear(down), act_fn, False

    def forward(self, x: Tensor) -> Tensor:
        """What this expert makes of some tokens.

        Shapes:  x [n, d_model]; returns the same.
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Experts side by side, named "0", "1", ..., called as the fused module is.

    Source: the calling convention of transformers' experts modules. Differs: no difference.
    """

    def __init__(self, gate_up_proj: Tensor, down_proj: Tensor, act_fn: nn.Module) -> None:
        super().__init__()
        for i, (gate_up, down) in enumerate(zip(gate_up_proj, down_proj, strict=True)):
            self.add_module(str(i), Expert(gate_up, down, act_fn))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of what the chosen experts make of each token.

        Shapes:  hidden_states [n, d_model]; top_k_index, top_k_weights [n, k]; returns [n, d_model].
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  transformers' experts modules (eager).
        Differs: an open expert is handed all tokens, as a tensor object of its own.
        """
        out = torch.zeros_like(hidden_states)
        for i, expert in enumerate(self.children()):
            chosen = top_k_index == i
            if expert.open:
                share = (chosen * top_k_weights).sum(-1, keepdim=True)
                out = out + (expert(hidden_states.view_as(hidden_states)) * share).to(out.dtype)
                continue
            token, place = torch.where(chosen)
            if len(token):
                y = expert(hidden_states[token]) * top_k_weights[token, place, None]
                out = out.index_add(0, token, y.to(out.dtype))
        return out


def unfolded(model: nn.Module) -> nn.Module:
    """The model with every fused experts module as linear layers; the model itself if it has none.

    Names and shapes propose, a trial run decides: a module that computes otherwise (biases, clamps, other layouts) is left as
    it is, and will be refused later.

    Shapes:  a model in and out; parameters are shared with the original, which stays as it is.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: quantizers for transformers 4 met experts as linear layers; transformers 5 fuses them.
    """
    pairs = {name: Experts(m.gate_up_proj, m.down_proj, m.act_fn) for name, m in model.named_modules() if _fused(m)}
    pairs = {name: new for name, new in pairs.items() if _same(model.get_submodule(name), new)}
    if not pairs:
        return model
    fused = {id(model.get_submodule(name)): new for name, new in pairs.items()}
    return copy.deepcopy(model, memo=fused | {id(p): p for p in model.parameters()})


def experts(module: nn.Module) -> dict[str, Expert]:
    """All experts inside a module, by name.

    Shapes:  {name: expert}.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return {name: m for name, m in module.named_modules() if isinstance(m, Expert)}


def routers(module: nn.Module) -> list[nn.Module]:
    """What decides about experts and stays in full precision: neighbours of experts with one row an expert, or one row in all.

    The second kind weighs an expert that all tokens share.

    Shapes:  a list of modules with a weight [number of experts or 1, d_model].
    Units:   none.
    Raises:  nothing.
    Source:  this project: they are tiny and decide much.
    Differs: found by their place and shape, not by name.
    """
    found = []
    for owner in module.modules():
        counts = {len(list(m.children())) for m in owner.children() if isinstance(m, Experts)}
        weighed = [m for m in owner.children() if getattr(getattr(m, "weight", None), "ndim", 0) == 2] if counts else []
        found += [m for m in weighed if len(m.weight) in counts | {1}]
    return found


@contextmanager
def opened(module: nn.Module, layers: Iterable[str] | None = None) -> Iterator[None]:
    """Within this, experts are handed every token; the module's output stays the same.

    Shapes:  layers: names of linear layers whose experts are meant; None: all experts.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    wanted = None if layers is None else {name.rpartition(".")[0] for name in layers}
    chosen = [m for name, m in experts(module).items() if (wanted is None or name in wanted) and not m.open]
    try:
        for expert in chosen:
            expert.open = True
        yield
    finally:
        for expert in chosen:
            expert.open = False


def _linear(W: Tensor) -> nn.Linear:
    """A linear layer without bias whose weight is W itself."""
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(W.detach(), requires_grad=W.requires_grad)
    return linear


def _fused(module: nn.Module) -> bool:
    shapes = [getattr(getattr(module, name, None), "shape", ()) for name in ("gate_up_proj", "down_proj")]
    if len(shapes[0]) != 3 or len(shapes[1]) != 3 or not callable(getattr(module, "act_fn", None)):
        return False
    (E, rows, d), (E_down, d_down, m) = shapes
    return (E, rows, d) == (E_down, 2 * m, d_down)


@torch.no_grad()
def _same(fused: nn.Module, new: Experts) -> bool:
    """Whether both give the same for random tokens, for each expert an ordinary one and a large one (clamps would show)."""
    W = fused.gate_up_proj
    x = torch.randn(2 * len(W), W.shape[2], generator=torch.Generator().manual_seed(0)).to(W.device, W.dtype)
    x[len(W) :] *= 16
    index = torch.arange(len(W), device=W.device).repeat(2)[:, None]
    share = torch.linspace(0.5, 1.0, len(index), device=W.device, dtype=W.dtype)[:, None]
    try:
        y = fused(x, index, share).float()
    except (TypeError, RuntimeError):
        return False
    bound = 5e-2 if W.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool(((new(x, index, share).float() - y).norm(dim=-1) <= bound * y.norm(dim=-1)).all())
