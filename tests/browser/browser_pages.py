"""A page that runs one explorer with no kernel, server or network: its module, its style and a fake model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def page_of(widget: Explorer, dark: bool = False) -> str:
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


def made(source: str) -> Explorer:
    """The explorer that a cell ends in."""
    scope: dict = {}
    *before, last = source.splitlines()
    exec("\n".join(before), scope)
    return eval(last, scope)


def opened(context: object, widget: Explorer, dark: bool = False) -> tuple[object, list[str]]:
    """A new page with the explorer drawn, and the list that its errors and warnings go to."""
    page, problems = context.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.set_content(page_of(widget, dark))
    page.wait_for_function("() => window.ready", timeout=30_000)
    page.wait_for_selector(".lb-live svg")
    return page, problems


def choose(page: object, **state: object) -> None:
    """Set traits from outside, as Python would."""
    page.evaluate("(state) => Object.entries(state).forEach(([k, v]) => model.set(k, v))", state)


def data(page: object, name: str) -> str:
    """What the explorer says about itself in an attribute."""
    return page.locator(".lb-live").get_attribute(f"data-{name}")


EACH = """(family) => family.map((state) => {
    Object.entries(state).forEach(([k, v]) => model.set(k, v));
    return { ...document.querySelector('.lb-live').dataset }; })"""


def told(page: object, family: list[dict]) -> list[dict[str, str]]:
    """Set each state from outside, one after the other; what the explorer says about itself in each."""
    return page.evaluate(EACH, family)


@contextmanager
def at_width(context: object, explorer: Explorer, width: int, dark: bool, shots: Path | None, name: str) -> Iterator[object]:
    """A page of that width in that theme, photographed at the end if pictures are kept; nothing may go wrong in it."""
    page, problems = opened(context, explorer, dark)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(200)
    yield page
    if shots:
        page.screenshot(path=shots / f"page_{name}_{width}{'_dark' if dark else ''}.png", full_page=True)
    assert not problems
    page.close()


OUTSIDE = """() => [...document.querySelectorAll('.lb-live svg text')].filter((t) => {
    const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
    return a.right > b.right + 12 || a.left < b.left - 4; }).map((t) => t.textContent)"""


def fits(page: object, width: int) -> None:
    """Nothing is wider than the page, no text leaves its picture."""
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
