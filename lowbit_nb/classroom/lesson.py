"""A notebook as a lesson: its header table, its sections, its exercises."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "data" / "class"

FENCE = re.compile(r"^```.*?^```\s*$", re.MULTILINE | re.DOTALL)
EXERCISE = re.compile(r"^### Exercise (\d+): (.+) \((●○○|●●○|●●●) (easy|medium|hard), (\d+) minutes\)$", re.MULTILINE)
POINTS = {"easy": 1, "medium": 2, "hard": 3}


@dataclass(frozen=True)
class Exercise:
    """One exercise; `key` is the name that check.exercise knows it by."""

    key: str
    title: str
    level: str
    minutes: int

    @property
    def points(self) -> int:
        return POINTS[self.level]


@dataclass(frozen=True)
class Lesson:
    """One notebook, read and not run."""

    name: str
    cells: list[dict]

    @classmethod
    def read(cls, path: Path) -> Lesson:
        """From a file; the source of every cell becomes one string."""
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return cls(path.stem, [cell | {"source": "".join(cell["source"])} for cell in cells])

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def title(self) -> str:
        """The question of the first line."""
        return self.cells[0]["source"].splitlines()[0].removeprefix("# ")

    @property
    def short(self) -> str:
        """The file's name in words, e.g. "03 hessians and feedback"."""
        return self.name.replace("_", " ")

    def header(self, row: str) -> str:
        """A cell of the first cell's table, e.g. header("Needs")."""
        found = re.search(rf"^\| *{row} *\| *(.*?) *\|$", self.cells[0]["source"], re.MULTILINE)
        if not found:
            raise ValueError(f"{self.name}: the table of the first cell has no row {row!r}; it needs '| {row} | ... |'")
        return found[1]

    @property
    def needs(self) -> list[str]:
        """Names of the notebooks that this one asks for; a clause that says "helpful" or "shows" asks for nothing."""
        clauses = [part for part in self.header("Needs").split(";") if not re.search("helpful|shows", part)]
        return re.findall(r"`(\d\d_\w+)`", " ".join(clauses))

    def section(self, heading: str) -> list[dict]:
        """The cells under a heading of level two, the heading's own cell first."""
        found, inside = [], False
        for cell in self.cells:
            if cell["cell_type"] == "markdown" and (h := re.match(r"## (.+)", cell["source"])):
                inside = h[1].strip() == heading
            if inside:
                found.append(cell)
        return found

    @property
    def prose(self) -> str:
        """Everything a reader reads: markdown without fenced code."""
        return "\n\n".join(FENCE.sub("", cell["source"]) for cell in self.cells if cell["cell_type"] == "markdown")

    @property
    def exercises(self) -> list[Exercise]:
        """In order: each heading names level and minutes, the next cell ex-<key> is the stub."""
        found, open_ = [], None
        for cell in self.section("Exercises"):
            if cell["cell_type"] == "markdown" and (h := EXERCISE.search(cell["source"])):
                open_ = h
            elif cell["cell_type"] == "code" and cell["id"].startswith("ex-") and open_:
                found.append(Exercise(cell["id"].removeprefix("ex-"), open_[2], open_[4], int(open_[5])))
                open_ = None
        return found


def lessons(folder: Path = NOTEBOOKS) -> list[Lesson]:
    """All notebooks of a folder in their order."""
    return [Lesson.read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
