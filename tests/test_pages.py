"""Pages without a browser: formulas, explorers' states, runs that are kept, and folders that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import torch

from lowbit_nb import live
from lowbit_nb.pages import explorers, run, site
from lowbit_nb.pages.__main__ import main
from lowbit_nb.pages.formulas import MATHML, Formulas, unicode_letter
from tests.layers import ROOT

FIRST = "# Is it so?\n\nIt is.\n\n| | |\n|---|---|\n| Time | 3 s on one core |\n| Level | beginner: Python |\n"


def book(*sources: str) -> nbformat.NotebookNode:
    """A notebook of a first cell, texts (that start with a #) and code."""
    cells = [nbformat.v4.new_markdown_cell(s) if s.startswith("#") else nbformat.v4.new_code_cell(s) for s in (FIRST, *sources)]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one notebook."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text("# A kit\n\nThree words.\n\n## Start\n\nHere.\n", encoding="utf-8")
    nbformat.write(book("print(6 * 7)"), tmp_path / "notebooks" / "00_small.ipynb")
    return tmp_path


def written(root: Path, *sources: str) -> str:
    """The page of a notebook of these cells, not run."""
    site.write(root, root / "html", {root / "notebooks" / "00_small.ipynb": book(*sources)})
    return (root / "html" / "00_small.html").read_text(encoding="utf-8")


def signs(tex: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(Formulas().inline(tex)).iter(f"{{{MATHML}}}mo"))


def test_every_formula_of_every_notebook_is_translated():
    formulas = Formulas()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            parts = cell.source.split("$") if cell.cell_type == "markdown" and "```" not in cell.source else []
            for tex in parts[1::2]:
                tree = ElementTree.fromstring(formulas.inline(tex)) if tex.strip() else None
                assert tree is None or tree.get("alttext")
    assert {"∑", "ˆ", "⊤", "α"} <= formulas.used and "base64" in formulas.style()


def test_an_unknown_command_is_refused():
    with pytest.raises(ValueError, match=r"holds \\nonsense, which cannot be translated"):
        Formulas().inline(r"\nonsense + 1")


def test_signs_stand_where_they_should():
    hat, bar = (signs(tex)[0] for tex in (r"\hat w", r"\overline{ab}"))
    assert (hat.text, hat.get("stretchy"), bar.text, bar.get("stretchy")) == ("ˆ", "false", "‾", "true")
    for tex, form in (("-a", "prefix"), ("(-a)", "prefix"), (r"b,\ -a", "prefix"), ("b-a", None), ("x^{-1}", "prefix")):
        assert [sign.get("form") for sign in signs(tex) if sign.text == "−"] == [form], tex
    assert [sign.get("stretchy") for sign in signs("|a|/b")] == ["false"] * 3
    assert "𝔼" in Formulas().inline(r"\mathbb E[x]")
    assert [sign.text for sign in signs(r"\arg\min_i x")] == ["arg", "min"]
    assert [unicode_letter(*of) for of in (("R", "double-struck"), ("w", "bold"), ("L", "script"))] == ["ℝ", "𝐰", "ℒ"]


def test_the_state_of_an_explorer_is_all_that_its_module_needs():
    W = torch.linspace(-1, 1, 64).reshape(1, 64)
    widget = live.grid_explorer(W, group=16)
    state = widget.get_state()
    plain = {key: value for key, value in state.items() if not isinstance(value, (bytes, memoryview))}
    buffers = [{"encoding": "base64", "path": [key], "data": "AAAA"} for key in state.keys() - plain.keys()]
    nb = book()
    nb.metadata.widgets = {explorers.STATE: {"state": {"a": {"state": plain, "buffers": buffers}, "b": {"state": {}}}}}
    module, text = explorers.live(nb, "a")
    assert module.name.startswith("GridExplorer-")
    assert json.loads(module.text.partition("] = ")[2].rstrip(";\n")) == {"esm": widget._esm, "css": widget._css}
    assert json.loads(text)["module"] == module.name and "</" not in text
    traits = {name for name in widget.traits(sync=True) if not name.startswith("_")}
    assert traits <= json.loads(text)["state"].keys() | json.loads(text)["bytes"].keys()
    assert explorers.live(nb, "b") is None and explorers.live(nb, "c") is None


def test_what_was_run_is_not_run_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    path, kept = root / "notebooks" / "00_small.ipynb", root / "kept"
    ran = []
    monkeypatch.setattr(run, "_run", lambda nb, path: ran.append(nb.cells[1].source))
    run.executed([path], kept)
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", text="an output changes nothing")]
    nbformat.write(nb, path)
    run.executed([path], kept)
    assert ran == ["print(6 * 7)"]
    nb.cells[1].source = "print(8 * 9)"
    nbformat.write(nb, path)
    run.executed([path], kept)
    (root / "data").mkdir()
    (root / "data" / "numbers.json").write_text("[1]")
    run._surroundings.cache_clear()
    run.executed([path], kept)
    assert ran == ["print(6 * 7)", "print(8 * 9)", "print(8 * 9)"] and len(list(kept.iterdir())) == 1


def test_the_command_writes_all_or_nothing(root: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--root", str(root), "--out", str(root / "html")]
    assert main(arguments) == 0
    page = root / "html" / "00_small.html"
    before = page.read_text(encoding="utf-8")
    assert '<pre class="printed">42\n</pre>' in before and not list(root.glob("html.*"))
    nbformat.write(book("print(6 * 7)", "1 / 0"), root / "notebooks" / "01_wrong.ipynb")
    assert main(arguments) == 1
    assert "01_wrong.ipynb does not run" in (said := capsys.readouterr()).err and "ZeroDivisionError" in said.err
    assert "00_small: unchanged" in said.out
    assert page.read_text(encoding="utf-8") == before and not (root / "html" / "01_wrong.html").exists()


def test_a_page_that_cannot_be_made_leaves_the_old_one(root: Path):
    before = written(root, "## One\n\n[here](../README.md#start) and [there](../notebooks/00_small.ipynb)")
    assert 'href="README.html#start"' in before and 'href="00_small.html"' in before and '<h2 id="one">One</h2>' in before
    (root / "data").mkdir()
    (root / "data" / "x.png").write_bytes(b"")
    for wrong, words in (("## Two\n\n[away](../nowhere.py)", "leads to ../nowhere.py, which is no file"),
                         ("## Two\n\n![](../data/x.png)", "no alt text"), ("## Two\n\n$\\nonsense$", "cannot be translated")):
        with pytest.raises(ValueError, match=words):
            written(root, wrong)
    assert (root / "html" / "00_small.html").read_text(encoding="utf-8") == before


def test_a_folder_of_something_else_is_not_replaced(root: Path):
    (root / "html").mkdir()
    (root / "html" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        written(root)
    assert (root / "html" / "index.html").read_text() == "mine"
