"""Sign planes against loops and closed forms; their stored forms against the bytes on disk."""

from __future__ import annotations

import json
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowbit_nb import stored
from lowbit_nb.grid import Grid
from lowbit_nb.onebit import signs
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.stored import AffineWeight


def tensor_bytes(path) -> int:
    data = path.read_bytes()
    return len(data) - 8 - struct.unpack("<Q", data[:8])[0]


def same(a: object, b: object) -> bool:
    x, y = a.pack(), b.pack()
    return x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)


def round_trip(w: object, path) -> None:
    """What is counted is on disk; what is read back is what was written."""
    save_file(w.pack(), path)
    assert w.bits().bits == 8 * tensor_bytes(path) and w.bits().n_weights == math.prod(w.shape)
    assert all(line.padding >= 0 for line in w.bits().items)
    back = stored.unpack(load_file(path), json.loads(json.dumps(w.meta())))
    assert same(back, w) and torch.equal(back.dequantize(), w.dequantize())
    assert stored.checksum(back) == stored.checksum(w)


def naive_plane(w: list[float]) -> tuple[float, float, list[float]]:
    """Mean, level and reconstruction of one row, one number at a time."""
    if not w:
        return 0.0, 0.0, []
    mu = sum(w) / len(w)
    a = sum(abs(x - mu) for x in w) / len(w)
    return mu, a, [mu + a if x >= mu else mu - a for x in w]


def rows(seed: int, d_out: int, d_in: int) -> Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Planes


def test_the_sign_of_zero_is_plus():
    """A third level would not fit in one bit."""
    assert signs.sgn(torch.tensor([0.0, -0.0, -1e-30, 1e-30])).tolist() == [1, 1, -1, 1]
    w = SignWeight.nearest(torch.zeros(1, 8))
    assert w.sign.all() and not w.dequantize().any()
    assert len(SignWeight.nearest(torch.tensor([[-1.0, 0.0, 1.0]])).dequantize().unique()) == 2


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 9))
def test_one_plane_on_a_support_is_the_loop(seed, d_out, d_in):
    W = rows(seed, d_out, d_in)
    support = torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) < 0.6
    mu, a = signs.one_plane(W, support)
    errors = signs.plane_error(W, support)
    for i in range(d_out):
        mine = W[i][support[i]].tolist()
        want_mu, want_a, hat = naive_plane(mine)
        assert (float(mu[i]), float(a[i])) == pytest.approx((want_mu, want_a))
        loss = sum((x - y) ** 2 for x, y in zip(mine, hat, strict=True))
        assert float(errors[i]) == pytest.approx(loss, abs=1e-12)


def test_the_level_is_the_best_for_its_signs(generator):
    W = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    mu, a = signs.one_plane(W)
    B = signs.sgn(W - mu[:, None])
    best = ((W - mu[:, None]) * B).sum(1) / 40
    assert torch.allclose(a, best)
    for wrong in (a * 0.9, a * 1.1, W.abs().mean(1) * 1.05):
        assert ((W - mu[:, None] - wrong[:, None] * B) ** 2).sum() > signs.plane_error(W, torch.ones_like(W).bool()).sum()


def test_two_planes_have_four_levels_and_less_error(generator):
    W = torch.randn(6, 64, generator=generator, dtype=torch.float64)
    mu, a1, a2 = signs.two_planes(W)
    B1 = signs.sgn(W - mu[:, :1])
    B2 = signs.sgn(signs.residual(W, mu[:, 0], a1) - mu[:, 1:])
    W_hat = mu.sum(1, keepdim=True) + a1[:, None] * B1 + a2[:, None] * B2
    assert all(len(row.unique()) <= 4 for row in W_hat)
    assert ((W - W_hat) ** 2).sum(1).lt(signs.plane_error(W, torch.ones_like(W).bool())).all()


