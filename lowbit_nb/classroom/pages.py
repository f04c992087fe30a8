"""All generated pages of data/class, by file."""

from __future__ import annotations

from pathlib import Path

from lowbit_nb.classroom import glossary, graph, papers, plan
from lowbit_nb.classroom.lesson import PAGES, lessons


def all_pages() -> dict[Path, str]:
    """What each file should hold; instructor.md keeps what is written by hand in it."""
    found = lessons()
    return {
        PAGES / "glossary.md": glossary.page(found),
        PAGES / "papers.md": papers.page(found),
        PAGES / "prerequisites.svg": graph.svg(found),
        plan.PAGE: plan.page(found, plan.PAGE.read_text(encoding="utf-8")),
    }
