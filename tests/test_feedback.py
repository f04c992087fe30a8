"""The error-feedback solver against oracles that share no code with it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.feedback import ORDERS, AffineRounder, feedback, order
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import condition, factor
from lowbit_nb.methods import GPTQ
from lowbit_nb.methods.gptq import split
from lowbit_nb.stored import AffineWeight
from tests.reference import correlated, cost, current_values, every_code, obq_fixed_order, problem

SHAPES = [(1, 1), (3, 8), (5, 33), (4, 130)]


class ColumnRounder:
    """Every column on its own ruler [d_out]; used with weights that are permuted by hand."""

    span = 1

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """Costs are not looked at."""

    def __init__(self, s: Tensor, z: Tensor, grid: Grid) -> None:
        self.s, self.z, self.grid = s, z, grid

    def start(self, j: int, now: Tensor) -> None:
        pass

    def round(self, j: int, t: Tensor) -> Tensor:
        return self.s[:, j] * (grids.codes(t, self.s[:, j], self.z[:, j], self.grid) - self.z[:, j])


class Lattice:
    """All multiples of s: a ruler without ends."""

    span = 1

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        """Costs are not looked at."""

    def __init__(self, s: float) -> None:
        self.s = s

    def start(self, j: int, now: Tensor) -> None:
        pass

    def round(self, j: int, t: Tensor) -> Tensor:
        return torch.round(t / self.s) * self.s


def solve(
    W: Tensor,
    H: Tensor,
    grid: Grid,
    perm: Tensor | None = None,
    groups: str = "static",
    clip: str = "minmax",
    block: int = 128,
    weight: Tensor | None = None,
) -> tuple[AffineWeight, object]:
    """Stored form and result of one run."""
    perm = torch.arange(W.shape[1]) if perm is None else perm
    s, z = grids.fit(W, grid, clip, weight) if groups == "static" else (None, None)
    rounder = AffineRounder(grid, perm, W.shape[0], s, z, clip, weight)
    result = feedback(W, H, rounder, perm, block)
    return AffineWeight.of(*_stored(rounder, grid)), result


def _stored(rounder: AffineRounder, grid: Grid) -> tuple:
    q, s, z, perm = rounder.result()
    return q, s, z, grid, perm


def static_columns(W: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """s and z of every column, [d_out, d_in] float64."""
    s, z = grids.fit(W, grid)
    g = grid.g(W.shape[1])
    return s.double().repeat_interleave(g, 1), z.double().repeat_interleave(g, 1)


# The sixteen properties of the specification


@pytest.mark.parametrize("groups", ["static", "dynamic"])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_01_a_diagonal_hessian_gives_nearest_rounding(generator, groups, name, dtype):
    W = torch.randn(6, 64, generator=generator).to(dtype)
    H = torch.diag(torch.rand(64, generator=generator) + 0.1).to(dtype)
    grid = Grid(2, 16)
    perm = order(H, name, 16)
    if groups == "dynamic" and name in (
        "act",
        "min_pivot",
    ):  # groups are made of scattered columns: round those
        nearest = AffineWeight.nearest(W[:, perm], grid)
        expected = torch.empty_like(nearest.q).index_copy_(1, perm, nearest.q)
        found = solve(W, H, grid, perm, groups)[0]
        assert torch.equal(torch.empty_like(found.q).index_copy_(1, found.perm, found.q), expected)
    else:
        assert torch.equal(solve(W, H, grid, perm, groups)[0].q, AffineWeight.nearest(W, grid).q)


@pytest.mark.parametrize("groups", ["static", "dynamic"])
@pytest.mark.parametrize("d_out, d_in", SHAPES)
def test_02_the_block_size_changes_nothing(generator, groups, d_out, d_in):
    W, H = problem(d_out, d_in, generator)
    grid = Grid(3, next(g for g in (10, 11, 4, 1) if d_in % g == 0))
    runs = [solve(W, H, grid, order(H, "act", 1), groups, block=block)[0] for block in (1, 3, 16, 128, 1000)]
    for run in runs[1:]:
        assert torch.equal(run.q, runs[0].q) and torch.equal(run.s, runs[0].s)


@pytest.mark.parametrize("d_in", [8, 64])
@pytest.mark.parametrize("name", ["natural", "act"])
def test_03_it_is_optimal_brain_quantization_in_one_fixed_order(generator, d_in, name):
    W, H = problem(4, d_in, generator)
    grid = Grid(2, 8)
    perm = order(H, name, 8)
    s, z = static_columns(W, grid)
    oracle = obq_fixed_order(W, H, perm.tolist(), lambda c, w: s[:, c] * (grids.codes(w, s[:, c], z[:, c], grid) - z[:, c]))
    torch.testing.assert_close(solve(W, H, grid, perm)[0].dequantize().double(), oracle, rtol=1e-9, atol=1e-12)


def test_04_right_looking_equals_left_looking(generator):
    """e_j = (w_j - q_j) / U_jj;  w_k -= e_j U_jk for k > j, with inv(H) = U.T U: the paper's own form."""
    W, H = problem(4, 40, generator)
    grid = Grid(2, 8)
    s, z = static_columns(W, grid)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    now, Q, E = W.clone(), torch.zeros_like(W), torch.zeros_like(W)
    for j in range(40):
        Q[:, j] = s[:, j] * (grids.codes(now[:, j], s[:, j], z[:, j], grid) - z[:, j])
        E[:, j] = (now[:, j] - Q[:, j]) / U[j, j]
        now[:, j + 1 :] -= torch.outer(E[:, j], U[j, j + 1 :])
    left, result = solve(W, H, grid)
    torch.testing.assert_close(left.dequantize().double(), Q, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.column_loss, E.square().sum(0), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("c", [2.0**-40, 1e-12, 1e6, 2.0**20])
@pytest.mark.parametrize("groups, clip", [("static", "minmax"), ("dynamic", "mse")])
def test_05_the_scale_of_h_changes_nothing(generator, c, groups, clip):
    W, H = problem(4, 32, generator)
    for name in ORDERS:
        method = GPTQ(Grid(2, 8), order=name, groups=groups, clip=clip)
        one, other = method.quantize_layer(W, H)[0], method.quantize_layer(W, c * H)[0]
        assert torch.equal(one.q, other.q) and torch.equal(one.s, other.s) and torch.equal(one.z, other.z)


@pytest.mark.parametrize("groups", ["static", "dynamic"])
def test_06_rows_are_independent(generator, groups):
    """Scaling, permuting and stacking rows does to the result what it does to the weight."""
    W, H = problem(6, 32, generator)
    grid, perm = Grid(2, 8), order(H, "act", 8)
    run = solve(W, H, grid, perm, groups, "mse")[0]
    r = torch.tensor([[1.0], [2.0], [0.25], [8.0], [0.5], [4.0]], dtype=W.dtype)
    scaled = solve(r * W, H, grid, perm, groups, "mse")[0]
    assert torch.equal(scaled.q, run.q) and torch.equal(scaled.dequantize().double(), r * run.dequantize().double())
    rows = torch.randperm(6, generator=generator)
    assert torch.equal(solve(W[rows], H, grid, perm, groups, "mse")[0].q, run.q[rows])
    stacked = solve(torch.cat([W, W[:2] * 3]), H, grid, perm, groups, "mse")[0]
    alone = solve(W[:2] * 3, H, grid, perm, groups, "mse")[0]
    assert torch.equal(stacked.q[:6], run.q) and torch.equal(stacked.q[6:], alone.q)
    first, second = split(stacked, [6, 2])
    assert torch.equal(first.dequantize(), run.dequantize()) and torch.equal(second.dequantize(), alone.dequantize())


@pytest.mark.parametrize("name", ORDERS)
def test_07_an_order_is_a_permutation_of_the_problem(generator, name):
    W, H = problem(4, 48, generator)
    grid, perm = Grid(2, 16), order(H, name, 16)
    s, z = static_columns(W, grid)
    by_hand = feedback(W[:, perm], H[perm][:, perm], ColumnRounder(s[:, perm], z[:, perm], grid))
    unpermuted = torch.empty_like(W).index_copy_(1, perm, by_hand.W_hat)
    found, result = solve(W, H, grid, perm)
    torch.testing.assert_close(result.W_hat, unpermuted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.dequantize().double(), unpermuted, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.column_loss, by_hand.column_loss, rtol=1e-9, atol=1e-12)
    assert found.perm is None


@pytest.mark.parametrize("d_out, d_in", SHAPES)
@pytest.mark.parametrize("groups", ["static", "dynamic"])
def test_08_the_reported_loss_is_the_cost(generator, d_out, d_in, groups):
    """sum of E**2 = tr(Delta H Delta.T) = sum_j D_j |t_j - q_j|**2, with the damped H."""
    W, H = problem(d_out, d_in, generator)
    found, result = solve(W, H, Grid(2), order(H, "act", d_in), groups)
    assert result.loss == pytest.approx(cost(W, result.W_hat, H), rel=1e-9)
    assert result.loss == pytest.approx(cost(W, found.dequantize().double(), H), rel=1e-6)
    assert result.loss == pytest.approx(float(result.column_loss.sum()), rel=1e-12) and bool((result.column_loss >= 0).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", ORDERS)
def test_09_feedback_beats_nearest_rounding_on_correlated_inputs(generator, bits, name):
    ratios = []
    for _ in range(8):
        W, H = problem(8, 64, generator)
        found, result = solve(W, H, Grid(bits, 16), order(H, name, 16))
        ratios.append(result.loss / cost(W, AffineWeight.nearest(W, Grid(bits, 16)).dequantize().double(), H))
    assert max(ratios) < 1 and sum(ratios) / 8 < 0.7


@pytest.mark.parametrize("groups", ["static", "dynamic"])
@pytest.mark.parametrize("name", ORDERS)
def test_10_a_weight_on_the_grid_stays(generator, groups, name):
    W, H = problem(5, 32, generator)
    grid, perm = Grid(3, 8), order(H, name, 8)
    first = solve(W, H, grid, perm, groups)[0]
    on_grid = first.dequantize().double()
    s, z, place = first.s.double(), first.zero.double(), perm if first.perm is None else torch.arange(32)
    columns = first.perm if first.perm is not None else torch.arange(32)
    rounder = AffineRounder(grid, place, 5, s, z)  # the same rulers again, in stored column order
    again = feedback(on_grid[:, columns], H[columns][:, columns], rounder, place)
    assert again.loss == 0.0 and torch.equal(again.W_hat, on_grid[:, columns])
    assert torch.equal(rounder.result()[0], first.q)


def test_11_more_marks_less_error(generator):
    W, H = problem(4, 32, generator)
    losses = [solve(W, H, Grid(bits, 8))[1].loss for bits in range(1, 9)]
    assert losses == sorted(losses, reverse=True) and losses[7] < 1e-3 * losses[0]
    fine = feedback(W, H, Lattice(1e-9))
    torch.testing.assert_close(fine.W_hat, W, rtol=0, atol=1e-6)


@pytest.mark.parametrize("groups", ["static", "dynamic"])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_12_dead_columns_change_nothing_for_the_others(generator, groups, name, size):
    """A whole group of inputs that are always zero, put in the middle; H as small as an output-adaptive one."""
    X = correlated(256, 24, generator) * size
    W = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    H = X.T @ X / 256
    live = torch.tensor([*range(8), *range(16, 32)])
    W_wide, H_wide = (
        torch.randn(5, 32, generator=generator, dtype=torch.float64),
        torch.zeros(32, 32, dtype=torch.float64),
    )
    W_wide[:, live] = W
    H_wide[live[:, None], live] = H
    method = GPTQ(Grid(2, 8), order=name, groups=groups)
    alone, share = method.quantize_layer(W, H)
    wide, wide_share = method.quantize_layer(W_wide, H_wide)
    if groups == "static" or name in ("natural", "gar"):  # else the dead columns share rulers with live ones
        assert torch.equal(wide.dequantize()[:, live], alone.dequantize())
        assert wide_share == pytest.approx(share, rel=1e-9)
    dead = wide.dequantize()[:, 8:16]
    assert torch.equal(dead, torch.zeros_like(dead))


@pytest.mark.parametrize("name", ["natural", "act"])
@pytest.mark.parametrize("g, d_in, clip", [(16, 256, "minmax"), (32, 256, "mse"), (128, 256, "mse"), (256, 512, "minmax")])
def test_14_dynamic_groups_see_current_values(generator, name, g, d_in, clip):
    """Against a reference that solves for the current values from scratch at every column; blocks of 128."""
    W, H = problem(3, d_in, generator)
    weight = H.diagonal() if clip == "mse" else None
    grid, perm = Grid(2, g), order(H, name, g).tolist()
    Q, s, z, q = torch.zeros_like(W), None, None, torch.zeros(3, d_in, dtype=torch.uint8)
    steps = []
    for j, c in enumerate(perm):
        now = current_values(W, Q, H, perm[:j], perm[j:])
        if j % g == 0:
            s, z = grids.fit(now[:, :g], Grid(2), clip, None if weight is None else weight[perm[j : j + g]])
            s, z = s[:, 0].double(), z[:, 0].double()
            steps.append(s)
        code = grids.codes(now[:, 0], s, z, grid)
        q[:, c], Q[:, c] = code.to(torch.uint8), s * (code - z)
    found, result = solve(W, H, grid, torch.tensor(perm), "dynamic", clip, block=128, weight=weight)
    torch.testing.assert_close(result.W_hat, Q, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.dequantize().double(), Q, rtol=0, atol=1e-9)
    if name == "act" and g < d_in:
        assert found.perm is not None and torch.equal(found.s.double(), torch.stack(steps, 1))
        assert torch.equal(torch.empty_like(q).index_copy_(1, found.perm, found.q), q)


@pytest.mark.parametrize("g, block", [(16, 24), (32, 48), (64, 40)])
def test_14_dynamic_groups_may_straddle_blocks(generator, g, block):
    W, H = problem(4, 192, generator)
    whole = solve(W, H, Grid(2, g), None, "dynamic", "mse", block=1000)[0]
    cut = solve(W, H, Grid(2, g), None, "dynamic", "mse", block=block)[0]
    assert torch.equal(cut.q, whole.q) and torch.equal(cut.s, whole.s) and torch.equal(cut.z, whole.z)


def test_15_without_ends_the_loss_obeys_babais_bound(generator):
    """J <= s**2 / 4 * sum of D for each row; on average a third of that."""
    total, bound = 0.0, 0.0
    for step in (0.01, 0.3, 2.0):
        W, H = problem(16, 40, generator)
        result = feedback(W, H, Lattice(step))
        rows = torch.tensor([cost(w[None], v[None], H) for w, v in zip(W, result.W_hat, strict=True)])
        limit = step**2 / 4 * float(factor(H)[1].sum())
        assert float(rows.max()) <= limit * (1 + 1e-9)
        total, bound = total + float(rows.mean()) / limit, bound + 1
    assert total / bound == pytest.approx(1 / 3, rel=0.2)


def test_16_ties_go_to_the_even_integer():
    grid = Grid(3, scale_dtype="float32")
    s, z = torch.full((1, 1), 0.5), torch.full((1, 1), 3.0)
    W = torch.tensor([[0.25, 0.75, -0.25, -0.75, 1.25, -1.25]])
    rounder = AffineRounder(grid, torch.arange(6), 1, s, z)
    feedback(W, torch.eye(6), rounder)
    assert rounder.result()[0].tolist() == [[3, 5, 3, 1, 5, 1]]


# Anchored in enumeration: nothing cleverer than trying everything


def test_each_code_is_the_best_if_the_rest_could_take_any_value(generator):
    """On 2 x 3 layers every choice is compared with all codes, the columns to come being solved for exactly."""
    for _ in range(40):
        W, H = problem(2, 3, generator)
        grid = Grid(2)
        found, _ = solve(W, H, grid)
        s, z = static_columns(W, grid)
        for r in range(2):
            chosen: list[float] = []
            for j in range(3):
                values = [float(s[r, j]) * (code - float(z[r, j])) for code in range(4)]
                best = min(values, key=lambda v: cost_if_rest_adapts(W[r], H, [*chosen, v]))
                chosen.append(best)
            assert chosen == pytest.approx(found.dequantize()[r].tolist(), abs=1e-6)


def cost_if_rest_adapts(w: Tensor, H: Tensor, fixed: list[float]) -> float:
    j = len(fixed)
    e = w[:j] - torch.tensor(fixed, dtype=w.dtype)
    rest = -torch.linalg.solve(H[j:, j:], H[j:, :j] @ e) if j < len(w) else w[:0]
    e = torch.cat([e, rest])
    return float(e @ H @ e)


def test_no_rounding_beats_the_best_of_all_and_feedback_comes_close(generator):
    feed, near, least = 0.0, 0.0, 0.0
    for _ in range(40):
        W, H = problem(2, 3, generator)
        grid = Grid(2)
        s, z = static_columns(W, grid)
        found, result = solve(W, H, grid, order(H, "act", 3))
        best = 0.0
        for r in range(2):
            best += min(
                cost(W[r : r + 1], (s[r] * (torch.tensor(code, dtype=W.dtype) - z[r]))[None], H) for code in every_code(4, 3)
            )
        assert result.loss >= best * (1 - 1e-9)
        feed, least = feed + result.loss, least + best
        near += cost(W, AffineWeight.nearest(W, grid).dequantize().double(), H)
    assert least <= feed < near and feed < 1.5 * least


# What the result says


@pytest.mark.parametrize("groups", ["static", "dynamic"])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("kind", [{}, {"symmetric": True}, {"zero_inside": False}])
def test_the_stored_form_is_the_result(generator, groups, name, kind):
    """To the last bit, in float32, whatever the order: what the solver reports is what will be stored."""
    W, H = problem(6, 64, generator)
    found, result = solve(W.float(), H.float(), Grid(2, 16, **kind), order(H, name, 16), groups)
    assert torch.equal(found.dequantize(), result.W_hat)


@pytest.mark.parametrize(
    "groups, name, kept",
    [
        ("static", "act", False),
        ("dynamic", "natural", False),
        ("dynamic", "gar", False),
        ("dynamic", "act", True),
        ("static", "min_pivot", False),
    ],
)
def test_the_order_is_stored_only_where_reading_needs_it(generator, groups, name, kept):
    W, H = problem(4, 64, generator)
    assert (solve(W, H, Grid(2, 16), order(H, name, 16), groups)[0].perm is not None) == kept
    assert solve(W, H, Grid(2), order(H, name, 64), groups)[0].perm is None  # one group a row


def test_inputs_are_left_as_they_were(generator):
    W, H = problem(4, 32, generator)
    before = W.clone(), H.clone()
    solve(W, H, Grid(2, 8), order(H, "min_pivot", 8), "dynamic", "mse")
    assert torch.equal(W, before[0]) and torch.equal(H, before[1])


def test_float32_agrees_with_float64_almost_everywhere(generator):
    W, H = problem(32, 256, generator)
    one, two = solve(W, H, Grid(3, 64))[0], solve(W.float(), H.float(), Grid(3, 64))[0]
    assert float((one.q == two.q).double().mean()) > 0.995


def test_the_method_weighs_the_clip_search_by_the_diagonal_of_h(generator):
    """Static groups, one column far louder than the others: its group's ruler must not clip it."""
    W, H = problem(1, 16, generator)
    W[0, :] = torch.tensor([4.0] + [0.3, -0.2, 0.25, -0.3, 0.1, -0.15, 0.2] * 2 + [0.05])
    loud, quiet = torch.eye(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
    loud[0, 0], quiet[0, 0] = 1e4, 1e-4
    for groups in ("static", "dynamic"):
        errors = []
        for metric in (loud, quiet):
            found, _ = GPTQ(Grid(2), groups=groups, order="natural").quantize_layer(W, metric)
            errors.append(abs(float(found.dequantize()[0, 0]) - 4.0))
        assert errors[0] < 0.5 < errors[1]


def test_the_error_share_is_the_outputs_relative_error(generator):
    X = correlated(300, 24, generator)
    W = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    found, share = GPTQ(Grid(3, 8)).quantize_layer(W, X.T @ X / 300)
    Y, Y_hat = X @ W.T, X @ found.dequantize().double().T
    assert share == pytest.approx(float((Y - Y_hat).square().sum() / Y.square().sum()), rel=1e-6)


# Orders


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("d_in, g", [(1, 1), (8, 8), (48, 16)])
def test_orders_are_permutations(generator, name, d_in, g):
    _, H = problem(1, d_in, generator)
    before = H.clone()
    perm = order(H, name, g)
    assert perm.dtype == torch.int64 and sorted(perm.tolist()) == list(range(d_in)) and torch.equal(H, before)


def test_act_visits_the_largest_diagonal_first_and_ties_in_natural_order(generator):
    _, H = problem(1, 32, generator)
    diag = H.diagonal()[order(H, "act", 8)]
    assert bool((diag[:-1] >= diag[1:]).all())
    assert order(torch.diag(torch.tensor([1.0, 2.0, 1.0, 2.0] * 8)), "act", 4).tolist() == [
        *range(1, 32, 2),
        *range(0, 32, 2),
    ]


def test_gar_keeps_groups_whole_sorts_inside_them_and_sorts_them_by_their_largest(generator):
    _, H = problem(1, 48, generator)
    groups = order(H, "gar", 8).reshape(6, 8)
    assert bool((groups // 8 == groups[:, :1] // 8).all())
    diag = H.diagonal()[groups]
    assert bool((diag[:, :-1] >= diag[:, 1:]).all()) and bool((diag[:-1, 0] >= diag[1:, 0]).all())


def test_min_pivot_is_greedy_from_the_end(generator):
    """At every step from the end, the column taken is the cheapest of those left: compared by solving for each."""
    for d_in in (5, 12):
        _, H = problem(1, d_in, generator)
        perm = order(H, "min_pivot", d_in).tolist()
        for j in range(d_in - 1, -1, -1):
            pivots = [pivot(H, c, perm[j + 1 :]) for c in perm[: j + 1]]
            assert pivots[-1] == pytest.approx(min(pivots), rel=1e-9)


def pivot(H: Tensor, c: int, later: list[int]) -> float:
    """What one squared unit of error at c costs when the later columns react as well as they can."""
    return float(H[c, c] - (H[c, later] @ torch.linalg.solve(H[later][:, later], H[later, c]) if later else 0.0))


def test_min_pivot_makes_the_last_pivots_the_smallest_ones(generator):
    _, H = problem(1, 64, generator)
    tails = {name: float(factor(H[p][:, p])[1][-16:].sum()) for name in ORDERS for p in [order(H, name, 16)]}
    assert tails["min_pivot"] == min(tails.values())


# What is refused


def test_an_unknown_order_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="order='random' is unknown; use one of natural, act, gar, min_pivot"):
        order(torch.eye(4), "random", 2)


@pytest.mark.parametrize(
    "W, H",
    [(torch.zeros(2, 3), torch.eye(4)), (torch.zeros(3), torch.eye(3)), (torch.zeros(2, 3), torch.ones(3))],
)
def test_shapes_that_do_not_fit_are_refused(W, H):
    with pytest.raises(ValueError, match="do not fit: H must be"):
        feedback(W, H, Lattice(1.0))


def test_weights_that_are_not_finite_are_refused():
    W = torch.zeros(2, 3)
    W[0, 0] = torch.inf
    with pytest.raises(ValueError, match="W has 1 non-finite values"):
        feedback(W, torch.eye(3), Lattice(1.0))


def test_a_hessian_that_is_not_positive_definite_is_refused(generator):
    X = torch.randn(3, 16, generator=generator)
    with pytest.raises(ValueError, match="not positive definite.*more calibration tokens"):
        GPTQ(Grid(2), damp=0.0).quantize_layer(torch.randn(4, 16, generator=generator), X.T @ X / 3)
    Hc, _ = condition(X.T @ X / 3, 0.01)
    feedback(torch.randn(4, 16, generator=generator), Hc, Lattice(0.1))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"groups": "sliding"}, "groups='sliding' is unknown"),
        ({"order": "random"}, "order='random' is unknown"),
        ({"clip": "best"}, "clip='best' is unknown"),
        ({"damp": -1.0}, "damp=-1.0"),
        ({"shrink": 2.0}, "shrink=2.0"),
    ],
)
def test_settings_are_refused_when_the_method_is_made(settings, words):
    """Not after the first calibration pass, and not after a work folder was claimed."""
    with pytest.raises(ValueError, match=words):
        GPTQ(Grid(2), **settings)


def test_groups_that_do_not_divide_are_refused(generator):
    W, H = problem(2, 10, generator)
    for groups, name in itertools.product(("static", "dynamic"), ORDERS):
        with pytest.raises(ValueError, match="d_in=10 is not a multiple of g=4; use g=2 or g=5"):
            GPTQ(Grid(2, 4), groups=groups, order=name).quantize_layer(W, H)
