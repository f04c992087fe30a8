"""The kernels for vectors against the plain PyTorch beside their callers: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.codebooks.kmeans import nearest
from lowbit_nb.codebooks.refine import reassign
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.codebooks.vectors import Books, VectorRounder, as_stored
from lowbit_nb.codebooks.walk import walk
from lowbit_nb.feedback import feedback, order
from lowbit_nb.methods.vptq import VPTQ
from tests.reference import problem
from tests.test_kernels import kernels_are

BOOKS = [Codebook(6, 40), Codebook(3, 17, 8), Codebook(4, 24, 8, groups=2, outliers=0.1, v_out=2, k_out=9)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def both(function) -> list:
    """What the plain loop says, and what the kernel says."""
    out = []
    for ready in (False, True):
        with kernels_are(ready):
            out.append(function())
    return out


def compare_nearest(device: str) -> None:
    """Distances are least ones; indices differ from the plain ones at near ties only."""
    for n, k, v in ((300, 90, 6), (70, 33, 4), (5, 7, 12), (40, 64, 1), (300, 40, 2), (9, 5, 40)):
        x, C = normal(n, v).to(device), normal(k, v, seed=1).to(device)
        for w in (None, normal(v, seed=2).square().to(device), normal(n, v, seed=3).square().to(device)):
            plain, fast = both(lambda x=x, C=C, w=w: nearest(x, C, w))
            assert fast.dtype == torch.int64 and (plain == fast).float().mean() >= 0.999, (n, k, v)
            costs = [((x - C[idx]).square() * (1 if w is None else w)).sum(1) for idx in (plain, fast)]
            torch.testing.assert_close(*costs, rtol=1e-4, atol=1e-5)
    whole = torch.randint(-3, 4, (200, 3), generator=seeded(), dtype=torch.float32).to(device)
    tied = torch.randint(-3, 4, (150, 3), generator=seeded(1), dtype=torch.float32).repeat(2, 1).to(device)
    distance = (whole[:, None] - tied).square().sum(-1)
    first = (distance == distance.amin(1, keepdim=True)).int().argmax(1)
    assert all(torch.equal(idx, first) for idx in both(lambda: nearest(whole, tied)))


def compare_walks(device: str) -> None:
    """Indices, rounded values and the columns as they were, with one stage and two, and a second stage that holds something."""
    for n, d_out, v, ks, hold in ((10, 50, 6, (40,), False), (7, 33, 4, (16, 8), False), (12, 24, 3, (20, 5), True),
                                  (1, 9, 12, (7,), False), (5, 80, 40, (6,), False), (2, 1400, 1, (5,), False)):
        Wt, T, V, held = (t.to(device) for t in (normal(n, d_out), normal(n, d_out, seed=1), 0.3 * normal(n, n, seed=2),
                                                 normal(n, -(-d_out // v), v, seed=3)))
        Cs = [normal(k, v, seed=k).to(device) for k in ks]

        def run(Wt=Wt, T=T, V=V, Cs=Cs, held=held if hold else None) -> tuple[Tensor, ...]:
            now = T.clone()
            idx, W_hat = walk(Wt, now, V, Cs, held)
            return idx.long(), W_hat, now

        for plain, fast in zip(*both(run), strict=True):
            torch.testing.assert_close(plain, fast, rtol=0, atol=1e-5)


def codebooks(book: Codebook, device: str) -> tuple[Books, Books]:
    """Some codebooks for every part, numbers that float16 can hold."""
    def some(k: int, v: int, seed: int, spread: float) -> Tensor:
        return as_stored(spread * normal(k, v, seed=seed)).to(device)

    books = {g: some(book.k, book.v, g, 1.0) for g in range(1, book.groups + 1)}
    residual = {g: some(book.k_res, book.v, 10 + g, 0.4) for g in books} if book.k_res else {}
    return books | ({0: some(book.k_out, book.v_out, 20, 1.0)} if book.outliers else {}), residual


def compare_layers(device: str) -> None:
    """Whole runs of error feedback, in an order in which parts alternate, and a sweep of coordinate descent after each."""
    W, H = (t.float().to(device) for t in problem(*((10, 9) if device == "cpu" else (500, 200)), seeded()))
    for book in BOOKS:
        books, residual = codebooks(book, device)
        for visit in ("act", "natural") if book.outliers else ("act",):
            perm = order(H, visit, 1)
            label = book.labels(H.diagonal())[perm]

            def run(book=book, books=books, residual=residual, perm=perm, label=label) -> tuple:
                rounder = VectorRounder(book, label, None, lambda D: D, books, residual)
                result = feedback(W, H, rounder, perm, block=7 if device == "cpu" else 128)
                stored = rounder.result(perm, None, None)
                torch.testing.assert_close(stored.dequantize(), result.W_hat, rtol=0, atol=1e-6)
                return result, rounder.now, stored, reassign(stored, W, H)

            (plain, now, *kept), (fast, then, *others) = both(run)
            same = min(agreeing(*pair) for pair in zip(kept, others, strict=True))
            assert same >= (1.0 if device == "cpu" else 0.999), f"{book}, {visit}: {same:.4f} of the indices agree"
            assert plain.loss == pytest.approx(fast.loss, rel=1e-5 if same == 1 else 1e-2), (book, visit)
            if same == 1:
                torch.testing.assert_close(plain.W_hat, fast.W_hat, rtol=0, atol=1e-6)
                torch.testing.assert_close(now, then, rtol=0, atol=1e-4)


def agreeing(a: VectorWeight, b: VectorWeight) -> float:
    """The share of indices that two weights have in common, at the stage where it is least."""
    return min(float((x.idx == y.idx).float().mean()) for (_, _, x), (_, _, y) in zip(a.stages(), b.stages(), strict=True))


def compare(device: str) -> None:
    compare_walks(device)
    compare_layers(device)
    from lowbit_nb.kernels import nearest as kernel

    for many in (100, kernel.MANY):  # both ways to share the work
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "MANY", many)
            compare_nearest(device)


def test_in_the_interpreter_kernels_equal_the_plain_loop():
    pytest.importorskip("triton", reason="Triton is optional; without it the plain loop is all there is")
    code = "from tests.test_kernels_codebooks import compare; compare('cpu')"
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_on_a_gpu_kernels_equal_the_plain_loop():
    compare("cuda")


@pytest.mark.gpu
def test_on_a_gpu_a_layer_is_the_same_on_every_run():
    W, H = (t.float().cuda() for t in problem(192, 128, seeded()))
    method = VPTQ(Codebook(6, 64, 16, groups=2, outliers=0.05, k_out=32), retrain=1, refine=2)
    a, b = (method.quantize_layer(W, H)[0] for _ in range(2))
    assert all(torch.equal(t, b.pack()[name]) for name, t in a.pack().items())
