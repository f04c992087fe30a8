"""The two forms of a notebook: what nbgrader wants, nothing given away, and graded as we say by nbgrader itself."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from lowbit_nb.classroom import forms
from lowbit_nb.classroom.__main__ import CONFIG, write_class
from lowbit_nb.classroom.lesson import NOTEBOOKS, PAGES, ROOT, Lesson, lessons
from tests import nbtools

LESSONS = {lesson.name: lesson for lesson in lessons()}
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
REGION = re.compile(r"### BEGIN SOLUTION\n.*?### END SOLUTION", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def marked(form: dict) -> dict[str, dict]:
    """nbgrader's cells by their id."""
    return {cell["metadata"]["nbgrader"]["grade_id"]: cell for cell in form["cells"] if "nbgrader" in cell["metadata"]}


@pytest.mark.parametrize("name", nbtools.names())
def test_forms_have_what_nbgrader_wants(name):
    lesson, worth = LESSONS[name], {"easy": 1, "medium": 2, "hard": 3}
    for form in (forms.source_form(lesson), forms.release_form(lesson)):
        nbformat.validate(nbformat.from_dict(form))
        cells = marked(form)
        assert list(cells) == [f"{kind}-{e.key}" for e in lesson.exercises for kind in ("ex", "test")] and len(cells) >= 6
        for exercise in lesson.exercises:
            reader, test = (cells[f"{kind}-{exercise.key}"]["metadata"]["nbgrader"] for kind in ("ex", "test"))
            assert (reader["grade"], reader["solution"], reader["locked"]) == (False, True, False) and "points" not in reader
            assert (test["grade"], test["solution"], test["locked"]) == (True, False, True)
            assert test["points"] == worth[exercise.level] and reader["schema_version"] == test["schema_version"] == 3
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in form["cells"])


@pytest.mark.parametrize("name", nbtools.names())
def test_release_is_source_without_solutions(name):
    source, release = forms.source_form(LESSONS[name]), forms.release_form(LESSONS[name])
    for given, solved in zip(release["cells"], source["cells"], strict=True):
        assert given["source"] == REGION.sub("raise NotImplementedError", solved["source"])
    text = "\n".join(cell["source"] for cell in release["cells"])
    assert "Solution</summary>" not in text and "SOLUTION" not in text and text.count("<details>") == text.count("</details>")
    for answer in SOLUTION.findall("\n".join(cell["source"] for cell in LESSONS[name].cells)):
        assert answer.strip() not in text


@pytest.mark.parametrize("name", nbtools.names())
def test_source_holds_the_notebook_s_solutions(name):
    """Same function, statement by statement, with the stub's docstring; tests/test_exercises.py runs them."""
    answers = {}
    for answer in SOLUTION.findall("\n".join(cell["source"] for cell in LESSONS[name].cells)):
        function = ast.parse(answer).body[0]
        answers[function.name] = [ast.dump(node) for node in function.body]
    for exercise in LESSONS[name].exercises:
        cells = marked(forms.source_form(LESSONS[name]))
        function = ast.parse(cells[f"ex-{exercise.key}"]["source"]).body[0]
        assert [ast.dump(node) for node in function.body[1:]] == answers[function.name][-len(function.body[1:]) :]
        assert ast.get_docstring(function) and f'"{exercise.key}", {function.name})' in cells[f"test-{exercise.key}"]["source"]


@pytest.mark.parametrize("name", nbtools.names())
def test_everything_else_is_the_notebook(name):
    """Cell by cell and in order; links lead to files that are there, from a folder two levels deeper."""
    form = [cell for cell in forms.source_form(LESSONS[name])["cells"] if "nbgrader" not in cell["metadata"]]
    book = [cell for cell in nbtools.read(name).cells if not cell.id.startswith("ex-") or cell.cell_type == "markdown"]
    assert [cell["id"] for cell in form] == [cell.id for cell in book]
    for mine, theirs in zip(form, book, strict=True):
        same = mine["source"] == theirs.source
        assert same or "](" in theirs.source or "<summary>Solution" in theirs.source or 'Path("../' in theirs.source, mine["id"]
        assert 'Path("../' not in mine["source"]
        for target in LINK.findall(mine["source"]) if mine["cell_type"] == "markdown" else ():
            assert where(name, target).is_file(), f"{mine['id']}: {target}"


def where(name: str, target: str) -> Path:
    """The file of the repository that a link in class/release/<name>/ stands for."""
    path = (ROOT / "class" / "release" / name / target).resolve()
    if path.suffix == ".ipynb":
        assert path.parent == (ROOT / "class" / "release" / path.stem).resolve(), f"{target} leaves the folder of its own"
        return NOTEBOOKS / path.name
    return PAGES / path.name if path.parent == (ROOT / "class").resolve() else path


STUB = 'def f(x):\n    """Twice x."""\n    raise NotImplementedError\n\n\n_ = check.exercise("start-bits", f)'
HINTS = "<details><summary>Solution</summary>\n\n```python\ndef f(x):\n    return 2 * x\n```\n\n</details>"


