"""The pages for a class follow from the notebooks: the instructor's page, its plans, the glossary, the papers."""

from __future__ import annotations

import re

import pytest

from lowbit_nb.classroom import __main__ as command
from lowbit_nb.classroom import glossary, graph, papers, plan
from lowbit_nb.classroom.lesson import PAGES, Lesson, lessons
from tests import nbtools, notation

LESSONS = {lesson.name: lesson for lesson in lessons()}
BY_NUMBER = {lesson.number: lesson for lesson in LESSONS.values()}
EXERCISES = {exercise.key: lesson for lesson in LESSONS.values() for exercise in lesson.exercises}
LOOK_BACK = {"17", "18"}  # these two build on all others; a plan may end with them anyway
EMPHASIS = {"new"}  # bold after "a" and no term
TERM = re.compile(r"\(\*\*([^*]+)\*\*\)|\b(?:[Aa]n?|its) \*\*([^*]+)\*\*")


def headings(lesson: Lesson) -> list[str]:
    return re.findall(r"^#{2,3} (.+)$", lesson.prose, re.MULTILINE)


def italics(text: str) -> list[str]:
    return re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", text)


def missing(beginnings: list[str], found: list[str]) -> list[str]:
    return [one for one in beginnings if not any(heading.startswith(one) for heading in found)]


# --- pages ---


def test_pages_are_up_to_date(capsys):
    assert command.main(["--check"]) == 0, f"run python -m lowbit_nb.classroom --pages\n{capsys.readouterr().out}"


@pytest.mark.parametrize("name", nbtools.names())
def test_the_instructor_page_has_the_notebook_s_own_numbers(name):
    """Read again without the tool."""
    nb, text = nbtools.read(name), plan.PAGE.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| [{name.replace('_', ' ')}]"))
    time = re.search(r"\| Time \| ([^|]*) \|", nb.cells[0].source)[1]
    minutes = re.findall(r"^### Exercise \d+: .* (\d+) minutes\)$", "\n".join(cell.source for cell in nb.cells), re.MULTILINE)
    assert f"| {time} |" in row and f"| {' + '.join(minutes)} min |" in row
    section = re.search(rf"^### {name[:2]} .*?(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert section and section[0].count('- "') >= 2, f"instructor.md needs '### {name[:2]} ...' with two misconceptions"
    unknown = missing(italics(section[0]), headings(LESSONS[name]))
    assert not unknown, f"instructor.md sends to headings that {name} does not have: {unknown}"


@pytest.mark.parametrize("name", plan.plans())
def test_a_plan_can_be_taught(name):
    seen: set[str] = set()
    for session in plan.plans()[name]["sessions"]:
        assert set(session["notebooks"]) <= set(BY_NUMBER), session
        for number in session["notebooks"]:
            seen.add(number)
            needs = {one[:2] for one in BY_NUMBER[number].needs}
            assert number in LOOK_BACK or needs <= seen, f"{session['when']}: {number} needs {sorted(needs - seen)} first"
        assert {EXERCISES[key].number for key in session["exercises"]} <= set(session["notebooks"]), session
        known = [heading for number in session["notebooks"] for heading in headings(BY_NUMBER[number])]
        unknown = missing(italics(session.get("leave_out", "")), known)
        assert not unknown, f"{session['when']}: no headings {unknown}"


def test_needs_point_back_and_the_picture_has_them_all():
    drawn, ways = graph.svg(list(LESSONS.values())), graph.direct(list(LESSONS.values()))
    for name, lesson in LESSONS.items():
        assert all(one in LESSONS and one < name for one in lesson.needs), f"{name} needs {lesson.needs}"
        assert drawn.count(f">{name[:2]} ") == 1
        assert set(lesson.needs) <= graph.behind(ways, name), "an arrow was left out that no other way replaces"
    assert drawn.count("<path") == sum(map(len, ways.values()))


# --- glossary ---


@pytest.mark.parametrize("name", nbtools.names())
def test_names_of_the_notation_table_are_used(name):
    """In the notebook's text or code, or in the table's other columns; hats may be written in TeX."""
    rest = [re.sub(r"(?m)^\|[^|]*\|", "", cell.source) for cell in nbtools.read(name).cells]
    text = re.sub(r"\\hat ([WX])", r"\1_hat", "\n".join(rest)).replace(r"\kappa", "kappa").replace(r"\delta", "delta")
    idle = []
    for row in glossary.rows_of(LESSONS[name]):
        word = re.escape(row.split(" ")[0])  # of a term in words, "KL divergence", the first
        pattern = word if row.startswith("_") else rf"(?<![A-Za-z]){word}(?![A-Za-z])"
        if not re.search(pattern, text, re.IGNORECASE if row in glossary.source()["words"] else 0):
            idle.append(row)
    assert not idle, f"{name} explains names that it never uses: {idle}"


def test_every_symbol_is_in_some_notebook_s_table():
    used = set().union(*(glossary.rows_of(lesson) for lesson in LESSONS.values()))
    assert not (idle := set(glossary.source()["symbols"]) - used), f"no notebook uses {sorted(idle)}"


@pytest.mark.parametrize("term", glossary.source()["words"])
def test_a_word_is_used_where_it_is_explained(term):
    entry = glossary.source()["words"][term]
    assert set(entry) <= {"notebook", "meaning", "unit", "paper"}
    assert re.search(rf"(?<!\w){re.escape(term)}", BY_NUMBER[entry["notebook"]].prose, re.IGNORECASE)


@pytest.mark.parametrize("name", nbtools.names())
def test_terms_that_a_notebook_introduces_are_in_the_glossary(name):
    """A term is what stands in bold after "a", "an" or "its", or alone in brackets."""
    terms = {(inside or after).lower() for inside, after in TERM.findall(LESSONS[name].prose)} - EMPHASIS
    assert not (new := terms - {term.lower() for term in notation.NOTATION}), f"data/class/glossary.toml lacks {sorted(new)}"


def test_notation_leads_to_the_glossary():
    assert notation.rewrite("## Notation\n\n| a |\n|---|\n| `W` |\n\nHere.").split("\n\n")[2:] == ["Here.", notation.GLOSSARY]
    assert notation.row("`k` (codebook), `v`").startswith("| `k` (codebook), `v` | entries of a codebook; weights a piece")


# --- papers ---


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_a_paper_s_table_is_the_notebook_s(paper):
    page = (PAGES / "papers.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(paper)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[1]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    nb = nbtools.read(BY_NUMBER[papers.PAPERS[paper]].name)
    source = "\n".join(cell.source for cell in nbtools.sections(nb)["Paper, official code, this notebook"])
    assert rows[1:] == [line for line in source.splitlines() if line.startswith("|")][1:] and len(rows) >= 8
    assert rows[0].endswith("| This kit |") and (nbtools.ROOT / papers.module(paper)).is_file()
    assert f"*{paper}" in section, "its line of the references"
