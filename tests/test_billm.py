"""BiLLM: its searches against loops, its block feedback against the published update, its stored form against the disk."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit_nb import stored
from lowbit_nb.feedback import feedback
from lowbit_nb.hessian import condition, factor
from lowbit_nb.methods.billm import BiLLM
from lowbit_nb.methods.oac import OAC
from lowbit_nb.onebit.binary import BinaryWeight
from lowbit_nb.onebit.blockwise import FEEDBACKS, BlockRounder, compensating, diagonal
from lowbit_nb.onebit.regions import SEARCHES, LevelRounder, planes, regions, saliency, salient_columns, salient_errors
from lowbit_nb.quantize import quantize
from lowbit_nb.stored import AffineWeight
from tests import tiny
from tests.reference import cost, current_values, problem
from tests.test_signs import naive_plane, round_trip
from tests.walks import equal


def squares(row: list[float], hat: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(row, hat, strict=True))


def naive_planes(row: list[float], n: int) -> list[float]:
    """One row rebuilt from n sign planes, each on what the ones before left over."""
    if n == 0:
        return [0.0] * len(row)
    hat = naive_plane(row)[2]
    left = naive_planes([x - y for x, y in zip(row, hat, strict=True)], n - 1)
    return [x + y for x, y in zip(hat, left, strict=True)]


def naive_update(W: Tensor, H: Tensor, span: int, form: str, decide) -> Tensor:
    """The block loop as the paper and its code write it, with the Cholesky factor of the inverse."""
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    W, out = W.clone(), torch.zeros_like(W)
    for a in range(0, W.shape[1], span):
        b = min(a + span, W.shape[1])
        d = U.diagonal()[a:b]
        out[:, a:b] = decide(W[:, a:b], 1 / d**2).dequantize(torch.float64)
        E = W[:, a:b] - out[:, a:b]
        E = {"diagonal": E / d, "exact": E @ torch.linalg.inv(U[a:b, a:b]), "none": 0 * E}[form]
        W[:, b:] -= E @ U[a:b, b:]
    return out


# The two searches


@pytest.mark.parametrize("rest_planes", [1, 2])
def test_salient_columns_are_the_best_number_of_the_highest(generator, rest_planes, monkeypatch):
    monkeypatch.setattr("lowbit_nb.onebit.signs.CHUNK", 5 * 6 * 24)
    T = torch.randn(6, 24, generator=generator, dtype=torch.float64) * torch.logspace(1, 0, 24)
    score = T.square().sum(0)
    order = score.argsort(descending=True).tolist()
    want = []
    for k in range(1, 10):
        first, rest = order[:k], [c for c in range(24) if c not in order[:k]]
        want.append(sum(squares(row[cols].tolist(), naive_planes(row[cols].tolist(), n))
                        for row in T for cols, n in ((first, 2), (rest, rest_planes))))
    found = salient_errors(T, torch.tensor(order), 10, rest_planes)
    assert found.tolist() == pytest.approx(want)
    chosen = salient_columns(T, score, 10, rest_planes)
    assert sorted(chosen.nonzero()[:, 0].tolist()) == sorted(order[: want.index(min(want)) + 1])


@given(st.integers(0, 2**31), st.sampled_from(SEARCHES), st.sampled_from([2, 3, 20]))
def test_regions_are_disjoint_and_cover_the_block(seed, search, width):
    g = torch.Generator().manual_seed(seed)
    W, D = torch.randn(5, width, generator=g), torch.rand(width, generator=g) + 0.1
    salient, far = regions(W, D, search, most=6)
    near = ~far & ~salient
    assert ((salient.expand_as(far).int() + far.int() + near.int()) == 1).all()
    assert 1 <= int(salient.sum()) < min(6, width)
    s = saliency(W, D) if search == "saliency" else W.abs()
    assert not far.any() or not near.any() or s[far].min() >= s[near].max()


def test_the_two_searches_see_different_things(generator):
    """Loud channels: by saliency only their weights are far, by size those of all channels alike."""
    W = torch.randn(64, 32, generator=generator)
    D = torch.ones(32)
    D[4:8] = 1e4
    D[:4] = 1e5  # these become the salient columns
    by_size = regions(W, D, "weight", most=5)[1]
    by_saliency = regions(W, D, "saliency", most=5)[1]
    quiet = slice(8, None)
    assert by_saliency[:, 4:8].float().mean() > 0.6 and not by_saliency[:, quiet].any()
    assert 0.25 < by_size[:, 4:8].float().mean() < 0.45 and 0.25 < by_size[:, quiet].float().mean() < 0.45


def test_an_unknown_search_is_refused():
    with pytest.raises(ValueError, match="search='size' is unknown; use one of weight, saliency"):
        regions(torch.ones(2, 4), torch.ones(4), "size")


def test_the_form_of_a_block_is_the_formula(generator):
    W = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    salient = torch.arange(16) < 3
    far = (W.abs() > 0.9) & ~salient
    W_hat = planes(W, salient, far).dequantize(torch.float64)
    for i in range(5):
        for part, n in ((salient, 2), (far[i], 1), (~far[i] & ~salient, 1)):
            row = W[i][part].tolist()
            assert W_hat[i][part].tolist() == pytest.approx(naive_planes(row, n) if row else [], rel=4e-3, abs=4e-3)


def test_a_split_leaves_less_than_no_split_and_two_planes_less_than_one(generator):
    W = torch.randn(8, 64, generator=generator, dtype=torch.float64)
    no = torch.zeros(64, dtype=torch.bool)
    def loss(salient: Tensor, far: Tensor) -> float:
        return float((W - planes(W, salient, far).dequantize(torch.float64)).square().sum())
    whole, split = loss(no, no.expand_as(W)), loss(no, W.abs() >= W.abs().median())
    assert split < whole and loss(~no, no.expand_as(W)) < whole


# Feedback


@pytest.mark.parametrize("form", FEEDBACKS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("d_in", [32, 30])
def test_the_loop_makes_the_published_update(generator, form, search, d_in):
    """Diagonal: the paper's and its code's; exact: the triangular solve; the last block may be short."""
    W, H = problem(6, d_in, generator)
    method = BiLLM(span=8, search=search, feedback=form, most=4, damp=0.0)
    stored, _ = method.quantize_layer(W, H)
    want = naive_update(W, H, 8, form, method._decide)
    assert torch.allclose(stored.dequantize(torch.float64), want, atol=1e-6)


def test_exact_feedback_is_the_least_squares_answer(generator):
    """What a block is handed makes the cost least, given all blocks before; the diagonal form's does not."""
    W, H = problem(4, 24, generator)
    seen = []

    def decide(now: Tensor, D: Tensor) -> BinaryWeight:
        seen.append(now.clone())
        return planes(now, *regions(now, D, most=4))

    rounder = BlockRounder(8, decide)
    feedback(W, H, rounder)
    W_hat = torch.cat([part.dequantize(torch.float64) for part in rounder.parts], 1)
    for k in (1, 2):
        best = current_values(W, W_hat, H, list(range(8 * k)), list(range(8 * k, 24)))
        assert torch.allclose(seen[k], best[:, :8], atol=1e-8)
    first = seen[0]
    seen.clear()
    feedback(W, diagonal(H, 8), BlockRounder(8, decide))
    assert torch.equal(seen[0], first) and not torch.allclose(seen[1], best[:, :8], atol=1e-3)


