"""What the end loss says about a layer's inputs: the output-adaptive Hessian.

`hessian.Hessian` asks how much a layer's own output changes.  Here the question is how much the model's cross-entropy changes.
With X [T, d_in] what a layer is handed in one sequence and A [T, d_out] the gradient of the loss at its output,

    G = A.T @ X            the gradient of its weight, never kept by autograd
    H = mean of G.T @ G = mean of X.T @ (A @ A.T) @ X          over sequences

so it is X.T @ X with a kernel between the tokens: the identity gives the input Hessian back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowbit_nb.blocks import Block
from lowbit_nb.experts import experts, opened

FORMS = ("auto", "direct", "gram", "sketch", "tokens")
LABELS = ("data", "sampled")
HALVES = (torch.float16, torch.bfloat16)
RANK = 64  # rows of the random-sign sketch


@dataclass
class LossMetric:
    """How to ask the loss about a model's linear layers.

    form    direct: G.T @ G; gram: X.T @ (A @ A.T) @ X, the same number; auto: whichever multiplies less; sketch: a random-sign
            estimate of RANK rows a sequence; tokens: A @ A.T without its off-diagonal, that is X.T @ X weighted by |a|**2
    labels  data: the tokens that follow; sampled: drawn from the model itself (the true Fisher)
    batch   sequences at once; products are taken sequence by sequence all the same
    scale   the loss is multiplied by this before it is differentiated, and H divided by its square: a power of two keeps
            float16 gradients above their smallest number

    Source: OAC, Sec. 3 (row-wise aggregation); the tokens form is GuidedQuant's with one group.
    Differs: all layers from one backward pass; the other forms.
    """

    form: str = "auto"
    labels: str = "data"
    batch: int = 4
    scale: float = 1.0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0), repr=False)

    def __post_init__(self) -> None:
        for name, known in {"form": FORMS, "labels": LABELS}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if self.batch < 1 or not self.scale > 0:
            raise ValueError(f"batch={self.batch} and scale={self.scale} must be positive")

    def hessians(self, model: nn.Module, ids: Tensor, linears: dict[str, nn.Linear], block: Block | None = None,
                 X: Tensor | None = None) -> dict[str, Tensor]:
        """The output-adaptive Hessian of each layer given, from one forward and backward pass over the windows.

        With a block and X the model is entered there: X flows into that block instead of what the model makes itself, so
        the blocks before may be quantized ones.  Experts are open: tokens of others have gradient 0.  An expert that no token
        reached has the identity: the loss has nothing to say about it.

        Shapes:  ids [n, length]; X [n, length, d_model] or None; returns {name: [d_in, d_in]}, float32 or wider.
        Units:   loss (nats, summed over a sequence) per weight, squared; mean over sequences.
        Raises:  ValueError if a gradient is not finite (message names the layer) or a layer is not reached by the loss.
        Source:  OAC, Sec. 3.2.
        Differs: the mean over rows of the paper is a sum here: solvers do not care.
        """
        sums: dict[str, Tensor] = {}
        length = ids.shape[1]
        hooks = [linear.register_forward_hook(partial(self._tap, name, sums, length)) for name, linear in linears.items()]
        entry = block.module if block is not None else model.get_input_embeddings()
        try:
            for i in range(0, len(ids), self.batch):
                part = slice(i, i + self.batch)
                with _Entrance(entry, None if X is None else X[part]) as door, opened(model):
                    torch.autograd.backward(self._loss(model, ids[part]), inputs=[door.start])
        finally:
            for hook in hooks:
                hook.remove()
        if missing := [name for name in linears if name not in sums]:
            raise ValueError(f"the loss does not reach {', '.join(missing)}; ask for layers behind the entrance only")
        routed = {id(linear) for expert in experts(model).values() for linear in expert.children()}
        for name in [name for name, H in sums.items() if id(linears[name]) in routed and not H.any()]:
            sums[name].fill_diagonal_(1.0)
        return {name: H / (len(ids) * self.scale**2) for name, H in sums.items()}

    @torch.enable_grad()
    def _loss(self, model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = ids[:, 1:].flatten()
        if self.labels == "sampled":
            up_to = logits.detach().softmax(-1).cumsum(-1)
            u = torch.rand(len(logits), 1, generator=self.generator, device=self.generator.device).to(up_to) * up_to[:, -1:]
            labels = torch.searchsorted(up_to, u, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return self.scale * cross_entropy(logits, labels, reduction="sum")

    def _tap(self, name: str, sums: dict[str, Tensor], length: int, _: nn.Module, args: tuple, y: Tensor) -> None:
        """Wait for the gradient at this output, and meet it with the input."""
        if not y.requires_grad:
            return
        x, wide = args[0].detach(), torch.promote_types(y.dtype, torch.float32)

        def take(a: Tensor) -> None:
            if not torch.isfinite(a).all():
                raise ValueError(f"{name}: the gradient at its output is not finite; lower scale={self.scale:g}")
            with _tensor_cores(a.dtype in HALVES):
                H = self._product(*(t.to(wide).reshape(-1, length, t.shape[-1]) for t in (x, a)))  # OPT flattens its tokens
            sums[name] = sums[name].add_(H) if name in sums else H

        y.register_hook(take)

    def _product(self, x: Tensor, a: Tensor) -> Tensor:
        """Sum over a batch of sequences of X.T (A A.T) X; x [batch, T, d_in], a [batch, T, d_out]."""
        (_, T, n), m = x.shape, a.shape[-1]
        form = self.form
        if form == "auto":
            form = "gram" if T * T * (m + n) + T * n * n < T * m * n + m * n * n else "direct"
        if form == "tokens":
            x = (x * a.norm(dim=-1, keepdim=True)).flatten(0, 1)
            return x.T @ x
        if form == "gram":
            return torch.einsum("bti,btj->ij", x, (a @ a.mT) @ x)
        if form == "sketch":
            signs = torch.randint(0, 2, (len(a), m, RANK), generator=self.generator, device=self.generator.device)
            a = a @ (signs.to(a) * 2 - 1).mul_(RANK**-0.5)
        G = (a.mT @ x).flatten(0, 1)
        return G.T @ G


@contextmanager
def _tensor_cores(use: bool) -> Iterator[None]:
    """Products of tensors that came in a half type may run on a GPU's tensor cores: TF32 holds such numbers exactly."""
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if use else was)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(was)


