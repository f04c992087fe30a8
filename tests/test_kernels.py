"""Triton kernels against the plain PyTorch beside their callers: in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lowbit_nb import grid as grids
from lowbit_nb import kernels
from lowbit_nb.bilevel import Second
from lowbit_nb.feedback import AffineRounder, feedback, order
from lowbit_nb.grid import Grid
from lowbit_nb.outliers import BilevelRounder
from tests.reference import problem

ROWS, COLUMNS = 48, 96


def rounders(W: torch.Tensor, H: torch.Tensor, perm: torch.Tensor) -> dict:
    """Every rounder that has a kernel, with groups that are and are not powers of two."""
    h, small = H.diagonal(), Grid(3, group=16, zero_inside=False)
    return {
        "dynamic": AffineRounder(Grid(2, group=32), perm, len(W), clip="mse", weight=h),
        "dynamic, odd group": AffineRounder(Grid(4, group=24), perm, len(W), clip="mse", weight=h),
        "real zero": AffineRounder(Grid(3, group=48, zero_inside=False), perm, len(W), clip="mse"),
        "static": AffineRounder(Grid(3, group=32), perm, len(W), *grids.fit(W, Grid(3, group=32), "mse", h)),
        "SpQR": BilevelRounder(small, Second(3, 3, 16), perm, len(W), 0.2),
        "SpQR, no outliers": BilevelRounder(small, Second(3, 3, 16), perm, len(W), float("inf")),
    }


@contextmanager
def kernels_are(ready: bool) -> Iterator[None]:
    was, kernels.ready = kernels.ready, lambda t: ready
    try:
        yield
    finally:
        kernels.ready = was


def compare(device: str) -> None:
    """Codes, rounded values and costs of kernel and plain loop; run in this process."""
    W, H = (t.float().to(device) for t in problem(ROWS, COLUMNS, torch.Generator().manual_seed(0)))
    for visit in ("gar", "act"):
        perm = order(H, visit, 32 if visit == "gar" else 1)
        runs = []
        for ready in (False, True):
            with kernels_are(ready):
                made = rounders(W, H, perm)
                runs.append({name: (r, feedback(W, H, r, perm, block=48)) for name, r in made.items()})
        for name, (rounder, plain) in runs[0].items():
            other, fast = runs[1][name]
            same = (rounder.q == other.q).float().mean()
            assert same >= (1.0 if device == "cpu" else 0.999), f"{name}, {visit}: {float(same):.4f} of the codes agree"
            if same == 1:
                assert torch.allclose(plain.W_hat, fast.W_hat, atol=1e-5), name
            assert plain.loss == pytest.approx(fast.loss, rel=1e-5 if same == 1 else 1e-2), name


def test_in_the_interpreter_kernels_equal_the_plain_loop():
    pytest.importorskip("triton", reason="Triton is optional; without it the plain loop is all there is")
    code = "from tests.test_kernels import compare; compare('cpu')"
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


def test_the_cpu_needs_no_kernel():
    assert not kernels.ready(torch.zeros(1))


@pytest.mark.gpu
def test_on_a_gpu_kernels_equal_the_plain_loop():
    assert kernels.ready(torch.zeros(1, device="cuda")) and not kernels.ready(torch.zeros(1, device="cuda").double())
    compare("cuda")
