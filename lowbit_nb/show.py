"""What people see: figures with a sentence that says the same, and the one table type.

Every figure goes through `figure` (into a notebook) or `save` (into data/figures), so that it has an alt
sentence, the same palette, and the same bytes on every run.  Every series has a second cue beside its colour: a
marker and a dash for lines, a hatch for bars.
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from lowbit_nb.tables import Table, digits

__all__ = [
    "DIVERGING",
    "PALETTE",
    "SEQUENTIAL",
    "Look",
    "Table",
    "bar",
    "digits",
    "diverging",
    "dots",
    "figure",
    "line",
    "look",
    "png",
    "save",
    "subplots",
    "use_style",
]

FIGURES = Path(__file__).resolve().parents[1] / "data" / "figures"
MAX_KB = 60
COLOURS = 128  # a figure is stored with so many colours: a third of the bytes, no visible loss
DPI, LEAST_DPI = 150, 70
PALETTE = (
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#56b4e9",
    "#949494",
)  # seaborn "colorblind"
SEQUENTIAL = {"cmap": "cividis", "interpolation": "nearest", "aspect": "auto"}
DIVERGING = {"cmap": "PuOr", "interpolation": "nearest", "aspect": "auto"}

STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.7,
    "axes.axisbelow": True,
    "svg.hashsalt": "lowbit-nb",
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
}


@dataclass(frozen=True)
class Look:
    """How one series is drawn: a colour and, for readers without colour, a marker, a dash and a hatch."""

    color: str
    marker: str
    dash: Any
    hatch: str


_SECOND_CUES = (
    ("o", "-", ""),
    ("s", "--", "//"),
    ("^", "-.", ".."),
    ("D", ":", "xx"),
    ("v", (0, (5, 1)), "\\\\"),
    ("P", (0, (3, 1, 1, 1)), "++"),
    ("X", (0, (1, 1)), "oo"),
    ("*", (0, (6, 2, 1, 2)), "--"),
)
LOOKS = tuple(Look(color, *cues) for color, cues in zip(PALETTE, _SECOND_CUES, strict=True))
NAMED = {
    "original": Look("#222222", "o", "-", ""),
    "full precision": Look("#222222", "o", "-", ""),
    "rtn": LOOKS[3],
    "gptq": LOOKS[0],
    "awq": LOOKS[1],
    "omniquant": LOOKS[2],
    "tesseraq": LOOKS[4],
    "lrquant": LOOKS[5],
    "cbq": LOOKS[6],
    "oac": LOOKS[7],
    "vptq": LOOKS[2],
    "ptq1.61": LOOKS[4],
    "spqr": LOOKS[1],
    "billm": LOOKS[5],
    "smoothquant": LOOKS[6],
}


def look(name: str | int) -> Look:
    """The look of a method by its name (case does not matter), or of the n-th series of a figure.

    Shapes:  a name or a number; returns one Look.
    Units:   none.
    Raises:  KeyError for an unknown name, with the known ones.
    Source:  this project; colours are seaborn's "colorblind" palette.
    Differs: no difference.

    >>> look("GPTQ").color, look(0).marker
    ('#0173b2', 'o')
    """
    if isinstance(name, int):
        return LOOKS[name % len(LOOKS)]
    if name.lower() not in NAMED:
        raise KeyError(
            f"no fixed look for {name!r}; use a number from 0 to {len(LOOKS) - 1} "
            f"or one of: {', '.join(NAMED)}"
        )
    return NAMED[name.lower()]


def line(name: str | int) -> dict[str, Any]:
    """Keyword arguments for `ax.plot`."""
    one = look(name)
    return {"color": one.color, "marker": one.marker, "linestyle": one.dash}


def dots(name: str | int) -> dict[str, Any]:
    """Keyword arguments for `ax.scatter`."""
    one = look(name)
    return {"color": one.color, "marker": one.marker}


def bar(name: str | int) -> dict[str, Any]:
    """Keyword arguments for `ax.bar` and `ax.barh`; the hatch is white on the bar's colour."""
    one = look(name)
    return {"color": one.color, "hatch": one.hatch, "edgecolor": "white", "linewidth": 0}


