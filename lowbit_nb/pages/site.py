"""Which pages there are, in which order, and where every link leads; the folder is written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
from nbformat import NotebookNode

from lowbit_nb.classroom.lesson import Lesson
from lowbit_nb.pages.formulas import Formulas
from lowbit_nb.pages.render import HERE, Exporter, Page, of_markdown

ROW = re.compile(r"^\| *\[([^\]]+)\]\(notebooks/([\w.-]+)\.ipynb\)", re.MULTILINE)
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|#|//)", re.IGNORECASE)  # another site, or a place on the same page
MARK = '<meta name="generator" content="lowbit_nb.pages">'


class Site:
    """All pages by their source file, and the files that they lead to."""

    def __init__(self, root: Path, notebooks: list[Path]) -> None:
        self.root = root
        labels = {name: label for label, name in ROW.findall((root / "README.md").read_text(encoding="utf-8"))}
        self.notebooks = [_notebook(path, labels.get(path.stem)) for path in notebooks]
        self.lessons = [_text(path, root) for path in _first("instructor.md", root / "data" / "class")]
        about = [*_first("README.md", root), root / "data" / "README.md"]
        self.about = [_text(path, root) for path in about if path.is_file()]
        for row in (self.notebooks, self.lessons):
            for one, other in zip(row, row[1:], strict=False):
                one.after, other.before = other, one
        self.pages = {page.source: page for page in self.notebooks + self.lessons + self.about}
        self.files: set[Path] = set()

    def follow(self, source: Path, url: str) -> str:
        """Where a link of a source file leads in the folder: a page, a copy of the file, or out into the world."""
        if ELSEWHERE.match(url):
            return url
        path, _, place = url.partition("#")
        target = Path(os.path.normpath(source.parent / unquote(path)))
        if target.is_dir() and target / "README.md" in self.pages:
            target /= "README.md"
        if target in self.pages:
            return quote(self.pages[target].file) + (f"#{place}" if place else "")
        if not target.is_file() or self.root not in target.parents:
            raise ValueError(f"{source.relative_to(self.root)} leads to {url}, which is no file of the repository")
        self.files.add(target)
        return quote(f"files/{target.relative_to(self.root)}")


def write(root: Path, out: Path, books: dict[Path, NotebookNode]) -> list[Page]:
    """Write all pages into `out`, replaced only when everything is there; `books` holds what is shown of each notebook.

    Raises ValueError for a link that leads nowhere, a picture without alt text, a formula that cannot be translated, or a
    folder that somebody else wrote.
    """
    refuse_foreign(out)
    site, formulas = Site(root, list(books)), Formulas()
    exporter = Exporter(site.follow, formulas)
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "assets").mkdir(parents=True)
    for page in site.pages.values():
        book = nbformat.from_dict(books[page.source]) if page.source in books else of_markdown(page.source)
        (draft / page.file).write_text(exporter.page(book, page), encoding="utf-8")
        for module in page.modules.values():
            (draft / "assets" / f"{module.name}.js").write_text(module.text, encoding="utf-8")
    (draft / "index.html").write_text(_index(site, exporter), encoding="utf-8")
    (draft / "assets" / "math.css").write_text(formulas.style(), encoding="utf-8")
    for name in ("style.css", "page.js"):
        shutil.copy(HERE / name, draft / "assets")
    for file in sorted(site.files):
        place = draft / "files" / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    _swap(draft, out)
    return list(site.pages.values())


def refuse_foreign(out: Path) -> None:
    """Raise for a folder that holds something else: it would be deleted."""
    index = out / "index.html"
    if out.exists() and not (index.is_file() and MARK in index.read_text(encoding="utf-8")) and any(out.iterdir()):
        raise ValueError(f"{out} holds something else than pages of ours; choose another folder with --out")


def _swap(draft: Path, out: Path) -> None:
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _first(name: str, folder: Path) -> list[Path]:
    """The texts of a folder in the order of their names, this one before all others."""
    return sorted(folder.glob("*.md"), key=lambda path: (path.name != name, path.name))


def _notebook(path: Path, label: str | None) -> Page:
    lesson = Lesson.read(path)
    number, _, words = path.stem.partition("_")
    return Page(path, f"{path.stem}.html", label or f"{number} · {words.replace('_', ' ').capitalize()}", lesson.title,
                lesson.header("Level").split(":")[0], lesson.header("Time").split(" on ")[0])


def _text(path: Path, root: Path) -> Page:
    inner = path.relative_to(root).with_suffix("")
    title = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = title[1] if title else path.stem
    return Page(path, "-".join(inner.parts) + ".html", words, words)


def _index(site: Site, exporter: Exporter) -> str:
    """The first page: the README's first words, the notebooks, the other texts."""
    readme = site.root / "README.md"
    intro = readme.read_text(encoding="utf-8").split("\n## ")[0].partition("\n")[2]
    page = Page(readme, "index.html", "lowbit-nb")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(intro)])
    words = re.search(r'<section class="text">(.*?)</section>', exporter.page(book, page), re.DOTALL)[1]
    others = [("For a class", site.lessons), ("More", site.about)]
    return exporter.environment.get_template("index.html.j2").render(intro=words, notebooks=site.notebooks, others=others)
