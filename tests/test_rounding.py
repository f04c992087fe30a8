"""Learnable roundings: the soft start, hardening, gradients and schedules, against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb import packing
from lowbit_nb.clipping import LearnedClip, _round_through
from lowbit_nb.grid import Grid
from lowbit_nb.rounding import (
    DECIDED,
    HANDCRAFTED_20,
    SCHEDULES,
    SoftRounding,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    schedule,
)
from lowbit_nb.stored import AffineWeight

GRIDS = [Grid(2, 16), Grid(3, 32), Grid(4), Grid(3, 16, symmetric=True), Grid(2, 16, zero_inside=False)]


def rulers(W: Tensor, grid: Grid, keep: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rulers over `keep` of the range, so that outliers are cut off."""
    W_g = grids.grouped(W, grid)
    lo, hi = W_g.amin(-1) * keep, W_g.amax(-1) * keep
    if grid.zero_inside:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    if grid.symmetric:
        hi = torch.maximum(-lo, hi)
        lo = -hi
    return grids.ruler(lo, hi, grid)


def soft(
    grid: Grid = GRIDS[0], keep: float = 0.7, seed: int = 0, rows: int = 8, **settings: object
) -> tuple[SoftRounding, Tensor]:
    W = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))
    s, z = rulers(W, grid, keep)
    return SoftRounding(W, s, z, grid, **settings), W


def plain_weight(p: SoftRounding, nu: Tensor, v: Tensor) -> Tensor:
    """The same weight from the formulas alone, in the type of nu; h and the clamps by autograd."""
    h = (1.2 * torch.sigmoid(nu) - 0.1).clamp(0, 1)
    k = 2 * (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)
    h = torch.where(p.hard, h.detach(), h)
    q = (p.base.to(nu.dtype) + h).clamp(0, p.grid.q_max)
    return ((q - p.z.to(nu.dtype)) * p.s.to(nu.dtype) * k).reshape(p.shape)


# --- the rectified sigmoid ------------------------------------------------------------------------------------------


def test_rectified_sigmoid_and_its_inverse_agree() -> None:
    f = torch.tensor([0, 1e-7, 0.25, 0.5, 0.75, 1 - 1e-7])
    nu = inverse_rectified_sigmoid(f)
    assert torch.isfinite(nu).all() and float(nu.abs().max()) <= math.log(11) + 1e-5
    assert torch.allclose(rectified_sigmoid(nu), f, atol=3e-7)
    f64 = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(rectified_sigmoid(inverse_rectified_sigmoid(f64)), f64, atol=1e-14)


def test_decided_is_exact_in_float32() -> None:
    assert rectified_sigmoid(torch.tensor([-DECIDED, DECIDED])).tolist() == [0.0, 1.0]


def test_multiplier_starts_at_one_with_slope_six_tenths() -> None:
    p, _ = soft()
    k = p.multiplier()
    assert (k == 1).all()
    assert torch.allclose(torch.autograd.grad(k.sum(), p.v)[0], torch.tensor(0.6))


# --- the soft start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_soft_start_is_the_weight_inside_the_ruler(grid: Grid) -> None:
    p, W = soft(grid)
    t = grids.grouped(W, grid) / p.s + p.z
    inside = (t >= 0) & (t <= grid.q_max)
    gap = (p.weight().detach().reshape(t.shape) - grids.grouped(W, grid)).abs() / p.s
    assert inside.float().mean() > 0.5 and gap[inside].max() < 1e-5
    clamped = (t.clamp(0, grid.q_max) - p.z) * p.s  # outside: the end of the ruler
    assert torch.allclose(p.weight().detach().reshape(t.shape), clamped, atol=1e-5 * float(p.s.max()))


