"""Links to the neighbours and meanings of names are what tests/weave.py writes, in every notebook."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import anatomy, nbtools, normalise, notation, weave

NAMES = nbtools.names()
AXES = {"d_out", "d_in", "n", "g", "k", "v", "n_groups", "n_words"}


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    for path in nbtools.paths():
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_is_woven(name, capsys):
    path = nbtools.NOTEBOOKS / f"{name}.ipynb"
    assert weave.main(["--check", str(path)]) == 0, f"run tests/weave.py: {capsys.readouterr()}"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_the_neighbours(name):
    """Said again without the tool: the last line of the first cell, whose targets exist."""
    last = nbtools.read(name).cells[0].source.splitlines()[-1]
    targets = re.findall(r"\]\(([^)]*)\.ipynb\)", last)
    at = NAMES.index(name)
    assert targets == [*NAMES[max(at - 1, 0) : at], anatomy.INDEX, *NAMES[at + 1 : at + 2]]
    assert ("previous: [" in last, "next: [" in last) == (at > 0, at + 1 < len(NAMES))


MUTANTS = {
    "meaning": (r"(\| `W`[^|]*\|) [^|]* \|", r"\1 something else |"),
    "shape": (r"(\| `W`[^|]*\|[^|]*\|) [^|]* \|", r"\1 `[d_in, d_out]` |"),
    "head": (r"\| Name \| Meaning \|", "| Name | Sense |"),
    "wrong link": (r"\[index\]\([^)]*\)", "[index](02_packing.ipynb)"),
    "link by hand": (r"^.*\[index\].*$", "Next: [go on](02_packing.ipynb)."),
    "no links": (r"\n\n.*\[index\].*$", ""),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_change_is_seen_and_undone(copies, mutant, capsys):
    """Byte for byte: so ids, outputs and the text around table and links stay, in normal form."""
    path = copies / "01_grids_and_bits.ipynb"
    old = path.read_bytes()
    nb = normalise.parse(path)
    pattern, text = MUTANTS[mutant]
    cell = nb.cells[0] if "link" in mutant else nbtools.sections(nb)["Notation"][0]
    cell.source, changes = re.subn(pattern, text, cell.source, flags=re.MULTILINE)
    assert changes == 1
    path.write_text(normalise.text_of(nb), encoding="utf-8")
    changed = path.read_bytes()
    assert weave.main(["--check", str(path)]) == 1 and path.read_bytes() == changed != old
    assert "01_grids_and_bits.ipynb: OUT OF DATE" in capsys.readouterr().out
    assert weave.main([str(path)]) == 0 and path.read_bytes() == old


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("## Notation\n\n| a | b | c |\n|---|---|---|\n| `W`, `Q` | | |", "no meaning for ['Q']"),
        ("## Notation\n\nNone.", "needs one table"),
        ("## Notation\n\n| a |\n|---|\n| `W` |\n\n| a |\n|---|\n| `s` |", "needs one table"),
    ],
)
def test_what_cannot_be_woven_is_refused_and_kept(copies, source, message, capsys):
    path = copies / "02_packing.ipynb"
    nb = normalise.parse(path)
    cell = nbtools.sections(nb)["Notation"][0]
    cell.source = source
    path.write_text(normalise.text_of(nb), encoding="utf-8")
    before = path.read_bytes()
    assert weave.main([str(path)]) == 1 and path.read_bytes() == before
    said = capsys.readouterr().err
    assert f"02_packing.ipynb, cell {nb.cells.index(cell)} (id {cell.id}" in said and message in said


def test_a_new_neighbour_changes_only_the_last_notebook(copies):
    new = copies / "99_new.ipynb"
    shutil.copy(copies / f"{NAMES[-1]}.ipynb", new)
    changed = [path.stem for path in sorted(copies.glob("*.ipynb")) if weave.main(["--check", str(path)])]
    assert changed == [NAMES[-1], "99_new"]


def test_a_notebook_that_was_never_run_can_be_woven(copies):
    """`make notebooks` weaves first, so that what is run and stored is complete."""
    path = copies / "02_packing.ipynb"
    nb = normalise.parse(path)
    for cell in nbtools.code_cells(nb):
        cell.execution_count, cell.outputs = None, []
    nb.cells[0].source = nb.cells[0].source.rsplit("\n", 1)[0]
    path.write_text(normalise.text_of(nb), encoding="utf-8")
    script = nbtools.ROOT / "tests" / "weave.py"  # as the Makefile calls it
    command = [sys.executable, str(script), str(path)]
    run = subprocess.run(command, cwd=copies, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "rewritten" in run.stdout, run.stdout + run.stderr
    assert weave.main(["--check", str(path)]) == 0


def test_a_row_joins_its_names():
    assert notation.row("`b`, `s`").startswith("| `b`, `s` | bits a code; step of each group (")
    assert notation.row("`s`, `z`").endswith(" | `[d_out, n_groups]` |")
    assert notation.row("`X`, `H`").endswith(" | `[n, d_in]`, `[d_in, d_in]` |")


@pytest.mark.parametrize("name", notation.NOTATION)
def test_meanings_fit_into_a_table(name):
    meaning, shape = notation.NOTATION[name]
    assert meaning and not set("|;\n") & set(meaning + shape) and not meaning.endswith(".")
    assert "," not in name and notation.names_of(f"`{name}`") == [name]
    for axes in re.findall(r"\[([^\]]*)\]", shape):
        assert set(re.split(r", |//", axes)) <= AXES
