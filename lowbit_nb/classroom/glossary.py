"""The glossary: names and words in one file, and the page that says which notebooks use them."""

from __future__ import annotations

import re
import tomllib
from functools import cache

from lowbit_nb.classroom.lesson import PAGES, Lesson

SOURCE = PAGES / "glossary.toml"


@cache
def source() -> dict:
    """The file as it is: {"symbols": {name: [meaning, shape]}, "words": {term: {...}}}."""
    return tomllib.loads(SOURCE.read_text(encoding="utf-8"))


def rows_of(lesson: Lesson) -> set[str]:
    """The names in a notebook's Notation table."""
    lines = [line for cell in lesson.section("Notation") for line in cell["source"].splitlines() if line.startswith("|")]
    return {name.replace("`", "").strip() for line in lines[2:] for name in line.split("|")[1].split(",")}


def shown(name: str) -> str:
    """As a notebook shows a name: `k` (codebook)."""
    return re.sub(r"^([^ ]+)", r"`\1`", name)


def link(lesson: Lesson) -> str:
    return f"[{lesson.number}](../../notebooks/{lesson.name}.ipynb)"


def page(lessons: list[Lesson]) -> str:
    """glossary.md: words in alphabetical order, then symbols in the order of the source."""
    tables = {lesson.name: rows_of(lesson) for lesson in lessons}
    by_number = {lesson.number: lesson for lesson in lessons}
    words = []
    for term, entry in sorted(source()["words"].items(), key=lambda item: item[0].lower()):
        at = link(by_number[entry["notebook"]]) if entry["notebook"] in by_number else entry["notebook"]
        words.append(f"| {term} | {entry['meaning']} | {entry.get('unit', '')} | {at} | {entry.get('paper', '')} |")
    symbols = []
    for name, (meaning, shape) in source()["symbols"].items():
        at = ", ".join(link(lesson) for lesson in lessons if name in tables[lesson.name])
        symbols.append(f"| {shown(name)} | {meaning} | {shape} | {at} |")
    return "\n".join([
        "# Glossary",
        "",
        "Made from [glossary.toml](glossary.toml) by `python -m lowbit_nb.classroom --pages`. Change that file, not this one.",
        "",
        "## Words",
        "",
        "The notebook is the one that explains the word; others use it.",
        "",
        "| Word | Meaning | Unit | Explained in | From |",
        "|---|---|---|---|---|",
        *words,
        "",
        "## Symbols",
        "",
        "Capital letters are matrices, small ones vectors or numbers. Matrices have the order of PyTorch: `[d_out, d_in]`.",
        "The notebooks are those whose table of notation has the row; a word in brackets marks another sense of a letter.",
        "",
        "| Name | Meaning | Shape or unit | Notebooks |",
        "|---|---|---|---|",
        *symbols,
        "",
    ])
