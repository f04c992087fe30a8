"""One small walk that several tests look at: a tiny random decoder of six blocks, three bits."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

import lowbit_nb as lb
from lowbit_nb.methods import GPTQ
from lowbit_nb.quantize import quantize
from lowbit_nb.record import Quantized
from tests import tiny

METHOD = GPTQ(lb.Grid(3, 16), sequential=True)
BLOCKS = 6


def subject(seed: int = 0, **changes: object) -> lb.Subject:
    return tiny.subject("llama", seed, **({"num_hidden_layers": BLOCKS} | changes))


def walk(workdir: Path | None = None, method: object = METHOD, seed: int = 0, **settings: object) -> Quantized:
    windows = settings.pop("windows", tiny.windows())
    return quantize(subject(seed), method, windows, workdir, progress=False, **settings)


def equal(a: Quantized, b: Quantized) -> bool:
    """The same integers, scales, zero points and orders, layer by layer."""
    if list(a.weights) != list(b.weights):
        return False
    packed = [(a.weights[name].pack(), b.weights[name].pack()) for name in a.weights]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in packed)


@lru_cache
def whole() -> Quantized:
    """The walk without a work folder, made once."""
    return walk()
