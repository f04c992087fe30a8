"""Exercises of 07_output_adaptive_hessians: a gradient at the logits, padded sequences, the strength of a shift."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def at_the_logits(attempt: Callable) -> None:
    """Against autograd, on the summed loss of the tokens that follow."""
    g = torch.Generator().manual_seed(0)
    for T, vocabulary in ((2, 3), (6, 5), (9, 4)):
        logits = torch.randn(T, vocabulary, generator=g, dtype=torch.float64)
        ids = torch.randint(0, vocabulary, (T,), generator=g)
        want = torch.func.grad(lambda z, ids=ids: cross_entropy(z[:-1], ids[1:], reduction="sum"))(logits)
        got = torch.as_tensor(attempt(logits.clone(), ids.clone()))
        assert got.shape == want.shape, f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
        assert not got[-1].any(), "the last token predicts nothing: its gradient is 0"
        wrong = got[:-1].sign() != want[:-1].sign()
        t = int(wrong.any(1).nonzero()[0]) if wrong.any() else 0
        mirrored = torch.equal(got[:-1].sign(), -want[:-1].sign())
        assert mirrored or not wrong.any(), f"the signs of row {t} are wrong; is the label of a token the one that follows?"
        gap = float((got - want).abs().max())
        assert gap < 1e-10, f"the label is right, but the gradient is not of the right direction or size: off by {gap:.3g}"


def padded_hessian(attempt: Callable) -> None:
    """Against a loop over sequences that were never padded."""
    g = torch.Generator().manual_seed(1)
    for lengths, T, d_in, d_out in (((4, 4), 4, 3, 2), ((5, 2, 3), 5, 4, 3), ((1, 6, 4, 2), 6, 3, 5)):
        X = torch.randn(len(lengths), T, d_in, generator=g, dtype=torch.float64)
        A = torch.randn(len(lengths), T, d_out, generator=g, dtype=torch.float64)
        mask = torch.arange(T) < torch.tensor(lengths)[:, None]
        G = [a[:n].T @ x[:n] for x, a, n in zip(X, A, lengths, strict=True)]
        want = sum(one.T @ one for one in G) / len(G)
        X[~mask], A[~mask] = 7.0, float("nan")
        got = torch.as_tensor(attempt(X.clone(), A.clone(), mask.clone()))
        assert got.shape == want.shape, f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
        assert torch.isfinite(got).all(), "the result is not finite: garbage came in from the padding"
        factor = float((got * want).sum() / (want * want).sum())
        gap = float((got - want).abs().max())
        if gap > 1e-9:
            shape = float((got - factor * want).norm() / got.norm()) < 1e-9
            assert not shape, f"the matrix is right but for a factor of {factor:.3g}: the mean is over sequences"
            raise AssertionError(f"another matrix, off by up to {gap:.3g}; are there products between different sequences, "
                                 "or between too few tokens of one?")


def strength(attempt: Callable) -> None:
    """The strength that does best on the half that did not choose the move; by search, not by the formula."""
    for case in CASES:
        W, X, X_hat = _halves(*case)
        got = float(attempt(W.clone(), X.clone(), X_hat.clone()))
        assert 0 <= got <= 1, f"the strength must lie between 0 and 1; got {got:.3g}"
        tried = torch.linspace(0, 1, 1001, dtype=torch.float64).tolist()
        best = min(tried, key=lambda a, halves=(W, X, X_hat): _cost(*halves, a))
        assert best == 1 or abs(got - 1) > 1e-9, "the whole move is best on the half it was fitted on; test it on the other"
        least, mine = _cost(W, X, X_hat, best), _cost(W, X, X_hat, got)
        worse = f"with a = {got:.3f} the other halves are off by {mine:.4g}"
        assert mine < 1.001 * least + 1e-9, f"{worse}; another strength does better, {best:.2f} with {least:.4g}"


# Seed, tokens a half, d_in, noise on the inputs, factor on each half's inputs, size of the second half.
CASES = ((0, 12, 6, 0.6, (1.0, 1.0), 1.0), (1, 40, 5, 0.4, (0.8, 0.9), 1.0), (2, 30, 4, 0.0, (0.7, 0.7), 1.0),
         (3, 20, 4, 0.05, (1.3, 0.7), 1.0), (4, 20, 4, 0.05, (0.9, 0.8), 5.0))


def _halves(seed: int, n: int, d: int, noise: float, factors: tuple, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """W, and the inputs of two halves: before, and with noise and another size."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(3, d, generator=g, dtype=torch.float64)
    X = torch.randn(2, n, d, generator=g, dtype=torch.float64) * torch.tensor([1.0, size])[:, None, None]
    X_hat = X * torch.tensor(factors)[:, None, None] + noise * torch.randn(2, n, d, generator=g, dtype=torch.float64)
    return W, X, X_hat


def _cost(W: Tensor, X: Tensor, X_hat: Tensor, a: float) -> float:
    """What W + a M leaves, each move on the other half."""
    total = 0.0
    for h in range(2):
        M = torch.linalg.lstsq(X_hat[h], (X[h] - X_hat[h]) @ W.T).solution.T
        j = 1 - h
        total += float((X[j] @ W.T - X_hat[j] @ (W + a * M).T).square().sum()) / len(X[j])
    return total


EXERCISES = {"adaptive-1": at_the_logits, "adaptive-2": padded_hessian, "adaptive-3": strength}
