"""A sample of a layer, smoothed and rounded at every setting: the numbers of the smoothing explorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowbit_nb.activations.tokens import FULL, round_tokens
from lowbit_nb.grid import Grid
from lowbit_nb.methods.lrquant import log_start
from lowbit_nb.stored import AffineWeight
from lowbit_nb.transforms import smoothing

EXPONENTS = tuple(i / 20 for i in range(21))
BASES = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0)
POINTS = (("none", 1.0), *(("exponent", a) for a in EXPONENTS), *(("logarithm", b) for b in BASES))
WIDTHS = (3, 4, 6, 8, FULL)


def factors(kind: str, parameter: float, a: Tensor, w: Tensor) -> Tensor:
    """What each channel is divided by; its weights are multiplied by it. a, w [d]: largest |x| and |w| of every channel.

    Source: SmoothQuant, Eq. 4; LRQuant, Sec. 3.1. Differs: worked out in float64, so that a browser finds the same float32.
    """
    if kind == "none":
        return torch.ones_like(a)
    s = smoothing(a.double(), w.double(), parameter) if kind == "exponent" else log_start(a.double(), parameter)
    return s.float()


@dataclass(frozen=True)
class Survey:
    """A sample of a layer, and its output error at every setting.

    a, w      [d] largest |x| and |w| of each input, over all tokens and rows
    tokens    [T] how many tokens each one stands for        rows     [R] how many rows
    massive   [T] which of them are massive                  errors   [all or ordinary tokens, bits of x, bits of w, point]

    Source, Differs: this project.
    """

    X: Tensor
    W: Tensor
    a: Tensor
    w: Tensor
    tokens: Tensor
    rows: Tensor
    massive: Tensor
    group: int
    widths: tuple[int, ...]
    errors: np.ndarray

    def error(self, point: int, bits: int, bits_w: int | None = None, ordinary: bool = False) -> float:
        at = self.widths.index(bits), self.widths.index(bits if bits_w is None else bits_w)
        return float(self.errors[int(ordinary), *at, point])

    def best(self, kind: str, bits: int) -> int:
        """The point of that kind with the least error; of equals the first."""
        return min((p for p, (k, _) in enumerate(POINTS) if k == kind), key=lambda p: self.error(p, bits))

    def smoothed(self, point: int) -> tuple[Tensor, Tensor]:
        """Channel maxima after smoothing."""
        s = factors(*POINTS[point], self.a, self.w)
        return self.a / s, self.w * s


def rounded(X: Tensor, W: Tensor, s: Tensor, bits: int, bits_w: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """The smoothed layer, rounded: inputs per token, weights to nearest. X [T, d]; W [R, d]; s [d]; both in 16 bits: as is."""
    if bits == bits_w == FULL:
        return X, W
    X_hat = X / s if bits == FULL else round_tokens(X / s, bits)
    return X_hat, W * s if bits_w == FULL else AffineWeight.nearest(W * s, Grid(bits_w, group)).dequantize()


def survey(X: Tensor, W: Tensor, a: Tensor, w: Tensor, tokens: Tensor, rows: Tensor, massive: Tensor, group: int,
           widths: Sequence[int]) -> Survey:
    """The sample at every setting; an error is the share of the output's squares, every token and row counted as often as it
    stands for others."""
    Y, n, (T, R) = X.double() @ W.double().T, len(widths), (len(X), len(W))
    counts = torch.stack([tokens, tokens * ~massive]).double()  # all tokens, ordinary tokens
    power = (counts @ Y.square() @ rows.double()).clamp(min=0)
    if not (power > 0).all():
        raise ValueError("the layer's output is zero on these tokens, so no share of it can be told")
    errors = np.zeros((2, n, n, len(POINTS)))
    for p, (kind, parameter) in enumerate(POINTS):
        s = factors(kind, parameter, a, w)
        both = [rounded(X, W, s, bits, bits, group) for bits in widths[:-1]] + [(X / s, W * s)]
        X_hat, W_hat = (torch.cat(parts).double() for parts in zip(*both, strict=True))
        E = (X_hat @ W_hat.T).reshape(n, T, n, R).transpose(1, 2) - Y
        errors[..., p] = (torch.einsum("ct,abtr,r->cab", counts, E.square_(), rows.double()) / power[:, None, None]).numpy()
    errors[:, -1, -1] = 0  # nothing is rounded
    return Survey(X, W, a, w, tokens, rows, massive, group, tuple(widths), errors)


def spread(size: Tensor, most: int, first: int | None = None) -> tuple[Tensor, Tensor]:
    """All of them, or `most`: the `first` largest and evenly spaced others; and how many each stands for."""
    first = few(most) if first is None else first
    if len(size) <= most:
        return torch.arange(len(size)), torch.ones(len(size))
    top = torch.zeros(len(size), dtype=torch.bool)
    top[size.argsort(descending=True, stable=True)[:first]] = True
    rest, room = (~top).nonzero().flatten(), most - first
    some = rest[torch.linspace(0, len(rest) - 1, room).round().long()]
    counts = torch.ones(len(size)).index_fill_(0, some, len(rest) / max(1, room))
    at = torch.cat([top.nonzero().flatten(), some]).sort().values
    return at, counts[at]


def few(most: int, wanted: int = 0) -> int:
    """How many of a sample are the largest ones: an eighth, or as many as wanted, up to half."""
    return max(1, most // 8, min(wanted, most // 2))