def test_one_exact_step_costs_no_more_than_the_others(generator):
    class Kept(AffineWeight):
        def __init__(self, W: Tensor) -> None:
            object.__setattr__(self, "W", W)

        def dequantize(self, dtype: torch.dtype = torch.float64) -> Tensor:
            return self.W

    for _ in range(5):
        W, H = problem(4, 16, generator)
        losses = {}
        for form in FEEDBACKS:
            first = []

            def decide(now: Tensor, D: Tensor, first: list = first) -> object:
                first.append(now)
                return planes(now, *regions(now, D, most=4)) if len(first) == 1 else Kept(now)

            losses[form] = cost(W, feedback(W, compensating(H, form, 8), BlockRounder(8, decide)).W_hat, H)
        assert losses["exact"] <= min(losses["diagonal"], losses["none"]) + 1e-9


def test_the_diagonal_metric(generator):
    """Same costs; blocks of one column make the diagonal form exact, one block of all columns needs no feedback."""
    H = problem(1, 12, generator)[1]
    assert torch.allclose(factor(diagonal(H, 4))[1], factor(H)[1])
    assert torch.allclose(diagonal(H, 1), H) and torch.allclose(diagonal(H, 12), torch.diag(factor(H)[1]))
    with pytest.raises(ValueError, match="feedback='all' is unknown; use one of exact, diagonal, none"):
        compensating(H, "all", 4)


