"""The ranking explorer without kernel or network, and in JupyterLab: the package's fronts and orders, sorting, marking."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab
from browser_pages import at_width, choose, data, fits, made, told

from lowbit_nb import live
from lowbit_nb.live.ranking_model import COSTS, JUDGES, View

SOURCE = """from lowbit_nb import live
draw = __import__("random").Random(5)
few, names = (0.2, 0.5, 1.0, 2.5), ["plain", "fine", "quick", "large", "a method with quite a long name, tuned", "other"]
size = lambda lv: dict(level=lv, bits_per_weight=int(lv) + draw.choice((0.1, 0.3)))
one = lambda lv, m, s, b: size(lv) | dict(method=m, seed=s, budget=b, kl=draw.choice(few))
rows = [one(lv, m, s, b) for lv in "234" for m in names for b in ("shared", "paper") for s in range(1 + (m == "fine"))]
rows += [one("4", m, 0, "shared") | dict(level="W4A4") for m in names]
rows = [r | dict(perplexity=9 + 5 * r["kl"] * draw.choice((1, 2)), top1=draw.choice((0.4, 0.8))) for r in rows]
rows = [r | dict(parse=draw.choice((0, 0.25))) for r in rows]
rows = [r | dict(seconds=draw.choice((0.1, 3, 90)), peak_bytes=draw.choice((1e8, 9e8))) for r in rows]
live.ranking_explorer(rows, dict(zip(names, "nflcso")), original={"kl": 0.0}, name="test model")"""


@pytest.fixture(scope="module")
def explorer() -> live.RankingExplorer:
    return made(SOURCE)


def numbers(said: str) -> list[int]:
    return [int(i) for i in said.split(",") if i]


def test_every_view_is_the_packages(page: object, explorer: live.RankingExplorer) -> None:
    entries = explorer.view.entries
    family = [dict(level=level, judge=judge, cost=cost, sort=sort, falling=falling, paper=paper, only_front=only)
              for level, judge, cost in itertools.product(explorer.levels, JUDGES, COSTS)
              for sort, falling, paper, only in (("kl", False, True, False), ("name", True, False, False),
                                                 (cost, True, True, True))]
    for of, said in zip(family, told(page, family), strict=True):
        view = View(entries, **of)
        assert [numbers(said[k]) for k in ("seen", "front", "order")] == [view.seen, view.front, view.order], of


def test_rows_and_points_are_the_entries(page: object, explorer: live.RankingExplorer) -> None:
    choose(page, level="2", judge="kl", sort="kl", falling=False)
    view = View(explorer.view.entries, "2")
    rows = page.locator(".lb-k-table tbody tr")
    assert [int(r.get_attribute("data-i")) for r in rows.all()] == view.order
    assert sorted(int(p.get_attribute("data-i")) for p in page.locator("svg path.lb-click").all()) == view.seen
    assert page.locator(".lb-k-hollow").count() == sum(view.entries[i].budget == "paper" for i in view.seen)
    assert page.locator(".lb-k-whisker").count() == sum(view.entries[i].seeds > 1 for i in view.seen)
    assert page.locator("tr.lb-k-front").count() == len(view.front)
    first = view.entries[view.order[0]]
    assert first.name in rows.first.inner_text() and f"{first.values['bits'][0]:.2f}" in rows.first.inner_text()


def test_heads_sort_and_say_so(page: object, explorer: live.RankingExplorer) -> None:
    choose(page, level="3")
    for head, key in (("Perplexity", "perplexity"), ("Method", "name"), ("GB", "memory")):
        button = page.get_by_role("button", name=head, exact=False).first
        for falling in (False, True):
            button.click()
            assert numbers(data(page, "order")) == View(explorer.view.entries, "3", sort=key, falling=falling).order
            cell = page.locator("th[aria-sort]", has_text=head)
            assert cell.get_attribute("aria-sort") == ("descending" if falling else "ascending")
    page.get_by_role("button", name="Top-1").click()
    assert data(page, "falling") == "true"  # what should be large starts with the largest


def test_choices_follow_each_other(page: object) -> None:
    page.get_by_label("Judge by", exact=True).select_option("parse")
    assert (data(page, "sort"), data(page, "falling")) == ("parse", "true")
    page.get_by_label("Against", exact=True).select_option("seconds")
    assert page.get_by_role("img", name="parse rate against seconds").count() == 1
    page.get_by_label("Show", exact=True).select_option("front")
    assert numbers(data(page, "order")) and sorted(numbers(data(page, "order"))) == sorted(numbers(data(page, "front")))
    page.get_by_label("Show", exact=True).select_option("own")
    assert data(page, "paper") == "false" and page.locator(".lb-k-hollow").count() == 0


def test_an_entry_is_told_about(page: object, explorer: live.RankingExplorer) -> None:
    choose(page, level="2", judge="kl", cost="bits", sort="kl", falling=False)
    view = View(explorer.view.entries, "2")
    story = page.locator(".lb-k-now")
    assert story.inner_text().startswith("Not beaten in KL against bits a weight: ")
    assert "The original model: 0." in story.inner_text()
    worst = view.order[-1]
    row = page.locator(f'tr[data-i="{worst}"] button')
    row.focus()
    page.keyboard.press("Enter")
    words, entry = story.inner_text().replace("\xa0", " "), view.entries[worst]
    assert words.startswith(f"{entry.name}, level 2, {entry.family}: KL ")
    assert f"place {view.rank(worst)} of {len(view.seen)}" in words
    best = view.entries[view.beaten_by(worst)[0]].name
    assert f"Beaten in both by {len(view.beaten_by(worst))}, most clearly by {best}" in words
    assert page.locator(".lb-k-big").count() == 1
    assert page.evaluate("() => document.activeElement.closest('tr').dataset.i") == str(worst)  # the keyboard keeps its place
    page.keyboard.press("Enter")  # once more: nothing is marked
    assert data(page, "marked") == "-1" and page.locator(".lb-k-big").count() == 0
    page.locator(f'svg path.lb-click[data-i="{view.front[-1]}"]').dispatch_event("click")  # points may lie on each other
    assert "Nothing shown beats it in both." in story.inner_text()
    page.get_by_label("Level", exact=True).select_option("3")
    assert data(page, "marked") == "-1"


def test_every_control_has_a_name(page: object) -> None:
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img|region)(:|$)", tree, re.M), tree
    for name in ("Level", "Judge by", "Against", "Show"):
        assert f'combobox "{name}"' in tree, tree
    assert 'region "Table of entries"' in tree, tree


@pytest.mark.parametrize("width", [360, 600, 800, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_page(context: object, explorer: live.RankingExplorer, width: int, dark: bool,
                                        shots: Path | None) -> None:
    with at_width(context, explorer, width, dark, shots, "ranking") as page:
        for level, judge, cost, marked in (("2", "parse", "memory", 3), ("W4A4", "perplexity", "seconds", -1),
                                           (explorer.levels[0], "kl", "bits", 0)):
            choose(page, level=level, judge=judge, cost=cost, marked=marked)
            fits(page, width)


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.RankingExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "ranking", shots) as tab:
        tab.page.get_by_label("Level", exact=True).select_option("2")
        tab.page.locator(".lb-k-table thead button").nth(1).click()
        tab.page.wait_for_function("() => document.querySelector('.lb-ranking').dataset.sort === 'bits'")
        assert numbers(data(tab.page, "order")) == View(explorer.view.entries, "2", sort="bits").order
