"""Weighted k-means against loops, against scikit-learn, and against what Gaussian numbers are known to allow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit_nb.codebooks import kmeans as km
from lowbit_nb.codebooks.kmeans import STARTS, Segments, kmeans, means, nearest, universal


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(n: int, v: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = seeded(seed)
    return torch.randn(n, v, generator=g, dtype=dtype), torch.rand(n, generator=g, dtype=dtype) ** 3


def error(x: Tensor, w: Tensor, C: Tensor, idx: Tensor) -> float:
    return float(((x - C[idx]).square().sum(1) * w).sum(dtype=torch.float64))


def lloyd_naive(x: list, w: list, C: list, iterations: int) -> list:
    """Plain loops over Python floats; vectors without points stay."""
    for _ in range(iterations):
        sums = [[0.0] * (len(x[0]) + 1) for _ in C]
        for point, weight in zip(x, w, strict=True):
            distance = [sum((a - b) ** 2 for a, b in zip(point, c, strict=True)) for c in C]
            at = distance.index(min(distance))
            for i, a in enumerate([*point, 1.0]):
                sums[at][i] += weight * a
        C = [[a / s[-1] for a in s[:-1]] if s[-1] > 0 else c for s, c in zip(sums, C, strict=True)]
    return C


# The assignment


@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(1, 40), st.integers(1, 7), st.sampled_from([1, 64, 2**18]))
def test_nearest_is_the_least_distance_however_it_is_chunked(seed, n, k, v, budget):
    x, _ = cloud(n, v, seed)
    C, _ = cloud(k, v, seed + 1)
    distance = (x[:, None] - C).square().sum(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(km.SCORES, "cpu", budget)
        idx = nearest(x, C)
    assert torch.allclose(distance.gather(1, idx[:, None])[:, 0], distance.amin(1), atol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 30))
def test_weights_of_coordinates_enter_the_distance(seed, n, k):
    x, C, w = cloud(n, 3, seed)[0], cloud(k, 3, seed + 1)[0], cloud(n, 3, seed + 2)[0].square()
    distance = ((x[:, None] - C).square() * w[:, None]).sum(-1)
    assert torch.allclose(distance.gather(1, nearest(x, C, w)[:, None])[:, 0], distance.amin(1), atol=1e-12)
    assert torch.equal(nearest(x, C, w[0]), nearest(x, C, w[:1].expand(n, 3)))
    assert torch.equal(nearest(x, C, torch.ones(3, dtype=x.dtype)), nearest(x, C))


def test_of_equal_vectors_the_first_is_taken():
    C = torch.tensor([[5.0], [1.0], [3.0], [1.0]])
    assert nearest(torch.tensor([[0.0], [1.0], [2.0]]), C).tolist() == [1, 1, 1]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="points have 2 coordinates and codebook vectors 3"):
        nearest(torch.zeros(4, 2), torch.zeros(5, 3))


# The update


@given(st.integers(0, 2**31), st.integers(1, 300), st.sampled_from([1, 7, 256, 400]))
def test_segments_are_sums_by_index(seed, n, k):
    values, _ = cloud(n, 3, seed)
    idx = torch.randint(0, k, (n,), generator=seeded(seed))
    expected = torch.zeros(k, 3, dtype=torch.float64).index_add_(0, idx, values)
    assert torch.allclose(Segments(idx, k).sum(values), expected, atol=1e-12)
    assert torch.equal(Segments(idx, k).sum(values), Segments(idx, k).sum(values))


def test_an_empty_vector_moves_to_the_costliest_point_and_stays_without_costs():
    x = torch.tensor([[0.0], [0.1], [9.0], [9.0]])
    C, w, idx = torch.tensor([[0.0], [50.0], [60.0]]), torch.ones(4), torch.zeros(4, dtype=torch.int64)
    cost = (x - C[idx]).square().sum(1)
    moved = means(x, w, idx, C, cost)
    assert moved[0].item() == pytest.approx(4.525) and moved[1].item() == 9.0
    assert moved[2].item() == pytest.approx(0.1)  # 9.0 is taken already
    assert means(x, w, idx, C)[1:].tolist() == [[50.0], [60.0]]


# The whole


@pytest.mark.parametrize("v, k", [(1, 4), (2, 8), (5, 16)])
def test_it_is_the_naive_loop(v, k):
    x, w = cloud(120, v)
    found = kmeans(x, w, k, generator=seeded(), start=x[:k], iterations=6, tol=-1.0)
    expected = lloyd_naive(x.tolist(), w.tolist(), x[:k].tolist(), 6)
    assert torch.allclose(found.C, torch.tensor(expected, dtype=torch.float64), atol=1e-10) and len(found.inertia) == 7


def test_it_is_the_weighted_k_means_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is not installed")
    x, w = cloud(4000, 4)
    found = kmeans(x, w, 32, generator=seeded(), start=x[:32], iterations=500, tol=0.0)
    other = cluster.KMeans(32, init=x[:32].numpy(), n_init=1, max_iter=500, tol=0.0, algorithm="lloyd")
    other.fit(x.numpy(), sample_weight=w.numpy())
    assert torch.allclose(found.C, torch.from_numpy(other.cluster_centers_), atol=1e-6, rtol=0)
    assert found.inertia[-1] == pytest.approx(other.inertia_, rel=1e-6)
    assert torch.equal(nearest(x, found.C), torch.from_numpy(other.labels_).long())


@given(st.integers(0, 2**31), st.sampled_from(STARTS), st.integers(2, 20), st.booleans())
def test_no_half_step_raises_the_error(seed, start, k, doubled):
    x, w = cloud(150, 2, seed, torch.float32)
    x, w = (x[:75].repeat(2, 1), w) if doubled else (x, w)
    C = kmeans(x, w, k, generator=seeded(seed), start=start, iterations=0).C
    last = float("inf")
    for _ in range(8):
        idx = nearest(x, C)
        assigned = error(x, w, C, idx)
        cost = (x - C[idx]).square().sum(1) * w
        C = means(x, w, idx, C, cost)
        for now in (assigned, error(x, w, C, idx)):
            assert now <= last * (1 + 1e-6)
            last = now
    story = kmeans(x, w, k, generator=seeded(seed), start=start, iterations=8).inertia
    assert all(b <= a * (1 + 1e-6) for a, b in zip(story, story[1:], strict=False))


def test_whole_weights_are_repetitions():
    x, _ = cloud(60, 3)
    w = torch.randint(0, 4, (60,), generator=seeded()).double()
    once = kmeans(x, w, 5, generator=seeded(), start=x[:5], iterations=10)
    often = kmeans(x.repeat_interleave(w.long(), 0), torch.ones(int(w.sum()), dtype=w.dtype), 5, generator=seeded(),
                   start=x[:5], iterations=10)
    assert torch.allclose(once.C, often.C, atol=1e-10) and once.inertia == pytest.approx(often.inertia)


def test_a_common_factor_of_all_weights_changes_nothing():
    x, w = cloud(300, 4)
    a, b = (kmeans(x, w * f, 16, generator=seeded(), iterations=10) for f in (1.0, 1024.0))
    assert torch.equal(a.C, b.C)


@pytest.mark.parametrize("start", STARTS)
def test_the_same_seed_gives_the_same_codebook(start):
    x, w = cloud(500, 4, dtype=torch.float32)
    a, b, other = (kmeans(x, w, 16, generator=seeded(s), start=start, sample=20) for s in (3, 3, 4))
    assert torch.equal(a.C, b.C) and a.inertia == b.inertia and not torch.equal(a.C, other.C)
    before = torch.random.get_rng_state()
    kmeans(x, w, 16, generator=seeded(), start=start)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("k", [6, 7, 50])
def test_enough_vectors_leave_no_error(k):
    few = torch.randn(6, 3, generator=seeded())
    x = few[torch.randint(0, 6, (400,), generator=seeded())]
    found = kmeans(x, torch.rand(400, generator=seeded()), k, generator=seeded())
    assert torch.equal(found.C[nearest(x, found.C)], x) and found.C.shape == (k, 3)


def test_as_many_vectors_as_points_and_weights_of_zero():
    x, w = cloud(12, 2)
    found = kmeans(x, w.masked_fill(torch.arange(12) < 4, 0.0), 12, generator=seeded())
    assert torch.isfinite(found.C).all() and torch.equal(found.C[nearest(x[4:], found.C)], x[4:])
    assert torch.isfinite(kmeans(x, torch.zeros(12), 3, generator=seeded()).C).all()


def test_points_of_no_weight_are_not_looked_at():
    x, w = cloud(200, 2)
    far = torch.cat([x, torch.full((50, 2), 1e6, dtype=x.dtype)])
    with_far = kmeans(far, torch.cat([w, torch.zeros(50, dtype=w.dtype)]), 8, generator=seeded())
    assert torch.equal(with_far.C, kmeans(x, w, 8, generator=seeded()).C)


def test_a_share_of_the_points_does_nearly_as_well():
    x, w = cloud(20000, 2)
    full, part = (kmeans(x, w, 16, generator=seeded(), sample=s, iterations=30) for s in (None, 256))
    assert part.drawn == 256 * 16 and full.drawn == 20000
    assert error(x, w, part.C, nearest(x, part.C)) < 1.05 * error(x, w, full.C, nearest(x, full.C))


def test_weights_pull_vectors_to_where_it_matters():
    x, _ = cloud(8000, 2)
    w = torch.exp(2 * x[:, 0])
    ours, plain = (kmeans(x, weights, 16, generator=seeded(), iterations=30) for weights in (w, torch.ones_like(w)))
    assert error(x, w, ours.C, nearest(x, ours.C)) < 0.8 * error(x, w, plain.C, nearest(x, plain.C))


def test_better_starts_start_better():
    x, w = cloud(8000, 4)
    first = {s: kmeans(x, w, 64, generator=seeded(), start=s, iterations=0).inertia[0] for s in STARTS}
    assert first["gaussian"] < first["kmeans++"] < first["random"]
    assert universal(64, 4) is universal(64, 4)


def test_it_stops_when_little_is_gained():
    x, w = cloud(3000, 2)
    early, late = (kmeans(x, w, 8, generator=seeded(), iterations=200, tol=tol) for tol in (1e-2, 0.0))
    assert len(early.inertia) < len(late.inertia) < 200
    assert early.inertia[-2] - early.inertia[-1] <= 1e-2 * early.inertia[-2]
    assert early.inertia[-3] - early.inertia[-2] > 1e-2 * early.inertia[-3]


@pytest.mark.parametrize("v, k, expected, spread", [(1, 4, 0.1175, 0.002), (2, 16, 0.108, 0.002), (4, 256, 0.096, 0.003)])
def test_two_bits_of_gaussian_numbers_cost_what_is_known(v, k, expected, spread):
    """Scalar, pairs, fours: the same rate, less error; the limit for any length is 2**-4 = 0.0625."""
    x = torch.randn(60000, v, generator=seeded())
    fresh = torch.randn(60000, v, generator=seeded(1))
    C = kmeans(x, torch.ones(len(x)), k, generator=seeded(), start="gaussian", iterations=20).C
    learned, unseen = (float((p - C[nearest(p, C)]).square().mean()) for p in (x, fresh))
    assert learned < unseen + 1e-3 and (learned + unseen) / 2 == pytest.approx(expected, abs=spread)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(start="best"), "start='best' is unknown; use one of random, kmeans"),
        (dict(start=torch.zeros(3, 2)), r"is \[3, 2\]; k=4 vectors of 2 are asked for"),
        (dict(k=0), "k=0 vectors for 8 points"),
        (dict(points=torch.full((8, 2), torch.nan)), "all points finite"),
        (dict(weights=torch.ones(7)), "weights must be 8 finite numbers"),
        (dict(weights=-torch.ones(8)), "none negative"),
    ],
)
def test_what_is_refused(change, message):
    given_ = dict(points=torch.arange(16.0).reshape(8, 2), weights=torch.ones(8), k=4, generator=seeded()) | change
    with pytest.raises(ValueError, match=message):
        kmeans(**given_)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [16, 4096])
def test_a_gpu_gives_the_same_codebook_on_every_run(k):
    x, w = (t.cuda() for t in cloud(40000, 6, dtype=torch.float32))
    runs = [kmeans(x, w, k, generator=seeded(), iterations=5) for _ in range(3)]
    assert all(torch.equal(r.C, runs[0].C) and r.inertia == runs[0].inertia for r in runs)
    on_cpu = kmeans(x.cpu(), w.cpu(), k, generator=seeded(), iterations=5)
    assert runs[0].inertia[-1] == pytest.approx(on_cpu.inertia[-1], rel=1e-3)