# --- dead variables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_dead_variables_are_those_with_one_code(grid: Grid) -> None:
    p, _ = soft(grid, keep=0.5)
    below, above = p.base.clamp(0, grid.q_max), (p.base + 1).clamp(0, grid.q_max)
    assert torch.equal(p.dead, below == above)
    assert 0 < int(p.dead.sum()) < p.dead.numel()
    assert torch.equal(p.hard, p.dead)  # hard from the start
    p.weight().square().sum().backward()
    assert (p.nu.grad[p.dead] == 0).all()
    with torch.no_grad():
        p.nu[p.dead] = -p.nu[p.dead]
    assert (p.codes()[p.dead] == below[p.dead]).all()
    assert not (p.codes() != p.nearest)[p.dead].any()  # never counted as flips
    assert p.soft_fraction() == pytest.approx(1 - float(p.dead.float().mean()))  # they count as hard


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("cut", [0.02, 0.5, 1.0])
def test_marks_are_kept_in_a_byte_and_lose_nothing(bits: int, cut: float) -> None:
    """Far outside the ruler a mark is only known to be outside; everything that depends on it stays the same."""
    grid = Grid(bits, 16)
    p, W = soft(grid, keep=cut)
    t = (grids.grouped(W, grid) / p.s + p.z).floor()
    assert p.base.element_size() == 1 if bits < 7 else p.base.element_size() <= 2  # 127 + 1 and 255 do not fit into int8
    assert torch.equal(p.base.float(), t.clamp(-1, grid.q_max)) and (cut == 1 or float(t.abs().max()) > grid.q_max)
    h = rectified_sigmoid(p.nu.detach())
    want = ((t + h).clamp(0, grid.q_max) - p.z) * p.s
    assert torch.allclose(p.weight().detach().reshape(want.shape), want, atol=1e-6 * float(want.abs().max()))
    assert torch.equal(p.codes().float(), (t + (p.nu > 0)).clamp(0, grid.q_max))
    assert torch.equal(p.dead, (t < 0) | (t >= grid.q_max))


def test_dead_is_read_from_the_marks_and_not_kept() -> None:
    p, _ = soft()
    kept = p.hard.clone()
    assert p.hard is not p.dead
    p.harden(0.3)
    assert torch.equal(p.dead, kept) and (p.hard & ~p.dead).any()


# --- hardening ------------------------------------------------------------------------------------------------------


def test_hardening_is_monotone_exact_and_final() -> None:
    p, _ = soft(rows=16)
    n, n_dead = p.hard.numel(), int(p.dead.sum())
    hard, values = p.hard.clone(), p.nu.detach().clone()
    for share in HANDCRAFTED_20:
        p.harden(share)
        assert int(p.hard.sum()) == max(n_dead, round((1 - share) * n))
        assert not (hard & ~p.hard).any()
        fixed = hard & ~p.dead
        assert torch.equal(p.nu.detach()[fixed], values[fixed])
        assert (p.nu.detach()[p.hard & ~p.dead].abs() == DECIDED).all()
        hard, values = p.hard.clone(), p.nu.detach().clone()
    p.harden(0.0)
    assert p.hard.all() and p.soft_fraction() == 0


def test_the_most_decided_go_first_and_ties_by_place() -> None:
    p, _ = soft()
    live = (~p.dead).flatten().nonzero().flatten()
    with torch.no_grad():
        p.nu.view(-1)[live] = 0.1
        p.nu.view(-1)[live[5]], p.nu.view(-1)[live[9]] = 1.5, -1.5
    p.harden(1 - (int(p.dead.sum()) + 4) / p.dead.numel())
    chosen = (p.hard & ~p.dead).flatten().nonzero().flatten().tolist()
    assert chosen == sorted([int(live[i]) for i in (0, 1, 5, 9)])
    assert p.nu.view(-1)[live[9]] == -DECIDED and p.nu.view(-1)[live[5]] == DECIDED


def test_hardening_to_a_larger_share_changes_nothing() -> None:
    p, _ = soft()
    p.harden(0.3)
    before = p.hard.clone(), p.nu.detach().clone()
    p.harden(0.8)
    assert torch.equal(p.hard, before[0]) and torch.equal(p.nu.detach(), before[1])


