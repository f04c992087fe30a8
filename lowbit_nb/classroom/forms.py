"""Two forms of a notebook for nbgrader: the source, which holds the solutions, and the release, which holds stubs.

In both, the folded solutions are gone from the text, outputs are cleared (so that a Predict question is one), every
exercise's cell is a solution cell, and a locked cell after it gives the points. That cell raises unless the check
says "correct", because nbgrader gives no points to a cell that raises, and all points to one that does not.
"""

from __future__ import annotations

import ast
import json
import re
from textwrap import dedent, indent

from lowbit_nb.classroom.lesson import Exercise, Lesson

BEGIN, END, STUB = "### BEGIN SOLUTION", "### END SOLUTION", "raise NotImplementedError"
SOLUTION = re.compile(r"\n*<details>\s*<summary>\s*Solution\s*</summary>\s*```python\n(.*?)```\s*</details>", re.DOTALL)
MARKS = {"grade": False, "locked": False, "schema_version": 3, "solution": False, "task": False}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LINK = re.compile(r"(?<=\]\()[^)\s]+")
PLACE = re.compile(r'Path\("\.\./([^"]*)"\)')  # a reader's own folder may lie anywhere: ask the package instead


def source_form(lesson: Lesson) -> dict:
    """The teacher's notebook: solutions between the marks that `nbgrader generate_assignment` looks for."""
    return _notebook(lesson, solved=True)


def release_form(lesson: Lesson) -> dict:
    """The students' notebook: what `nbgrader generate_assignment` makes of the source, less its checksums."""
    return _notebook(lesson, solved=False)


def points(lesson: Lesson) -> int:
    """What the exercises of a notebook add up to."""
    return sum(exercise.points for exercise in lesson.exercises)


def text_of(notebook: dict) -> str:
    """As a file: keys sorted, one newline at the end."""
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _notebook(lesson: Lesson, solved: bool) -> dict:
    exercises = {f"ex-{exercise.key}": exercise for exercise in lesson.exercises}
    cells: list[dict] = []
    for number, cell in enumerate(lesson.cells):
        exercise = exercises.get(cell["id"])
        if exercise is None:
            cells.append(_plain(cell))
        else:
            answer = SOLUTION.search(lesson.cells[number + 1]["source"])
            if answer is None:
                raise ValueError(f"{lesson.name}: no solution in the cell after {cell['id']}; it needs <summary>Solution")
            cells += _exercise(exercise, cell, answer[1], solved)
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def _plain(cell: dict) -> dict:
    """A cell without its outputs, its solution and its links to places that are elsewhere now."""
    metadata = {key: cell["metadata"][key] for key in ("tags",) if key in cell["metadata"]}
    if cell["cell_type"] == "code":
        return _code(cell["id"], PLACE.sub(r'(Path(lb.__file__).parents[1] / "\1")', cell["source"]), metadata)
    source = LINK.sub(lambda link: _moved(link[0]), SOLUTION.sub("", cell["source"]))
    return {"cell_type": "markdown", "id": cell["id"], "metadata": metadata, "source": source}


def _moved(link: str) -> str:
    """Where a link of a notebook leads from class/release/<name>/; the pages of data/class lie in class/."""
    if book := re.match(r"(\d\d_\w+)\.ipynb", link):
        return f"../{book[1]}/{link}"
    if link.startswith("../data/class/"):
        return "../../" + link.removeprefix("../data/class/")
    return "../../" + link if link.startswith("../") else link


def _exercise(exercise: Exercise, cell: dict, answer: str, solved: bool) -> list[dict]:
    """The reader's cell and the one that gives points."""
    stub = next(node for node in ast.parse(cell["source"]).body if isinstance(node, ast.FunctionDef))
    lines = cell["source"].splitlines()[: stub.end_lineno]
    if not (isinstance(stub.body[-1], ast.Raise) and lines[-1].strip() == STUB):
        raise ValueError(f"{cell['id']}: a stub ends in `{STUB}` on a line of its own")
    last = _body(answer, stub.name) if solved else STUB
    reader = MARKS | {"grade_id": cell["id"], "solution": True}
    grade = MARKS | {"grade": True, "grade_id": f"test-{exercise.key}", "locked": True, "points": exercise.points}
    test = f"""\
        from lowbit_nb import check

        verdict = check.exercise("{exercise.key}", {stub.name})
        assert verdict == "correct", f"{exercise.key}: {{verdict}}\""""
    free, shut = ({}, {}) if solved else ({"deletable": False}, {"deletable": False, "editable": False})
    return [
        _code(cell["id"], "\n".join([*lines[:-1], indent(last, "    ")]), {"nbgrader": reader} | free),
        _code(grade["grade_id"], dedent(test), {"nbgrader": grade} | shut),
    ]


def _body(answer: str, name: str) -> str:
    """The solution's lines below its signature and docstring, between nbgrader's marks."""
    tree = ast.parse(answer)
    if [getattr(node, "name", None) for node in tree.body] != [name]:
        raise ValueError(f"the solution of {name} must define {name} and nothing else; put helpers inside of it")
    function = tree.body[0]
    start = function.body[1 if ast.get_docstring(function) is not None else 0].lineno
    lines = "\n".join(answer.splitlines()[start - 1 : function.end_lineno])
    return "\n".join([BEGIN, dedent(lines), END])


def _code(name: str, source: str, metadata: dict) -> dict:
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": metadata, "outputs": [], "source": source}
