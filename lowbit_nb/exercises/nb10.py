"""Exercises of 10_ptq161: the bill, a kernel on bits, the gradient of the angle."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.grid import Grid
from lowbit_nb.objectives import nlc
from lowbit_nb.onebit.channels import salient_channels
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.signfit import start_scales
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.stored import AffineWeight


def honest(attempt: Callable) -> None:
    """Against bits() of weights that were really stored."""
    for d_out, d_in, n_high, bits in ((64, 128, 32, 4), (96, 64, 32, 8), (128, 256, 64, 2)):
        want = _stored(d_out, d_in, n_high, bits)[0].bits().per_weight
        got = float(attempt(d_out, d_in, n_high, bits))
        size = f"{d_out} x {d_in} weights, {n_high} channels of {bits} bits"
        assert got > want - 1e-9, f"{size}: {got:.4f} bits a weight are too few; {want:.4f} are on disk"
        assert got < want + 1e-9, f"{size}: {got:.4f} bits a weight are too many; {want:.4f} are on disk"


def product(attempt: Callable) -> None:
    """Against the product with the dequantized weight, part by part."""
    for seed, (d_out, d_in, n_high) in enumerate(((3, 5, 2), (8, 12, 4), (6, 16, 5))):
        weight, x = _stored(d_out, d_in, n_high, 4, seed)
        salient, high, low = weight.salient, weight.high, weight.low
        scales = [t.double() for t in (low.a[:, 0], low.mu[:, 0], low.v)]
        W_hat = weight.dequantize(torch.float64)
        for part, where in ((salient, "salient channels"), (~salient, "signs"), (salient | ~salient, "both parts")):
            some = x.double() * part
            got = torch.as_tensor(attempt(some.clone(), salient.clone(), high.q.double(), high.s[:, 0].double(),
                                          high.zero[:, 0].double(), low.sign.double(), *(t.clone() for t in scales)))
            assert got.shape == (d_out,), f"expected {d_out} outputs, got shape {tuple(got.shape)}"
            wrong = float((got - W_hat @ some).abs().max())
            assert wrong < 1e-4, f"inputs that meet {where} only: off by up to {wrong:.3g}"


def slope(attempt: Callable) -> None:
    """Against autograd through the package's nlc, for outputs that point the target's way and against it."""
    for sign, n, d in ((1, 1, 4), (1, 6, 8), (-1, 5, 3)):
        g = torch.Generator().manual_seed(n)
        T = torch.randn(n, d, generator=g)
        Y = (sign * T * 2 + 0.7 * torch.randn(n, d, generator=g)).requires_grad_()
        want = torch.autograd.grad(nlc(Y[None], T[None]), Y)[0]
        got = torch.as_tensor(attempt(Y.detach().clone(), T.clone()))
        assert got.shape == want.shape, f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
        along = float((got * Y.detach()).sum(1).abs().max())
        assert along < 1e-4, f"the gradient has a part along the output (up to {along:.3g}); the angle does not see lengths"
        gap, factor = float((got - want).abs().max()), float(got.norm() / want.norm())
        same = torch.allclose(got / got.norm(), want / want.norm(), atol=1e-4)
        assert gap < 1e-4 or not same, f"{n} tokens: right in direction, wrong by a factor of {factor:.3g}"
        kind = "negative" if sign < 0 else "positive"
        assert gap < 1e-4, f"{n} tokens, cosines {kind}: off by up to {gap:.3g}"


def _stored(d_out: int, d_in: int, n_high: int, bits: int, seed: int = 0) -> tuple[MixedWeight, Tensor]:
    """A random layer in its stored form, and an input."""
    g = torch.Generator().manual_seed(seed)
    W, x = torch.randn(d_out, d_in, generator=g) + 0.2, torch.randn(d_in, generator=g)
    salient = salient_channels(torch.rand(d_in, generator=g), n_high)
    a, mu, v = start_scales(W[:, ~salient], "weight")
    low = SignWeight.of(W[:, ~salient] >= mu[:, None], a[:, None], mu[:, None], v)
    return MixedWeight.of(salient, AffineWeight.nearest(W[:, salient], Grid(bits)), low), x


EXERCISES = {"ptq161-1": honest, "ptq161-2": product, "ptq161-3": slope}
