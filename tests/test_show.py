"""Figures have a sentence and fixed bytes; the one table type shows the same numbers everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lowbit_nb import show, tables


def picture() -> plt.Figure:
    fig, ax = show.subplots(5, 2.5)
    for i in range(3):
        ax.plot(np.arange(9), np.arange(9) ** (i / 2), label=f"series {i}", **show.line(i))
    ax.legend()
    return fig


def test_figure_is_html_and_alt_and_closed() -> None:
    fig = picture()
    data = show.bundle(fig, alt='Rises to 8 & "stays".', caption="A <caption>")
    assert data["text/plain"] == 'Rises to 8 & "stays".'
    assert '<img alt="Rises to 8 &amp; &quot;stays&quot;."' in data["text/html"]
    assert "<figcaption>A &lt;caption&gt;</figcaption>" in data["text/html"]
    assert not plt.fignum_exists(fig.number)


def test_figure_bytes_are_the_same_twice() -> None:
    assert show.png(picture()) == show.png(picture())


def test_large_figure_is_shrunk_or_refused() -> None:
    noise = np.random.default_rng(0).random((400, 400))
    fig, ax = show.subplots(6, 4)
    ax.imshow(noise, **show.SEQUENTIAL)
    assert len(show.png(fig, max_kb=150)) <= 150_000
    fig, ax = show.subplots(6, 4)
    ax.imshow(noise, **show.SEQUENTIAL)
    with pytest.raises(ValueError, match="the limit is 5 kB"):
        show.png(fig, max_kb=5)


def test_alt_is_required() -> None:
    open_before = plt.get_fignums()  # other tests' figures are theirs
    with pytest.raises(ValueError, match="needs alt="):
        show.bundle(picture(), alt="  ")
    assert plt.get_fignums() == open_before


def test_save_writes_picture_and_sentence(tmp_path: Path) -> None:
    path = show.save(picture(), "one", alt="Three curves up to 8.", folder=tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size <= 60_000
    assert (tmp_path / "one.txt").read_text() == "Three curves up to 8.\n"


def test_every_look_has_its_own_second_cue() -> None:
    assert (
        len({look.marker for look in show.LOOKS})
        == len({str(look.dash) for look in show.LOOKS})
        == len(show.LOOKS)
    )
    assert len({look.hatch for look in show.LOOKS}) == len(show.LOOKS)
    with pytest.raises(KeyError, match="gptq"):
        show.look("gtpq")


def test_text_is_at_least_nine_points() -> None:
    sizes = [v for k, v in show.STYLE.items() if k.endswith(("size", "fontsize")) and "marker" not in k]
    assert sizes and min(sizes) >= 9


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9.999, "10.0"),
        (0.012345, "0.0123"),
        (1879.4, "1880"),
        (123456.0, "123000"),
        (2.5e-9, "2.50e-09"),
        (-3.14159, "-3.14"),
        (float("inf"), "inf"),
        (1.0, "1.00"),
        (99.95, "100"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert tables.digits(value) == text


def table() -> show.Table:
    return show.Table(
        [{"method": "RTN", "ppl": 1879.4, "n": 3}, {"method": "GPTQ", "ppl": 29.06, "n": 12345}],
        columns={"method": "", "ppl": ".1f", "n": "tokens"},
        caption="Two methods",
        best={"ppl": "min"},
    )


def test_table_text() -> None:
    assert repr(table()).splitlines() == [
        "Two methods",
        "method       ppl  n (tokens)",
        "------  --------  ----------",
        "RTN     1879.4             3",
        "GPTQ      29.1 ★      12,345",
        "★ best in its column",
    ]


def test_table_html_is_accessible_and_marks_the_best_twice() -> None:
    text = table()._repr_html_()
    assert text.count('scope="col"') == 3 and text.count('scope="row"') == 2
    assert "<caption" in text and "<strong>29.1 ★</strong>" in text
    assert not re.search(r"<(style|script)", text)


def test_table_rows_can_be_added_and_read() -> None:
    one = show.Table([{"a": 1}]).add(a=2).add({"a": None})
    assert one.column("a") == [1, 2, None] and len(one) == 3 and [row["a"] for row in one] == [1, 2, None]
    assert repr(show.Table()) == "(empty table)"


def test_table_escapes_html() -> None:
    assert "<b>" not in show.Table([{"a<b>": "<b>x"}])._repr_html_()


def test_bad_table_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="'min' or 'max'"):
        show.Table([{"a": 1}], best={"a": "low"})
    with pytest.raises(ValueError, match="unit, a format spec"):
        show.Table([{"a": 1}], columns={"a": 3})
