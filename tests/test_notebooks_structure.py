"""Every notebook has the anatomy of tests/anatomy.py: headings, header table, lengths, alt texts."""

from __future__ import annotations

import ast
import re

import pytest

from tests import anatomy, nbtools

NAMES = nbtools.names()
IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE | re.DOTALL)
ALT = re.compile(r"""\balt\s*=\s*(?:"\s*[^"\s][^"]*"|'\s*[^'\s][^']*')""", re.IGNORECASE)
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]*)\)")
EXERCISE = re.compile(r"^Exercise (\d+): .+ \((●○○ easy|●●○ medium|●●● hard), \d+ minutes\)$")


@pytest.mark.parametrize("name", NAMES)
def test_headings_in_order(name):
    found = [heading for cell in nbtools.read(name).cells for heading in nbtools.headings(cell, 2)]
    assert found == anatomy.headings_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_heading_starts_its_cell(name):
    for cell in nbtools.read(name).cells:
        found = nbtools.headings(cell, 2)
        assert not found or (len(found) == 1 and cell.source.startswith("## ")), f"{cell.id}: {found}"


@pytest.mark.parametrize("name", NAMES)
def test_title_is_a_question_with_a_header_table(name):
    nb = nbtools.read(name)
    titles = [title for cell in nb.cells for title in nbtools.headings(cell, 1)]
    assert len(titles) == 1 and titles[0].endswith("?"), titles
    first = nb.cells[0].source
    assert first.startswith("# ")
    missing = [word for word in anatomy.HEADER if not re.search(rf"\|[ *]*{word}[ *]*\|", first)]
    assert not missing, f"the first cell's table lacks {missing}"
    assert re.search(r"\|[^|]*\b\d+ (s|seconds)\b[^|]*\|", first), "Time is not a number of seconds"


@pytest.mark.parametrize("name", NAMES)
def test_setup_is_one_cell(name):
    cells = [cell for cell in nbtools.sections(nbtools.read(name))["Setup"] if cell.cell_type == "code"]
    assert len(cells) == 1 and nbtools.tagged(cells[0], anatomy.IGNORE_TAG)
    assert ".setup(" in cells[0].source


@pytest.mark.parametrize("name", NAMES)
def test_is_short(name):
    nb = nbtools.read(name)
    assert nbtools.count_words(nb) <= anatomy.MAX_WORDS
    cells = nbtools.code_cells(nb)
    assert len(cells) <= anatomy.MAX_CODE_CELLS
    long = {
        cell.id: lines
        for cell in cells
        if (lines := sum(bool(line.strip()) for line in cell.source.splitlines())) > anatomy.MAX_CODE_LINES
    }
    assert not long, f"code cells over {anatomy.MAX_CODE_LINES} lines: {long}"


@pytest.mark.parametrize("name", NAMES)
def test_code_is_plain_python(name):
    for cell in nbtools.code_cells(nbtools.read(name)):
        ast.parse(cell.source)  # no % or ! lines: they do not run elsewhere and hide from these tests


@pytest.mark.parametrize("name", NAMES)
def test_pictures_have_words(name):
    for cell in nbtools.read(name).cells:
        if cell.cell_type == "markdown":
            for alt, target in MARKDOWN_IMAGE.findall(nbtools.prose(cell)):
                assert alt.strip(), f"{cell.id}: picture {target} without alt text"
                assert not target.startswith(("http:", "https:", "data:")), (
                    f"{cell.id}: {target[:60]} is not a local file"
                )
                assert (nbtools.NOTEBOOKS / target.split()[0]).is_file(), f"{cell.id}: no file {target}"
            check_html(cell.id, nbtools.prose(cell))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            check_html(cell.id, data.get("text/html", ""))
            if any(kind.startswith("image/") for kind in data):
                words = data.get("text/plain", "")
                assert len(words) >= 20 and not words.startswith("<"), (
                    f"{cell.id}: picture without alt text: {words!r}"
                )


def check_html(where: str, html: str) -> None:
    for image in IMAGE.findall(html):
        assert ALT.search(image), f"{where}: <img> without alt text: {image[:80]}"
        assert 'src="http' not in image and "src='http" not in image, f"{where}: remote picture: {image[:80]}"


@pytest.mark.parametrize("name", NAMES)
def test_exercises_say_how_hard_they_are(name):
    if "Exercises" not in anatomy.headings_of(name):
        pytest.skip("this notebook has no exercises")
    cells = nbtools.sections(nbtools.read(name))["Exercises"]
    found = [heading for cell in cells for heading in nbtools.headings(cell, 3)]
    assert len(found) >= anatomy.MIN_EXERCISES
    for number, heading in enumerate(found, 1):
        match = EXERCISE.match(heading)
        assert match and int(match[1]) == number, (
            f"not 'Exercise {number}: title (●○○ easy, 5 minutes)': {heading!r}"
        )


def test_omissions_have_reasons():
    for name, omitted in anatomy.OMITTED.items():
        assert set(omitted) <= set(anatomy.HEADINGS) and all(omitted.values()), name


def test_html_without_alt_is_seen():
    check_html("here", '<figure><img alt="two rows of codes" src="x.png"></figure>')
    for bad in ('<img src="x.png">', '<img alt="" src="x.png">', '<img alt="a b" src="https://a.org/x.png">'):
        with pytest.raises(AssertionError):
            check_html("here", bad)
