"""VPTQ: error feedback with vectors against loops written from the published formulas, and the planted slips of its code."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lowbit_nb import stored
from lowbit_nb.checkpoint import load_quantized, save_quantized
from lowbit_nb.codebooks.codebook import Codebook, pieces
from lowbit_nb.codebooks.kmeans import kmeans, nearest
from lowbit_nb.codebooks.norming import normalise
from lowbit_nb.codebooks.refine import Spread, fit, least_squares, reassign
from lowbit_nb.codebooks.vectors import VectorRounder
from lowbit_nb.feedback import AffineRounder, feedback, order
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import condition, error_share, factor
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.quantize import quantize
from tests import tiny
from tests.reference import cost, problem

PLAIN = dict(norm="none", weight="h", start="random", retrain=0, refine=0, order="natural", iterations=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learn(points: Tensor, weights: Tensor, k: int, begin: Tensor | None) -> Tensor:
    return kmeans(points, weights, k, generator=seeded(), start="random" if begin is None else begin, iterations=8).C


def rounder(d_in: int, book: Codebook, books: dict | None = None, residual: dict | None = None,
            label: Tensor | None = None) -> VectorRounder:
    label = torch.ones(d_in, dtype=torch.uint8) if label is None else label
    return VectorRounder(book, label, learn, lambda D: D, books, residual)


def codebook(k: int, v: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(k, v, generator=seeded(seed), dtype=torch.float64)).half().double()


def upper_of_inverse(H: Tensor) -> Tensor:
    """U upper triangular with inv(H) = U.T U."""
    return torch.linalg.cholesky(torch.linalg.inv(H), upper=True)


def naive(W: Tensor, H: Tensor, C: Tensor, C_res: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The published column loop on a weight that is edited: Q, the scaled errors, U."""
    W, U, v = W.clone(), upper_of_inverse(H), C.shape[1]
    Q, Err = torch.zeros_like(W), torch.zeros_like(W)
    for j in range(W.shape[1]):
        column = torch.cat([W[:, j], W.new_zeros(-len(W) % v)])
        for r in range(0, len(column), v):
            piece = column[r : r + v]
            q = C[(C - piece).square().sum(1).argmin()]
            if C_res is not None:
                q = q + C_res[(C_res - (piece - q)).square().sum(1).argmin()]
            Q[r : r + v, j] = q[: len(W) - r]
        Err[:, j] = (W[:, j] - Q[:, j]) / U[j, j]
        W[:, j + 1 :] -= torch.outer(Err[:, j], U[j, j + 1 :])
    return Q, Err, U


def toy(seed: int = 0, d_out: int = 96, d_in: int = 48, gain: float = 0.7, spikes: int = 4) -> tuple[Tensor, Tensor]:
    """Correlated inputs with log-normal gains and some channels eight times as large."""
    g = seeded(seed)
    mix = torch.randn(d_in, d_in, generator=g) / d_in**0.5 + torch.eye(d_in)
    size = torch.exp(gain * torch.randn(d_in, generator=g))
    size[torch.randperm(d_in, generator=g)[:spikes]] *= 8
    X = torch.randn(16 * d_in, d_in, generator=g) @ mix * size
    return torch.randn(d_out, d_in, generator=g), X.T @ X / len(X)


def share(W: Tensor, H: Tensor, **settings: object) -> float:
    return VPTQ(**(dict(book=Codebook(4, 32)) | PLAIN | settings)).quantize_layer(W, H)[1]


# A: exact and algebraic


