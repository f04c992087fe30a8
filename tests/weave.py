"""Write into notebooks what must be the same in all of them: meanings of names, and links to the neighbours.

    python tests/weave.py notebooks/*.ipynb            rewrite the files
    python tests/weave.py --check notebooks/*.ipynb    write nothing; status 1 if a file would change

The first cell ends in the links, which follow the sorted files of the folder. The table under "Notation"
keeps its names; their meanings and shapes come from tests/notation.py. Nothing is run and nothing else is changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script

from tests import anatomy, nbtools, normalise, notation  # noqa: E402


def link(words: str, name: str) -> str:
    return f"[{words}]({name}.ipynb)"


def navigation(name: str, names: list[str]) -> str:
    """The line of links of a notebook, given the sorted names of all."""
    at = names.index(name)
    parts = [link("index", anatomy.INDEX)]
    if at > 0:
        parts.insert(0, "previous: " + link(names[at - 1].replace("_", " "), names[at - 1]))
    if at + 1 < len(names):
        parts.append("next: " + link(names[at + 1].replace("_", " "), names[at + 1]))
    return " · ".join(parts)


def with_links(source: str, line: str) -> str:
    """A first cell that ends in this line of links, in place of any that it held."""
    return anatomy.NAVIGATION.sub("", source).rstrip() + "\n\n" + line


def weave(path: Path) -> str:
    """The notebook's new text; its old one where nothing changes."""
    nb = normalise.parse(path)
    before = [cell.source for cell in nb.cells]
    names = sorted(file.stem for file in path.resolve().parent.glob("*.ipynb"))
    nb.cells[0].source = with_links(nb.cells[0].source, navigation(path.stem, names))
    for number, cell in enumerate(nb.cells):
        if "Notation" in nbtools.headings(cell, 2):
            try:
                cell.source = notation.rewrite(cell.source)
            except KeyError as error:
                place = normalise.where(path, number, cell)
                raise normalise.NotebookError(f"{place}: {error.args[0]}") from None
    if before == [cell.source for cell in nb.cells]:
        return path.read_text(encoding="utf-8")
    return normalise.text_of(nb)


def handle(path: Path, check: bool) -> bool:
    """Deal with one notebook; True if it says (now) what it should."""
    same = path.read_text(encoding="utf-8") == (new := weave(path))
    if not same and not check:
        normalise.replace(path, new)
    print(f"{path.name}: {'unchanged' if same else 'OUT OF DATE' if check else 'rewritten'}")
    return same or not check


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write links and meanings of names into notebooks.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file would change")
    options = parser.parse_args(arguments)
    good = True
    for path in options.notebooks:
        try:
            good = handle(path, options.check) and good
        except (normalise.NotebookError, nbformat.ValidationError, OSError) as error:
            print(f"ERROR {error}", file=sys.stderr)
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
