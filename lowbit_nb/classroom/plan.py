"""The generated parts of the instructor's page: the table of lessons, and plans with their minutes."""

from __future__ import annotations

import re
import tomllib
from functools import cache

from lowbit_nb.classroom import graph
from lowbit_nb.classroom.forms import points
from lowbit_nb.classroom.lesson import PAGES, Exercise, Lesson

PAGE, PLANS = PAGES / "instructor.md", PAGES / "plans.toml"
WORDS_A_MINUTE, MINUTES_A_CELL, MINUTES_A_PREDICTION = 150, 1, 1  # a rule for planning; nobody's class was timed
PART = re.compile(r"(<!-- begin (\w+)[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)


@cache
def plans() -> dict:
    """{plan: {"title": ..., "sessions": [{"when", "notebooks", "exercises", "leave_out"}]}}."""
    return tomllib.loads(PLANS.read_text(encoding="utf-8"))


def minutes(lesson: Lesson) -> int:
    """Minutes in class without exercises, to the next five: text, code cells and predictions."""
    words = len(re.findall(r"\w[\w'’.-]*", re.sub(r"<[^>]*>|\]\([^)]*\)|^\|.*$", " ", lesson.prose, flags=re.MULTILINE)))
    cells = sum(cell["cell_type"] == "code" for cell in lesson.cells) - len(lesson.exercises)
    predictions = lesson.prose.count("**Predict")
    whole = words / WORDS_A_MINUTE + cells * MINUTES_A_CELL + predictions * MINUTES_A_PREDICTION
    return 5 * -(-round(whole) // 5)


def link(lesson: Lesson) -> str:
    return f"[{lesson.short}](../../notebooks/{lesson.name}.ipynb)"


def table(lessons: list[Lesson]) -> list[str]:
    """One row a notebook, everything taken from the notebook."""
    rows = ["| Notebook | Level | Needs | Runs in | In class | Exercises | Points |", "|---|---|---|---|---|---|---|"]
    for lesson in lessons:
        level, needs = lesson.header("Level").split(":")[0], ", ".join(name[:2] for name in lesson.needs) or "–"
        work = " + ".join(str(exercise.minutes) for exercise in lesson.exercises)
        times = [lesson.header("Time"), f"{minutes(lesson)} min", f"{work} min"]
        cells = [link(lesson), level, needs, *times, str(points(lesson))]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def sessions(name: str, lessons: list[Lesson]) -> list[str]:
    """A plan as a table; minutes of class and of exercises are added up from the notebooks."""
    by_number = {lesson.number: lesson for lesson in lessons}
    known = {exercise.key: exercise for lesson in lessons for exercise in lesson.exercises}
    rows = ["| When | Notebooks | Leave out | In class | Exercises that fit | Their minutes |", "|---|---|---|---|---|---|"]
    for session in plans()[name]["sessions"]:
        chosen = [by_number[number] for number in session["notebooks"]]
        tasks: list[Exercise] = [known[key] for key in session["exercises"]]
        spent = sum(minutes(lesson) for lesson in chosen)
        cells = [session["when"], ", ".join(map(link, chosen)), session.get("leave_out", "–"), f"{spent} min",
                 ", ".join(f"`{task.key}`" for task in tasks) or "–", f"{sum(task.minutes for task in tasks)} min"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def picture(lessons: list[Lesson]) -> list[str]:
    return [f"![Which notebook needs which. {graph.words(lessons)}.](prerequisites.svg)"]


def page(lessons: list[Lesson], text: str) -> str:
    """instructor.md with each part between `<!-- begin <name> -->` and `<!-- end -->` made anew; the rest is by hand."""

    def fill(part: re.Match) -> str:
        name = part[2]
        lines = sessions(name, lessons) if name in plans() else {"lessons": table, "picture": picture}[name](lessons)
        return part[1] + "\n" + "\n".join(lines) + "\n\n" + part[3]

    return PART.sub(fill, text)
