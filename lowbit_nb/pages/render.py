"""One page from one notebook: nbconvert with our template, links that lead to pages, formulas as MathML."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path

import jinja2
import nbformat
from jinja2 import pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from lowbit_nb.pages import explorers
from lowbit_nb.pages.formulas import Formulas

HERE = Path(__file__).parent
# The last line of a first cell, written by a tool: the page has links of its own.
NAVIGATION = re.compile(r"^\[?(?:previous|index|next)[:\]].*\.ipynb\).*$", re.IGNORECASE | re.MULTILINE)
FORMULA = re.compile(r"(?<![\\$])\$([^$\n]+)\$")
# The words are nbconvert's, for an image without alt text.
NO_ALT = re.compile(r'<img[^>]*\salt="(?:No description has been provided for this image)?"')


@dataclass
class Page:
    """What a page is called and where it stands; rendering adds its sections and the modules of its explorers."""

    source: Path
    file: str
    label: str
    title: str = ""
    level: str = ""
    time: str = ""
    before: Page | None = None
    after: Page | None = None
    sections: list[tuple[int, str, str]] = field(default_factory=list)
    modules: dict[str, explorers.Module] = field(default_factory=dict)


class Text(IPythonRenderer):
    """Markdown to HTML."""

    def __init__(self, page: Page, follow: Callable[[Path, str], str], formulas: Formulas) -> None:
        super().__init__(escape=False)
        self.page, self.follow, self.formulas = page, follow, formulas

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.follow(self.page.source, url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, self.follow(self.page.source, url), title)

    def codespan(self, text: str) -> str:
        """A notebook's name leads to its page."""
        name = f"{text}.ipynb"
        found = re.fullmatch(r"\d\d_\w+", text) and (self.page.source.parent / name).is_file() and text != self.page.source.stem
        code = super().codespan(text)
        return f'<a href="{self.follow(self.page.source, name)}">{code}</a>' if found else code

    def table(self, text: str) -> str:
        return f'<div class="wide"><table>\n{text}</table></div>\n'

    def heading(self, text: str, level: int, **attrs: object) -> str:
        words = re.sub(r"<[^>]+>", "", text)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        taken = [name for _, name, _ in self.page.sections]
        name = slug if slug not in taken else f"{slug}-{len(taken)}"
        self.page.sections.append((level, name, words))
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def block_html(self, html: str) -> str:
        """HTML that a text holds; Markdown does not look for formulas there, JupyterLab does."""
        return FORMULA.sub(lambda found: self.formulas.inline(unescape(found[1])), html)

    def block_math(self, body: str) -> str:
        return self.formulas.block(body)

    def inline_math(self, body: str) -> str:
        return self.formulas.inline(body)

    def latex_environment(self, name: str, body: str) -> str:
        return self.formulas.block(f"\\begin{{{name}}}{body}\\end{{{name}}}")


class Exporter(HTMLExporter):
    """Notebooks to pages of one site; `follow` says where a link of a source file leads."""

    template_file = "page.html.j2"

    def __init__(self, follow: Callable[[Path, str], str], formulas: Formulas) -> None:
        self.follow, self.formulas = follow, formulas
        super().__init__(template_name="base", extra_loaders=[jinja2.FileSystemLoader(HERE)])
        self.register_filter("explorer", self.explorer)

    def page(self, book: NotebookNode, page: Page) -> str:
        """The HTML of a page."""
        if book.cells and book.cells[0].cell_type == "markdown":
            book.cells[0].source = NAVIGATION.sub("", book.cells[0].source)
        for cell in book.cells:
            if "outputs" in cell:
                cell.outputs = settled(cell.outputs)
        self.now = page, book  # nbconvert hands copies to its filters; these must be told what they find
        self.environment.globals["page"] = page
        text, _ = self.from_notebook_node(book)
        if NO_ALT.search(text):
            raise ValueError(f"{page.source.name}: a picture has no alt text; every picture needs one")
        return text

    @pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        return MarkdownWithMath(renderer=Text(self.now[0], self.follow, self.formulas)).render(source)

    def explorer(self, view: dict) -> str | None:
        """The state of an explorer, ready to stand in the page; None if it cannot live here."""
        page, book = self.now
        found = explorers.live(book, view["model_id"])
        if found is None:
            return None
        module, state = found
        page.modules[module.name] = module
        return state


def settled(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Prints as a reader sees them in the end: pieces joined, and lines that were written over, as progress bars do, gone."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = "\n".join(line.rsplit("\r", 1)[-1] for line in output.text.split("\n"))
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def of_markdown(path: Path) -> NotebookNode:
    """A text file as a notebook of one cell, so that one template serves both."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))])
