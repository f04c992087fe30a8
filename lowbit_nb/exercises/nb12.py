"""Exercises of 12_vptq: the bill, one index of a checkpoint's stream, gradients of codebook and scales."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.codebooks.vptq_format import pack_stream


def total_bits(attempt: Callable) -> None:
    """Against the package's count of a layer with scales."""
    sizes = ((256, 256, 4, 256, 0), (4096, 4096, 6, 4096, 0), (96, 64, 4, 256, 16), (50, 32, 12, 64, 8))
    for d_out, d_in, v, k, k_res in sizes:
        want = Codebook(v, k, k_res).size(d_out, d_in, norm_bits=16).bits
        got, shape = attempt(d_out, d_in, v, k, k_res), f"{d_out} x {d_in} weights, v = {v}, k = {k}, k_res = {k_res}"
        stages = "one stage" if not k_res else "with a second stage"
        assert got == want, f"{shape}, {stages}: {got} bits, and {want} are needed"


def read_index(attempt: Callable) -> None:
    """Against streams that the package packs."""
    g = torch.Generator().manual_seed(0)
    for b, b_res in ((8, 0), (16, 0), (8, 4), (12, 0), (12, 8), (4, 8), (16, 15), (16, 16)):
        n, width = 37, b + b_res
        idx, res = (torch.randint(0, 2**bits, (n,), generator=g) for bits in (b, b_res))
        words = pack_stream(idx, b, res if b_res else None, b_res).tolist()
        for t in range(n):
            got, straddles = tuple(attempt(list(words), t, b, b_res)), t * width % 32 + width > 32
            told = f"element {t} of {b} + {b_res} bits"
            told += " straddles two words" if straddles else " lies in one word, and words are signed"
            assert got[0] == int(idx[t]), f"{told}: index {got[0]}, expected {int(idx[t])}"
            assert got[1] == int(res[t]), f"{told}: residual index {got[1]}, expected {int(res[t])}"


def gradients(attempt: Callable) -> None:
    """Against autograd through the lookup."""
    for d_out, d_in, v, k, seed in ((8, 5, 2, 3, 0), (24, 16, 4, 8, 1), (22, 9, 4, 16, 2)):
        g = torch.Generator().manual_seed(seed)
        C = torch.randn(k, v, generator=g, dtype=torch.float64, requires_grad=True)
        s = (torch.rand(d_in, generator=g, dtype=torch.float64) + 0.5).requires_grad_()
        idx = torch.randint(0, k, (-(-d_out // v), d_in), generator=g)
        G = torch.randn(d_out, d_in, generator=g, dtype=torch.float64)
        W_hat = C[idx].transpose(1, 2).reshape(-1, d_in)[:d_out] * s
        want = torch.autograd.grad((W_hat * G).sum(), (C, s))
        got = attempt(G.clone(), C.detach().clone(), idx.clone(), s.detach().clone())
        for name, a, b in zip(("codebook", "scales"), got, want, strict=True):
            a, where = torch.as_tensor(a), f"{d_out} x {d_in} weights, v = {v}, k = {k}"
            assert a.shape == b.shape, f"gradient of the {name}: shape {list(a.shape)}, expected {list(b.shape)}"
            off = float((a - b).abs().max())
            assert off < 1e-9, f"gradient of the {name}: off by up to {off:.3g} ({where})"


EXERCISES: dict[str, Callable] = {"vptq-1": total_bits, "vptq-2": read_index, "vptq-3": gradients}
