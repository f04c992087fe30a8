"""Input Hessians, conditioning and the one factor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit_nb.hessian import Hessian, condition, factor
from tests.reference import correlated, problem


def test_batches_of_any_shape_add_up_to_the_same_mean(generator):
    X = torch.randn(6, 5, 8, generator=generator)
    whole, parts = Hessian(8), Hessian(8)
    whole.add(X)
    for x in X:
        parts.add(x)
    by_hand = sum(torch.outer(x, x) for x in X.reshape(-1, 8).double()) / 30
    assert whole.n == parts.n == 30
    for H in (whole.H, parts.H):
        torch.testing.assert_close(H.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_low_precision_inputs_are_summed_in_float32(generator):
    X = torch.randn(4096, 4, generator=generator).bfloat16()
    h = Hessian(4)
    h.add(X)
    assert h.H.dtype == torch.float32
    torch.testing.assert_close(h.H.double(), X.double().T @ X.double() / 4096, rtol=1e-5, atol=1e-5)
    big = Hessian(2)
    big.add(torch.full((3, 2), 6e4, dtype=torch.float16))  # squares that float16 cannot hold
    assert float(big.H[0, 0]) == pytest.approx(3.6e9, rel=1e-3)


def test_reading_does_not_change_it(generator):
    h = Hessian(4)
    h.add(torch.randn(9, 4, generator=generator))
    first = h.H.clone()
    condition(h.H, damp=0.5)
    assert torch.equal(h.H, first)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_inputs_that_are_not_finite_are_refused_and_leave_it_as_it_was(bad):
    h = Hessian(3)
    h.add(torch.ones(2, 3))
    with pytest.raises(ValueError, match="of 6 layer inputs are not finite.*float32 or bfloat16"):
        h.add(torch.tensor([[1.0, bad, 1.0], [1.0, 1.0, 1.0]]))
    assert h.n == 2 and torch.equal(h.H, torch.ones(3, 3))


def test_no_tokens_is_an_error_and_not_a_division_by_zero():
    with pytest.raises(ValueError, match="no tokens were added"):
        Hessian(3).H  # noqa: B018


# Conditioning


@given(st.integers(0, 2**31), st.floats(0, 2), st.floats(0, 1), st.sets(st.integers(0, 7), max_size=6))
def test_conditioning_is_the_documented_formula(seed, damp, shrink, dead):
    X = torch.randn(40, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    X[:, list(dead)] = 0
    H = X.T @ X / 40
    before = H.clone()
    Hc, mask = condition(H, damp, shrink)
    live = [c for c in range(8) if c not in dead]
    mu = float(sum(H[c, c] for c in live) / len(live))
    assert mask.tolist() == [c in dead for c in range(8)] and torch.equal(H, before)
    for i in range(8):
        for j in range(8):
            if i == j:
                expected = (mu if i in dead else float(H[i, i])) + damp * mu
            else:
                expected = (1 - shrink) * float(H[i, j])
            assert float(Hc[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_damping_does_not_depend_on_dead_columns(generator):
    """Spec test 12, second half: also not when H is as small as an output-adaptive one."""
    for size in (1.0, 1e-6):
        X = correlated(64, 6, generator) * size
        H = X.T @ X / 64
        padded = torch.zeros(9, 9, dtype=H.dtype)
        padded[:6, :6] = H
        live, wide = condition(H, 0.1)[0], condition(padded, 0.1)[0]
        torch.testing.assert_close(wide[:6, :6], live, rtol=1e-12, atol=0)


def test_a_dead_column_asks_nothing_of_the_others_even_if_rounding_left_something_there():
    H = torch.tensor([[2.0, 1e-3, 0.5], [1e-3, 0.0, 1e-3], [0.5, 1e-3, 4.0]])
    Hc, dead = condition(H, 0.0)
    assert dead.tolist() == [False, True, False]
    assert Hc.tolist() == [[2.0, 0.0, 0.5], [0.0, 3.0, 0.0], [0.5, 0.0, 4.0]]


def test_shrinkage_makes_few_tokens_enough(generator):
    X = torch.randn(4, 16, generator=generator, dtype=torch.float64)
    H = X.T @ X / 4
    with pytest.raises(ValueError, match="not positive definite"):
        factor(condition(H, 0.0, 0.0)[0])
    factor(condition(H, 0.0, 0.1)[0])
    factor(condition(H, 0.01, 0.0)[0])


@pytest.mark.parametrize("damp, shrink", [(-0.1, 0.0), (0.1, -0.1), (0.1, 1.1), (math.nan, 0.0), (0.01, math.nan)])
def test_damping_out_of_range_is_refused(damp, shrink):
    with pytest.raises(ValueError, match="damp=.* must be at least 0 and shrink=.* between 0 and 1"):
        condition(torch.eye(2), damp, shrink)


def test_a_hessian_that_is_not_finite_or_all_zero_is_refused():
    with pytest.raises(ValueError, match="H has 1 non-finite values"):
        condition(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="every column of H is zero"):
        condition(torch.zeros(3, 3))


# The factor


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 3, 17, 64]))
def test_factor_reproduces_h_and_is_unit_upper_triangular(seed, d_in):
    _, H = problem(1, d_in, torch.Generator().manual_seed(seed))
    V, D = factor(H)
    torch.testing.assert_close(V @ torch.diag(D) @ V.T, H, rtol=1e-10, atol=1e-10)
    assert torch.equal(V.tril(-1), torch.zeros_like(V)) and bool((V.diagonal() == 1).all()) and bool((D > 0).all())


def test_13_the_inverse_of_the_reversed_factor_is_the_references_factor(generator):
    """Spec test 13: U from chol(inv(H)) as in GPTQ: U.T U H = I and U_jj = 1 / sqrt(D_j)."""
    _, H = problem(1, 48, generator)
    V, D = factor(H)
    U = torch.linalg.inv(V * D.sqrt())
    torch.testing.assert_close(U.T @ U @ H, torch.eye(48, dtype=H.dtype), rtol=0, atol=1e-9)
    torch.testing.assert_close(U, torch.linalg.cholesky(torch.linalg.inv(H), upper=True), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(U.diagonal(), 1 / D.sqrt(), rtol=1e-10, atol=0)


def test_pivots_are_what_a_column_costs_once_the_later_ones_adapt(generator):
    """D_j = the Schur complement of the columns after j: brute force by solving for the best reaction."""
    _, H = problem(1, 12, generator)
    _, D = factor(H)
    for j in range(12):
        later = list(range(j + 1, 12))
        cost = H[j, j] - (H[j, later] @ torch.linalg.solve(H[later][:, later], H[later, j]) if later else 0)
        assert float(D[j]) == pytest.approx(float(cost), rel=1e-9)


def test_one_factorisation_survives_where_two_and_an_inverse_fail():
    """Spec 2.5: condition number beyond 1e7 in float32."""
    generator = torch.Generator().manual_seed(1)
    Q, _ = torch.linalg.qr(torch.randn(256, 256, generator=generator, dtype=torch.float64))
    H = ((Q * torch.logspace(0, -6.5, 256, dtype=torch.float64)) @ Q.T).float()
    V, D = factor(H)
    torch.testing.assert_close(V @ torch.diag(D) @ V.T, H, rtol=0, atol=1e-5)


def test_a_hessian_that_is_not_positive_definite_is_refused_with_its_rank(generator):
    X = torch.randn(5, 64, generator=generator)
    with pytest.raises(ValueError, match=r"not positive definite: rank 5 of 64; use more calibration tokens, a larger damp"):
        factor(X.T @ X / 5)


def test_factor_leaves_h_as_it_was(generator):
    _, H = problem(1, 8, generator)
    before = H.clone()
    factor(H)
    assert torch.equal(H, before)
