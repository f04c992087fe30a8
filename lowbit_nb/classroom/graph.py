"""Which notebook needs which, as a picture: boxes in columns, each column needing the ones to its left."""

from __future__ import annotations

from html import escape
from textwrap import wrap

from lowbit_nb.classroom.lesson import Lesson

BOX, GAP, COLUMN, MARGIN = (152, 46), 12, 182, 8  # pixels
LETTERS = 18  # that fit into a box


def direct(lessons: list[Lesson]) -> dict[str, list[str]]:
    """For each notebook those it needs, less what one of them needs anyway."""
    needs = {lesson.name: lesson.needs for lesson in lessons}
    return {name: [one for one in own if not any(one in behind(needs, other) for other in own)] for name, own in needs.items()}


def behind(needs: dict[str, list[str]], name: str) -> set[str]:
    """Everything that must be read before a notebook."""
    found: set[str] = set()
    for one in needs.get(name, []):
        found |= {one} | behind(needs, one)
    return found


def columns(needs: dict[str, list[str]]) -> list[list[str]]:
    """Notebooks by the longest way to them; in a column, below each other near what they need."""
    depth: dict[str, int] = {}
    for name in sorted(needs):  # a notebook needs only earlier ones
        depth[name] = 1 + max((depth[one] for one in needs[name]), default=-1)
    found: list[list[str]] = []
    for level in range(max(depth.values()) + 1):
        rank = {name: row for row, name in enumerate(found[-1] if found else [])}

        def near(name: str, rank: dict[str, int] = rank) -> tuple[float, str]:
            rows = [rank[one] for one in needs[name] if one in rank]
            return (sum(rows) / len(rows) if rows else len(rank), name)

        found.append(sorted((name for name in needs if depth[name] == level), key=near))
    return found


def words(lessons: list[Lesson]) -> str:
    """The picture in one sentence, for those who do not see it."""
    parts = [f"{name[:2]} needs {', '.join(one[:2] for one in wanted)}" for name, wanted in direct(lessons).items() if wanted]
    free = [name[:2] for name, wanted in direct(lessons).items() if not wanted]
    return f"Nothing is needed for {' and '.join(free)}; " + "; ".join(parts)


def svg(lessons: list[Lesson]) -> str:
    """The picture as text that a browser draws."""
    needs, (wide, high) = direct(lessons), BOX
    placed = columns(needs)
    tallest = max(len(names) for names in placed) * (high + GAP) - GAP
    width, height = MARGIN * 2 + COLUMN * (len(placed) - 1) + wide, MARGIN * 2 + tallest
    place = {}
    for x, names in enumerate(placed):
        top = MARGIN + (tallest - len(names) * (high + GAP) + GAP) / 2
        place |= {name: (MARGIN + COLUMN * x, top + y * (high + GAP)) for y, name in enumerate(names)}
    arrows = [arrow(place[one], place[name]) for name, wanted in needs.items() for one in wanted]
    boxes = [box(place[name], name) for name in needs]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}"',
        ' font-family="sans-serif" font-size="15">',
        f"<title>{escape(words(lessons))}</title>",
        f'<rect width="{width}" height="{height:g}" fill="#ffffff"/>',
        *arrows,
        *boxes,
        "</svg>",
        "",
    ])


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the right of one box to the left of another, with a dot at its end."""
    (x, y), (u, v) = (start[0] + BOX[0], start[1] + BOX[1] / 2), (end[0], end[1] + BOX[1] / 2)
    bend = min(40.0, (u - x) / 2)
    path = f"M{x:g} {y:g} C{x + bend:g} {y:g} {u - bend:g} {v:g} {u:g} {v:g}"
    return f'<path d="{path}" fill="none" stroke="#0173b2"/><circle cx="{u:g}" cy="{v:g}" r="3" fill="#0173b2"/>'


def box(corner: tuple[float, float], name: str) -> str:
    """Number and name, in two lines if they are long."""
    x, y = corner
    lines = wrap(name.replace("_", " "), LETTERS, max_lines=2, placeholder=" …")
    first = y + BOX[1] / 2 + 5 - 9 * (len(lines) - 1)
    said = [f'<text x="{x + 9:g}" y="{first + 18 * at:g}">{escape(line)}</text>' for at, line in enumerate(lines)]
    frame = f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="4" fill="#f4f4f4" stroke="#444444"/>'
    return frame + "".join(said)