class _Entrance:
    """Where gradients begin: at the output of the embedding, or at what is handed to a block (replaced by x)."""

    def __init__(self, entry: nn.Module, x: Tensor | None) -> None:
        self.entry, self.x = entry, x
        self.start: Tensor | None = None

    def __enter__(self) -> _Entrance:
        hook = self.entry.register_forward_hook if self.x is None else self.entry.register_forward_pre_hook
        self.handle = hook(self._embedded) if self.x is None else hook(self._replaced, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _embedded(self, _: nn.Module, __: tuple, y: Tensor) -> Tensor:
        self.start = y.detach().requires_grad_()
        return self.start

    def _replaced(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self.start = self.x.detach().requires_grad_()
        return (self.start, *args[1:]), {k: v for k, v in kwargs.items() if k != "hidden_states"}


@dataclass
class LossView:
    """The metric of one run, block by block: from one pass over the original model, or each block behind the quantized ones.

    Source: OAC, Alg. 1 (sequential). Differs: the single pass, or one for every few blocks where memory is short.
    """

    metric: LossMetric
    model: nn.Module
    ids: Tensor
    blocks: list[Block]
    sequential: bool = False
    seed: int = 0
    at_once: int | None = None  # blocks whose Hessians are held together; None: all
    known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, block: Block, X: Tensor | None) -> dict[str, Tensor]:
        """The Hessians of one block's layers, by their names inside it.

        Shapes:  X [n, length, d_model], what flows into the block, for the sequential schedule.
        Units:   as `LossMetric.hessians`.
        Raises:  ValueError as `LossMetric.hessians`.
        Source:  OAC, Alg. 1.
        Differs: no difference.
        """
        self.metric.generator.manual_seed(self.seed + block.index * self.sequential)  # a run that goes on draws the same
        if self.sequential:
            found = self.metric.hessians(self.model, self.ids, _named([block]), block, X)
        else:
            if not _named([block]).keys() <= self.known.keys():
                few = self.at_once or len(self.blocks)
                first = block.index // few * few
                self.known = self.metric.hessians(self.model, self.ids, _named(self.blocks[first : first + few]))
            found = {name: self.known.pop(name) for name in _named([block])}
        return {name.removeprefix(f"{block.name}."): H for name, H in found.items()}


def _named(blocks: list[Block]) -> dict[str, nn.Linear]:
    return {f"{block.name}.{name}": linear for block in blocks for name, linear in block.linears.items()}
