"""Exercises of 01_grids_and_bits: the honest price, a better search, the best step for given codes."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import torch

from lowbit_nb.grid import Grid
from lowbit_nb.stored import AffineWeight

ZERO = {"integer": {}, "real": {"zero_inside": False}, "none": {"symmetric": True}}
HINTS = {
    "integer": "an integer zero point is a code: it has as many bits as one",
    "real": "a real zero point is as wide as a step",
    "none": "a symmetric ruler stores no zero point, but its step",
}


def price(attempt: Callable) -> None:
    """Against the bits that the package's stored form has on disk."""
    for bits, g in [(2, 64), (3, 16), (4, 128), (8, 64)]:
        W = torch.linspace(-1, 1, 64 * 4 * g).reshape(64, 4 * g)
        for zero, rule in ZERO.items():
            stored = AffineWeight.nearest(W, Grid(bits, g, **rule)).bits().per_weight
            got = attempt(bits, g, zero)
            case = f"{bits} bits, groups of {g}, zero {zero!r}"
            assert abs(got - stored) < 1e-9, f"{case}: {got} instead of {stored} bits a weight; {HINTS[zero]}"


def search(attempt: Callable) -> None:
    """Against all 33 lengths and all zero points, on random groups with random importance."""
    for seed, bits in enumerate([2, 2, 3, 2, 3, 2]):
        w, weight = _group(seed)
        s, z = attempt(list(w), bits, list(weight))
        assert s > 0 and z in range(2**bits), (
            f"z={z} is not a code (0 to {2**bits - 1}), or the step is not positive"
        )
        got, best = _loss(w, s, z, bits, weight), _least(w, bits, weight)
        case = f"{got:.4f} instead of {best:.4f} at {bits} bits for {_short(w)}"
        assert got <= best * (1 + 1e-9), f"the loss is larger than it need be: {case}"


def refit(attempt: Callable) -> None:
    """Against the least-squares step, round by round; the loss must never rise."""
    for seed, bits in enumerate([2, 3, 2, 4, 3, 2]):
        w, weight = _group(seed)
        s, z = _ruler(w, bits)
        steps = [attempt(list(w), s, z, bits, list(weight), n) for n in range(6)]
        least = _best_step(w, s, z, bits, weight)
        assert abs(steps[1] - least) < 1e-9 * s, (
            f"one round must give the least-squares step: {steps[1]:.6f} instead of {least:.6f} "
            f"for codes {_codes(w, s, z, bits)}"
        )
        losses = [_loss(w, step, z, bits, weight) for step in steps]
        falls = all(b <= a * (1 + 1e-9) for a, b in pairwise(losses))
        assert falls, f"the loss must never rise; it went {[round(x, 4) for x in losses]}"
        assert abs(steps[5] - _rounds(w, s, z, bits, weight, 5)) < 1e-9 * s, (
            "five rounds did not give the step of five alternations: choose the codes anew each time"
        )
    kept = attempt([0.1, -0.1], 1.0, 1, 2, [1.0, 1.0], 3)
    assert kept == 1.0, "all codes equal z: no step changes the loss, so keep s"


def _group(seed: int) -> tuple[list[float], list[float]]:
    """Twelve weights, one of them far out and unimportant, and their importance."""
    draw = random.Random(seed)
    w = [draw.gauss(0, 1) for _ in range(12)]
    w[seed % 12] = 9.0 if seed % 2 else -9.0
    weight = [draw.uniform(0.1, 4.0) for _ in w]
    weight[seed % 12] = 0.01 if seed % 3 else 1.0
    return w, weight


def _ruler(w: list[float], bits: int, shrink: float = 1.0) -> tuple[float, int]:
    lo, hi = min(min(w) * shrink, 0.0), max(max(w) * shrink, 0.0)
    s = (hi - lo) / (2**bits - 1)
    return s, round(-lo / s)


def _codes(w: list[float], s: float, z: int, bits: int) -> list[int]:
    return [min(max(round(x / s) + z, 0), 2**bits - 1) for x in w]


def _loss(w: list[float], s: float, z: int, bits: int, weight: list[float]) -> float:
    return sum(h * (s * (q - z) - x) ** 2 for h, q, x in zip(weight, _codes(w, s, z, bits), w, strict=True))


def _least(w: list[float], bits: int, weight: list[float]) -> float:
    steps = [_ruler(w, bits, 1 - i / 40)[0] for i in range(33)]
    return min(_loss(w, s, z, bits, weight) for s in steps for z in range(2**bits))


def _best_step(w: list[float], s: float, z: int, bits: int, weight: list[float]) -> float:
    c = [q - z for q in _codes(w, s, z, bits)]
    square = sum(h * k * k for h, k in zip(weight, c, strict=True))
    return sum(h * k * x for h, k, x in zip(weight, c, w, strict=True)) / square if square else s


def _rounds(w: list[float], s: float, z: int, bits: int, weight: list[float], n: int) -> float:
    for _ in range(n):
        s = _best_step(w, s, z, bits, weight)
    return s


def _short(w: list[float]) -> str:
    return "[" + ", ".join(f"{x:.2f}" for x in w) + "]"


EXERCISES = {"grids-1": price, "grids-2": search, "grids-3": refit}
