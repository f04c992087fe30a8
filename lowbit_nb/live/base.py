"""What every explorer shares: one module made of plain files, and what is shown without widgets.

A cell that ends with an explorer stores three forms of it.  JupyterLab and exported pages show the live widget;
an unexecuted or untrusted notebook shows the stored frames (text/html); a terminal or a screen reader gets the
alt sentence (text/plain).
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from lowbit_nb import show

HERE = Path(__file__).parent
FRAME_KB, FRAME_DPI = 40, 90
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.M)
_EXPORT = re.compile(r"^export (?=function|const|class)", re.M)


@cache
def module(*names: str) -> str:
    """One ES module from several: the files in order, with the imports between them taken out.

    Shapes:  names of files in this folder, each after those it imports; returns JavaScript.
    Units:   none.
    Raises:  ValueError if an import is left over, or two files declare the same name.
    Source:  this project: a widget's module is one text, and a build step would hide it.
    Differs: no difference.
    """
    parts = [
        _EXPORT.sub("", _IMPORT.sub("", (HERE / f"{name}.js").read_text(encoding="utf-8"))) for name in names
    ]
    text = "\n".join(parts)
    declared = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", text, re.M)
    twice = {name for name in declared if declared.count(name) > 1}
    if re.search(r"^import ", text, re.M) or twice:
        raise ValueError(
            f"cannot join {', '.join(names)}: leftover import or names declared twice {sorted(twice)}"
        )
    return text


@cache
def styles(*names: str) -> str:
    """The style sheets of an explorer, joined."""
    return "\n".join((HERE / f"{name}.css").read_text(encoding="utf-8") for name in names)


def packed(values: Any) -> bytes:
    """Numbers as float32 bytes, little-endian: what a Bytes trait sends once."""
    return np.ascontiguousarray(np.asarray(values, dtype="<f4")).tobytes()


def percent(share: float) -> str:
    """A share in percent, three significant digits."""
    return f"{show.digits(100 * float(share))} %"


@dataclass(frozen=True)
class Frame:
    """One stored picture of an explorer: its summary line, its alt sentence, and the figure."""

    title: str
    alt: str
    figure: Figure


class Explorer(anywidget.AnyWidget):
    """A widget with a static fallback; subclasses give `_esm`, `_css`, `heading`, `sentence()`, `frames()`.

    Source: this project. Differs: no difference.
    """

    heading = "Explorer"
    about = traitlets.Unicode("").tag(sync=True)

    def sentence(self) -> str:
        """What the explorer shows at its first setting, with the numbers."""
        raise NotImplementedError

    def frames(self) -> Sequence[Frame]:
        """Three to five settings worth storing."""
        raise NotImplementedError

    @property
    def alt(self) -> str:
        if not hasattr(self, "_alt"):
            self._alt = self.sentence()
        return self._alt

    @property
    def fallback(self) -> str:
        """The stored frames as HTML that survives an untrusted notebook: plain <details> and <img alt>."""
        if not hasattr(self, "_fallback"):
            self._fallback = self._draw_fallback()
        return self._fallback

    def _draw_fallback(self) -> str:
        blocks = []
        for i, frame in enumerate(self.frames()):
            image = show.image_html(show.png(frame.figure, FRAME_KB, FRAME_DPI), frame.alt)
            opened = " open" if i == 0 else ""
            blocks.append(f"<details{opened}><summary>{html.escape(frame.title)}</summary>{image}</details>")
        head = f"<p><strong>{html.escape(self.heading)}</strong> · {html.escape(self.about)}<br>"
        note = "Stored pictures; run the cell for the live explorer."
        return f'<div class="lb-fallback">{head}{note}</p>{"".join(blocks)}</div>'

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return {**data, "text/html": self.fallback, "text/plain": self.alt}, metadata
