"""Public functions of the numeric and engine rooms say shapes, units, errors, source and differences."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

from tests.layers import ROOT, SHOWING, files, module_name, room_of

LINES = ("Shapes", "Units", "Raises", "Source", "Differs")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def lacking(docstring: str | None, wanted: tuple[str, ...]) -> list[str]:
    """Which parts a docstring lacks: its summary line or `Name: text` lines."""
    if not (docstring or "").strip():
        return ["a docstring"]
    found = (
        []
        if docstring.strip().splitlines()[0].strip().endswith((".", "?", ":"))
        else ["a summary line with a full stop"]
    )
    return found + [
        f"{name}:" for name in wanted if not re.search(rf"^\s*{name}:\s+\S", docstring, re.MULTILINE)
    ]


def is_error(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)


def public(body: list[ast.stmt]) -> list[Definition]:
    return [node for node in body if isinstance(node, Definition) and not node.name.startswith("_")]


def complaints(text: str) -> list[str]:
    """What the public definitions of a source text lack. A class carries the source for its methods."""
    found = []
    for node in public(ast.parse(text).body):
        if not isinstance(node, ast.ClassDef):
            missing = lacking(ast.get_docstring(node), LINES)
        else:
            missing = lacking(ast.get_docstring(node), () if is_error(node) else ("Source",))
            found += [
                f"{node.name}.{inner.name} lacks a docstring"
                for inner in public(node.body)
                if len(inner.body) > 1 and not ast.get_docstring(inner)  # one statement speaks for itself
            ]
        found += [f"{node.name} lacks {', '.join(missing)}"] if missing else []
    return found


def documented() -> list[Path]:
    return [path for path in files() if room_of(path) not in SHOWING]


@pytest.mark.parametrize("file", [str(path.relative_to(ROOT)) for path in files()])
def test_public_definitions_say_what_they_do(file):
    if room_of(ROOT / file) in SHOWING:
        assert ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))), (
            f"{file} has no docstring"
        )
        return
    found = complaints((ROOT / file).read_text(encoding="utf-8"))
    assert not found, f"{file}:\n" + "\n".join(found)


def test_some_rooms_are_documented():
    assert documented(), "no room of lowbit_nb is held to the rule"


@pytest.mark.parametrize(
    "name", [module_name(path) for path in files() if ">>>" in path.read_text(encoding="utf-8")]
)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


GOOD = '''
def f(x):
    """Do it.

    Shapes:  x [n]; returns [n].
    Units:   none.
    Raises:  nothing.
    Source:  ours.
    Differs: no difference.
    """
'''


def test_a_complete_docstring_passes():
    assert complaints(GOOD) == []
    assert complaints("def _private(): pass\n\nclass LateError(ValueError):\n    'Too late.'") == []


@pytest.mark.parametrize("line", LINES)
def test_a_missing_line_is_named(line):
    text = "".join(part for part in GOOD.splitlines(keepends=True) if f"{line}:" not in part)
    assert complaints(text) == [f"f lacks {line}:"]


def test_classes_and_methods_are_seen():
    found = complaints(
        "class A:\n    '''A thing.'''\n    def m(self):\n        x = 1\n        return x\n"
        "    def _n(self):\n        x = 1\n        return x\n    def short(self): return 1"
    )
    assert found == ["A.m lacks a docstring", "A lacks Source:"]
