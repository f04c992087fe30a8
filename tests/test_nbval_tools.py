"""The tools around nbval do what we rely on: sanitizer, plugin, canary, normal form."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import anatomy, nbtools, normalise

SANITIZER = nbtools.ROOT / "tests" / "nbval_sanitize.cfg"
DIGIT = re.compile(r"\d")


def rules() -> list[tuple[str, str]]:
    from nbval.plugin import get_sanitize_patterns

    return get_sanitize_patterns(SANITIZER.read_text(encoding="utf-8"))


def nbval(*notebooks: Path) -> subprocess.CompletedProcess:
    """Run nbval as the Makefile does."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.nbval_plugin",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=180",
        "--color=no",
        f"--nbval-sanitize-with={SANITIZER}",
        *map(str, notebooks),
    ]
    return subprocess.run(command, cwd=nbtools.ROOT, capture_output=True, text=True, timeout=400)


def tiny(text: str, tags: list[str], html: str = "<p>1</p>", count: int | None = 1) -> nbformat.NotebookNode:
    source = (
        "from IPython.display import display\nprint('sum', 1 + 2)\n"
        "display({'text/plain': 'alt', 'text/html': '<p>1</p>'}, raw=True)"
    )
    shown = new_output("display_data", {"text/plain": "alt", "text/html": html})
    cell = new_code_cell(
        source,
        id="chk-tiny",
        execution_count=count,
        metadata={"tags": tags},
        outputs=[new_output("stream", name="stdout", text=text), shown] if count else [],
    )
    return new_notebook(cells=[cell])


def write(folder: Path, name: str, nb: nbformat.NotebookNode) -> Path:
    path = folder / f"{name}.ipynb"
    nbformat.write(nb, path)
    return path


def test_sanitizer_rules_are_all_read():
    text = SANITIZER.read_text(encoding="utf-8")
    found = rules()
    assert len(found) == 4 == len(re.findall(r"^regex:", text, re.MULTILINE))
    assert all(re.compile(regex) and replacement.strip() for regex, replacement in found)


def test_sanitizer_leaves_results_alone():
    kept = "bits 2.28, loss 0.123456789, kl 5.5e-01, shape [256, 768], q/s 3/4"
    text = f"codes: equal (32 of 32)\nW_hat: within 1e-06\n{kept}"
    for regex, replacement in rules():
        text = re.sub(regex, replacement, text)
    assert text == f"codes: equal (32 of 32)\nW_hat: within 1e-06\n{kept}"


def test_sanitizer_removes_addresses_dates_and_paths():
    text = "<object at 0x7f01ab22> 2026-03-04 10:11:12 /tmp/ipykernel_12/345.py:7 /home/ann/x"
    for regex, replacement in rules():
        text = re.sub(regex, replacement, text)
    assert text == "<object at ADDRESS> DATE CELL PATH"


def test_canary(tmp_path):
    """A changed number in a checked cell fails; changed HTML does not; unchecked and never-run cells pass."""
    checked = [anatomy.CHECK_TAG]
    good = [
        write(tmp_path, "right", tiny("sum 3\n", checked)),
        write(tmp_path, "html", tiny("sum 3\n", checked, html="<p>2</p>")),
        write(tmp_path, "untagged", tiny("sum 4\n", [])),
        write(tmp_path, "stripped", tiny("", checked, count=None)),
    ]
    run = nbval(*good)
    assert run.returncode == 0, run.stdout + run.stderr
    run = nbval(write(tmp_path, "wrong", tiny("sum 4\n", checked)))
    assert run.returncode == 1 and "Cell outputs differ" in run.stdout, run.stdout + run.stderr


