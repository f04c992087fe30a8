"""Every exercise accepts its solution, knows an unattempted stub, and refuses three wrong answers or more."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

from tests import anatomy, nbdefs, nbtools
from tests.exercise_mutants import MUTANTS

FOLDER = nbtools.ROOT / "lowbit_nb" / "exercises"
SOLUTION = re.compile(
    r"<details>\s*<summary>\s*Solution\s*</summary>\s*```python\n(.*?)```\s*</details>", re.DOTALL
)


def checks_of(module: Path) -> dict:
    return getattr(importlib.import_module(f"lowbit_nb.exercises.{module.stem}"), "EXERCISES", {})


MODULES = sorted(FOLDER.glob("nb[0-9][0-9].py"))
CHECKS = {key: (module.stem, check) for module in MODULES for key, check in checks_of(module).items()}


def notebook_of(module: str) -> str:
    fitting = [name for name in nbtools.names() if name.startswith(module.removeprefix("nb") + "_")]
    assert len(fitting) == 1, (
        f"exercises/{module}.py needs one notebook {module[2:]}_*.ipynb, found {fitting}"
    )
    return fitting[0]


def exercise_ids(nb: nbformat.NotebookNode) -> list[str]:
    return [cell.id.removeprefix("ex-") for cell in nbtools.code_cells(nb) if cell.id.startswith("ex-")]


def stub_and_solution(nb: nbformat.NotebookNode, key: str) -> tuple[str, str]:
    """Sources of the stub and of the solution, from the cell `ex-<key>` and the one after it."""
    at = next(i for i, cell in enumerate(nb.cells) if cell.id == f"ex-{key}")
    stubs = [node for node in ast.parse(nb.cells[at].source).body if isinstance(node, ast.FunctionDef)]
    assert len(stubs) == 1, (
        f"cell ex-{key} must define exactly one function, the stub; it defines {len(stubs)}"
    )
    assert at + 1 < len(nb.cells) and nb.cells[at + 1].cell_type == "markdown", (
        f"no solution cell after ex-{key}"
    )
    solutions = SOLUTION.findall(nb.cells[at + 1].source)
    assert len(solutions) == 1, (
        f"the cell after ex-{key} needs one <details> with <summary>Solution</summary>"
    )
    return ast.unparse(stubs[0]), solutions[0]


def function(nb: nbformat.NotebookNode, key: str, source: str):
    """Define `source` where the notebook would and return the exercise's function."""
    stub, _ = stub_and_solution(nb, key)
    name = ast.parse(stub).body[0].name
    namespace = nbdefs.teaching_namespace(nb)
    namespace.pop(name, None)
    exec(compile(nbdefs.FUTURE + source, f"<{key}>", "exec"), namespace)
    assert name in namespace, f"{key}: the code does not define {name}, the function of the stub"
    return namespace[name]


@pytest.mark.parametrize("module", [module.stem for module in MODULES])
def test_checks_and_cells_agree(module):
    in_notebook = exercise_ids(nbtools.read(notebook_of(module)))
    in_package = [key for key, (stem, _) in CHECKS.items() if stem == module]
    assert sorted(in_notebook) == sorted(in_package)
    assert len(in_package) >= anatomy.MIN_EXERCISES


@pytest.mark.parametrize("name", nbtools.names())
def test_notebook_has_checks(name):
    keys = exercise_ids(nbtools.read(name))
    assert set(keys) <= set(CHECKS), f"{name}: no check function for {sorted(set(keys) - set(CHECKS))}"


@pytest.mark.parametrize("key", CHECKS)
def test_stub_is_not_attempted(key, capsys):
    from lowbit_nb import check

    nb = nbtools.read(notebook_of(CHECKS[key][0]))
    check.exercise(key, function(nb, key, stub_and_solution(nb, key)[0]))
    assert capsys.readouterr().out.strip() == f"{key}: not attempted yet"


@pytest.mark.parametrize("key", CHECKS)
def test_solution_is_accepted(key):
    module, check = CHECKS[key]
    nb = nbtools.read(notebook_of(module))
    check(function(nb, key, stub_and_solution(nb, key)[1]))


@pytest.mark.parametrize("key", CHECKS)
def test_wrong_answers_are_refused(key):
    module, check = CHECKS[key]
    nb = nbtools.read(notebook_of(module))
    mutants = MUTANTS.get(key, [])
    assert len(mutants) >= 3, (
        f"tests/exercise_mutants.py needs three wrong answers for {key}, has {len(mutants)}"
    )
    assert len({ast.dump(ast.parse(source)) for source in mutants}) == len(mutants), (
        f"{key}: a mutant is repeated"
    )
    for source in mutants:
        with pytest.raises(AssertionError) as refusal:
            check(function(nb, key, source))
            pytest.fail(f"{key}: this wrong answer was accepted:\n{source}")
        assert str(refusal.value).strip(), f"{key}: refused without a hint:\n{source}"


def test_no_mutants_without_exercise():
    assert set(MUTANTS) <= set(CHECKS), f"mutants of unknown exercises: {sorted(set(MUTANTS) - set(CHECKS))}"


def test_every_expected_notebook_has_exercises():
    missing = [
        name
        for name in anatomy.EXPECTED
        if f"nb{name[:2]}" not in {module.stem for module in MODULES}
        and "Exercises" in anatomy.headings_of(name)
    ]
    assert not missing, f"no lowbit_nb/exercises/nbXX.py for {missing}"