@pytest.mark.parametrize("per_row", [False, True])
def test_the_split_search_is_the_loop_over_thresholds(generator, per_row, monkeypatch):
    monkeypatch.setattr(signs, "CHUNK", 3 * 7 * 30)  # several chunks
    W = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    live = torch.arange(40) >= 10
    size = W[:, live].abs().flatten()
    errors = []
    for p in signs.PERCENTILES:
        threshold = float(torch.quantile(size, p))
        errors.append([0.0] * 7)
        for i in range(7):
            near = [x for x in W[i][live].tolist() if abs(x) < threshold]
            far = [x for x in W[i][live].tolist() if abs(x) >= threshold]
            for part in (near, far):
                errors[-1][i] += sum((x - y) ** 2 for x, y in zip(part, naive_plane(part)[2], strict=True))
    table = torch.tensor(errors, dtype=torch.float64)
    best = table.argmin(0) if per_row else table.sum(1).argmin()
    found = signs.split_threshold(W, live, per_row)
    want = torch.quantile(size, torch.tensor(signs.PERCENTILES, dtype=torch.float64)[best])
    assert torch.allclose(found.flatten(), want.flatten())


def test_a_split_is_a_two_bit_quantizer_in_disguise(generator):
    """Gaussian weights: one bit leaves 0.363 of the variance, the split 0.1175 - the four-level Lloyd-Max value."""
    W = torch.randn(4, 50_000, generator=generator)
    whole = torch.ones(1, dtype=torch.bool).expand_as(W)
    assert float(signs.plane_error(W, whole).sum() / W.numel()) == pytest.approx(1 - 2 / math.pi, abs=4e-3)
    threshold = signs.split_threshold(W)
    far = W.abs() >= threshold
    loss = (signs.plane_error(W, far) + signs.plane_error(W, ~far)).sum() / W.numel()
    assert float(threshold) == pytest.approx(0.98, abs=0.04) and float(loss) == pytest.approx(0.1175, abs=2e-3)
    assert float(far.float().mean()) == pytest.approx(0.326, abs=0.02)


# Rank one


def test_rank_one_without_a_support_is_the_first_singular_pair(generator):
    A = torch.randn(12, 20, generator=generator, dtype=torch.float64).abs()
    u, v = signs.rank_one(A)
    U, S, Vt = torch.linalg.svd(A)
    assert torch.allclose(torch.outer(u, v), S[0] * torch.outer(U[:, 0], Vt[0]), atol=1e-9)
    assert float(v.mean()) == pytest.approx(1) and (u > 0).all() and (v > 0).all()


def test_rank_one_on_a_support_never_gets_worse_and_is_stationary(generator):
    A = torch.randn(9, 14, generator=generator, dtype=torch.float64).abs()
    M = torch.rand(9, 14, generator=generator) < 0.5
    losses = []
    for k in range(1, 40):
        u, v = signs.rank_one(A, M, k)
        losses.append(float(((A - torch.outer(u, v)).square() * M).sum()))
    assert all(b <= a + 1e-12 for a, b in zip(losses, losses[1:], strict=False))
    u, v = (t.clone().requires_grad_() for t in signs.rank_one(A, M, 400))
    ((A - torch.outer(u, v)).square() * M).sum().backward()
    assert u.grad.abs().max() < 1e-8 and v.grad.abs().max() < 1e-8


def test_rank_one_of_an_empty_row_and_column():
    M = torch.ones(3, 4, dtype=torch.bool)
    M[1], M[:, 2] = False, False
    u, v = signs.rank_one(torch.ones(3, 4), M)
    assert u[1] == 0 and torch.isfinite(u).all() and torch.isfinite(v).all()
    assert torch.allclose(torch.outer(u, v)[M], torch.ones(int(M.sum())))


# Stored forms


SHAPES = st.sampled_from([(1, 1, None, False), (3, 100, None, True), (5, 96, 32, False), (4, 65, 13, True), (2, 33, 11, True)])


def sign_weight(seed: int, d_out: int, d_in: int, group: int | None, factors: bool) -> SignWeight:
    w = SignWeight.nearest(rows(seed, d_out, d_in), group)
    v = torch.rand(d_in, generator=torch.Generator().manual_seed(seed)) + 0.5 if factors else None
    return SignWeight.of(w.sign, w.a, w.mu, v)


