"""The folder that `make html` writes: all pages from stored outputs, and a small site that the command itself has run."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from browser_lab import REPOSITORY
from browser_site import is_readable, pictures, responds, visited

from lowbit_nb.pages import run, site
from lowbit_nb.pages.__main__ import main

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
TEXTS = ["index", "README", "ARCHITECTURE", "CONTRIBUTING", "data-README",
         *(f"data-class-{path.stem}" for path in sorted((REPOSITORY / "data" / "class").glob("*.md")))]
README = """# A kit

Three words here.

## The notebooks

| Notebook | Question | Level |
|---|---|---|
| [00 · Small](notebooks/00_small.ipynb) | Is it so? | beginner |
"""
WORDS = "# Words that we use\n\nA *grid* is used in [00](../../notebooks/00_small.ipynb)."
FIRST = """# Is it so?

It is: see [the file](../data/numbers.json), `01_other` and $\\sum_i \\hat w_i^2 \\le \\tfrac12$.

| | |
|---|---|
| Time | 3 s on one core |
| Level | beginner: Python |

[index](00_small.ipynb) · next: [01 other](01_other.ipynb)"""
EXPLORER = """import torch
from lowbit_nb import live
live.grid_explorer(torch.linspace(-1, 1, 64).reshape(1, 64), name="a line", group=16)"""


def book(*cells: tuple[str, str]) -> nbformat.NotebookNode:
    make = {"text": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    kernel = {"name": "python3", "display_name": "Python 3"}
    return nbformat.v4.new_notebook(cells=[make[kind](source) for kind, source in cells], metadata={"kernelspec": kernel})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two notebooks, run and written by the command."""
    root = tmp_path_factory.mktemp("kit")
    (root / "notebooks").mkdir()
    (root / "data" / "class").mkdir(parents=True)
    (root / "README.md").write_text(README, encoding="utf-8")
    (root / "data" / "numbers.json").write_text("[1, 2]")
    (root / "data" / "class" / "words.md").write_text(WORDS, encoding="utf-8")
    nbformat.write(book(("text", FIRST), ("text", "## Explore"), ("code", EXPLORER)), root / "notebooks" / "00_small.ipynb")
    nbformat.write(book(("text", FIRST), ("code", "print('wide ' * 99)")), root / "notebooks" / "01_other.ipynb")
    assert main(["--root", str(root), "--out", str(root / "html")]) == 0
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, from the outputs that the notebooks store."""
    out = tmp_path_factory.mktemp("whole") / "html"
    site.write(REPOSITORY, out, run.stored(NOTEBOOKS))
    return out


@pytest.mark.parametrize("width", [1200, 800])
@pytest.mark.parametrize("dark", [False, True])
def test_the_command_runs_notebooks_and_explorers_live_on(small: Path, browser: object, width: int, dark: bool,
                                                          shots: Path | None) -> None:
    with visited(browser, small / "html" / "00_small.html", width, dark) as page:
        assert page.locator("main h1").inner_text() == "Is it so?" and page.locator("math mfrac").count() == 1
        is_readable(page)
        assert page.locator(".stored").count() == 0
        responds(page, page.locator(".lb-grid"))
        assert (brightness(page, "color") > brightness(page, "backgroundColor")) == dark
        pictures(page, shots, f"small_{width}{'_dark' if dark else ''}")


def brightness(page: object, what: str) -> int:
    """Of the explorer's text or paper, 0 to 765."""
    colour = page.locator(".lb-live").evaluate(f"e => getComputedStyle(e).{what}")
    return sum(int(word) for word in colour.strip("rgba()").split(",")[:3])


def test_a_reader_finds_the_way(small: Path, browser: object) -> None:
    with visited(browser, small / "html" / "index.html") as page:
        assert page.locator("main tbody tr").all_inner_texts() == ["00 · Small\tIs it so?\tbeginner\t3 s",
                                                                   "01 · Other\tIs it so?\tbeginner\t3 s"]
        page.get_by_role("link", name="Words that we use").click()
        page.get_by_role("link", name="00", exact=True).click()
        page.get_by_role("link", name="Next 01 · Other").first.click()
        assert page.url.endswith("01_other.html") and page.get_by_role("link", name="next: 01").count() == 0
        page.get_by_role("link", name="00 · Small").first.click()
        page.get_by_role("navigation", name="Sections").get_by_role("link", name="Explore").click()
        assert page.url.endswith("00_small.html#explore")
        page.get_by_role("link", name="01_other").click()
        page.get_by_role("link", name="the file").click()
        assert page.url.endswith("files/data/numbers.json") and page.locator("body").inner_text().startswith("[1, 2]")


def test_code_folds_and_the_theme_changes(small: Path, browser: object) -> None:
    with visited(browser, small / "html" / "01_other.html") as page:
        code = page.locator(".highlight")
        assert code.is_visible()
        page.get_by_role("button", name="Hide code").click()
        assert code.is_hidden() and page.locator(".printed").is_visible()
        page.locator("details.code summary").click()
        assert code.is_visible()
        before = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
        page.get_by_role("button", name="Dark").click()
        page.reload()
        page.get_by_role("button", name="Light").wait_for()
        assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") != before and code.is_hidden()


@pytest.mark.parametrize("name", [*TEXTS, NOTEBOOKS[0].stem])
def test_pages_can_be_read(whole: Path, browser: object, name: str) -> None:
    """Texts, and a notebook that was not run: pictures stand for its explorers. test_notebooks.py looks at all the others."""
    with visited(browser, whole / f"{name}.html", 800) as page:
        assert page.locator("main h1").count() == 1
        is_readable(page)
        tree = page.locator("body").aria_snapshot()
        assert "- link:" not in tree and "- button:" not in tree


class Leads(HTMLParser):
    """What a page leads to, what it shows and loads, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loads, self.places = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.places.add(of.get("id", ""))
        if tag == "a":
            self.links.append(of["href"])
        elif "src" in of or tag == "link":
            self.loads.append(of.get("src") or of["href"])


def test_every_link_leads_somewhere(whole: Path) -> None:
    pages = {path.name: Leads(path) for path in whole.glob("*.html")}
    assert len(pages) == len(TEXTS) + len(NOTEBOOKS)
    for name, page in pages.items():
        for url in page.loads:
            assert url.startswith("data:") or (whole / url).is_file(), f"{name} loads {url}"
        for url in page.links:
            if url.startswith("https:"):
                continue
            path, _, place = unquote(url).partition("#")
            target = whole / (path or name)
            assert target.is_file(), f"{name} leads to {url}"
            if target.suffix == ".html":
                assert place in pages[target.name].places, f"{name} leads to {url}, and there is no such place"


def test_the_index_holds_the_readmes_table(whole: Path) -> None:
    rows = site.ROW.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    text = (whole / "index.html").read_text(encoding="utf-8")
    places = [text.index(f'<a href="{name}.html">{label}</a>') for label, name in rows]
    assert len(places) >= 17 and places == sorted(places)
