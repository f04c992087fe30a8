"""Formulas as MathML, which browsers lay out themselves: no script, no network, and a screen reader can read them.

latex2mathml translates. What it leaves to a large rendering engine is settled here: accents, the space around signs,
letters in other alphabets. Browsers need a font with a MATH table; STIX Two (SIL Open Font License, from the package
ziamath) goes into one style sheet, cut down to the characters that the pages use.
"""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

MATHML = "http://www.w3.org/1998/Math/MathML"
ACCENTS = {"^": "ˆ", "~": "˜", "―": "‾", "¯": "‾"}  # what lies above a letter: the sign that fonts draw as an accent
TIGHT = {"/", "|", "∥", "‖"}
OPEN = set("([{,;:=<>≤≥≠≈≡→·×+−±/|∥‖")  # after one of these, a minus is a sign and not an operation
ALPHABETS = {"bold": "MATHEMATICAL BOLD", "double-struck": "DOUBLE-STRUCK", "script": "SCRIPT", "fraktur": "FRAKTUR"}
ITALICS = {*range(0x1D434, 0x1D468), 0x210E, *range(0x1D6E2, 0x1D71C)}  # browsers take single letters from here
MISSING = {r"\arg": r"\operatorname{arg}"}  # what latex2mathml does not know
ElementTree.register_namespace("", MATHML)


class Formulas:
    """Translates TeX and remembers the characters, so that the font can be cut down to them."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def inline(self, tex: str) -> str:
        return self._math(tex, "inline")

    def block(self, tex: str) -> str:
        return f'<div class="formula">{self._math(tex, "block")}</div>'

    def _math(self, tex: str, display: str) -> str:
        from latex2mathml.converter import convert

        for name, other in MISSING.items():
            tex = re.sub(re.escape(name) + r"(?![a-zA-Z])", lambda _, other=other: other, tex)
        tree = ElementTree.fromstring(convert(tex, display=display))
        for row in tree.iter():
            _settle(list(row), above=_tag(row) in ("mover", "munderover"))
        text = "".join(tree.itertext())
        if unknown := re.search(r"\\[a-zA-Z]+", text):
            raise ValueError(f"the formula ${tex}$ holds {unknown[0]}, which cannot be translated; write it another way")
        self.used.update(text)
        tree.set("alttext", tex.strip())
        return ElementTree.tostring(tree, encoding="unicode")

    def style(self) -> str:
        """A style sheet that holds the font, so that a page opened from a folder may use it."""
        font = base64.b64encode(_font(self.used)).decode()
        return f'@font-face {{ font-family: "STIX Two Math"; src: url(data:font/woff;base64,{font}) format("woff"); }}\n'


def unicode_letter(letter: str, alphabet: str) -> str:
    """The character for a letter in another alphabet, e.g. a blackboard E; MathML in browsers knows no other way."""
    size = "CAPITAL" if letter.isupper() else "SMALL"
    for name in (ALPHABETS[alphabet], f"MATHEMATICAL {ALPHABETS[alphabet]}"):
        try:
            return unicodedata.lookup(f"{name} {size} {letter.upper()}")
        except KeyError:
            continue
    return letter


def _tag(node: ElementTree.Element) -> str:
    return node.tag.removeprefix(f"{{{MATHML}}}")


def _settle(row: list[ElementTree.Element], above: bool) -> None:
    before = ""  # the last sign in this row
    for place, node in enumerate(row):
        text = node.text or ""
        if _tag(node) == "mi" and node.get("mathvariant") in ALPHABETS and len(text) == 1:
            node.text = unicode_letter(text, node.attrib.pop("mathvariant"))
        if _tag(node) == "mo":
            if above and place and text in ACCENTS:
                node.text = ACCENTS[text]
                node.set("stretchy", "true" if node.text == "‾" else "false")
            elif text in TIGHT:
                node.attrib |= {"lspace": "0", "rspace": "0", "stretchy": "false"}
            elif len(text) > 1 and text.isalpha():  # max, min, log
                after = row[place + 1].text if place + 1 < len(row) else "("
                node.attrib |= {"lspace": "0.1667em", "rspace": "0" if after in ("(", "[") else "0.1667em"}
            elif text in "+−" and (before in OPEN or not before):
                node.attrib |= {"form": "prefix", "lspace": "0", "rspace": "0"}
        if _tag(node) not in ("mtext", "mspace"):
            before = text if _tag(node) == "mo" else "x"


def _font(used: Iterable[str]) -> bytes:
    from fontTools import subset
    from fontTools.ttLib import TTFont

    package = find_spec("ziamath").submodule_search_locations[0]  # its files are needed, not its code
    font = TTFont(Path(package) / "fonts" / "STIXTwoMath-Regular.ttf")
    options = subset.Options()
    options.flavor, options.layout_features = "woff", ["*"]
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes={*map(ord, used), *ITALICS, *range(32, 127)})
    cutter.subset(font)
    out = io.BytesIO()
    font.flavor = "woff"
    font.save(out)
    return out.getvalue()
