"""A page that runs one explorer with no kernel, server or network: its module, its style and a fake model."""

from __future__ import annotations

import base64
import json

from anywidget import AnyWidget

from lowbit_nb.live import Explorer

DARK = (
    "body{background:#111;--jp-layout-color0:#111;--jp-layout-color1:#1b1b1b;--jp-content-font-color1:rgba(255,255,255,.95);"
    "--jp-content-font-color2:rgba(255,255,255,.7);--jp-border-color2:#444}"
)

PAGE = """<!doctype html><meta charset="utf-8"><title>explorer</title>
<style>%(css)s</style><style>%(theme)s</style>
<body data-jp-theme-light="%(light)s"><div id="host"></div><script type="module">
const state = %(state)s, on = {};
for (const [name, value] of Object.entries(state)) if (value && value.bytes !== undefined) {
  state[name] = new DataView(Uint8Array.from(atob(value.bytes), (c) => c.charCodeAt(0)).buffer);
}
window.model = {
  get: (name) => state[name], save_changes() {}, off() {},
  set(name, value) {
    if (state[name] !== value) { state[name] = value; (on[`change:${name}`] ?? []).forEach((f) => f()); }
  },
  on(event, f) { (on[event] ??= []).push(f); },
};
const module = await import(URL.createObjectURL(new Blob([%(esm)s], { type: "text/javascript" })));
await module.default.render({ model: window.model, el: document.getElementById("host") });
window.ready = true;
</script></body>"""


def page(widget: Explorer, dark: bool = False) -> str:
    """The page as HTML; `window.ready` is true once the explorer is drawn."""
    mine = [
        name
        for name in widget.traits(sync=True)
        if not name.startswith("_") and name not in AnyWidget.class_trait_names()
    ]
    state = {name: _plain(getattr(widget, name)) for name in mine}
    return PAGE % {
        "css": widget._css,
        "theme": DARK if dark else "",
        "light": "false" if dark else "true",
        "state": json.dumps(state),
        "esm": json.dumps(str(widget._esm)).replace("</", "<\\/"),
    }


def _plain(value: object) -> object:
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
