"""Exercises of 08_outliers_spqr: the bill, a product for both formats, two refits for all rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.bilevel import Second
from lowbit_nb.grid import Grid
from lowbit_nb.methods.spqr import SpQR
from lowbit_nb.outliers import leave_one_out


def total_bits(attempt: Callable) -> None:
    """Against bits() of weights that were really stored, without and with outliers."""
    sizes = ((64, 128, 3, 16, 16), (32, 64, 4, 16, 8), (128, 64, 2, 32, 32))
    for threshold in (math.inf, 0.1):
        for d_out, d_in, bits, g, rows in sizes:
            W = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(d_out))
            method = SpQR(Grid(bits, group=g, zero_inside=False), Second(3, 3, rows), threshold)
            stored, _ = method.quantize_layer(W, torch.eye(d_in))
            n, want = len(stored.values), stored.bits().bits
            got = attempt(d_out, d_in, bits, g, rows, n)
            size = f"{d_out} x {d_in} weights, {bits} bits, g = {g}, {rows} rows"
            bare = attempt(d_out, d_in, bits, g, rows, 0) == want - 32 * n
            assert bare, f"{size}: {got} bits, {want} on disk; it is wrong even without outliers ({n} here)"
            assert got == want, f"{size}, {n} outliers: {got} bits, {want} on disk; each outlier takes 32 bits"


def product(attempt: Callable) -> None:
    """Against the product with the matrix that each reading means."""
    g = torch.Generator().manual_seed(1)
    for d_out, d_in, share in ((3, 5, 0.3), (8, 12, 0.2), (6, 4, 0.5)):
        *rows, x = torch.randn(d_out + 1, d_in, generator=g, dtype=torch.float64)
        dense = torch.stack(rows)
        mask = torch.rand(d_out, d_in, generator=g) < share
        mask[1] = False  # a row without outliers
        values = torch.randn(int(mask.sum()), generator=g, dtype=torch.float64)
        ptr = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
        cols = mask.nonzero()[:, 1]
        for replace in (False, True):
            given, W = dense.clone(), dense.clone()
            W[mask] = values if replace else W[mask] + values
            got = torch.as_tensor(attempt(given, ptr, cols, values.clone(), x.clone(), replace))
            assert torch.equal(given, dense), "dense was changed; the next call would read it"
            assert got.shape == (d_out,), f"expected {d_out} outputs, got shape {tuple(got.shape)}"
            wrong = float((got - W @ x).abs().max())
            twice = dense.masked_fill(~mask, 0.0)
            double = replace and float((got - (W + twice) @ x).abs().max()) < 1e-9 and wrong > 1e-9
            assert not double, "replace: the dense values of outliers are counted twice"
            assert wrong < 1e-9, f"{'replacements' if replace else 'corrections'} are read wrong: off by up to {wrong:.3g}"


def gains(attempt: Callable) -> None:
    """Against the package's leave_one_out."""
    for n, g, q_max, seed in ((1, 3, 3, 0), (20, 8, 3, 1), (50, 16, 7, 2)):
        G, cost = _groups(n, g, seed)
        want = leave_one_out(G, cost, q_max)
        got = torch.as_tensor(attempt(G.clone(), cost.clone(), q_max))
        assert got.shape == want.shape, f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
        ends = torch.zeros_like(G, dtype=torch.bool)
        ends.scatter_(1, G.argmin(1, keepdim=True), True).scatter_(1, G.argmax(1, keepdim=True), True)
        for mask, where in ((~ends, "inside its group"), (ends, "at the end of its group")):
            gap = float((got - want)[mask].abs().max())
            assert gap < 1e-9, f"the gain of a weight {where} is off by up to {gap:.3g} (groups of {g}, q_max {q_max})"


def _groups(n: int, g: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(n, g, generator=draw, dtype=torch.float64),
            torch.rand(g, generator=draw, dtype=torch.float64) + 0.2)


EXERCISES = {"spqr-1": total_bits, "spqr-2": product, "spqr-3": gains}
