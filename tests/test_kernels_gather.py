"""Products from packed tensors, general, gathered and sparse, against the weights they stand for: interpreter and GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lowbit_nb.bilevel import BilevelWeight, Coded, Second
from lowbit_nb.codebooks.codebook import Stage
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.grid import Grid
from lowbit_nb.sparse import CorrectedWeight
from lowbit_nb.stored import AffineWeight

AFFINE = [  # M, d_out, d_in, group, symmetric: rows shorter than a slice, whole slices, both; groups inside and across planes
    (1, 5, 70, 7, False), (3, 6, 2048, 64, True), (5, 3, 2100, 2100, False), (2, 9, 1056, 96, False),
]
VECTORS = {  # M and what `vector` makes
    "6 of 4096, a slice and a rest": (1, dict(d_out=19, d_in=1124, v=6, k=4096)),
    "two stages of 256": (2, dict(d_out=20, d_in=600, v=4, k=256, k_res=256)),
    "65536 and outlier columns": (5, dict(d_out=16, d_in=560, v=8, k=65536, n_out=6, m=False)),
    "groups, outliers, two widths": (2, dict(d_out=16, d_in=1124, v=4, k=16, k_res=4096, groups=3, n_out=5, k_out=5)),
    "nine bits, three rows, no scale": (3, dict(d_out=9, d_in=130, v=3, k=300, s=False)),
    "two groups of two": (1, dict(d_out=7, d_in=90, v=1, k=2, groups=2)),
}


def affine(bits: int, d_out: int, d_in: int, group: int, symmetric: bool, seed: int = 0) -> AffineWeight:
    """Every code of the width turns up, also the largest."""
    g = torch.Generator().manual_seed(seed)
    n = -(-d_in // group)
    grid = Grid(bits, group=group, symmetric=symmetric)
    q = torch.randint(0, 2**bits, (d_out, d_in), generator=g)
    q[:, -1] = 2**bits - 1
    s = (torch.rand(d_out, n, generator=g) + 0.1).half()
    z = torch.full_like(s, 2 ** (bits - 1)) if symmetric else torch.randint(0, 2**bits, (d_out, n), generator=g)
    return AffineWeight.of(q, s, z, grid)


def vector(d_out: int, d_in: int, v: int, k: int, k_res: int = 0, groups: int = 1, n_out: int = 0, s: bool = True,
           m: bool = True, v_out: int = 2, k_out: int = 16, seed: int = 0) -> VectorWeight:
    """Random codebooks and indices; columns of the parts lie mixed."""
    g = torch.Generator().manual_seed(seed)

    def stage(n_groups: int, k: int, v: int, n: int) -> Stage:
        idx = torch.randint(0, k, (-(-d_out // v), n), generator=g)
        idx[:, -1] = k - 1
        return Stage(torch.randn(n_groups, k, v, generator=g).half(), idx.int())

    label, n = None, d_in - n_out
    if n_out or groups > 1:
        label = torch.cat([torch.zeros(n_out), 1 + torch.arange(n) % groups]).to(torch.uint8)[torch.randperm(d_in, generator=g)]
    return VectorWeight(d_out, stage(groups, k, v, n), stage(groups, k_res, v, n) if k_res else None,
                        stage(1, k_out, v_out, n_out) if n_out else None,
                        (torch.rand(d_in, generator=g) + 0.5).half() if s else None,
                        torch.randn(d_in, generator=g).half() if m else None, label)


def tokens(M: int, d_in: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(M, d_in, generator=torch.Generator().manual_seed(seed))


def agree(y: torch.Tensor, x: torch.Tensor, W_hat: torch.Tensor, what: str, bound: float = 2e-6) -> None:
    want = x.double() @ W_hat.double().T
    assert y.shape == want.shape, f"{what}: {list(y.shape)}"
    gap = float((y.double().cpu() - want).norm() / want.norm().clamp(min=1e-30))
    assert gap <= bound, f"{what}: {gap:.1e} away"


def compare_general(device: str) -> None:
    from lowbit_nb.kernels import general

    for bits in range(1, 9):
        shapes = {AFFINE[bits % 4], AFFINE[0]} if device == "cpu" else {AFFINE[bits % 4]}  # a GPU compiles for each
        for M, d_out, d_in, group, symmetric in shapes:
            w, x = affine(bits, d_out, d_in, group, symmetric), tokens(M, d_in)
            z = None if w.z is None else w.z.to(device)
            op = general.operand(w.pack()["codes"].to(device), bits, w.s.to(device), z, group, d_in)
            agree(general.product(x.to(device), *op), x, w.dequantize(), f"{bits} bits, {d_out} x {d_in} in groups of {group}")


def compare_corrected(device: str) -> None:
    from lowbit_nb.kernels import general, sparse

    g = torch.Generator().manual_seed(0)
    d_out, d_in, M = 32, 208, 3
    n = d_in // 16
    grid, second = Grid(3, group=16, zero_inside=False), Second(3, 3, 16)
    scale, zero = (Coded.of(torch.rand(d_out, n, generator=g) + 0.1, 3, 16) for _ in range(2))
    base = BilevelWeight(torch.randint(0, 8, (d_out, d_in), generator=g).to(torch.uint8), scale, zero, grid, second)
    kept = torch.randn(d_out, d_in, generator=g) * (torch.rand(d_out, d_in, generator=g) < 0.4)
    kept[5] = 0  # a row without any, and one with more than a program takes at once
    kept[6] = 1
    w, x = CorrectedWeight.of(base, kept), tokens(M, d_in)
    dense = general.operand(base.pack()["codes"].to(device), 3, scale.value().to(device), zero.value().to(device), 16, d_in)
    rows = sparse.operand(w.ptr.to(device), w.cols.to(device), w.values.to(device), d_in)
    agree(sparse.product(x.to(device), rows), x, kept.half(), "corrections alone")
    y = sparse.product(x.to(device), rows, base=general.product(x.to(device), *dense, dtype=torch.float32))
    agree(y, x, w.dequantize(), "SpQR's form")


def compare_vectors(device: str) -> None:
    from lowbit_nb.kernels import gather

    for name, (M, sizes) in VECTORS.items():
        w = vector(**sizes)
        x = tokens(M, w.shape[1])
        op = gather.operand({n: t.to(device) for n, t in w.pack().items()}, w.meta())
        agree(gather.product(x.to(device), op), x, w.dequantize(), name)
        x = tokens(9, w.shape[1]).half()  # vectors are fetched once for all rows
        y, again = (gather.product(x.to(device), op, torch.float32) for _ in range(2))
        assert torch.equal(y, again), f"{name}: not the same twice"
        agree(y, x, w.dequantize(), f"{name}, nine rows in half precision", 1e-3)


def refuse() -> None:
    """What does not fit is refused with the rule."""
    from lowbit_nb.kernels import gather, general, sparse

    w = affine(3, 4, 70, 7, False)
    words = w.pack()["codes"]
    wrong = [
        ("words of", lambda: general.operand(words, 2, w.s, w.z, 7, 70)),
        ("in groups of", lambda: general.operand(words, 3, w.s, w.z, 14, 70)),
        ("bits go from 1 to 8", lambda: general.operand(words, 9, w.s, w.z, 7, 70)),
        ("the weight has 70", lambda: general.product(torch.zeros(1, 71), words, 3, w.s, w.z, 7, 70)),
        ("do not fit one another", lambda: sparse.operand(torch.tensor([0, 2]), torch.tensor([1]), torch.ones(1), 4)),
        ("d_in=4", lambda: sparse.operand(torch.tensor([0, 1]), torch.tensor([4]), torch.ones(1), 4)),
    ]
    rows = sparse.operand(torch.tensor([0, 1]), torch.tensor([3]), torch.ones(1), 4)
    wrong += [("the weight has 4", lambda: sparse.product(torch.zeros(1, 5), rows)),
              ("the sum needs", lambda: sparse.product(torch.zeros(1, 4), rows, base=torch.zeros(2, 1)))]
    v = vector(8, 12, 4, 16)
    wrong += [("the weight has 12", lambda: gather.product(torch.zeros(1, 11), gather.operand(v.pack(), v.meta())))]
    for rule, call in wrong:
        with pytest.raises(ValueError, match=rule):
            call()


@pytest.mark.parametrize("run", ["compare_general", "compare_corrected", "compare_vectors"])
def test_in_the_interpreter(run):
    pytest.importorskip("triton", reason="Triton is optional; without it there are no kernels")
    code = f"from tests.test_kernels_gather import {run}; {run}('cpu')"
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


def test_what_does_not_fit_is_refused():
    pytest.importorskip("triton", reason="Triton is optional; without it there are no kernels")
    refuse()


@pytest.mark.gpu
def test_on_a_gpu():
    compare_general("cuda")
    compare_corrected("cuda")
    compare_vectors("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("M", [1, 4, 7, 16])
def test_on_a_gpu_in_a_graph_with_the_same_bits_every_time(M):
    """A real layer's shape, captured and replayed: float16 in and out, and nothing is added in another order."""
    from lowbit_nb.kernels import gather, general

    made, sparse_like = vector(1024, 4096 + 40, 6, 4096, k_res=256, n_out=40), affine(3, 1024, 4096, 128, False)
    calls = []
    op = gather.operand({n: t.cuda() for n, t in made.pack().items()}, made.meta())
    x = tokens(M, made.shape[1]).half()
    calls.append((x, made.dequantize(), lambda x: gather.product(x, op)))
    other = general.operand(sparse_like.pack()["codes"].cuda(), 3, sparse_like.s.cuda(), sparse_like.z.cuda(), 128, 4096)
    calls.append((x[:, :4096], sparse_like.dequantize(), lambda x: general.product(x, *other)))
    for x, W_hat, call in calls:
        there = x.cuda().contiguous()
        first = call(there)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call(there)
        for _ in range(3):
            graph.replay()
            assert torch.equal(y, first)
        agree(first.float(), x.float(), W_hat, f"{M} rows of x", 1e-3)
