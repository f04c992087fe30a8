"""Explorers without a kernel: an anywidget is one module, one style sheet and a state, and all three are in the notebook.

Several pages show the same explorer with other numbers. The module and the style go into a file of their own, the state
stays in the page. They are written as plain scripts: browsers refuse to import a module from a folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from nbformat import NotebookNode

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Module:
    """What all explorers of one kind share."""

    name: str
    text: str


def live(book: NotebookNode, model: str) -> tuple[Module, str] | None:
    """The module and the state (JSON) of a widget of this notebook; None if its state is not there or it is no anywidget."""
    entry = book.metadata.get("widgets", {}).get(STATE, {}).get("state", {}).get(model)
    if entry is None or "_esm" not in entry["state"]:
        return None
    of = entry["state"]
    text = json.dumps({"esm": of["_esm"], "css": of.get("_css", "")})
    kind = of.get("_anywidget_id", "widget").rsplit(".", 1)[-1]
    name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    state = {key: value for key, value in of.items() if not key.startswith("_")}
    bytes_ = {buffer["path"][0]: buffer["data"] for buffer in entry.get("buffers", ()) if len(buffer["path"]) == 1}
    return Module(name, f'(window.explorers ??= {{}})["{name}"] = {text};\n'), json.dumps(
        {"module": name, "state": state, "bytes": bytes_}, ensure_ascii=False).replace("</", "<\\/")
