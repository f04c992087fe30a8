"""The notebooks as stored are such that running them through nbval proves something.

nbval compares nothing in a cell that has no execution count, so a stripped notebook passes with zero
comparisons. These tests refuse such notebooks; tests/test_nbval_tools.py shows that a changed number is
noticed.
"""

from __future__ import annotations

import json
import re

import pytest

from tests import anatomy, nbtools, normalise

NAMES = nbtools.names()
# A machine's folders; the lookbehind leaves relative paths and web addresses alone.
ABSOLUTE = re.compile(r"(?<![\w.:/~-])/(?:tmp|var|usr|opt|mnt|home|root|work|Users|srv|data)/\w|\b[A-Z]:\\\w")


def test_the_expected_notebooks_exist():
    missing = sorted(set(anatomy.EXPECTED) - set(NAMES))
    assert not missing, f"notebooks/ lacks {missing}"


@pytest.mark.parametrize("name", NAMES)
def test_is_in_normal_form(name):
    path = nbtools.NOTEBOOKS / f"{name}.ipynb"
    assert path.read_text(encoding="utf-8") == normalise.normal_text(path), (
        f"run: python tests/normalise.py notebooks/{path.name}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_was_executed_in_order(name):
    counts = [cell.execution_count for cell in nbtools.code_cells(nbtools.read(name))]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_checked_cells_store_what_is_checked(name):
    cells = [
        cell for cell in nbtools.code_cells(nbtools.read(name)) if nbtools.tagged(cell, anatomy.CHECK_TAG)
    ]
    empty = [cell.id for cell in cells if not "".join(nbtools.output_texts(cell)).strip()]
    assert not empty, f"cells tagged {anatomy.CHECK_TAG} without stored text: {empty}"
    assert len(cells) >= anatomy.MIN_CHECKED_CELLS


@pytest.mark.parametrize("name", NAMES)
def test_every_main_section_is_checked(name):
    sections = nbtools.sections(nbtools.read(name))
    bare = [
        heading
        for heading in anatomy.CHECKED_HEADINGS
        if heading in anatomy.headings_of(name)
        and not any(nbtools.tagged(cell, anatomy.CHECK_TAG) for cell in sections.get(heading, []))
    ]
    assert not bare, f"sections without a cell tagged {anatomy.CHECK_TAG}: {bare}"


@pytest.mark.parametrize("name", NAMES)
def test_tags_mean_what_they_say(name):
    """nbval ignores comments with an extra word, and passes raises-exception cells that raise nothing."""
    known = {anatomy.CHECK_TAG, anatomy.IGNORE_TAG}
    for cell in nbtools.read(name).cells:
        tags = set(cell.metadata.get("tags", []))
        assert "raises-exception" not in tags, (
            f"{cell.id}: use `with check.expect(...)` instead of raises-exception"
        )
        assert not known <= tags, f"{cell.id}: both checked and ignored"
        unknown = {tag for tag in tags - known if tag.lower().replace("_", "-").startswith("nbval")}
        assert not unknown, f"{cell.id}: unknown or forbidden tag {unknown}"
        assert "NBVAL_" not in cell.source, f"{cell.id}: mark cells with tags, not with comments"


@pytest.mark.parametrize("name", NAMES)
def test_no_errors_no_stderr_no_widget_state(name):
    nb = nbtools.read(name)
    assert "widgets" not in nb.metadata
    for cell in nbtools.code_cells(nb):
        for output in cell.outputs:
            assert output.output_type != "error", f"{cell.id} stores an error"
            assert output.get("name") != "stderr", f"{cell.id} stores stderr output"
            assert normalise.WIDGET_VIEW not in output.get("data", {}), f"{cell.id} stores a widget view"


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_valid_and_unique(name):
    raw = json.loads((nbtools.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    ids = [cell.get("id", "") for cell in raw["cells"]]  # nbformat would repair them silently
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", one) for one in ids)


@pytest.mark.parametrize("name", NAMES)
def test_no_absolute_paths(name):
    for cell in nbtools.read(name).cells:
        for text in (cell.source, *nbtools.output_texts(cell)):
            found = ABSOLUTE.search(text)
            assert not found, f"{cell.id}: absolute path at {text[found.start() : found.start() + 60]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_is_small(name):
    size = (nbtools.NOTEBOOKS / f"{name}.ipynb").stat().st_size
    assert size <= anatomy.MAX_BYTES, f"{size} bytes; smaller pictures, or pictures in data/figures"


@pytest.mark.parametrize("text", ["see /home/ann/x", "('/tmp/a', 1)", "C:\\Users", 'open("/usr/lib/x")'])
def test_absolute_paths_are_seen(text):
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize(
    "text", ["../data/figures/x.png", "https://a.org/data/x", "bits/weight", "a /root of unity"]
)
def test_other_slashes_are_not(text):
    assert not ABSOLUTE.search(text)
