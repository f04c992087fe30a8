"""Paper, official code, this kit: the tables of the six papers' notebooks in one page."""

from __future__ import annotations

import re

from lowbit_nb.classroom.lesson import Lesson

HEADING = "Paper, official code, this notebook"
PAPERS = {"TesseraQ": "06", "VPTQ": "12", "PTQ1.61": "10", "LRQuant": "13", "OAC": "07", "CBQ": "14"}  # paper: notebook


def module(paper: str) -> str:
    """The file of the package that holds the method."""
    return f"lowbit_nb/methods/{paper.lower().replace('.', '')}.py"


def reference(lesson: Lesson, paper: str) -> str:
    """The paper's line in the notebook's references."""
    lines = "\n".join(cell["source"] for cell in lesson.section("References")).split("\n- ")
    found = [" ".join(line.split()) for line in lines if f"*{paper}" in line]
    if len(found) != 1:
        raise ValueError(f"{lesson.name}: References need one line with *{paper}: ...*; there are {len(found)}")
    return found[0]


def differences(lesson: Lesson) -> tuple[str, list[str]]:
    """The words before the notebook's table, and the table's lines with its last column called "This kit"."""
    text = "\n".join(cell["source"] for cell in lesson.section(HEADING))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    if len(lines) < 3 or lines[0].count("|") != 5:
        raise ValueError(f"{lesson.name}: {HEADING!r} needs a table with four columns: | | Paper | Code | This notebook |")
    head = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    before = re.sub(r"^## .*$", "", text.split(lines[0])[0], flags=re.MULTILINE).strip()
    return before, [f"| {head[0]} | {head[1]} | {head[2]} | This kit |", *lines[1:]]


def page(lessons: list[Lesson]) -> str:
    """papers.md: an overview, then one table a paper."""
    by_number = {lesson.number: lesson for lesson in lessons}
    overview, sections = [], []
    for paper, number in PAPERS.items():
        lesson = by_number[number]
        notebook = f"[{lesson.short}](../../notebooks/{lesson.name}.ipynb)"
        code = f"[`{module(paper)}`](../../{module(paper)})"
        line = reference(lesson, paper)
        before, table = differences(lesson)
        own = re.search(r"code: (github\.com/[\w./-]*[\w-])", line)
        cells = [paper, own[1] if own else "none found", notebook, code, str(len(table) - 2)]
        overview.append(f"| {' | '.join(cells)} |")
        sections += [f"## {paper}", "", f"{line} Notebook: {notebook}.", "", *([before, ""] if before else []), *table, ""]
    return "\n".join([
        "# Six papers, their code, and this kit",
        "",
        "What each paper says, what its released code does, and what we do. A dash: it does not say, or it does not apply.",
        "The tables are those of the notebooks; `python -m lowbit_nb.classroom --pages` brings them here. Change them there.",
        "",
        "| Paper | Official code | Notebook | In the package | Differences listed |",
        "|---|---|---|---|---|",
        *overview,
        "",
        *sections,
    ])
