"""Exercises of 11_codebooks: the whole bill, one step of k-means in whole tensors, the best sum of two entries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.codebooks.codebook import Codebook


def bits_per_weight(attempt: Callable) -> None:
    """Against the package's foretold size."""
    shapes = ((64, 128), (256, 96), (100, 32), (33, 7))
    for what, k_res, norm_bits in (("one list", 0, 0), ("a second list", 16, 0), ("a second list", 100, 0), ("scales", 0, 16),
                                   ("scales", 300, 32)):
        for (d_out, d_in), (v, k) in ((shape, cut) for shape in shapes for cut in ((2, 16), (4, 256), (8, 300))):
            want = Codebook(v, k, k_res).size(d_out, d_in, norm_bits).per_weight
            got = attempt(d_out, d_in, v, k, k_res, norm_bits)
            about = f"{d_out} x {d_in}, v={v}, k={k}, k_res={k_res}, norm_bits={norm_bits}"
            assert abs(got - want) < 1e-9, f"{what}: {got:.6g} bits a weight for {about}; it takes {want:.6g}"


def lloyd_step(attempt: Callable) -> None:
    """Against differences to all entries and a loop over them."""
    for n, v, k, seed in ((30, 1, 3, 0), (200, 2, 8, 1), (300, 4, 40, 2)):
        x, C, draw = _cloud(n, v, k, seed)
        w = torch.rand(n, generator=draw, dtype=torch.float64) * (torch.rand(n, generator=draw) < 0.7)
        C[0] += 100.0  # nearest to nobody
        idx = (x[:, None] - C).square().sum(2).argmin(1)
        w[idx == idx[0]] = 0.0  # an entry whose points have no weight
        given = x.clone(), w.clone(), C.clone()
        got_idx, got = (torch.as_tensor(t) for t in attempt(*given))
        kept = all(torch.equal(a, b) for a, b in zip(given, (x, w, C), strict=True))
        assert kept, "the arguments were changed; make new tensors"
        assert got_idx.shape == (n,) and got.shape == C.shape, f"expected shapes ({n},) and {tuple(C.shape)}"
        wrong = int((got_idx != idx).sum())
        assert not wrong, f"indices: {wrong} of {n} points do not take their nearest entry (v={v}, k={k})"
        for i in range(k):
            total = float(w[idx == i].sum())
            if total == 0:
                assert torch.allclose(got[i], C[i]), f"entry {i} has no points of weight: it stays, not {got[i].tolist()}"
            else:
                mean = (w[idx == i, None] * x[idx == i]).sum(0) / total
                fits = torch.allclose(got[i], mean)
                assert fits, f"means: entry {i} is {got[i].tolist()}, the weighted mean of its points {mean.tolist()}"


def best_pairs(attempt: Callable) -> None:
    """Against all sums of two entries."""
    for n, v, k1, k2, seed in ((50, 1, 3, 4, 0), (200, 2, 8, 5, 1), (100, 4, 6, 16, 2)):
        x, A, draw = _cloud(n, v, k1, seed)
        B = 0.5 * torch.randn(k2, v, generator=draw, dtype=torch.float64)
        sums = A[:, None] + B
        least = (x[:, None, None] - sums).square().sum(3)
        got = torch.as_tensor(attempt(x.clone(), A.clone(), B.clone()))
        assert got.shape == (n, 2), f"expected shape ({n}, 2), got {tuple(got.shape)}"
        fits = (got >= 0).all() and (got[:, 0] < k1).all() and (got[:, 1] < k2).all()
        assert fits, f"not the best: indices go up to {k1 - 1} in the first column and {k2 - 1} in the second"
        excess = least[torch.arange(n), got[:, 0], got[:, 1]] - least.flatten(1).amin(1)
        first = (x[:, None] - A).square().sum(2).argmin(1)
        second = ((x - A[first])[:, None] - B).square().sum(2).argmin(1)
        greedy = torch.equal(got, torch.stack([first, second], 1))
        assert not greedy, "these are the indices of choosing one after the other; some other sums are nearer"
        wrong = int((excess > 1e-9).sum())
        assert not wrong, f"not the best: {wrong} of {n} points have a nearer sum (v={v}, {k1} and {k2} entries)"


def _cloud(n: int, v: int, k: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    draw = torch.Generator().manual_seed(seed)
    x, C = (torch.randn(m, v, generator=draw, dtype=torch.float64) for m in (n, k))
    return x, C, draw


EXERCISES = {"codebooks-1": bits_per_weight, "codebooks-2": lloyd_step, "codebooks-3": best_pairs}