@given(st.integers(0, 2**31), SHAPES)
def test_sign_weights_on_disk(tmp_path_factory, seed, shape):
    w = sign_weight(seed, *shape)
    round_trip(w, tmp_path_factory.mktemp("sign") / "one.safetensors")
    x = torch.randn(w.shape[1])
    assert torch.allclose(w.matvec(x), w.dequantize() @ x, atol=1e-4)
    assert w.bits().nominal == 1


def mixed(seed: int, d_out: int, d_in: int, n_high: int) -> MixedWeight:
    g = torch.Generator().manual_seed(seed)
    salient = torch.zeros(d_in, dtype=torch.bool)
    salient[torch.randperm(d_in, generator=g)[:n_high]] = True
    W = torch.randn(d_out, d_in, generator=g)
    high = AffineWeight.nearest(W[:, salient], Grid(4)) if n_high else None
    low = sign_weight(seed, d_out, d_in - n_high, None, True) if n_high < d_in else None
    return MixedWeight.of(salient, high, low)


@given(st.integers(0, 2**31), st.sampled_from([(1, 2, 1), (3, 100, 17), (8, 64, 16), (5, 33, 32)]))
def test_mixed_weights_on_disk(tmp_path_factory, seed, shape):
    w = mixed(seed, *shape)
    round_trip(w, tmp_path_factory.mktemp("mixed") / "one.safetensors")
    x = torch.randn(w.shape[1])
    assert torch.allclose(w.matvec(x), w.dequantize() @ x, atol=1e-4)
    d_in, n = shape[1:]
    assert w.bits().nominal == pytest.approx((4 * n + d_in - n) / d_in)


def test_channels_come_back_to_their_places():
    w = mixed(3, 4, 50, 13)
    W_hat = w.dequantize()
    assert torch.equal(W_hat[:, w.salient], w.high.dequantize()) and torch.equal(W_hat[:, ~w.salient], w.low.dequantize())


def test_a_mask_with_one_kind_of_channel_is_that_kind():
    assert isinstance(mixed(0, 4, 32, 0), SignWeight) and isinstance(mixed(0, 4, 32, 32), AffineWeight)


def test_a_large_layer_takes_what_the_paper_promises(tmp_path):
    """4096 x 4096, 832 salient channels: nominal 1.609, with everything counted at most 1 % above 1.61."""
    g = torch.Generator().manual_seed(0)
    salient = torch.zeros(4096, dtype=torch.bool)
    salient[torch.randperm(4096, generator=g)[:832]] = True
    W = 0.02 * torch.randn(4096, 4096, generator=g)
    low = SignWeight.nearest(W[:, ~salient])
    low = SignWeight.of(low.sign, low.a, low.mu, torch.rand(4096 - 832, generator=g) + 0.5)
    w = MixedWeight.of(salient, AffineWeight.nearest(W[:, salient], Grid(4)), low)
    round_trip(w, tmp_path / "large.safetensors")
    assert w.bits().nominal == pytest.approx(1.609375)
    assert w.bits().per_weight == pytest.approx(1.61, rel=0.01) and sum(i.padding for i in w.bits().items) == 0


def test_parts_that_do_not_fit_are_refused(tmp_path):
    w = mixed(0, 4, 64, 16)
    with pytest.raises(ValueError, match="16 salient of 64 channels; the parts hold 16 and 16"):
        MixedWeight.of(w.salient, w.high, w.high)
    tensors = w.pack()
    flipped = tensors | {"salient": tensors["salient"] ^ 1}
    for broken in (flipped, {k: t for k, t in tensors.items() if k != "salient"}):
        with pytest.raises(ValueError, match="truncated or edited"):
            stored.unpack(broken, w.meta())
    for name in ("low.signs", "low.levels", "low.means", "low.factors"):
        with pytest.raises(ValueError, match="truncated or edited"):
            stored.unpack({k: t for k, t in tensors.items() if k != name}, w.meta())
    with pytest.raises(ValueError, match="d_in=10 is not a multiple of g=4"):
        SignWeight.nearest(torch.zeros(2, 10), 4)
    with pytest.raises(ValueError, match="does not fit float16"):
        SignWeight.of(w.low.sign, torch.full((4, 1), 1e6), w.low.mu)