def small(stub: str = STUB, hints: str = HINTS) -> Lesson:
    """A notebook of one exercise."""
    head = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "## Exercises"}
    title = head | {"id": "b", "source": "### Exercise 1: Twice (●●○ medium, 5 minutes)"}
    code = {"cell_type": "code", "id": "ex-start-bits", "metadata": {"tags": []}, "source": stub, "outputs": []}
    return Lesson("99_small", [head, title, code, head | {"id": "c", "source": hints}])


def test_a_small_notebook_by_hand():
    cells = forms.source_form(small())["cells"]
    assert cells[2]["source"] == (
        'def f(x):\n    """Twice x."""\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION'
    )
    assert cells[3]["source"].splitlines()[-1] == 'assert verdict == "correct", f"start-bits: {verdict}"'
    assert cells[4]["source"] == "" and forms.points(small()) == 2


@pytest.mark.parametrize(
    ("lesson", "words"),
    [
        (small(hints="<details><summary>I see it</summary></details>"), "no solution in the cell after ex-start-bits"),
        (small(stub=STUB.replace("raise NotImplementedError", "return 0")), "a stub ends in `raise NotImplementedError`"),
        (small(hints=HINTS.replace("def f", "import math\ndef f")), "must define f and nothing else"),
        (small(hints=HINTS.replace("def f", "def g")), "must define f and nothing else"),
    ],
)
def test_what_has_no_forms_is_refused(lesson, words):
    with pytest.raises(ValueError, match=words):
        forms.source_form(lesson)


def test_the_folder_of_a_class(tmp_path, capsys):
    write_class(tmp_path)
    for name in LESSONS:
        for kind in ("source", "release"):
            nbformat.read(tmp_path / kind / name / f"{name}.ipynb", as_version=4)
    pages = list(tmp_path.glob("*.md"))
    assert {page.name for page in pages} == {"glossary.md", "instructor.md", "papers.md"}
    for page in pages:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            assert (tmp_path / target).is_file() or (ROOT / "class" / target).resolve().is_file(), f"{page.name}: {target}"
    assert "00_start_here: 3 exercises, 5 points" in capsys.readouterr().out


def nbgrader(folder: Path, *arguments: str) -> str:
    """Run nbgrader in a folder; its helpers lie beside the interpreter, its files stay in the folder."""
    places = {"HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder / "jupyter"), "PYTHONPATH": str(ROOT)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run = subprocess.run([sys.executable, "-m", "nbgrader", *arguments], cwd=folder, env=os.environ | places | {"PATH": path},
                         capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_nbgrader_agrees(tmp_path):
    """One right, one wrong, one untouched exercise, and a test that was tampered with; imports and exercises of 00 alone."""
    utils = pytest.importorskip("nbgrader.utils", reason="nbgrader is not installed: pip install -e '.[class]'")
    book = LESSONS["00_start_here"]
    lesson = replace(book, cells=book.section("Setup") + book.section("Exercises"))
    source, release = forms.source_form(lesson), forms.release_form(lesson)
    place = tmp_path / "source" / lesson.name
    place.mkdir(parents=True)
    (place / f"{lesson.name}.ipynb").write_text(forms.text_of(source), encoding="utf-8")
    (tmp_path / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")

    nbgrader(tmp_path, "generate_assignment", lesson.name)
    theirs = json.loads((tmp_path / "release" / lesson.name / f"{lesson.name}.ipynb").read_text(encoding="utf-8"))
    for cell in theirs["cells"]:
        for key in ("checksum", "cell_type"):
            cell["metadata"].get("nbgrader", {}).pop(key, None)
        cell["source"] = "".join(cell["source"])
    assert theirs["cells"] == release["cells"]

    solved = marked(source)
    mine = nbformat.read(tmp_path / "release" / lesson.name / f"{lesson.name}.ipynb", as_version=4)
    for cell in mine.cells:
        if cell.id == "ex-start-bits":
            cell.source = solved[cell.id]["source"]
        elif cell.id == "ex-start-kl":
            cell.source = "def kl_from_logits(a, b):\n    return (a - b).sum()"
        elif cell.id == "test-start-feedback":
            cell.source = "pass"
    handed_in = tmp_path / "submitted" / "ann" / lesson.name
    handed_in.mkdir(parents=True)
    nbformat.write(mine, handed_in / f"{lesson.name}.ipynb")
    nbgrader(tmp_path, "autograde", lesson.name)
    graded = nbformat.read(tmp_path / "autograded" / "ann" / lesson.name / f"{lesson.name}.ipynb", as_version=4)
    tests = {cell.id: cell for cell in graded.cells if cell.id.startswith("test-")}
    said = {key: [out.evalue for out in cell.outputs if out.output_type == "error"] for key, cell in tests.items()}
    assert said["test-start-bits"] == [] and said["test-start-feedback"] == ["start-feedback: not attempted yet"]
    assert said["test-start-kl"][0].startswith("start-kl: not yet: ")
    scores = {key: utils.determine_grade(cell) for key, cell in tests.items()}
    assert scores == {"test-start-bits": (1, 1), "test-start-kl": (0, 2), "test-start-feedback": (0, 2)}
