"""Written pages in Chromium, from a folder, with the network cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEAR = ("file:", "data:", "blob:")
READY = "() => document.documentElement.dataset.ready === 'true'"
ALTS = "all => all.map((i) => [i.alt, i.complete && i.naturalWidth > 0])"
# Formulas left as TeX: a dollar or a backslash in text that is no code.
RAW = """() => { const walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT), found = [];
  while (walk.nextNode()) { const n = walk.currentNode;
    if (/[$\\\\]/.test(n.data) && !n.parentElement.closest('pre, code, script, style, .lb-live')) found.push(n.data.trim()); }
  return found; }"""
# Formulas that the browser has not laid out: a numerator stands above its denominator, and the font has come.
FLAT = """() => { const top = (e) => e.getBoundingClientRect().top, all = [...document.querySelectorAll('math')];
  const loaded = [...document.fonts].some((f) => f.family.includes('STIX Two Math') && f.status === 'loaded');
  const seen = all.filter((m) => m.checkVisibility());
  return seen.filter((m) => !loaded || [...m.querySelectorAll('mfrac')].some((f) => top(f.children[0]) >= top(f.children[1])))
    .map((m) => m.getAttribute('alttext')); }"""


@contextmanager
def visited(browser: object, path: Path, width: int = 1200, dark: bool = False) -> Iterator[object]:
    """The page, when its explorers are drawn; at the end it has asked for nothing outside its folder and not complained."""
    context = browser.new_context(offline=True, viewport={"width": width, "height": 1000}, reduced_motion="reduce",
                                  color_scheme="dark" if dark else "light")
    page, problems = context.new_page(), []
    page.on("request", lambda r: None if r.url.startswith(NEAR) else problems.append(f"asked for {r.url}"))
    page.on("requestfailed", lambda r: problems.append(f"did not get {r.url}"))
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.goto(path.as_uri())
    page.wait_for_function(READY, timeout=60_000)
    yield page
    assert problems == []
    context.close()


def is_readable(page: object) -> None:
    """Formulas are drawn, every picture is there and has words, and nothing is wider than the page."""
    assert page.evaluate(RAW) == []
    assert page.evaluate(FLAT) == []
    for details in page.locator(".stored details, .outputs details").all():
        details.evaluate("d => { d.open = true; }")
    for alt, there in page.locator("main img").evaluate_all(ALTS):
        assert len(alt) >= 20 and there, alt
    assert page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def responds(page: object, box: object) -> None:
    """A key on one of its controls, or a click on a button, changes what the explorer says."""
    before = box.inner_text()
    for control in box.locator("input:enabled, select:enabled").all():
        for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
            control.focus()
            page.keyboard.press(key)
            if box.inner_text() != before:
                return
    for button in box.locator("button:enabled").all():
        button.click()
        if box.inner_text() != before:
            return
    raise AssertionError(f"no control changes {box.get_attribute('class')}")


def pictures(page: object, shots: Path | None, name: str) -> None:
    """The whole page as one picture, if pictures are kept."""
    if shots:
        page.screenshot(path=shots / f"html_{name}.png", full_page=True)
