"""Affine grids: the formula, the range rules, the clip search, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit_nb import grid as grids
from lowbit_nb.grid import Grid, codes, dequantize, fit, grouped, quantize, ruler

KINDS = {"asymmetric": {}, "symmetric": {"symmetric": True}, "real zero": {"zero_inside": False}}
SEEDS = st.integers(0, 2**31)


def weight(d_out: int, d_in: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)) + shift


def half_to_even(x: float) -> int:
    low = math.floor(x)
    if x - low == 0.5:
        return low if low % 2 == 0 else low + 1
    return low if x - low < 0.5 else low + 1


def code_ref(w: float, s: float, z: float, q_max: int, real: bool) -> int:
    q = half_to_even(w / s + z) if real else half_to_even(w / s) + int(z)
    return min(max(q, 0), q_max)


@given(
    SEEDS,
    st.integers(1, 8),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["minmax", "mse"]),
    st.sampled_from([None, 3, 4, 12]),
)
def test_codes_and_values_follow_the_formula(seed, bits, kind, clip, group):
    grid = Grid(bits, group, **KINDS[kind])
    W = weight(3, 12, seed, shift=0.3)
    s, z = fit(W, grid, clip)
    q = quantize(W, s, z, grid)
    W_hat = dequantize(q, s, z, grid)
    g = group or 12
    for r, c in itertools.product(range(3), range(12)):
        step, zero = float(s[r, c // g]), float(z[r, c // g])
        assert abs(int(q[r, c]) - code_ref(float(W[r, c]), step, zero, grid.q_max, kind == "real zero")) <= 0
        assert float(W_hat[r, c]) == pytest.approx(step * (int(q[r, c]) - zero), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("shift", [-2.0, 0.5, 2.0])
def test_steps_and_zeros_are_what_their_stored_type_holds(bits, kind, clip, shift):
    """Also for groups whose weights are all negative or all positive, where a zero point lies at the end."""
    grid = Grid(bits, 4, **KINDS[kind])
    s, z = fit(weight(16, 12, bits, shift), grid, clip)
    assert torch.equal(s.half().float(), s) and bool((s > 0).all())
    if kind == "asymmetric":
        assert torch.equal(z, z.round()) and 0 <= float(z.min()) <= float(z.max()) <= grid.q_max
    elif kind == "symmetric":
        assert bool((z == 2 ** (bits - 1)).all())
    else:
        assert torch.equal(z.half().float(), z)


@given(SEEDS, st.integers(2, 8), st.sampled_from(sorted(KINDS)))
def test_minmax_errors_stay_within_one_step(seed, bits, kind):
    """Half a step inside the range; rounding s and z to their stored types costs at most another half at the ends."""
    grid = Grid(bits, 8, scale_dtype="float32", **KINDS[kind])
    W = weight(4, 16, seed, shift=0.2)
    s, z = fit(W, grid)
    steps = (grouped(dequantize(quantize(W, s, z, grid), s, z, grid) - W, grid) / s[..., None]).abs()
    top = grouped(W, grid).amax(-1, keepdim=True) == grouped(W, grid)
    bound = torch.where(top & (kind == "symmetric"), 1.0, 0.5 if kind == "real zero" else 1.0)
    assert bool((steps <= bound + 1e-3).all())


def test_real_zero_holds_the_ends_of_the_range_exactly():
    grid = Grid(3, 8, zero_inside=False, scale_dtype="float32")
    W = weight(16, 8, 1, shift=2.0)
    s, z = fit(W, grid)
    q = quantize(W, s, z, grid)
    assert (q.amin(1) == 0).all() and (q.amax(1) == 7).all()
    W_hat = dequantize(q, s, z, grid)
    for end in (torch.amin, torch.amax):
        torch.testing.assert_close(end(W_hat, 1), end(W, 1), rtol=0, atol=1e-5)


def test_zero_inside_stores_zero_exactly_and_the_other_rule_does_not():
    W = torch.tensor([[3.0, 3.5, 4.0, 5.0]])
    inside, outside = Grid(2), Grid(2, zero_inside=False)
    s, z = fit(W, inside)
    assert float(z) == 0 and float(s) == pytest.approx(5 / 3, rel=1e-3)  # the range is stretched to 0..5
    s, z = fit(W, outside)
    assert float(s) == pytest.approx(2 / 3, rel=1e-3) and float(z) == pytest.approx(-4.5, rel=1e-3)


def test_symmetric_levels_are_those_of_the_gptq_code():
    """2 bits, largest weight a: levels -4a/3, -2a/3, 0, 2a/3, so the largest positive weight misses by a/3."""
    grid = Grid(2, symmetric=True, scale_dtype="float32")
    s, z = fit(torch.tensor([[-0.5, 3.0]]), grid)
    levels = dequantize(torch.tensor([[0, 1], [2, 3]]), s.expand(2, 1), z.expand(2, 1), grid)
    torch.testing.assert_close(levels.flatten(), torch.tensor([-4.0, -2.0, 0.0, 2.0]))


@pytest.mark.parametrize("value, even", [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.5, 4)])
def test_ties_go_to_the_even_integer(value, even):
    """Spec test 16. With z = 3 the tie is still broken before z is added: round(w / s) + z."""
    z = torch.tensor(3.0)
    got = codes(torch.tensor([value * 0.25]), torch.tensor(0.25), z, Grid(4))
    assert int(got) == even + 3
    real = codes(torch.tensor([value * 0.25]), torch.tensor(0.25), z, Grid(4, zero_inside=False))
    assert int(real) == half_to_even(value + 3)


@given(SEEDS, st.integers(1, 4), st.sampled_from(sorted(KINDS)), st.booleans(), st.sampled_from([2.0, 2.4]))
def test_clip_search_is_the_best_of_every_documented_ruler(seed, bits, kind, weighted, norm):
    grid = Grid(bits, 6, **KINDS[kind])
    W = weight(2, 12, seed, shift=0.2)
    importance = torch.rand(12, generator=torch.Generator().manual_seed(seed + 1)) if weighted else None
    s, z = fit(W, grid, "mse", importance, norm)
    err = (dequantize(quantize(W, s, z, grid), s, z, grid) - W).double().abs() ** norm
    found = (err * (1 if importance is None else importance.double())).reshape(2, 2, 6).sum(-1)
    for r, k in itertools.product(range(2), range(2)):
        part, weights = (
            W[r, 6 * k : 6 * k + 6].double(),
            None if importance is None else importance[6 * k : 6 * k + 6].double(),
        )
        assert float(found[r, k]) == pytest.approx(best_by_hand(part, weights, grid, kind, norm), rel=1e-3, abs=1e-9)


def best_by_hand(w: torch.Tensor, weights: torch.Tensor | None, grid: Grid, kind: str, norm: float) -> float:
    """The least error over 33 shrunk rulers, and both integers next to the ideal zero point."""
    lo, hi = float(w.min()), float(w.max())
    if kind != "real zero":
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    if kind == "symmetric":
        lo, hi = -max(-lo, hi), max(-lo, hi)
    best = math.inf
    for i in range(33):
        p = 1 - i / 40
        s = float(torch.tensor((hi - lo) * p / grid.q_max, dtype=torch.float16))
        ideal = -lo * p / s
        nearby = {math.floor(ideal), math.ceil(ideal)}
        zeros = {
            "symmetric": {grid.levels // 2},
            "asymmetric": {min(max(z, 0), grid.q_max) for z in nearby},
            "real zero": {float(torch.tensor(ideal, dtype=torch.float16))},
        }[kind]
        for z in zeros:
            err = [abs(s * (code_ref(x, s, z, grid.q_max, kind == "real zero") - z) - x) ** norm for x in w.tolist()]
            best = min(
                best,
                sum(
                    e * (1 if weights is None else float(v))
                    for e, v in zip(err, weights if weights is not None else err, strict=True)
                ),
            )
    return best


@given(SEEDS, st.sampled_from(sorted(KINDS)))
def test_searched_clip_is_never_worse_than_the_whole_range(seed, kind):
    grid, W = Grid(2, 8, **KINDS[kind]), weight(4, 16, seed)
    errors = []
    for clip in ("minmax", "mse"):
        s, z = fit(W, grid, clip)
        errors.append(grouped((dequantize(quantize(W, s, z, grid), s, z, grid) - W).square(), grid).sum(-1))
    assert bool((errors[1] <= errors[0] + 1e-6).all())


def test_importance_decides_what_is_clipped():
    W = torch.tensor([[8.0, 0.9, -0.4, 0.3, 1.1, -0.8, 0.5, -1.0]])
    loud, quiet = torch.ones(8), torch.ones(8)
    loud[0], quiet[0] = 100.0, 1e-4
    wide, narrow = (fit(W, Grid(2), "mse", v)[0] for v in (loud, quiet))
    assert float(narrow) < float(wide)


def test_a_group_of_zeros_becomes_zero_and_equal_weights_stay():
    for kind in KINDS.values():
        for clip in ("minmax", "mse"):
            grid = Grid(2, 4, **kind)
            W = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.75, 0.75, 0.75, 0.75]])
            s, z = fit(W, grid, clip)
            W_hat = dequantize(quantize(W, s, z, grid), s, z, grid)
            assert W_hat[0, :4].tolist() == [0.0] * 4
            if not grid.symmetric:
                torch.testing.assert_close(W_hat[0, 4:], W[0, 4:], rtol=1e-3, atol=0)


@given(SEEDS, st.integers(1, 8), st.sampled_from(["float16", "bfloat16"]))
def test_values_are_exact_in_float32_when_z_is_an_integer(seed, bits, dtype):
    grid = Grid(bits, 4, scale_dtype=dtype)
    W = weight(2, 8, seed)
    s, z = fit(W, grid)
    q = quantize(W, s, z, grid)
    exact = s.double().repeat_interleave(4, 1) * (q.double() - z.double().repeat_interleave(4, 1))
    assert torch.equal(dequantize(q, s, z, grid).double(), exact)


@given(SEEDS, st.integers(1, 8), st.sampled_from(sorted(KINDS)))
def test_values_on_the_grid_get_their_own_code(seed, bits, kind):
    grid = Grid(bits, 4, **KINDS[kind])
    s, z = fit(weight(2, 8, seed, shift=0.4), grid)
    q = torch.randint(0, 2**bits, (2, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    if kind == "real zero":  # w / s + z is the code up to rounding of a float32 product
        assert torch.equal(quantize(dequantize(q, s, z, grid), s, z, grid), q)
    else:
        assert torch.equal(quantize(dequantize(q, s, z, grid).double(), s.double(), z.double(), grid), q)


def test_every_group_is_fitted_alone(generator):
    W, grid = torch.randn(3, 16, generator=generator), Grid(3, 4)
    s, z = fit(W, grid, "mse")
    for k in range(4):
        alone = fit(W[:, 4 * k : 4 * k + 4], Grid(3), "mse")
        assert torch.equal(alone[0][:, 0], s[:, k]) and torch.equal(alone[1][:, 0], z[:, k])


def test_the_weight_is_not_touched(generator):
    W = torch.randn(4, 16, generator=generator)
    before = W.clone()
    s, z = fit(W, Grid(2, 8), "mse", torch.rand(16, generator=generator))
    quantize(W, s, z, Grid(2, 8))
    assert torch.equal(W, before)


def test_nudge_takes_the_other_neighbour_of_the_ideal_zero():
    s, z = ruler(torch.tensor([-1.0, -1.4]), torch.tensor([2.0, 1.6]), Grid(2), nudge=1)
    assert s.tolist() == [1.0, 1.0] and z.tolist() == [2.0, 2.0]  # ideal 1.0 -> 2;  ideal 1.4 -> 2
    assert float(ruler(torch.tensor(-1.6), torch.tensor(1.4), Grid(2), nudge=1)[1]) == 1.0  # ideal 1.6


# What is refused


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, "2", None])
def test_unknown_widths_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits=.*whole number from 1 to 8"):
        Grid(bits)


def test_a_group_that_does_not_divide_is_refused_with_the_nearest_that_do():
    with pytest.raises(ValueError, match=r"d_in=100 is not a multiple of g=64; use g=50 or g=100"):
        fit(torch.zeros(2, 100), Grid(2, 64))
    with pytest.raises(ValueError, match=r"d_in=48 is not a multiple of g=64; use g=48"):
        Grid(2, 64).n_groups(48)
    with pytest.raises(ValueError, match=r"group=0 .*at least 1"):
        Grid(2, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    W = torch.zeros(2, 8)
    W[1, 3] = W[0, 0] = bad
    with pytest.raises(ValueError, match="W has 2 non-finite values"):
        fit(W, Grid(2))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"clip": "best"}, "clip='best' is unknown; use 'minmax' or 'mse'"),
        ({"weight": torch.ones(3)}, r"weight must be \[8\], one value a column.*got \[3\]"),
        ({"W": torch.ones(8)}, r"W must be \[d_out, d_in\]"),
    ],
)
def test_other_bad_input_is_refused(changed, words):
    arguments = {"W": torch.ones(2, 8), "grid": Grid(2)} | changed
    with pytest.raises(ValueError, match=words):
        fit(**arguments)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="scale_dtype='float8' is unknown; use one of float16"):
        Grid(2, scale_dtype="float8")
    with pytest.raises(ValueError, match="zero_inside"):
        Grid(2, symmetric=True, zero_inside=False)


@pytest.mark.parametrize("size", [1e6, 1e-9])
def test_a_step_that_the_scale_type_cannot_hold_is_refused_with_a_way_out(size):
    W = torch.tensor([[-1.0, 2.0, 0.5, 1.0]]) * size
    with pytest.raises(ValueError, match="does not fit in float16.*scale_dtype='float32'"):
        fit(W, Grid(2))
    s, _ = fit(W, Grid(2, scale_dtype="float32"))
    assert float(s) == pytest.approx(size, rel=1e-6)


def test_clip_search_takes_every_weight_that_the_whole_range_takes():
    """The full ruler is a small but legal float16; only the shrunk candidates underflow."""
    W = torch.tensor([[-1.0, 2.0, 0.5, 1.0]]) * 1e-7
    fit(W, Grid(2), "minmax")
    s, _ = fit(W, Grid(2), "mse")
    assert bool((s > 0).all())


def test_a_real_zero_that_does_not_fit_is_refused():
    """Weights far from zero and close together: -lo / s is beyond float16, and infinity times s is not a weight."""
    W = torch.tensor([[100.0, 100.001, 100.0005, 100.0002]])
    grid = Grid(2, zero_inside=False)
    try:
        s, z = fit(W, grid)
    except ValueError as error:
        assert "float16" in str(error)
    else:
        assert torch.isfinite(dequantize(quantize(W, s, z, grid), s, z, grid)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_importance_that_is_no_importance_is_refused(bad):
    importance = torch.ones(8)
    importance[2] = bad
    with pytest.raises(ValueError, match="weight"):
        fit(torch.randn(2, 8), Grid(2), "mse", importance)


def test_the_list_of_shrunk_rulers_is_the_documented_one():
    assert len(grids.SHRINK) == 33 and grids.SHRINK[0] == 1.0 and grids.SHRINK[-1] == pytest.approx(0.2)
