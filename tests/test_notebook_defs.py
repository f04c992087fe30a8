"""What readers build by hand in a notebook is independent of the package and has the right properties."""

from __future__ import annotations

import ast

import nbformat
import pytest

from tests import nbdefs, nbtools
from tests.notebook_props import PROPS

FUNCTIONS = [
    (name, function) for name in nbtools.names() for function in nbdefs.definitions(nbtools.read(name)).naive
]


def notebook(*sources: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@pytest.mark.parametrize("name", nbtools.names())
def test_naive_functions_do_not_use_the_package(name):
    found = nbdefs.definitions(nbtools.read(name))
    lifted, unknown = nbdefs.needed(found, found.naive)
    touched = {
        definition: used
        for definition, statement in lifted.items()
        if definition not in found.imports and (used := nbdefs.uses_package(statement, found))
    }
    assert not touched, f"{name}: hand-built functions call the package they are compared with: {touched}"
    assert not unknown, (
        f"{name}: hand-built functions name things that exist only after running a cell: {unknown}"
    )


@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_naive_function_has_its_property(name, function):
    assert (name, function) in PROPS, f"add a property for {function} of {name} to tests/notebook_props.py"
    PROPS[name, function](nbdefs.lift(nbtools.read(name))[function])


def test_no_property_without_function():
    stale = set(PROPS) - set(FUNCTIONS)
    assert not stale, (
        f"tests/notebook_props.py has properties of functions that no notebook defines: {sorted(stale)}"
    )


def test_lifting_takes_helpers_constants_and_imports():
    nb = notebook(
        "import math\nfrom torch import Tensor\nLEVELS = 4\nW = make_weights()",
        "def half(x: Tensor) -> float:\n    return x / 2",
        "def f_naive(x):\n    y = [half(v) + LEVELS for v in x]\n    return math.fsum(y)",
    )
    assert nbdefs.lift(nb)["f_naive"]([2, 4]) == 11


def test_lifting_takes_the_last_definition():
    nb = notebook("def f_naive():\n    return 1", "def f_naive():\n    return 2")
    assert nbdefs.lift(nb)["f_naive"]() == 2


def test_globals_made_by_running_are_reported():
    found = nbdefs.definitions(notebook("W = load()", "def f_naive():\n    return W.sum()"))
    assert nbdefs.needed(found, found.naive)[1] == {"f_naive": {"W"}}


@pytest.mark.parametrize(
    "body",
    [
        "return lb.quantize(x)",
        "return fit(x)",
        "import lowbit_nb\n    return x",
        "return helper(x)",
        "from lowbit_nb.grid import fit as g\n    return g(x)",
    ],
)
def test_a_call_of_the_package_is_seen(body):
    nb = notebook(
        "import lowbit_nb as lb\nfrom lowbit_nb.grid import fit",
        "def helper(x):\n    return lb.load(x)",
        f"def f_naive(x):\n    {body}",
    )
    found = nbdefs.definitions(nb)
    lifted, _ = nbdefs.needed(found, found.naive)
    assert any(nbdefs.uses_package(statement, found) for statement in lifted.values())


def test_a_magic_line_is_named():
    with pytest.raises(AssertionError, match="not plain Python"):
        nbdefs.definitions(notebook("%timeit f()"))


def test_literals_only():
    assert nbdefs.is_literal(ast.parse("[1, 2.5, 'a']").body[0].value)
    assert not nbdefs.is_literal(ast.parse("torch.ones(2)").body[0].value)
