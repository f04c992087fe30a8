"""Exercises of 15_packed_kernels: a budget of instructions, digits without an error, a product in integers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lowbit_nb import packing

MOST = 127 * (1 + 256 + 65536)  # the largest number that three signed digits reach


def budget(attempt: Callable) -> None:
    """Against the bytes of a layer, stored item by item."""
    for bits, group, kept in ((16, math.inf, 0.0), (2, 128, 0.0), (1, 64, 0.0), (3, 32, 0.01)):
        for read, rate in ((4e12, 32e12), (1e11, 5e11)):
            n = 3200 * 64
            size = n * bits // 8 + 2 * n / group + 4 * n * kept
            want, got = size / read * rate / n, attempt(bits, group, read, rate, kept)
            case = f"bits={bits}, group={group}, kept={kept}"
            assert isinstance(got, (int, float)), f"{case}: expected a number of slots, got {got!r}"
            hint = "; it is 8 times too much: `read` is in bytes" if math.isclose(got, 8 * want) else ""
            assert math.isclose(got, want, rel_tol=1e-9), f"{case}: {want:.4g} slots, not {got:.4g}{hint}"


def exact_digits(attempt: Callable) -> None:
    """Float16 numbers must come back as they are, with the smallest step that holds the largest of them."""
    g = torch.Generator().manual_seed(0)
    draws = [torch.randn(40, generator=g), 1e-3 * torch.randn(9, generator=g), torch.tensor([1.0, -0.5]), torch.tensor([-0.25])]
    drawn = [[v for v in t.half().double().tolist() if abs(v) > 2.0**-12 * float(t.abs().max())] for t in draws]
    for x in (*drawn, [MOST * 2.0**-20], [MOST * 2.0**-20 + 2.0**-20], [-MOST * 2.0**-20, 1.0]):
        step, digits = attempt(list(x))
        top = max(abs(v) for v in x)
        case = f"largest number {top:.6g}"
        assert math.frexp(step)[0] == 0.5, f"{case}: the step {step:.6g} is not a power of two"
        assert len(digits) == len(x) and all(len(three) == 3 for three in digits), f"{case}: three digits a number, please"
        assert all(-128 <= d <= 127 for three in digits for d in three), f"{case}: a digit is outside -128 to 127"
        off = max(abs(v - step * (a + 256 * b + 65536 * c)) for v, (a, b, c) in zip(x, digits, strict=True))
        assert off == 0, f"{case}: step times the digits is off by up to {off:.3g}"
        assert math.floor(2 * top / step + 0.5) > MOST, f"{case}: {step:.6g} is not the smallest step; half the step would do"


def product(attempt: Callable) -> None:
    """Against the product of the dequantized weight, with more and more that matters."""
    g = torch.Generator().manual_seed(0)
    for d_out, n, group in ((3, 4, 64), (5, 4, 8), (4, 8, 16), (2, 2, 2)):
        d_in = 16 * n
        q = torch.randint(0, 4, (d_out, d_in), generator=g)
        q[0] = 3  # words with their top bit set
        digits = torch.randint(-128, 128, (d_in, 3), generator=g)
        s = torch.rand(d_out, d_in // group, generator=g).double() + 0.5
        zeros, words = torch.randint(1, 4, s.shape, generator=g).double(), packing.pack(q, 2)
        for step, z, low in ((1.0, 0 * zeros, True), (1.0, 0 * zeros, False), (1.0, zeros, False), (2.0**-9, zeros, False)):
            d = digits * torch.tensor([1, 0, 0]) if low else digits
            x = step * (d @ torch.tensor([1, 256, 65536])).double()
            W_hat = (q - z.repeat_interleave(group, 1)) * s.repeat_interleave(group, 1)
            want, got = W_hat @ x, torch.as_tensor(attempt(words.clone(), d.clone(), step, s.clone(), z.clone(), group))
            assert got.shape == want.shape, f"y has shape {tuple(got.shape)}, not {tuple(want.shape)}"
            why = ("one plane, one group" if low else "256 and 65536 belong to the second and third digit" if not z.any() else
                   "the zero point" if step == 1 else "the step of x")
            gap = float((got.double() - want).abs().max() / want.abs().max())
            assert gap < 1e-9, f"group {group} of {d_in} columns: off by {gap:.2g} of the largest; {why}"


EXERCISES = {"packed-1": budget, "packed-2": exact_digits, "packed-3": product}
