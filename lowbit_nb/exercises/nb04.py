"""Exercises of 04_scaling_and_salient_channels: what a norm absorbs, factors for grouped queries, AWQ's search from H."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.grid import Grid
from lowbit_nb.stored import AffineWeight
from lowbit_nb.transforms import Site, salience


def _layer(d_out: int, d_in: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs of very different sizes that move together, and H, all float64."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=g, dtype=torch.float64)
    mix = torch.eye(d_in, dtype=torch.float64) + 0.3 * torch.randn(d_in, d_in, generator=g, dtype=torch.float64)
    X = torch.randn(8 * d_in, d_in, generator=g, dtype=torch.float64) @ mix
    X = X * torch.exp(torch.randn(d_in, generator=g, dtype=torch.float64))
    return W, X, X.T @ X / len(X)


def absorb(attempt: Callable) -> None:
    """The layer behind the norm must give the same outputs, from inputs that were really divided."""
    for d_out, d_in, seed in ((4, 4, 0), (3, 6, 1), (5, 2, 2)):
        W, X, _ = _layer(d_out, d_in, seed)
        gain, f = X[0].abs() + 0.5, X[1].abs() + 0.5
        given = gain.clone(), W.clone(), f.clone()
        got_gain, got_W = attempt(*given)
        kept = all(torch.equal(a, b) for a, b in zip(given, (gain, W, f), strict=True))
        assert kept, "return new tensors: those you were given were changed in place"
        sizes = tuple(got_gain.shape), tuple(got_W.shape)
        assert sizes == ((d_in,), (d_out, d_in)), f"expected shapes {(d_in,)} and {(d_out, d_in)}, got {sizes}"
        by_row = d_out == d_in and torch.allclose(got_W, W * f[:, None])
        assert not by_row, "these are factors for rows of W: an input channel is a column"
        outputs, before = (X * got_gain) @ got_W.T, (X * gain) @ W.T
        wrong = float((outputs - before).abs().max())
        assert wrong < 1e-9, f"the layer's output changes by up to {wrong:.2g}: inputs are divided, weights multiplied"
        assert torch.allclose(got_gain * f, gain), "the output is right, but the inputs are not divided by f"


def share(attempt: Callable) -> None:
    """Against the site's own gathering and expanding."""
    for n_kv, repeat, head_dim, seed in ((2, 2, 2, 0), (3, 2, 4, 1), (1, 4, 3, 2), (2, 1, 5, 3)):
        wanted = torch.rand(n_kv * repeat * head_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
        site = Site("v", ("o",), "linear", repeat, head_dim)
        for_v, for_o = (torch.as_tensor(part) for part in attempt(wanted.clone(), repeat, head_dim))
        assert for_v.shape == (n_kv * head_dim,), f"v has {n_kv * head_dim} channels, one factor each; got {tuple(for_v.shape)}"
        assert for_o.shape == wanted.shape, f"o has {len(wanted)} inputs, one factor each; got {tuple(for_o.shape)}"
        largest = torch.equal(for_v, site.gather(wanted))
        assert largest, "channels of v: take the largest over the query heads that read the same one"
        tied = torch.equal(for_o, site.expand(for_v))
        assert tied, "inputs of o that read the same channel of v must have its factor"


def search(attempt: Callable) -> None:
    """Against the errors of all 20 exponents by the package's rounding."""
    for d_out, bits, g, seed in ((4, 2, 8, 0), (6, 3, 16, 1), (3, 4, 8, 2)):
        W, _, H = _layer(d_out, 32, seed)
        errors = []
        for k in range(20):
            f = salience(H.diagonal().sqrt(), k / 20)
            E = W - AffineWeight.nearest(W * f, Grid(bits, g, scale_dtype="float32")).dequantize() / f
            errors.append(float((E @ H * E).sum()))
        alpha, error = (float(x) for x in attempt(W.clone(), H.clone(), bits, g))
        k = round(20 * alpha)
        assert 0 <= k < 20 and abs(20 * alpha - k) < 1e-6, f"alpha={alpha:g} is not one of 0, 1/20, ..., 19/20"
        place = f"{bits} bits, alpha={alpha:g}"
        assert abs(error / errors[k] - 1) < 1e-3, f"{place}: {error:.4g} is not the error of that exponent, {errors[k]:.4g}"
        best = errors[k] <= min(errors) * (1 + 1e-3)
        assert best, f"{place} is not the best exponent: {errors[k]:.4g}, and {min(errors):.4g} is possible"


EXERCISES = {"scaling-1": absorb, "scaling-2": share, "scaling-3": search}
