"""Imports point downward in the layer table of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers import NUMERIC, PACKAGE, ROOT, files, layers, module_name, parse_layers, room_of

# (method, the method it starts from): a method may import another one only as its initialiser.
INITIALISERS = {("tesseraq", "awq"), ("tesseraq", "omniquant"), ("omniquant", "awq"), ("oac", "gptq"), ("oac", "spqr"),
                ("oac", "vptq"), ("oac", "billm"), ("oac", "arbllm")}

KERNELS = {"kernels": ("triton",)}  # the one numeric room that may use more than torch

FILES = [str(path.relative_to(ROOT)) for path in files()]


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module an import statement names, relative dots resolved."""
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imports(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import in a file, inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if base.startswith("lowbit_nb") and is_module(inner) else base


def room_of_module(name: str) -> str:
    """'lowbit_nb.methods.gptq' -> 'methods'; 'lowbit_nb' itself -> 'lowbit_nb'."""
    return (name.split(".") + [PACKAGE.name])[1]


def problems(path: Path, text: str, table: dict[str, int]) -> list[str]:
    """What is wrong with the imports of one file, in words."""
    room = room_of(path)
    if room not in table:
        return [f"{room} is not in the layers block of ARCHITECTURE.md; put it on the lowest layer that fits"]
    found = []
    for line, name in imports(path, text):
        top = name.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}"
        if top == "lowbit_nb":
            other = room_of_module(name)
            if other == room and path.parent != PACKAGE:
                found += inside_a_folder(where, path, name)
            elif other not in table:
                found.append(f"{where} imports {name}, which is not in the layers block of ARCHITECTURE.md")
            elif table[other] >= table[room]:
                found.append(
                    f"{where}: {room} (layer {table[room]}) imports {other} (layer {table[other]}), "
                    "which is not downward"
                )
        elif table[room] in NUMERIC and top not in {"torch", *KERNELS.get(room, ())} and top not in sys.stdlib_module_names:
            found.append(
                f"{where}: {room} is numeric and may import torch and the standard library only, not {top}"
            )
    return found


def inside_a_folder(where: str, path: Path, name: str) -> list[str]:
    """Files of one folder may use each other, except the methods, of which each stands alone."""
    if room_of(path) != "methods" or path.name == "__init__.py":
        return []
    own, other = path.stem, (name.split(".") + ["methods"])[2]
    allowed = other.startswith("_") or (own, other) in INITIALISERS
    complaint = f"{where}: method {own} imports method {other}; only initialisers may be imported"
    return [] if allowed else [complaint]


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downward(file):
    found = problems(ROOT / file, (ROOT / file).read_text(encoding="utf-8"), layers())
    assert not found, "\n".join(found)


def test_table_names_the_package_as_it_is():
    """Rooms may be planned ahead in the prose of ARCHITECTURE.md, not in the block."""
    rooms = {room_of(path) for path in files()}
    assert set(layers()) == rooms, (
        f"only in the block: {set(layers()) - rooms}; only in lowbit_nb/: {rooms - set(layers())}"
    )


TABLE = {"grid": 0, "stored": 1, "methods": 5, "lowbit_nb": 9}


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("grid/marks.py", "from ..stored import AffineWeight", "not downward"),
        ("grid/marks.py", "def f():\n    from lowbit_nb import stored", "not downward"),
        ("grid/marks.py", "import lowbit_nb", "not downward"),
        ("stored.py", "import numpy as np", "torch and the standard library only"),
        ("methods/gptq.py", "from .rtn import RTN", "only initialisers"),
        ("methods/gptq.py", "from lowbit_nb.methods.rtn import RTN", "only initialisers"),
        ("novel.py", "import torch", "is not in the layers block"),
        ("stored.py", "from .novel import x", "is not in the layers block"),
    ],
)
def test_a_wrong_import_is_seen(file, text, word):
    found = problems(PACKAGE / file, text, TABLE)
    assert len(found) == 1 and word in found[0], found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("stored.py", "from .grid import Grid\nimport torch, math\nfrom torch import nn"),
        ("methods/gptq.py", "from ..grid import Grid\nimport transformers"),
        ("methods/__init__.py", "from .rtn import RTN\nfrom . import gptq"),
    ],
)
def test_a_right_import_is_not(file, text):
    assert problems(PACKAGE / file, text, TABLE) == []


def test_the_block_is_read():
    assert parse_layers("x\n```layers\n0 grid bits   # numbers\n\n1 stored\n```\n") == {
        "grid": 0,
        "bits": 0,
        "stored": 1,
    }
    for bad in ("nothing", "```layers\n0 grid\n1 grid\n```", "```layers\ngrid\n```"):
        with pytest.raises(AssertionError):
            parse_layers(bad)