def test_several_columns_in_one_go_are_the_columns_one_by_one(generator):
    """What a compiled loop calls."""
    W, H = problem(5, 8, generator)
    V, _ = factor(H)
    for kind in (BlockRounder, LevelRounder):
        by_column, at_once = (kind(8, lambda now, D: planes(now, *regions(now, D, most=4))) for _ in range(2))
        feedback(W, H, by_column)
        at_once.prepare(W.T, factor(H)[1])
        at_once.start(0, W.T)
        T = W.T.clone()
        W_hat = at_once.stretch(0, W.T, T, V)
        assert torch.allclose(W_hat, by_column.parts[0].dequantize(torch.float64).T)
        E = W.T - W_hat
        assert kind is LevelRounder or torch.allclose(T, W.T + V.triu(1).T @ E)


def test_columns_with_feedback_take_the_nearest_of_their_four_levels(generator):
    W, H = problem(5, 16, generator)
    method = BiLLM(span=8, feedback="column", most=4, damp=0.0)
    found = method.quantize_layer(W, H)[0]
    levels, W_hat = found.choices().double(), found.dequantize(torch.float64)
    for j in range(16):
        now = current_values(W, W_hat, H, list(range(j)), list(range(j, 16)))[:, 0]
        want = levels[:, :, j].gather(0, (levels[:, :, j] - now).abs().argmin(0)[None])[0]
        assert torch.allclose(W_hat[:, j], want)


def test_feedback_helps(generator):
    W, H = problem(32, 64, generator)
    share = {f: BiLLM(span=16, feedback=f).quantize_layer(W, H)[1] for f in (*FEEDBACKS, "column")}
    assert share["column"] < share["exact"] < share["none"]


# The method


def test_dead_columns_cost_nothing_and_do_not_disturb(generator):
    W, H = problem(6, 16, generator)
    H[5], H[:, 5] = 0, 0
    for form in (*FEEDBACKS, "column"):
        found, share = BiLLM(span=8, feedback=form, most=4).quantize_layer(W, H)
        assert torch.isfinite(found.dequantize()).all() and math.isfinite(share)
        W[:, 5] += 100
        again, _ = BiLLM(span=8, feedback=form, most=4).quantize_layer(W, H)
        assert torch.equal(again.dequantize(), found.dequantize())


def test_no_row_of_a_block_has_more_than_four_values_of_a_kind(generator):
    W, H = problem(6, 40, generator)
    for form in ("exact", "column"):
        found, _ = BiLLM(span=16, feedback=form, most=6).quantize_layer(W, H)
        for a in (0, 16, 32):
            part, salient = found.dequantize()[:, a : a + 16], found.salient[a : a + 16]
            assert all(len(row[salient].unique()) <= 4 and len(row[~salient].unique()) <= 4 for row in part)


