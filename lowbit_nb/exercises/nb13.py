"""Exercises of 13_activations_lrquant: symmetric rulers of tokens, a norm that takes everything, a product of integers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.activations import round_tokens


def symmetric(attempt: Callable) -> None:
    """Against the package's symmetric rounding; tokens of zeros, and tokens that must not see each other."""
    for seed, (n, d, bits) in enumerate(((6, 9, 3), (5, 16, 4), (4, 12, 8))):
        g = torch.Generator().manual_seed(seed)
        X = torch.randn(n, d, generator=g) * torch.logspace(0, 0.3, n)[:, None]
        want = round_tokens(X, bits, symmetric=True)
        later = X.clone()
        later[-1] *= 100
        got, other = (torch.as_tensor(attempt(part.clone(), bits)) for part in (X, later))
        assert got.shape == X.shape, f"expected shape [{n}, {d}], got {list(got.shape)}"
        assert torch.equal(got[:-1], other[:-1]), "a token sees a later one: its ruler changed when another token grew"
        off = float(((got - want).abs() / X.abs().amax(1, keepdim=True)).max())
        marks = max(len(row.unique()) for row in got)
        wanted = f"whole multiples of s from -{2 ** (bits - 1) - 1} to {2 ** (bits - 1) - 1}"
        assert off < 1e-5, f"{bits} bits: off by up to {100 * off:.2g} % of a token's largest number; the marks are the " \
                           f"{wanted}, and a token of yours has {marks}"
    zeros = torch.cat([torch.zeros(1, 4), torch.ones(1, 4)])
    assert torch.equal(torch.as_tensor(attempt(zeros, 4)), zeros), "a token of zeros must stay one, and not become nan"


def fold(attempt: Callable) -> None:
    """The layer's input must be the one asked for, and its output the old one."""
    for seed, (n, d, d_out) in enumerate(((5, 4, 3), (7, 6, 8))):
        g = torch.Generator().manual_seed(seed)
        norm, gain, bias, delta = (torch.randn(*shape, generator=g).double() for shape in ((n, d), (d,), (d,), (d,)))
        W, c, f = torch.randn(d_out, d, generator=g).double(), torch.randn(d_out, generator=g).double(), _factors(d, g)
        changed = tuple(attempt(*(t.clone() for t in (gain, bias, W, c, f, delta))))
        assert len(changed) == 4, f"expected gain, bias, W and c; got {len(changed)} things"
        shapes = [tuple(t.shape) for t in changed]
        assert shapes == [tuple(t.shape) for t in (gain, bias, W, c)], f"gain, bias, W, c changed their shapes: {shapes}"
        x, sees = norm * gain + bias, norm * changed[0] + changed[1]
        off = float((sees - (x - delta) / f).abs().max())
        assert off < 1e-9, f"the layer's input must be (x - delta) / f; it is off by up to {off:.3g}"
        moved = float((sees @ changed[2].T + changed[3] - (x @ W.T + c)).abs().max())
        assert moved < 1e-9, f"the output moved by up to {moved:.3g}"


def product(attempt: Callable) -> None:
    """Against the product of dequantized matrices, term by term."""
    for seed, (n, d_out, d) in enumerate(((3, 4, 6), (6, 5, 16))):
        g = torch.Generator().manual_seed(seed)
        p, q = torch.randint(16, (n, d), generator=g), torch.randint(16, (d_out, d), generator=g)
        z_x, z_w = torch.randint(1, 15, (n,), generator=g), torch.randint(1, 15, (d_out,), generator=g)
        s_x, s_w = _factors(n, g), _factors(d_out, g)
        ones, none = (torch.ones(n).double(), torch.ones(d_out).double()), (torch.zeros_like(z_x), torch.zeros_like(z_w))
        for what, (sx, zx, sw, zw) in {
            "codes alone": (ones[0], none[0], ones[1], none[1]),
            "zero points of tokens": (ones[0], z_x, ones[1], none[1]),
            "zero points of weights": (ones[0], none[0], ones[1], z_w),
            "both zero points": (ones[0], z_x, ones[1], z_w),
            "steps": (s_x, z_x, s_w, z_w),
        }.items():
            want = (sx[:, None] * (p - zx[:, None])) @ (sw[:, None] * (q - zw[:, None])).T
            got = torch.as_tensor(attempt(p.clone(), sx.clone(), zx.clone(), q.clone(), sw.clone(), zw.clone()))
            assert got.shape == want.shape, f"expected shape [{n}, {d_out}], got {list(got.shape)}"
            off = float((got.double() - want).abs().max())
            assert off < 1e-8, f"{what}: off by up to {off:.3g}"


def _factors(n: int, g: torch.Generator) -> Tensor:
    return torch.exp(0.5 * torch.randn(n, generator=g).double())


EXERCISES = {"activations-1": symmetric, "activations-2": fold, "activations-3": product}
