"""Checks accept what they must, reject everything else, and print one line that is the same everywhere."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lowbit_nb import check
from lowbit_nb.check import claim, close, exercise, expect, same

NAN = math.nan


@pytest.mark.parametrize(
    "a, b",
    [
        (torch.arange(6), torch.arange(6)),
        (torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([1, 2], dtype=torch.int32)),
        ([1, 2, 3], torch.tensor([1, 2, 3])),
        (np.array([[1, 2]]), [[1, 2]]),
        (3, 3),
        ([], []),
        (torch.tensor([True]), [True]),
    ],
)
def test_same_accepts_equal_integers_of_any_kind(a, b, capsys):
    same("codes", a, b)
    n = torch.as_tensor(a).numel()
    assert capsys.readouterr().out == f"codes: equal ({n} of {n})\n"


@pytest.mark.parametrize(
    "a, b, words",
    [
        ([1, 2, 3], [1, 5, 4], r"codes: 2 of 3 differ, first at \(1,\): 2 and 5"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 5]], r"codes: 1 of 4 differ, first at \(1, 1\): 4 and 5"),
        (3, 4, r"1 of 1 differ, first at \(\): 3 and 4"),
        ([1, 2], [1, 2, 3], r"shapes differ, \(2,\) and \(3,\)"),
        ([[1, 2]], [[1], [2]], r"shapes differ, \(1, 2\) and \(2, 1\)"),
        ([1], 1, "shapes differ"),
        ([1, 1], [1], "shapes differ"),
        (torch.tensor([255], dtype=torch.uint8), torch.tensor([-1], dtype=torch.int8), "255 and -1"),
        ([NAN], [NAN], "nan and nan"),
        ([16777217], [16777216.0], "differ"),
        ([1.0], [1.0 + 1e-7], "differ"),
        ([True], [False], "differ"),
    ],
)
def test_same_rejects_any_difference_and_broadcasting(a, b, words, capsys):
    with pytest.raises(AssertionError, match=words):
        same("codes", a, b)
    assert capsys.readouterr().out == ""


def test_close_prints_the_bound_and_its_reason_and_not_the_gap(capsys):
    for gap in (0.0, 5e-7):
        close("W_hat", [1.0, 2.0], [1.0, 2.0 + gap], 1e-6, "sums in another order")
    assert capsys.readouterr().out == "W_hat: within 1e-06 everywhere (sums in another order)\n" * 2


def test_close_compares_in_float64(capsys):
    a = torch.tensor([1.0], dtype=torch.float64)
    with pytest.raises(AssertionError, match="1e-12 exceeds 1e-13"):
        close("W_hat", a, a + 1e-12, 1e-13, "bug")
    close("W_hat", torch.tensor([0.1]), torch.tensor([0.1]).double(), 0, "the same number")
    close("nothing", [], [], 0, "empty")


@pytest.mark.parametrize(
    "a, b",
    [
        ([1.0], [1.1]),
        ([1.0, NAN], [1.0, NAN]),
        ([1.0], [NAN]),
        ([NAN], [1.0]),
        ([math.inf], [1.0]),
        ([1.0, 2.0], [1.0]),
        ([[1.0, 2.0]], [[1.0], [2.0]]),
        ([1.0, 1.0], 1.0),
        ([0.0, -5.0], [0.0, 5.0]),
    ],
)
def test_close_rejects_gaps_nans_and_broadcasting(a, b, capsys):
    with pytest.raises(AssertionError, match="^W_hat: "):
        close("W_hat", a, b, 1e-3, "why")
    assert capsys.readouterr().out == ""


def test_close_rejects_a_bound_that_is_no_bound():
    with pytest.raises(AssertionError):
        close("W_hat", [1.0], [2.0], NAN, "why")


def test_claims_hold_or_stop(capsys):
    claim("two is even", 2 % 2 == 0)
    claim("a tensor counts", torch.tensor(3.0) > 2)
    assert capsys.readouterr().out == "holds: two is even\nholds: a tensor counts\n"
    for wrong in (False, 0, None, torch.tensor(False), [], torch.tensor(NAN) > 0):
        with pytest.raises(AssertionError, match="^does not hold: this$"):
            claim("this", wrong)
    assert capsys.readouterr().out == ""


def test_an_expected_error_is_printed(capsys):
    with expect(ValueError, "multiple of g"):
        raise ValueError("d_in=100 is not a multiple of g=64")
    assert capsys.readouterr().out == "ValueError, as expected: d_in=100 is not a multiple of g=64\n"


def test_no_error_is_an_error():
    with (
        pytest.raises(AssertionError, match="nothing was raised; ValueError with 'multiple' was expected"),
        expect(ValueError, "multiple"),
    ):
        pass


def test_another_message_is_an_error():
    with (
        pytest.raises(AssertionError, match="'multiple' is not in its message: too small"),
        expect(ValueError, "multiple"),
    ):
        raise ValueError("too small")


def test_another_error_passes_through():
    with pytest.raises(KeyError), expect(ValueError, "multiple"):
        raise KeyError("multiple")


@pytest.fixture
def lessons(monkeypatch) -> None:
    def against(attempt) -> None:
        assert attempt(3) == 6, "double means twice"

    monkeypatch.setattr(check, "_exercises", lambda: {"double-1": against})


def stub(x):
    raise NotImplementedError


def halves(x):
    return x / 2


@pytest.mark.parametrize(
    "attempt, verdict",
    [
        (lambda x: 2 * x, "correct"),
        (stub, "not attempted yet"),
        (halves, "not yet: double means twice"),
        (lambda x: x.nothing, "not yet: it raised AttributeError: 'int' object has no attribute 'nothing'"),
        (lambda x: None, "not yet: double means twice"),
        (lambda: 1, "not yet: it raised TypeError: "),
        (lambda x: 1 / 0, "not yet: it raised ZeroDivisionError: division by zero"),
    ],
)
def test_exercises_never_stop_a_run(lessons, attempt, verdict, capsys):
    assert exercise("double-1", attempt).startswith(verdict)
    assert capsys.readouterr().out.startswith(f"double-1: {verdict}")


def test_torchs_own_missing_kernels_are_not_a_missing_attempt(lessons, capsys):
    """torch.round of booleans raises NotImplementedError too; that is a wrong answer, and must be said."""
    assert exercise("double-1", lambda x: torch.round(torch.tensor([True]))).startswith(
        "not yet: it raised NotImplementedError"
    )


def test_unknown_exercises_are_named(lessons):
    with pytest.raises(ValueError, match="there is no exercise 'triple-1'; there are double-1"):
        exercise("triple-1", stub)


def test_exercises_are_collected_from_every_file(monkeypatch):
    found = {
        "nb98": SimpleNamespace(EXERCISES={"a-1": stub}),
        "nb99": SimpleNamespace(EXERCISES={"b-1": halves}),
    }
    monkeypatch.setattr(check.pkgutil, "iter_modules", lambda path: [SimpleNamespace(name=n) for n in found])
    monkeypatch.setattr(check.importlib, "import_module", lambda name: found[name.rsplit(".", 1)[1]])
    assert check._exercises() == {"a-1": stub, "b-1": halves}
