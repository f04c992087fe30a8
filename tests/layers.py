"""The layer table of ARCHITECTURE.md, the only place where it is written.

ARCHITECTURE.md holds one fenced block that starts with ```layers; each line is a number and the rooms on that
layer. A room is a module of lowbit_nb or a folder of modules; lowbit_nb itself stands for its __init__.py.
Imports between rooms point to strictly smaller numbers.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lowbit_nb"
BLOCK = re.compile(r"^```layers[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)

NUMERIC = (0, 1, 2, 3)  # import only torch and the standard library
# Rooms for what people see. In all others public functions carry Shapes, Units, Raises, Source, Differs.
SHOWING = {"show", "tables", "check", "exercises", "session", "live", "classroom", "pages", "lowbit_nb"}


def parse_layers(text: str) -> dict[str, int]:
    """{room: layer} from the text of ARCHITECTURE.md."""
    blocks = BLOCK.findall(text)
    if len(blocks) != 1:
        raise AssertionError(
            f"ARCHITECTURE.md needs exactly one block that starts with ```layers, it has {len(blocks)}"
        )
    table: dict[str, int] = {}
    for line in filter(None, (line.split("#")[0].strip() for line in blocks[0].splitlines())):
        number, *rooms = line.split()
        if not number.isdigit() or not rooms:
            raise AssertionError(f"a line of the layers block is not 'number room room ...': {line!r}")
        for room in rooms:
            if room in table:
                raise AssertionError(f"{room} is on two layers: {table[room]} and {number}")
            table[room] = int(number)
    return table


def layers() -> dict[str, int]:
    path = ROOT / "ARCHITECTURE.md"
    if not path.is_file():
        raise AssertionError("ARCHITECTURE.md is missing: it holds the layer table")
    return parse_layers(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    """The room that a file of the package belongs to: its module's name, or the folder's."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return PACKAGE.name if first == "__init__" else first


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