@pytest.mark.parametrize("d_out, v", [(12, 4), (13, 4), (12, 6), (25, 12), (7, 1)])
@pytest.mark.parametrize("second", [False, True])
def test_a04_it_is_the_published_loop_and_its_cost_is_exact(d_out, v, second):
    W, H = problem(d_out, 20, seeded())
    C, C_res = codebook(16, v), codebook(8, v, 1, 0.4) if second else None
    r = rounder(20, Codebook(v, 16, 8 if second else 0), {1: C}, {1: C_res} if second else None)
    result = feedback(W, H, r)
    Q, Err, U = naive(W, H, C, C_res)
    assert torch.equal(result.W_hat, Q)
    torch.testing.assert_close(Q - W, -Err @ U, rtol=0, atol=1e-10)
    assert result.loss == pytest.approx(float(Err.square().sum()), rel=1e-10)
    assert result.loss == pytest.approx(cost(W, result.W_hat, H), rel=1e-10)
    torch.testing.assert_close(factor(H)[1], 1 / U.diagonal().square(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("block", [1, 3, 16, 1000])
def test_a04_the_block_size_changes_nothing(block):
    W, H = problem(24, 33, seeded())
    perm, book = order(H, "act", 1), Codebook(4, 16, 8, groups=2, outliers=0.1, k_out=8)
    label = book.labels(H.diagonal())[perm]

    def run(size: int) -> dict:
        first = rounder(33, book, label=label)
        feedback(W, H, first, perm, size)
        second = first.with_residual()
        feedback(W, H, second, perm, size)
        return second.result(perm, None, None).pack()

    expected, found = run(128), run(block)
    assert all(torch.equal(t, expected[name]) for name, t in found.items())


@pytest.mark.parametrize("name", ["natural", "act", "min_pivot"])
def test_a05_a_metric_of_one_size_gives_nearest_vectors(name):
    W = torch.randn(16, 24, generator=seeded())
    H = 3.0 * torch.eye(24)
    found, _ = VPTQ(Codebook(4, 16), **PLAIN | {"order": name}).quantize_layer(W, H)
    C = found.main.C[0].float()
    assert torch.equal(found.main.idx.T.reshape(-1).long(), nearest(pieces(W.T, 4), C))


def test_a06_single_rows_and_even_marks_are_gptq():
    W, H = problem(10, 40, seeded())
    grid = Grid(3, None)
    marks = torch.linspace(-2.0, 1.5, 8, dtype=torch.float64)  # s = 0.5, z = 4
    perm = order(H, "act", 1)
    s, z = torch.full((10, 1), 0.5), torch.full((10, 1), 4.0)
    scalar = AffineRounder(grid, perm, 10, s, z)
    feedback(W, H, scalar, perm)
    vector = rounder(40, Codebook(1, 8), {1: marks[:, None]})
    feedback(W, H, vector, perm)
    assert torch.equal(vector.result(perm, None, None).main.idx, scalar.result()[0].int())


def test_a07_it_is_ldlq_from_the_other_end():
    W, H = problem(12, 30, seeded())
    C = codebook(32, 4)
    found = feedback(W, H, rounder(30, Codebook(4, 32), {1: C})).W_hat
    W_f, H_f = W.flip(1), H.flip(0, 1)
    L = torch.linalg.cholesky(H_f)
    L = L / L.diagonal()
    Q = torch.zeros_like(W_f)
    for j in reversed(range(30)):  # the last of the flipped columns is the first of ours
        t = W_f[:, j] + (W_f - Q)[:, j + 1 :] @ L[j + 1 :, j]
        Q[:, j] = C[nearest(t.reshape(-1, 4), C)].reshape(-1)
    assert torch.equal(found, Q.flip(1))


@pytest.mark.parametrize("book", [Codebook(4, 16), Codebook(6, 16, 8), Codebook(4, 16, 8, groups=2, outliers=0.1, k_out=8)])
def test_a08_the_order_of_columns_is_only_a_name(book):
    W, H = toy(d_in=32)
    perm = order(condition(H)[0], "act", 1)
    ours, _ = VPTQ(book, **PLAIN | {"order": "act"}).quantize_layer(W, H)
    moved, _ = VPTQ(book, **PLAIN).quantize_layer(W[:, perm], H[perm[:, None], perm])
    torch.testing.assert_close(ours.dequantize()[:, perm], moved.dequantize(), rtol=0, atol=0)


def test_a09_pieces_of_rows_do_not_know_one_another():
    W, H = problem(24, 30, seeded())
    book, C = Codebook(4, 16), {1: codebook(16, 4)}
    whole = rounder(30, book, C)
    feedback(W, H, whole)
    for rows in (slice(0, 4), slice(8, 20)):
        part = rounder(30, book, C)
        feedback(W[rows], H, part)
        idx = whole.result(torch.arange(30), None, None).main.idx[rows.start // 4 : rows.stop // 4]
        assert torch.equal(part.result(torch.arange(30), None, None).main.idx, idx)


@pytest.mark.parametrize("norm", ["std", "mean-std", "minmax"])
def test_a10_the_loss_is_the_same_number_in_both_worlds(norm):
    W, H = problem(12, 20, seeded())
    unit = normalise(W, H, norm)
    E = torch.randn(12, 20, generator=seeded(1), dtype=torch.float64)
    assert cost(E, 0 * E, unit.H) == pytest.approx(cost(E * unit.s, 0 * E, H), rel=1e-10)
    back = unit.W * unit.s + (0 if unit.m is None else unit.m)
    torch.testing.assert_close(back, W, rtol=0, atol=1e-12)
    U, U_n = upper_of_inverse(H), upper_of_inverse(unit.H)
    torch.testing.assert_close(U_n, U / unit.s, rtol=1e-8, atol=1e-10)
    assert torch.equal(unit.s.half().double(), unit.s)
    if norm != "minmax":
        torch.testing.assert_close(unit.W.square().mean(0), torch.ones(20, dtype=torch.float64), rtol=0, atol=5e-3)
    else:
        assert unit.W.amin() > -5e-3 and unit.W.amax() < 1 + 5e-3


@pytest.mark.parametrize("weight", ["one", "h", "schur"])
def test_a11_the_size_of_the_inputs_changes_no_index(weight):
    W, H = toy()
    book = Codebook(4, 16, 8)
    a, b = (VPTQ(book, weight=weight, iterations=5).quantize_layer(W, f * H)[0] for f in (1.0, 64.0))
    assert all(torch.equal(t, b.pack()[name]) for name, t in a.pack().items())


def test_a11_turning_a_channel_around_changes_no_error():
    W, H = problem(16, 24, seeded())
    C = codebook(16, 4)
    book = {1: torch.cat([C, -C])}  # a codebook that knows both directions
    flip = torch.where(torch.arange(24) % 3 == 0, -1.0, 1.0).double()
    a = feedback(W, H, rounder(24, Codebook(4, 32), book))
    b = feedback(W * flip, H * flip * flip[:, None], rounder(24, Codebook(4, 32), book))
    torch.testing.assert_close(a.W_hat * flip, b.W_hat, rtol=0, atol=0)
    assert a.loss == pytest.approx(b.loss, rel=1e-9)


def test_a03_enough_vectors_leave_no_error():
    few = torch.randn(9, 4, generator=seeded()).half().float()
    W = few[torch.randint(0, 9, (24, 6), generator=seeded())].permute(1, 2, 0).reshape(24, 24)
    _, H = toy(d_in=24)
    for retrain in (0, 1):
        found, error = VPTQ(Codebook(4, 16), **PLAIN | {"retrain": retrain}).quantize_layer(W, H)
        assert torch.equal(found.dequantize(), W) and error == 0.0


def test_a13_rows_that_fill_the_last_piece_do_not_matter():
    W, H = toy(d_out=27)
    for v in (6, 12):
        found, _ = VPTQ(Codebook(v, 16, 8), norm="mean-std").quantize_layer(W, H)
        assert found.shape == (27, 48) and found.main.idx.shape == (-(-27 // v), 48)
        x = torch.randn(48, generator=seeded())
        torch.testing.assert_close(found.matvec(x), found.dequantize() @ x, rtol=1e-4, atol=1e-4)


def test_dead_columns_cost_nothing_and_teach_nothing():
    W, H = toy()
    H[5], H[:, 5] = 0.0, 0.0
    wild = W.clone()
    wild[:, 5] = 1e4
    a, b = (VPTQ(Codebook(4, 16)).quantize_layer(w, H)[0] for w in (W, wild))
    assert all(torch.equal(t, b.pack()[name]) for name, t in a.pack().items())
    kept = torch.arange(48) != 5
    without, _ = VPTQ(Codebook(4, 16), **PLAIN).quantize_layer(W[:, kept], H[kept][:, kept])
    assert torch.equal(VPTQ(Codebook(4, 16), **PLAIN).quantize_layer(W, H)[0].main.C, without.main.C)


def test_what_is_stored_is_what_was_propagated():
    """The rounder's own values, scaled back, are the stored weight's."""
    W, H = toy()
    Hc, _ = condition(H)
    unit = normalise(W, Hc, "std")
    perm = order(unit.H, "act", 1)
    r = rounder(48, Codebook(4, 16, 8))
    feedback(unit.W, unit.H, r, perm)
    r = r.with_residual()
    result = feedback(unit.W, unit.H, r, perm)
    torch.testing.assert_close(r.result(perm, unit.s, None).dequantize(), result.W_hat * unit.s, rtol=1e-6, atol=1e-7)


# B: what may only fall


@pytest.mark.parametrize("book", [Codebook(3, 8), Codebook(3, 8, 4), Codebook(3, 8, 4, groups=2, outliers=0.1, k_out=4)])
def test_b04_refitted_codebooks_are_the_least_squares_solution(book):
    W, H = problem(10, 20, seeded())
    W, H = W.float().double(), H.float().double()
    weight, _ = VPTQ(book, **PLAIN).quantize_layer(W.float(), H.float())
    spread = Spread(weight)
    Cs = [stage.C.double() for _, _, stage in weight.stages()]
    solved = least_squares(spread, Cs, W.T.contiguous(), H, 500, tol=1e-13)
    residual = spread.codebooks(H @ (W.T - spread.weight(solved)))
    assert max(float(r.abs().max()) for r in residual) < 1e-6
    sizes = [C.numel() for C in Cs]  # the same by a dense solve: one column of A a codebook number
    columns = []
    for n in range(sum(sizes)):
        unit = torch.zeros(sum(sizes), dtype=torch.float64)
        unit[n] = 1.0
        parts = [u.reshape(C.shape) for u, C in zip(unit.split(sizes), Cs, strict=True)]
        columns.append(spread.weight(parts).T.reshape(-1))
    root = torch.linalg.cholesky(H)
    A = torch.stack([(c.reshape(10, 20) @ root).reshape(-1) for c in columns], 1)
    best = torch.linalg.lstsq(A, (W @ root).reshape(-1, 1), driver="gelsd").solution
    least = float((A @ best - (W @ root).reshape(-1, 1)).square().sum())
    assert cost(W, spread.weight(solved).T, H) == pytest.approx(least, rel=1e-8)
    fitted = fit(weight, W, H)
    assert cost(W, fitted.normalised().double(), H) <= cost(W, weight.normalised().double(), H)
    assert torch.equal(fitted.main.idx, weight.main.idx)


def test_b04_spreading_and_gathering_are_transposes():
    W, H = toy()
    weight, _ = VPTQ(Codebook(5, 16, 8, groups=2, outliers=0.1, k_out=4), **PLAIN).quantize_layer(W, H)
    spread, g = Spread(weight), seeded()
    Cs = [torch.randn(stage.C.shape, generator=g, dtype=torch.float64) for _, _, stage in weight.stages()]
    G = torch.randn(48, 96, generator=g, dtype=torch.float64)
    inner = sum(float((a * b).sum()) for a, b in zip(Cs, spread.codebooks(G), strict=True))
    assert float((spread.weight(Cs) * G).sum()) == pytest.approx(inner, rel=1e-10)
    halves = [stage.C.float() for _, _, stage in weight.stages()]
    assert torch.equal(spread.weight(halves).T, weight.normalised())


@pytest.mark.parametrize("k_res", [0, 8])
def test_b05_no_column_of_a_sweep_raises_the_error(k_res):
    W, H = problem(12, 16, seeded())
    weight, _ = VPTQ(Codebook(4, 8, k_res), **PLAIN).quantize_layer(W.float(), H.float())
    C, Q = weight.main.C[0].double(), weight.normalised().double()
    idx, idx_res = weight.main.idx.T.long().clone(), weight.residual.idx.T.long().clone() if k_res else None
    last = cost(W, Q, H)
    for j in H.diagonal().argsort(descending=True, stable=True).tolist():  # the sweep by hand
        others = [i for i in range(16) if i != j]
        best = W[:, j] + (W - Q)[:, others] @ H[others, j] / H[j, j]
        P = best.reshape(-1, 4)
        if k_res:
            C_res = weight.residual.C[0].double()
            idx[j] = torch.cdist(P - C_res[idx_res[j]], C).argmin(1)
            idx_res[j] = torch.cdist(P - C[idx[j]], C_res).argmin(1)
            Q[:, j] = (C[idx[j]] + C_res[idx_res[j]]).reshape(-1)
        else:
            idx[j] = torch.cdist(P, C).argmin(1)
            Q[:, j] = C[idx[j]].reshape(-1)
        assert cost(W, Q, H) <= last * (1 + 1e-12)
        last = cost(W, Q, H)
    swept = reassign(weight, W, H)
    assert torch.equal(swept.main.idx.T.long(), idx) and (not k_res or torch.equal(swept.residual.idx.T.long(), idx_res))
    torch.testing.assert_close(swept.normalised().double(), Q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_b06_b07_what_helps_helps(seed):
    W, H = toy(seed)
    plain = share(W, H)
    diagonal = torch.diag(H.diagonal())
    unfed, _ = VPTQ(Codebook(4, 32), **PLAIN).quantize_layer(W, diagonal)
    assert plain < error_share(W, unfed.dequantize(), H)  # feedback
    assert share(W, H, book=Codebook(4, 32, 16)) < 0.7 * plain  # a second stage
    assert share(W, H, book=Codebook(4, 32, outliers=0.1, v_out=2, k_out=64)) < plain
    assert share(W, H, refine=2) < share(W, H, refine=1) < plain
    assert share(W, H, retrain=2) < plain


def test_b08_important_columns_first():
    """On average: one codebook or another may favour one order or another."""
    falling = natural = rising = 0.0
    for seed in range(6):
        W, H = toy(seed)
        up = H.diagonal().argsort()
        falling += share(W, H, order="act")
        natural += share(W, H)
        rising += share(W[:, up], H[up[:, None], up])
    assert falling < natural < rising


def test_weights_and_norms_help_where_columns_differ():
    found = {}
    for seed in range(3):
        W, H = toy(seed)
        W = W * torch.exp(torch.randn(48, generator=seeded(seed)))
        for name, change in {"h": {}, "one": {"weight": "one"}, "schur": {"weight": "schur"}, "std": {"norm": "std"}}.items():
            found[name] = found.get(name, 0.0) + share(W, H, order="act", **change)
    assert found["std"] < found["h"] < found["one"] and found["schur"] < found["one"]


def test_the_second_stage_is_learned_from_what_feedback_left():
    """Passing the original's own error would be the paper's wording; the second run begins at the original weights."""
    W, H = toy()
    Hc, _ = condition(H)
    first = rounder(48, Codebook(4, 16, 8))
    feedback(W, Hc, first)
    second = first.with_residual()
    left = pieces(first.now - first.rounded, 4)
    weights = factor(Hc)[1].repeat_interleave(24)
    assert torch.equal(second.residual[1], learn(left, weights, 8, None).half().float())
    assert second.books is first.books
    result = feedback(W, Hc, second)
    E = (W - result.W_hat).double()
    assert result.loss == pytest.approx(float(((E @ Hc.double()) * E).sum()), rel=1e-4)


# The published code's slips


def spiky(seed: int) -> tuple[Tensor, Tensor]:
    """One weight in each column reaches far, in each column another distance: ranges differ by an order of magnitude."""
    W, H = toy(seed, spikes=0)
    g = seeded(seed)
    reach = 4 * 10 ** torch.rand(48, generator=g)
    W[torch.randint(0, 96, (48,), generator=g), torch.arange(48)] = reach
    return W, H


@pytest.mark.parametrize("norm", ["std", "minmax"])
def test_norm_without_the_metric_is_worse(norm):
    right = wrong = 0.0
    for seed in range(3):
        W, H = spiky(seed)
        right += share(W, H, norm=norm)
        wrong += share(W, H, norm=norm, compat="reference")
    assert wrong > 1.1 * right


def test_an_unsorted_factor_is_worse():
    right = wrong = 0.0
    for seed in range(3):
        W, H = toy(seed)
        right += share(W, H)
        wrong += share(W, H, compat="reference")
        assert share(W, H, order="act") == share(W, H, order="act", compat="reference")  # sorted in both: nothing to slip on
    assert wrong > 1.05 * right


def test_the_unsorted_factor_is_that_of_the_published_loop():
    W, H = problem(12, 20, seeded())
    C = codebook(16, 4)
    unit = normalise(W, H, "none", reference=True)
    found = feedback(W, unit.metric(torch.arange(20)), rounder(20, Codebook(4, 16), {1: C})).W_hat
    perm = H.diagonal().argsort(descending=True)
    U = upper_of_inverse(H[perm[:, None], perm])
    home = perm.argsort()
    U, now, Q = U[home[:, None], home], W.clone(), torch.zeros_like(W)
    for j in range(20):
        Q[:, j] = C[nearest(now[:, j].reshape(-1, 4), C)].reshape(-1)
        now[:, j + 1 :] -= torch.outer((now[:, j] - Q[:, j]) / U[j, j], U[j, j + 1 :])
    torch.testing.assert_close(found, Q, rtol=0, atol=1e-9)
    assert not torch.allclose(unit.metric(torch.arange(20)), H)
    assert torch.equal(normalise(W, H, "none").metric(torch.arange(20)), H)


# The method on a model


METHOD = VPTQ(Codebook(4, 16), iterations=4)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n].pack()[name]) for n, w in a.items() for name, t in w.pack().items())


def test_a_model_is_quantized_saved_and_read_back(tmp_path):
    subject = tiny.subject()
    before = tiny.state(subject.model)
    q = quantize(subject, METHOD, tiny.windows(), progress=False)
    assert tiny.unchanged(subject.model, before) and tiny.n_hooks(subject.model) == 0
    assert all(0 < e < 1 for t in q.trace for e in t["error_share"].values())
    save_quantized(q, tmp_path)
    back = load_quantized(tmp_path)
    assert equal(back.weights, q.weights) and back.settings == json.loads(json.dumps(q.settings))
    assert equal(quantize(subject, METHOD, tiny.windows(), progress=False).weights, q.weights)
    assert not equal(quantize(subject, VPTQ(Codebook(4, 16), iterations=4, start="random", seed=1), tiny.windows(),
                              progress=False).weights, q.weights)
    assert isinstance(stored.unpack(q.weights["model.layers.0.mlp.up_proj"].pack(),
                                    q.weights["model.layers.0.mlp.up_proj"].meta()), type(next(iter(q.weights.values()))))


@pytest.mark.parametrize("change", [{"sequential": True}, {"shift": True}])
def test_other_hessians_and_targets(change):
    q = quantize(tiny.subject(), VPTQ(Codebook(4, 16), iterations=4, **change), tiny.windows(), progress=False)
    plain = quantize(tiny.subject(), METHOD, tiny.windows(), progress=False)
    assert not equal(q.weights, plain.weights) and all(torch.isfinite(w.dequantize()).all() for w in q.weights.values())


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(norm="max"), "norm='max' is unknown; use one of none, std, mean-std, minmax"),
        (dict(weight="d"), "weight='d' is unknown; use one of one, h, schur"),
        (dict(start="far"), "start='far' is unknown"),
        (dict(order="random"), "order='random' is unknown"),
        (dict(compat="old"), "compat='old' is unknown"),
        (dict(retrain=-1), "none may be negative"),
        (dict(damp=-1.0), "damp=-1.0"),
        (dict(tune="long"), "budget='long' is unknown"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VPTQ(**change)


def test_a_weight_too_large_for_float16_is_refused_by_name():
    W, H = toy()
    with pytest.raises(ValueError, match="does not fit float16; use norm='std'"):
        VPTQ(Codebook(4, 16), norm="none").quantize_layer(W * 1e6, H)
    with pytest.raises(ValueError, match="column scales .* do not fit float16"):
        VPTQ(Codebook(4, 16), norm="std").quantize_layer(W * 1e6, H)