def diverging(values: Any) -> dict[str, Any]:
    """Keyword arguments for `ax.imshow` that put white at zero."""
    top = float(abs(values).max()) or 1.0
    return {**DIVERGING, "vmin": -top, "vmax": top}


def use_style() -> None:
    """Make the house style matplotlib's default for this process."""
    matplotlib.rcParams.update(STYLE)


def subplots(
    width: float = 7.0, height: float = 3.0, rows: int = 1, cols: int = 1, **more: Any
) -> tuple[Figure, Any]:
    """`plt.subplots` in the house style; width and height of the whole figure in inches."""
    use_style()
    return plt.subplots(rows, cols, figsize=(width, height), **more)


def png(fig: Figure, max_kb: float = MAX_KB, dpi: int = DPI) -> bytes:
    """The figure as PNG bytes, the same on every run, at the highest resolution that fits into max_kb.

    Shapes:  a figure; returns bytes. The figure is closed.
    Units:   max_kb in 1000 bytes.
    Raises:  ValueError if even the lowest resolution is too large.
    Source:  this project.
    Differs: no difference.
    """
    try:
        while len(data := _png(fig, dpi)) > max_kb * 1000:
            if dpi == LEAST_DPI:
                raise ValueError(
                    f"the figure takes {len(data) / 1000:.0f} kB at {dpi} dpi; "
                    f"the limit is {max_kb:g} kB: make it smaller or simpler"
                )
            dpi = max(
                LEAST_DPI, int(0.95 * dpi * (max_kb * 1000 / len(data)) ** 0.5)
            )  # bytes grow with the area
    finally:
        plt.close(fig)
    return data


def _png(fig: Figure, dpi: int) -> bytes:
    raw, small = io.BytesIO(), io.BytesIO()
    fig.savefig(raw, format="png", dpi=dpi, metadata={"Software": None})
    with Image.open(raw) as image:
        few = image.convert("RGB").quantize(
            COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
        few.save(small, format="png", optimize=True, dpi=(dpi, dpi))
    return small.getvalue()


def image_html(data: bytes, alt: str, width: float | None = None) -> str:
    """An <img> that carries its own bytes; it survives an untrusted notebook."""
    code = base64.b64encode(data).decode("ascii")
    size = f"width:{width:.0f}px;" if width else ""
    style = f"{size}max-width:100%;height:auto"
    return f'<img alt="{html.escape(alt, quote=True)}" style="{style}" src="data:image/png;base64,{code}">'


def bundle(fig: Figure, alt: str, caption: str = "") -> dict[str, str]:
    """What `figure` displays: text/plain is alt, text/html a <figure> with the picture and its caption.

    Shapes:  a figure and two strings; returns a MIME bundle. The figure is closed.
    Units:   none.
    Raises:  ValueError without an alt sentence, or if the picture exceeds 60 kB at the lowest resolution.
    Source:  this project.
    Differs: no difference.
    """
    _need_alt(fig, alt)
    width = fig.get_size_inches()[0] * 100
    foot = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return {"text/plain": alt, "text/html": f"<figure>{image_html(png(fig), alt, width)}{foot}</figure>"}


def figure(fig: Figure, alt: str = "", caption: str = "") -> None:
    """Display a figure in the notebook and close it; readers without the picture get the alt sentence."""
    from IPython.display import publish_display_data

    publish_display_data(bundle(fig, alt, caption))


def save(fig: Figure, name: str, alt: str = "", folder: Path | str | None = None) -> Path:
    """Write a figure to data/figures as name.png with its alt sentence beside it as name.txt, and close it.

    Shapes:  a figure and strings; returns the path of the picture.
    Units:   none.
    Raises:  ValueError without an alt sentence, or if the picture exceeds 60 kB at the lowest resolution.
    Source:  this project.
    Differs: no difference.
    """
    _need_alt(fig, alt)
    folder = FIGURES if folder is None else Path(folder)
    data = png(fig)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(alt + "\n", encoding="utf-8")
    return path


def _need_alt(fig: Figure, alt: str) -> None:
    if not alt.strip():
        plt.close(fig)
        raise ValueError("a figure needs alt=: one sentence that says what it shows, with its numbers")