def test_hard_variables_have_no_gradient_and_adam_leaves_them() -> None:
    p, _ = soft()
    p.harden(0.5)
    kept = p.nu.detach().clone()
    optimiser = torch.optim.Adam(p.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        p.weight().square().sum().backward()
        assert (p.nu.grad[p.hard] == 0).all() and (p.nu.grad[~p.hard] != 0).float().mean() > 0.9
        optimiser.step()
    assert torch.equal(p.nu.detach()[p.hard], kept[p.hard])
    assert (p.nu.detach()[~p.hard] != kept[~p.hard]).any()


def test_all_hard_the_soft_weight_is_the_stored_one_bit_for_bit() -> None:
    p, _ = soft(Grid(3, 16, scale_dtype="float32"))
    with torch.no_grad():
        p.nu += torch.randn_like(p.nu)
        p.v += 0.1 * torch.randn_like(p.v)
    p.harden(0.0)
    assert torch.equal(p.weight().detach(), p.finish().dequantize())
    half, _ = soft(Grid(3, 16))  # k = 1: the step is representable as it is
    half.harden(0.0)
    assert torch.equal(half.weight().detach(), half.finish().dequantize())


# --- the integers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_without_learning_the_result_is_nearest(grid: Grid) -> None:
    """Random weights have no exact ties, which go down here and to even in `grid.quantize`."""
    p, W = soft(grid)
    want = grids.quantize(W, p.s[..., 0], p.z[..., 0], grid)
    assert torch.equal(p.finish().q, want)
    p.harden(0.0)
    w = p.finish()
    assert torch.equal(w.q, want) and torch.equal(w.s.float(), p.s[..., 0]) and torch.equal(w.zero, p.z[..., 0])
    assert p.flips() == 0


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]))
def test_integers_are_one_of_two_neighbours(seed: int, bits: int) -> None:
    grid = Grid(bits, 16)
    p, W = soft(grid, seed=seed)
    with torch.no_grad():
        p.nu += 3 * torch.randn(p.nu.shape, generator=torch.Generator().manual_seed(seed))
    q = p.finish().q.int()
    t = (grids.grouped(W, grid) / p.s + p.z).double()
    below, above = (x.clamp(0, grid.q_max).int().reshape(q.shape) for x in (t.floor(), t.floor() + 1))
    assert ((q == below) | (q == above)).all()
    assert ((q - grids.quantize(W, p.s[..., 0], p.z[..., 0], grid).int()).abs() <= 1).all()


def test_ties_go_down_and_are_no_flips() -> None:
    s, z, W = torch.tensor([[1.0]]), torch.tensor([[1.0]]), torch.tensor([[0.5, 1.5, -0.5, -1.0]])
    p = SoftRounding(W, s, z, Grid(2, 4))
    assert p.finish().q.tolist() == [[1, 2, 0, 0]]
    assert p.flips() == 0  # nothing was learned yet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_integers_come_back_from_the_weights(dtype: torch.dtype) -> None:
    """Marks re-read with the stored step give the integers, whatever type the weights were kept in."""
    p, _ = soft(Grid(3, 16))
    with torch.no_grad():
        p.nu += torch.randn_like(p.nu)
        p.v += 0.2 * torch.randn_like(p.v)
    w = p.finish()
    assert (w.s.float() != p.s[..., 0]).any()
    again = grids.quantize(w.dequantize(dtype).float(), w.s.float(), w.zero, w.grid)
    assert torch.equal(again, w.q)
    assert torch.equal(packing.unpack(packing.pack(w.q, 3), 3, 64), w.q)
    assert torch.equal(AffineWeight.unpack(w.pack(), w.meta()).dequantize(), w.dequantize())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rulers_derived_from_the_result_give_other_integers(bits: int) -> None:
    """The reference's export: min and max of merged weights are not the ruler that was learned with."""
    grid = Grid(bits, 32)
    p, W = soft(grid, keep=1.0, rows=64)
    with torch.no_grad():
        p.nu += 1.5 * torch.randn_like(p.nu)
    w = p.finish()
    flipped = grids.quantize(W, w.s.float(), w.zero, grid) != w.q
    merged = W + 0.5 * w.s.float().repeat_interleave(32, 1) * torch.where(
        flipped, (w.q.float() - grids.quantize(W, w.s.float(), w.zero, grid).float()), 0.0)
    s, z = grids.fit(merged, grid)
    wrong = (grids.quantize(merged, s, z, grid) != w.q).float().mean()
    assert 0.002 < wrong < 0.5 and 0.01 < flipped.float().mean() < 0.5


