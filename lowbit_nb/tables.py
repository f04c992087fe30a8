"""The one table type: a list of rows that shows itself as text and as an accessible HTML table."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

_SPEC = re.compile(r"^(,?\.\d+[efg%]|,d|d|,)$")
MARK = "★"


def digits(value: float, n: int = 3) -> str:
    """A number with n significant digits, without an exponent where that stays readable.

    Shapes:  one number; returns a string.
    Units:   none.
    Raises:  nothing; nan and inf are named.
    Source:  this project.
    Differs: no difference.

    >>> digits(1879.4), digits(9.999), digits(0.01234), digits(2.5e-9)
    ('1880', '10.0', '0.0123', '2.50e-09')
    """
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    exponent = int(f"{value:.{n - 1}e}".split("e")[1])  # after rounding, so that 9.999 counts as 10
    if not -5 < exponent < 6:
        return f"{value:.{n - 1}e}"
    return f"{round(value, n - 1 - exponent):.{max(0, n - 1 - exponent)}f}"


class Table:
    """Rows of names and numbers; the last expression of a cell shows it.

    rows      dicts; a name that a row lacks is left blank
    columns   which names to show, in order: {name: unit}, {name: format spec} or {name: (unit, spec)};
              None = the names of the first row. Numbers have 3 significant digits unless a spec such as ".2f" is given.
    best      {name: "min" or "max"}: the best value of that column is bold and has a star

    Source: this project. Differs: no difference.

    >>> Table([{"method": "RTN", "bits": 2.25}, {"method": "GPTQ", "bits": 2.3}], best={"bits": "min"})
    method    bits
    ------  ------
    RTN     2.25 ★
    GPTQ    2.30
    ★ best in its column
    """

    def __init__(
        self,
        rows: list[dict] | None = None,
        columns: dict[str, Any] | None = None,
        caption: str = "",
        best: dict[str, str] | None = None,
    ):
        self.rows = [dict(row) for row in rows or []]
        self.columns = (
            None if columns is None else {name: _column(name, what) for name, what in columns.items()}
        )
        self.caption = caption
        self.best = dict(best or {})
        wrong = {k: v for k, v in self.best.items() if v not in ("min", "max")}
        if wrong:
            raise ValueError(f"best={wrong} must say 'min' or 'max' for each column")

    def add(self, row: dict | None = None, **values: Any) -> Table:
        """Append one row; returns the table, so that it can be the last expression."""
        self.rows.append({**(row or {}), **values})
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)

    def column(self, name: str) -> list:
        """The values of one column, None where a row has none."""
        return [row.get(name) for row in self.rows]

    def __repr__(self) -> str:
        heads, cells, numeric, _ = self._cells()
        if not heads:
            return "(empty table)"
        widths = [max(len(text) for text in column) for column in zip(heads, *cells, strict=True)]
        lines = [_text_line(heads, widths, numeric), "  ".join("-" * w for w in widths)]
        lines += [_text_line(row, widths, numeric) for row in cells]
        return "\n".join(([self.caption] if self.caption else []) + lines + self._legend())

    def _repr_html_(self) -> str:
        heads, cells, numeric, stars = self._cells()
        head = "".join(
            _tag("th", text, number, ' scope="col"') for text, number in zip(heads, numeric, strict=True)
        )
        body = "".join(
            "<tr>" + "".join(_html_cell(row, i, numeric, (r, i) in stars) for i in range(len(row))) + "</tr>"
            for r, row in enumerate(cells)
        )
        notes = " · ".join(([self.caption] if self.caption else []) + self._legend())
        caption = (
            f'<caption style="caption-side:bottom;text-align:left">{html.escape(notes)}</caption>'
            if notes
            else ""
        )
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _legend(self) -> list[str]:
        return [f"{MARK} best in its column"] if self._cells()[3] else []

    def _cells(self) -> tuple[list[str], list[list[str]], list[bool], set[tuple[int, int]]]:
        """Heads, text of every cell, which columns are numbers, and the cells that are best."""
        columns = self.columns or {name: ("", "") for name in (self.rows[0] if self.rows else ())}
        heads, texts, numeric, stars = [], [], [], set()
        for i, (name, (unit, spec)) in enumerate(columns.items()):
            values = self.column(name)
            is_number = any(_is_number(v) for v in values) and all(
                _is_number(v) or v in (None, "") for v in values
            )
            marked = (
                _best_rows(values, self.best[name])
                if is_number and name in self.best and len(values) > 1
                else set()
            )
            room = f" {' ' * len(MARK)}" if marked else ""
            texts.append(
                [_text(v, spec) + (f" {MARK}" if r in marked else room) for r, v in enumerate(values)]
            )
            stars |= {(r, i) for r in marked}
            heads.append(f"{name} ({unit})" if unit else name)
            numeric.append(is_number)
        return heads, [list(row) for row in zip(*texts, strict=True)], numeric, stars


def _column(name: str, what: Any) -> tuple[str, str]:
    """(unit, spec) from a unit, a spec, a pair, or None."""
    if what is None:
        return "", ""
    if isinstance(what, str):
        return ("", what) if _SPEC.match(what) else (what, "")
    if isinstance(what, tuple) and len(what) == 2:
        return what
    raise ValueError(
        f"columns[{name!r}]={what!r} must be a unit, a format spec such as '.2f', or a pair (unit, spec)"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _best_rows(values: list, rule: str) -> set[int]:
    """Every row that shows the best value; ties are all marked."""
    known = [float(v) for v in values if _is_number(v) and math.isfinite(v)]
    if not known:
        return set()
    top = min(known) if rule == "min" else max(known)
    return {r for r, v in enumerate(values) if _is_number(v) and float(v) == top}


def _text(value: Any, spec: str) -> str:
    if value is None:
        return ""
    if not _is_number(value):
        return str(value)
    if spec:
        return format(int(value) if spec.endswith("d") else value, spec)
    return f"{int(value):,}" if isinstance(value, Integral) else digits(value)


def _text_line(texts: list[str], widths: list[int], numeric: list[bool]) -> str:
    pairs = zip(texts, widths, numeric, strict=True)
    return "  ".join(t.rjust(w) if right else t.ljust(w) for t, w, right in pairs).rstrip()


def _tag(tag: str, text: str, number: bool, more: str = "") -> str:
    side = "right" if number else "left"
    return f'<{tag}{more} style="text-align:{side}">{text if tag != "th" else html.escape(text)}</{tag}>'


def _html_cell(row: list[str], i: int, numeric: list[bool], best: bool) -> str:
    text = html.escape(row[i].rstrip())
    text = f"<strong>{text}</strong>" if best else text
    if i == 0 and not numeric[0]:
        return f'<th scope="row" style="text-align:left">{text}</th>'
    return _tag("td", text, numeric[i])