def test_without_feedback_the_order_of_columns_in_a_block_does_not_matter(generator):
    """All columns cost the same here; with feedback the order of elimination would change the costs."""
    W = torch.randn(6, 32, generator=generator, dtype=torch.float64)
    perm = torch.cat([torch.randperm(16, generator=generator), 16 + torch.randperm(16, generator=generator)])
    method = BiLLM(span=16, feedback="none", most=4, damp=0.0)
    H = torch.eye(32, dtype=torch.float64)
    plain, turned = (method.quantize_layer(w, H)[0].dequantize(torch.float64) for w in (W, W[:, perm]))
    assert torch.allclose(turned, plain[:, perm], atol=1e-3)


@given(st.integers(0, 2**31), st.sampled_from([(1, 2, 128), (3, 100, 32), (8, 64, 64), (5, 33, 16)]), st.booleans())
def test_binary_weights_on_disk(tmp_path_factory, seed, shape, factors):
    d_out, d_in, span = shape
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=g)
    parts = [planes(part, *regions(part, torch.ones(part.shape[1]))) for part in W.split(span, 1)]
    w = BinaryWeight.join(parts)
    if factors:
        more = (torch.rand(2, d_in, generator=g) + 0.5).half()
        w = BinaryWeight(w.signs, w.seconds, w.salient, w.levels, None, more, w.span)
    round_trip(w, tmp_path_factory.mktemp("binary") / "one.safetensors")
    x = torch.randn(d_in, generator=g)
    assert torch.allclose(w.matvec(x), w.dequantize() @ x, atol=1e-4)
    assert torch.equal(w.dequantize(torch.float16), w.dequantize().half())


def test_what_is_counted(generator):
    """Two planes and seven float16 numbers a row and block: 2.875 bits, whatever the title says."""
    W, H = problem(64, 256, generator)
    w = BiLLM().quantize_layer(W.float(), H.float())[0]
    assert w.bits().per_weight == pytest.approx(2 + 7 * 16 / 128 + 1 / 64)
    assert w.bits().nominal == pytest.approx(1 + float(w.salient.float().mean()))


@pytest.mark.parametrize("name", ["signs", "seconds", "salient", "levels", "means"])
def test_a_missing_or_short_tensor_is_refused(generator, name):
    W = torch.randn(4, 32, generator=generator)
    w = planes(W, *regions(W, torch.ones(32)))
    tensors = w.pack()
    for broken in ({k: t for k, t in tensors.items() if k != name}, tensors | {name: tensors[name][:, :0]}):
        with pytest.raises(ValueError, match=f"the {name} of a binary weight are missing or not"):
            stored.unpack(broken, json.loads(json.dumps(w.meta())))


def test_a_walk_and_the_loss_metric():
    subject, windows = tiny.subject(), tiny.windows()
    for method in (BiLLM(span=16), BiLLM(span=16, shift=True), OAC(backend=BiLLM(span=16))):
        found = quantize(subject, method, windows, progress=False)
        assert all(isinstance(w, BinaryWeight) for w in found.weights.values())
        assert equal(found, quantize(subject, method, windows, progress=False))
        assert all(0 < share < 1 for trace in found.trace for share in trace["error_share"].values())
    assert found.settings["settings"]["backend"]["method"] == "BiLLM"


@pytest.mark.parametrize("settings, message", [
    ({"search": "size"}, "search='size' is unknown; use one of weight, saliency"),
    ({"feedback": "some"}, "use one of exact, diagonal, none, column"),
    ({"rest_planes": 3}, "use one of 1, 2"),
    ({"span": 1}, "span=1 and most=50 must be at least 2"),
    ({"damp": -1}, "damp=-1"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BiLLM(**settings)


def test_damping_is_the_kits(generator):
    W, H = problem(4, 16, generator, damp=0.0)
    a = BiLLM(span=8, damp=0.1).quantize_layer(W, H)[0]
    b = BiLLM(span=8, damp=0.0).quantize_layer(W, condition(H, 0.1)[0])[0]
    assert torch.equal(a.dequantize(), b.dequantize())