def corrupted(nb: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The notebook up to its first checked number, with that number changed; None if it has none."""
    nb = copy.deepcopy(nb)
    for at, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []) if nbtools.tagged(cell, anatomy.CHECK_TAG) else []:
            place, key = (
                (output, "text") if output.output_type == "stream" else (output.get("data", {}), "text/plain")
            )
            if DIGIT.search(place.get(key, "")):
                place[key] = DIGIT.sub(lambda digit: str((int(digit[0]) + 1) % 10), place[key], count=1)
                nb.cells = nb.cells[: at + 1]
                return nb
    return None


def test_canary_in_a_real_notebook(tmp_path):
    """One changed digit in a stored notebook is noticed; the one with the fewest cells before it is taken."""
    candidates = [nb for nb in map(corrupted, map(nbtools.read, nbtools.names())) if nb is not None]
    assert candidates, "no notebook has a checked number"
    shortest = min(candidates, key=lambda nb: len(nbtools.code_cells(nb)))
    (tmp_path / "notebooks").mkdir()
    run = nbval(write(tmp_path / "notebooks", "canary", shortest))
    assert run.returncode == 1 and "Cell outputs differ" in run.stdout, run.stdout + run.stderr
    assert " 1 failed" in f" {run.stdout.splitlines()[-1]}", run.stdout


def test_normal_form_is_stable_and_bare(tmp_path):
    nb = tiny("sum 3\n", [anatomy.CHECK_TAG])
    nb.cells.insert(0, new_markdown_cell("# A?", id="title", metadata={"editable": True}))
    cell = nb.cells[1]
    cell.execution_count = 7
    cell.metadata["execution"] = {"iopub.status.busy": "now"}
    cell.outputs[1].data[normalise.WIDGET_VIEW] = {"model_id": "ab"}
    cell.outputs.insert(1, new_output("stream", name="stdout", text="more\n"))
    nb.metadata = nbformat.from_dict({"widgets": {}, "kernelspec": {"name": "other", "display_name": "Mine"}})
    path = write(tmp_path, "messy", nb)
    assert normalise.main(["--check", str(path)]) == 1
    assert normalise.main([str(path)]) == 0
    once = path.read_bytes()
    assert normalise.main([str(path)]) == 0 and path.read_bytes() == once
    assert normalise.main(["--check", str(path)]) == 0
    tidy = nbformat.read(path, as_version=4)
    assert [cell.id for cell in tidy.cells] == ["title", "chk-tiny"]
    assert tidy.cells[1].outputs[0].text == "sum 3\nmore\n" and len(tidy.cells[1].outputs) == 2
    assert (
        normalise.WIDGET_VIEW not in once.decode() and "busy" not in once.decode() and once.endswith(b"}\n")
    )
    assert tidy.cells[1].execution_count == 1 and tidy.cells[1].metadata == {"tags": [anatomy.CHECK_TAG]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cell: cell.update(execution_count=None, outputs=[]), "never run"),
        (lambda cell: cell.update(source=" "), "empty code cell"),
        (lambda cell: cell.outputs.append(new_output("stream", name="stderr", text="a warning")), "stderr"),
        (
            lambda cell: cell.outputs.append(new_output("error", ename="KeyError", evalue="x", traceback=[])),
            "KeyError",
        ),
    ],
)
def test_what_has_no_normal_form_is_refused_and_kept(tmp_path, capsys, change, message):
    nb = tiny("sum 3\n", [])
    change(nb.cells[0])
    path = write(tmp_path, "bad", nb)
    before = path.read_bytes()
    assert normalise.main([str(path)]) == 1
    said = capsys.readouterr().err
    assert "bad.ipynb, cell 0 (id chk-tiny" in said and message in said
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_execution_is_repeatable_and_names_the_failing_cell(tmp_path, capsys):
    nb = tiny("", [], count=None)
    path = write(tmp_path, "fresh", nb)
    assert normalise.main(["--execute", str(path)]) == 0
    once = path.read_bytes()
    assert b"sum 3" in once
    nb.cells.append(new_code_cell("1 / 0", id="boom"))
    write(tmp_path, "fresh", nb)
    assert normalise.main(["--execute", str(path)]) == 1
    said = capsys.readouterr().err
    assert "fresh.ipynb, cell 1 (id boom" in said and "ZeroDivisionError" in said
