"""Reading notebooks in tests: where they are, their sections, their text. Nothing here runs a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tests import anatomy

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"

FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def paths() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def names() -> list[str]:
    return [path.stem for path in paths()]


def read(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def prose(cell: NotebookNode) -> str:
    """Markdown without its fenced code."""
    return FENCE.sub("", cell.source)


def headings(cell: NotebookNode, level: int) -> list[str]:
    """Texts of the headings of exactly this level; none in code cells."""
    if cell.cell_type != "markdown":
        return []
    return [
        text.strip()
        for text in re.findall(rf"^{'#' * level}(?!#)[ \t]+(.+?)[ \t]*$", prose(cell), re.MULTILINE)
    ]


def sections(nb: NotebookNode) -> dict[str, list[NotebookNode]]:
    """Cells by H2 heading, the heading's own cell first. "" holds what precedes every heading."""
    found: dict[str, list[NotebookNode]] = {"": []}
    current = ""
    for cell in nb.cells:
        for heading in headings(cell, 2):
            current = heading
            found.setdefault(current, [])
        found[current].append(cell)
    return found


def count_words(nb: NotebookNode) -> int:
    """Words of the author: no fenced code, no HTML tags, no link targets, nothing that tests/weave.py writes.

    Otherwise a new neighbour or a longer meaning in tests/notation.py could make a notebook too long.
    """
    total = 0
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            woven = r"(?m)^\|.*$" if "Notation" in headings(cell, 2) else anatomy.NAVIGATION
            text = re.sub(woven, "", prose(cell))
            text = re.sub(r"<[^>]*>", " ", text)
            text = re.sub(r"\]\([^)]*\)", "]", text)
            total += len(re.findall(r"[^\W_][\w'’.-]*", text))
    return total


def output_texts(cell: NotebookNode) -> Iterator[str]:
    """Stored text that nbval can compare: streams and text/plain."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield output.text
        elif "text/plain" in output.get("data", {}):
            yield output.data["text/plain"]
