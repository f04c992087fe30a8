"""Checks that a reader sees: equal, close, holds, refused as it should be, and exercises.

Each prints one line that is the same on every machine, or raises.  `same` is for integers: equal means equal.  `close`
is for real numbers and must say why its bound is what it is.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lowbit_nb import exercises


def same(name: str, a: object, b: object) -> None:
    """Exact equality, element by element; prints e.g. "codes: equal (32 of 32)"."""
    a, b = _tensor(a), _tensor(b)
    if a.shape != b.shape:
        raise AssertionError(f"{name}: shapes differ, {tuple(a.shape)} and {tuple(b.shape)}")
    if a.is_floating_point() or b.is_floating_point():
        a, b = a.double(), b.double()
    differ = (a != b).nonzero()
    if len(differ):
        at = tuple(differ[0].tolist())
        raise AssertionError(f"{name}: {len(differ)} of {a.numel()} differ, first at {at}: {a[at].item()} and {b[at].item()}")
    print(f"{name}: equal ({a.numel()} of {a.numel()})")


def close(name: str, a: object, b: object, atol: float, why: str) -> None:
    """Equality of real numbers up to a stated bound with a stated reason; compared in float64."""
    a, b = _tensor(a).double(), _tensor(b).double()
    if a.shape != b.shape:
        raise AssertionError(f"{name}: shapes differ, {tuple(a.shape)} and {tuple(b.shape)}")
    gap = float((a - b).abs().max()) if a.numel() else 0.0
    if not gap <= atol:
        raise AssertionError(f"{name}: largest difference {gap:.3g} exceeds {atol:g} ({why})")
    print(f"{name}: within {atol:g} everywhere ({why})")


def claim(text: str, condition: object) -> None:
    """State something and hold it true; a claim that fails stops the notebook."""
    if not bool(condition):
        raise AssertionError(f"does not hold: {text}")
    print(f"holds: {text}")


@contextmanager
def expect(kind: type[Exception], words: str) -> Iterator[None]:
    """The block must raise `kind` with `words` in its message; prints the message."""
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise AssertionError(f"{kind.__name__} was raised, but {words!r} is not in its message: {error}") from error
        print(f"{kind.__name__}, as expected: {error}")
    else:
        raise AssertionError(f"nothing was raised; {kind.__name__} with {words!r} was expected")


def exercise(name: str, attempt: Callable) -> str:
    """Check a reader's function; prints "correct", "not attempted yet", or a hint.  Never stops Run All.

    `name` is e.g. "grids-1"; what it is held against lives in lowbit_nb/exercises/nbXX.py.
    """
    against = _exercises()
    if name not in against:
        raise ValueError(f"there is no exercise {name!r}; there are {', '.join(sorted(against))}")
    try:
        against[name](attempt)
        verdict = "correct"
    except AssertionError as error:
        verdict = f"not yet: {error}"
    except Exception as error:
        bare = isinstance(error, NotImplementedError) and not str(error)  # torch raises it too, with a message
        verdict = "not attempted yet" if bare else f"not yet: it raised {type(error).__name__}: {error}"
    print(f"{name}: {verdict}")
    return verdict


def _exercises() -> dict[str, Callable]:
    modules = [importlib.import_module(f"lowbit_nb.exercises.{m.name}") for m in pkgutil.iter_modules(exercises.__path__)]
    return {name: against for m in modules for name, against in m.EXERCISES.items()}


def _tensor(x: object) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().cpu()
    return torch.as_tensor(np.asarray(x))  # numpy keeps Python floats at full width
