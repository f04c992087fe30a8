"""The one table of names: a notebook's "Notation" section chooses rows, tests/weave.py fills them in.

Names and meanings are in data/class/glossary.toml: its symbols, and its words, whose unit is their last column.
Where a letter has another sense, the name says so, `k` (codebook), and the notebook shows it like that.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

GLOSSARY_TOML = Path(__file__).resolve().parent.parent / "data" / "class" / "glossary.toml"


def read() -> dict[str, tuple[str, str]]:
    """Name: (meaning, shape or unit)."""
    source = tomllib.loads(GLOSSARY_TOML.read_text(encoding="utf-8"))
    words = {term: (entry["meaning"], entry.get("unit", "")) for term, entry in source["words"].items()}
    return {name: (meaning, shape) for name, (meaning, shape) in source["symbols"].items()} | words


NOTATION = read()

HEAD = ["| Name | Meaning | Shape or unit |", "|---|---|---|"]
GLOSSARY = "Other words: [glossary](../data/class/glossary.md)."


def names_of(cell: str) -> list[str]:
    """The names in a row's first cell: "`s`, `z`" -> ["s", "z"], "`k` (codebook)" -> ["k (codebook)"]."""
    return [name.replace("`", "").strip() for name in cell.split(",")]


def row(cell: str) -> str:
    """The row for the names in its first cell: meanings in turn, and one shape where all have the same."""
    names = names_of(cell)
    unknown = [name for name in names if name not in NOTATION]
    if unknown:
        raise KeyError(f"no meaning for {unknown}; add it to data/class/glossary.toml")
    meanings, shapes = zip(*(NOTATION[name] for name in names), strict=True)
    shape = shapes[0] if len(set(shapes)) == 1 else ", ".join(filter(None, shapes))
    return f"| {cell} | {'; '.join(meanings)} | {shape} |"


def rewrite(source: str) -> str:
    """A "Notation" cell with every row of its one table taken from NOTATION, and the way to all other words at its end."""
    lines = [line for line in source.split("\n") if line != GLOSSARY]
    at = [number for number, line in enumerate(lines) if line.lstrip().startswith("|")]
    if len(at) < 3 or at != list(range(at[0], at[-1] + 1)):
        raise KeyError("needs one table, its first column filled with names")
    cells = [lines[number].split("|")[1].strip() for number in at[2:]]
    table = HEAD + [row(cell) for cell in cells]
    after = "\n".join(lines[at[-1] + 1 :]).strip()
    return "\n".join(lines[: at[0]] + table) + "\n\n" + "\n\n".join(filter(None, [after, GLOSSARY]))
