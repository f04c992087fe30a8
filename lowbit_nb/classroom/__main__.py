"""Write what a class needs; see the package's docstring for the ways to call it."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from lowbit_nb.classroom import forms, pages
from lowbit_nb.classroom.lesson import PAGES, ROOT, lessons

CONFIG = '''\
"""nbgrader's settings for this folder; run nbgrader here: cd class && nbgrader generate_assignment 01_grids_and_bits"""

c = get_config()  # noqa: F821: nbgrader provides it

c.CourseDirectory.course_id = "lowbit"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
c.Execute.timeout = 180  # seconds a cell
c.GenerateAssignment.force = True  # release/ is already there; nbgrader writes the same, and its gradebook
'''


def write_class(folder: Path) -> None:
    """source/ and release/ with one folder a notebook, as nbgrader wants it, and the pages beside them."""
    for lesson in lessons():
        for name, form in (("source", forms.source_form), ("release", forms.release_form)):
            place = folder / name / lesson.name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{lesson.name}.ipynb").write_text(forms.text_of(form(lesson)), encoding="utf-8")
        print(f"{lesson.name}: {len(lesson.exercises)} exercises, {forms.points(lesson)} points")
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8").replace("](../../", "](../")  # one folder nearer
        text = text.replace("](glossary.toml)", "](../data/class/glossary.toml)")
        (folder / page.name).write_text(text, encoding="utf-8")
    shutil.copy(PAGES / "prerequisites.svg", folder)
    (folder / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")


def write_pages(check: bool) -> bool:
    """Bring the generated parts of data/class up to date; True if they were, or now are."""
    good = True
    for path, text in pages.all_pages().items():
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if not same and not check:
            path.write_text(text, encoding="utf-8")
        good = good and (same or not check)
        print(f"{path.relative_to(ROOT)}: {'unchanged' if same else 'OUT OF DATE' if check else 'rewritten'}")
    return good


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lowbit_nb.classroom", description="Notebooks and pages for a class.")
    parser.add_argument("--out", type=Path, default=ROOT / "class", help="folder for the notebooks (default: class)")
    parser.add_argument("--pages", action="store_true", help="only bring the pages of data/class up to date")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a page would change")
    options = parser.parse_args(arguments)
    good = write_pages(options.check)
    if not (options.pages or options.check):
        write_class(options.out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