def test_scaling_the_weight_scales_the_step_and_not_the_integers() -> None:
    p, W = soft()
    other = SoftRounding(4 * W, 4 * p.s[..., 0], p.z[..., 0], p.grid)
    assert torch.equal(other.finish().q, p.finish().q)
    assert torch.equal(other.finish().s, 4 * p.finish().s)


def test_rows_in_another_order_are_the_same_rows() -> None:
    """One layer by itself, learned row by row: permuted rows give permuted integers, steps and zero points."""
    draw = torch.Generator().manual_seed(3)
    grid, perm = Grid(2, 16), torch.randperm(8, generator=draw)
    W, X = torch.randn(8, 64, generator=draw), torch.randn(100, 64, generator=draw)
    s, z = grids.fit(W, grid, "mse")
    results = []
    for order in (torch.arange(8), perm):
        p = SoftRounding(W[order], s[order], z[order], grid)
        for share in (0.6, 0.2):
            p.harden(share)
            optimiser = torch.optim.Adam(p.parameters(), lr=5e-2)
            for _ in range(10):
                optimiser.zero_grad()
                (X @ (p.weight() - W[order]).T).square().mean(0).sum().backward()
                optimiser.step()
        results.append((p.finish(), p.flips()))
    (a, flips), (b, _) = results
    assert torch.equal(a.q[perm], b.q) and torch.equal(a.s[perm], b.s) and torch.equal(a.zero[perm], b.zero)
    assert flips > 0.02


def test_small_steps_are_kept() -> None:
    """float16 holds steps below its smallest normal number; the grid allows them, so must the result."""
    W = 2e-5 * torch.randn(4, 64)
    s, z = grids.fit(W, Grid(2, 16))
    assert float(s.max()) < torch.finfo(torch.float16).tiny
    assert torch.equal(SoftRounding(W, s, z, Grid(2, 16)).finish().s.float(), s)


def test_a_step_too_large_for_its_type_is_refused() -> None:
    W = 1.5e5 * torch.rand(4, 64)
    s, z = grids.fit(W, Grid(2, 16))
    p = SoftRounding(W, s, z, Grid(2, 16))
    with torch.no_grad():
        p.v += 9
    with pytest.raises(ValueError, match="fit|representable|finite"):
        p.finish()


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_gradients_are_those_of_the_plain_formula(grid: Grid, share: float) -> None:
    p, _ = soft(grid)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        p.nu += 1.5 * torch.randn(p.nu.shape, generator=draw)  # some beyond the ends of h
        p.v += 2 * torch.randn(p.v.shape, generator=draw)  # some k at exactly 0 or 2
    p.harden(share)
    G = torch.randn(p.shape, generator=draw)
    W_hat = p.weight()
    ours = torch.autograd.grad((W_hat * G).sum(), (p.nu, p.v))
    nu, v = (x.detach().double().requires_grad_() for x in (p.nu, p.v))
    plain = plain_weight(p, nu, v)
    theirs = torch.autograd.grad((plain * G.double()).sum(), (nu, v))
    assert torch.allclose(W_hat.double(), plain, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)
    assert (ours[1] == 0).any() and (ours[1] != 0).any()


def test_gradient_by_finite_differences() -> None:
    p, _ = soft()
    loss = p.weight().square().sum()
    grad_v = torch.autograd.grad(loss, p.v)[0]
    with torch.no_grad():
        p.v[2, 1] += 1e-3
        up = plain_weight(p, p.nu.double(), p.v.double()).square().sum()
        p.v[2, 1] -= 2e-3
        down = plain_weight(p, p.nu.double(), p.v.double()).square().sum()
    assert float(grad_v[2, 1, 0]) == pytest.approx(float(up - down) / 2e-3, rel=1e-3)


def test_without_scale_tuning_only_nu_is_learned() -> None:
    p, _ = soft(tune_scale=False)
    assert [g["role"] for g in p.parameters()] == ["rounding"]
    p.weight().sum().backward()
    assert p.nu.grad is not None and p.v.grad is None
    tuned, _ = soft()
    assert [(g["role"], g.get("weight_decay", 0)) for g in tuned.parameters()] == [("rounding", 0), ("scale", 1e-4)]


def test_tuning_the_scale_helps_when_roundings_are_fixed() -> None:
    """A convex case: one layer, all variables hard; the best k per group is a least-squares factor."""
    p, W = soft()
    p.harden(0.0)
    before = float((p.weight().detach() - W).square().sum())
    optimiser = torch.optim.Adam([p.v], lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        loss = (p.weight() - W).square().sum()
        loss.backward()
        optimiser.step()
    assert float(loss) < before * 0.98
    base = grids.grouped(p.weight().detach(), p.grid) / p.multiplier().detach()
    best = (grids.grouped(W, p.grid) * base).sum(-1) / base.square().sum(-1)
    assert torch.allclose(p.multiplier().detach()[..., 0], best, atol=0.02)


def learn_one_layer(order: str, seed: int = 0) -> float:
    """Hard loss of one layer after eight rounds, hardening the most or the least decided first."""
    draw = torch.Generator().manual_seed(seed)
    grid = Grid(2, 32)
    W = torch.randn(24, 64, generator=draw)
    mix = torch.randn(64, 64, generator=draw) / 6 + torch.eye(64)
    X = torch.randn(256, 64, generator=draw) @ mix
    p = SoftRounding(W, *rulers(W, grid, 0.8), grid)
    for share in schedule(rounds=8):
        if order == "least":
            with torch.no_grad():  # the score is a distance from 1/2; hide nu behind its mirror image for the choice
                free, kept = ~p.hard, p.nu.clone()
                p.nu[free] = torch.sign(kept[free]) / (kept[free].abs() + 0.5)
                p.harden(share)
                p.nu[~p.hard] = kept[~p.hard]
        else:
            p.harden(share)
        optimiser = torch.optim.Adam(p.parameters(), lr=2e-2)
        for _ in range(30):
            optimiser.zero_grad()
            ((X @ (p.weight() - W).T).square().sum(-1).mean()).backward()
            optimiser.step()
    return float((X @ (p.finish().dequantize() - W).T).square().sum(-1).mean())


def test_hardening_the_least_decided_first_is_clearly_worse() -> None:
    assert learn_one_layer("most") < 0.9 * learn_one_layer("least")


def test_tell_is_plain_and_adds_up() -> None:
    p, _ = soft()
    p.harden(0.5)
    told = p.tell()
    assert sum(told["histogram"]) == int((~p.hard).sum())
    assert sum(told["histogram"]) + sum(told["hard"]) + told["dead"] == p.hard.numel()
    assert len(told["strip"]) == len(told["state"]) == len(told["nearest"]) == 48
    assert told["state"].count("d") == int(p.dead.flatten()[:48].sum())
    assert told["soft"] == pytest.approx(0.5, abs=0.01) and told["flips"] == p.flips() == 0
    assert all(isinstance(told[name], float) for name in ("soft", "flips"))


# --- schedules ------------------------------------------------------------------------------------------------------


def test_handcrafted_twenty_is_the_published_list() -> None:
    assert schedule("handcrafted", 20) == pytest.approx((
        0.8, 0.65, 0.5, 0.43, 0.38, 0.34, 0.3, 0.27, 0.24, 0.21, 0.18, 0.15, 0.12, 0.10, 0.08, 0.06, 0.04, 0.02, 0.01, 0.005))
    assert schedule() == schedule("handcrafted", 20)


@pytest.mark.parametrize("rounds", [1, 2, 3, 8, 10, 20, 33, 100])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_never_rise_and_are_shares(name: str, rounds: int) -> None:
    r = schedule(name, rounds)
    assert len(r) == rounds and all(0 <= x <= 1 for x in r)
    assert all(a >= b for a, b in zip(r, r[1:], strict=False))


def test_named_schedules_by_their_formulas() -> None:
    assert schedule("exponential", 20)[:4] == pytest.approx((0.819, 0.670, 0.549, 0.449), abs=1e-3)
    assert schedule("exponential", 20)[-1] == pytest.approx(0.018, abs=1e-3)
    r = schedule("geometric", 20)
    assert r[0] == pytest.approx(0.8) and r[-1] == pytest.approx(0.005)
    assert all(b / a == pytest.approx(r[1] / r[0]) for a, b in zip(r, r[1:], strict=False))
    assert schedule("one_shot", 4) == (1.0, 1.0, 1.0, 0.0)
    assert schedule("handcrafted", 10)[-1] == pytest.approx(0.005)


@pytest.mark.parametrize("name, rounds", [("cosine", 20), ("", 20), ("handcrafted", 0), ("linear", -3)])
def test_unknown_schedules_are_refused(name: str, rounds: int) -> None:
    with pytest.raises(ValueError, match="handcrafted, exponential, geometric, linear, one_shot"):
        schedule(name, rounds)


# --- learned clipping -----------------------------------------------------------------------------------------------


def ends(p: LearnedClip) -> list[Tensor]:
    return [t for g in p.parameters() for t in g["params"]]


def test_learned_clip_starts_at_sigmoid_of_four() -> None:
    p = LearnedClip(torch.randn(6, 32), Grid(2, 16), 0.982)
    assert [g["role"] for g in p.parameters()] == ["clip"]
    assert all(torch.allclose(torch.sigmoid(t), torch.tensor(0.98201), atol=1e-4) for t in ends(p))
    assert all(torch.allclose(t, torch.tensor(4.0), atol=2e-3) for t in ends(p))
    assert p.tell() == pytest.approx({"low": 0.982, "high": 0.982})


def test_gradient_flows_to_both_ends() -> None:
    p = LearnedClip(torch.randn(6, 32), Grid(3, 16))
    for grad in torch.autograd.grad((p.weight() - p.W).square().sum(), ends(p)):
        assert torch.isfinite(grad).all() and (grad != 0).all()


def test_gradient_is_that_of_the_step_alone() -> None:
    """Straight through the rounding, none through z: dW_hat/ds = clamp(q) - z - W/s inside, clamp(q) - z outside."""
    grid = Grid(2, 16)
    p = LearnedClip(torch.randn(5, 32), grid, 0.6)
    G = torch.randn(5, 32)
    ours = torch.autograd.grad((p.weight() * G).sum(), ends(p))
    with torch.no_grad():
        lo, hi = (torch.sigmoid(t) for t in ends(p))
        W_g, G_g = grids.grouped(p.W, grid), grids.grouped(G, grid)
        s = (hi * W_g.amax(-1).clamp(min=0) - lo * W_g.amin(-1).clamp(max=0)) / 3
        z = torch.round(-lo * W_g.amin(-1).clamp(max=0) / s).clamp(0, 3)
        q = torch.round(W_g / s[..., None]) + z[..., None]
        inside = (q >= 0) & (q <= 3)
        ds = ((q.clamp(0, 3) - z[..., None] - inside * W_g / s[..., None]) * G_g).sum(-1)
        want = (ds * -W_g.amin(-1).clamp(max=0) / 3 * lo * (1 - lo), ds * W_g.amax(-1).clamp(min=0) / 3 * hi * (1 - hi))
    for a, b in zip(ours, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("c", [-30.0, -4.0, 0.0, 30.0])
def test_a_learned_ruler_is_a_ruler_wherever_its_ends_go(c: float) -> None:
    """The upper end stays above the lower one and the step above nothing; no gradient passes through z."""
    p = LearnedClip(torch.randn(6, 32), Grid(2, 16))
    with torch.no_grad():
        p.low.fill_(c)
        p.high.fill_(-c)
    s, z = p._ruler(None)
    assert (s >= 1e-6).all() and torch.isfinite(s).all() and not z.requires_grad and s.requires_grad
    assert ((z >= 0) & (z <= 3) & (z == z.round())).all()
    assert torch.isfinite(p.weight()).all() and torch.isfinite(p.finish().dequantize()).all()


def test_rounding_passes_the_gradient_of_its_argument() -> None:
    x = torch.tensor([-1.5, -0.2, 0.5, 2.7]).requires_grad_()
    y = _round_through(x)
    assert torch.equal(y.detach(), x.detach().round()) and torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(4))


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_zero_stays_inside_the_ruler(shift: float) -> None:
    W = torch.randn(6, 32) * 0.3 + shift
    w = LearnedClip(W, Grid(3, 16)).finish()
    assert ((w.zero >= 0) & (w.zero <= 7) & (w.zero == w.zero.round())).all()
    assert torch.isfinite(w.dequantize()).all()
    if shift:
        assert ((w.dequantize() - W).abs() < 0.75 * w.s.float().max() + 0.02 * 4.2).all()


@pytest.mark.parametrize("grid", [Grid(2, 16), Grid(4), Grid(3, 16, scale_dtype="float32")], ids=str)
def test_finish_is_nearest_on_its_own_ruler(grid: Grid) -> None:
    p = LearnedClip(torch.randn(6, 32), grid, 0.7)
    w = p.finish()
    assert torch.equal(w.q, grids.quantize(p.W, w.s.float(), w.zero, grid))
    assert torch.allclose(w.dequantize(), p.weight().detach(), atol=2e-3 * 4) or grid.scale_dtype == "float16"
    if grid.scale_dtype == "float32":
        assert torch.equal(w.dequantize(), p.weight().detach())


def test_an_all_zero_group_stays_zero() -> None:
    W = torch.randn(4, 32)
    W[:, :16] = 0
    p = LearnedClip(W, Grid(2, 16))
    assert torch.isfinite(torch.stack(torch.autograd.grad((p.weight() - 1).square().sum(), ends(p)))).all()
    assert (p.finish().dequantize()[:, :16] == 0).all()


@pytest.mark.parametrize("grid", [Grid(3, 16, symmetric=True), Grid(3, 16, zero_inside=False)], ids=str)
def test_learned_clip_refuses_grids_that_it_cannot_keep(grid: Grid) -> None:
    with pytest.raises(ValueError, match="integer zero point"):
        LearnedClip(torch.randn(4, 16), grid)


def test_learning_the_clip_lowers_the_error_at_two_bits() -> None:
    W = torch.randn(16, 64)
    p = LearnedClip(W, Grid(2, 64))
    start = float((p.finish().dequantize() - W).square().mean())
    optimiser = torch.optim.Adam(ends(p), lr=0.05)
    for _ in range(80):
        optimiser.zero_grad()
        (p.weight() - W).square().mean().backward()
        optimiser.step()
    assert float((p.finish().dequantize() - W).square().mean()) < 0.8 * start


@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("grid", [Grid(2, 16), Grid(3, 32), Grid(4), Grid(8, 16), Grid(2, 16, scale_dtype="float32")], ids=str)
def test_a_learned_clip_that_begins_at_a_ruler_reproduces_it(grid: Grid, clip: str) -> None:
    """One-signed groups, rulers that reach beyond the weights and rulers that end at zero among them."""
    W = torch.randn(32, 64) * torch.logspace(-2, 1, 32)[:, None]
    W[:4] = W[:4].abs()
    W[4:8] = -W[4:8].abs()
    W[8, :16] = 0
    s, z = grids.fit(W, grid, clip)
    assert (z == 0).any() and (z == grid.q_max).any()
    w = LearnedClip(W, grid, (s, z)).finish()
    assert torch.equal(w.zero.float(), z)
    assert torch.allclose(w.s.float(), s, rtol=1e-5) if grid.scale_dtype == "float32" else torch.equal(w.s.float(), s)
    assert float((w.q != grids.quantize(W, s, z, grid)).float().mean()) < 1e-3 * (grid.scale_dtype == "float32") + 1e-9


def test_a_learned_clip_that_begins_at_a_ruler_can_learn() -> None:
    """Both ends move from there: the shares must not sit where the sigmoid is flat."""
    W = torch.randn(16, 64)
    p = LearnedClip(W, Grid(2, 16), grids.fit(W, Grid(2, 16)))
    start = float((p.finish().dequantize() - W).square().mean())
    optimiser = torch.optim.Adam(ends(p), lr=0.05)
    for _ in range(80):
        optimiser.zero_grad()
        (p.weight() - W).square().mean().backward()
        optimiser.step()
    assert float((p.finish().dequantize() - W).square().mean()) < 0.9 * start


def test_a_transformed_weight_takes_its_ruler_along() -> None:
    """The shares belong to the range: rows scaled give rows scaled, columns scaled another range."""
    W, grid = torch.randn(8, 64), Grid(3, 16, scale_dtype="float32")
    for start in (0.8, grids.fit(W, grid, "mse")):
        p = LearnedClip(W, grid, start)
        own = p.finish()
        assert torch.equal(p.finish(W).q, own.q) and torch.allclose(p.finish(W).s, own.s, rtol=1e-6)
        assert torch.equal(p.weight(W), p.weight())
        rows = 2.0 ** torch.randint(-3, 4, (8, 1))
        other = p.finish(rows * W)
        assert torch.equal(other.q, own.q) and torch.allclose(other.s, rows * own.s, rtol=1e-6)
        columns = W * torch.logspace(-1, 1, 64)
        other = p.finish(columns)
        assert torch.equal(other.q, grids.quantize(columns, other.s, other.zero, grid)) and (other.q != own.q).any()
        assert torch.allclose(p.weight(columns).detach(), other.dequantize(), atol=1e-5)
    assert torch.allclose(LearnedClip(columns, grid, 0.8).finish().s, LearnedClip(W, grid, 0.8).finish(columns).s, rtol=1e-5)


def test_the_weight_of_a_transform_gets_its_gradient_straight_through() -> None:
    """Inside the ruler the rounded weight follows W one to one, apart from the two ends that make the ruler."""
    W = torch.randn(4, 32).requires_grad_()
    p = LearnedClip(torch.randn(4, 32), Grid(3, 16), 0.9)
    s, z = (t.detach() for t in p._ruler(W))
    G = torch.randn(4, 32)
    grad = torch.autograd.grad((p.weight(W) * G).sum(), W)[0]
    codes = (grids.grouped(W.detach(), p.grid) / s[..., None]).round() + z[..., None]
    middle = ((codes >= 0) & (codes <= 7)).reshape(4, 32)
    for end in (grids.grouped(W.detach(), p.grid).argmin(-1), grids.grouped(W.detach(), p.grid).argmax(-1)):
        middle.reshape(4, 2, 16).scatter_(-1, end[..., None], False)
    assert middle.float().mean() > 0.7 and torch.allclose(grad[middle], G[middle], atol=1e-5)
    assert torch.autograd.grad((p.weight(W) * G).sum(), W)[0][~middle].ne(G[~middle]).any()
    soft_one, _ = soft()
    assert torch.equal(soft_one.weight(W), soft_one.weight()) and torch.equal(soft_one.finish(W).q, soft_one.finish().q)
