"""The composer without kernel or network, and in JupyterLab: the package's rules, clicks, keys, points that join."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, choose, data, fits, made, told

import lowbit_nb as lb
from lowbit_nb import live
from lowbit_nb.live.composed import CHOICES, blocked, broken, combinations, key, with_picks

SOURCE = """from lowbit_nb import live
import lowbit_nb as lb
both = dict(transform="none", grid="searched", rounding="feedback, then progressive", objective="block", scope="block")
rows = [dict(method="GPTQ, damp 0.1", bits=2, group=64, seed=s, bits_per_weight=2.28, kl=k) for s, k in enumerate((.97, .99))]
rows += [dict(method=n, bits=2, group=64, bits_per_weight=b, kl=k) for n, b, k in (("AWQ", 2.29, 1.46), ("VPTQ", 2.19, .64),
         ("TesseraQ, paper", 2.28, .3), ("PTQ1.61", 1.93, 2.3), ("GPTQ, W4A4", 4.06, .7))]
rows += [{**both, "name": "begun at feedback", "bits": 2, "group": 64, "seed": s, "bits_per_weight": 2.28, "kl": .25 + .01 * s}
         for s in range(3)]
composer = live.composer(rows, lb.Recipe(rounding="feedback"), name="test model")
mine = dict(both, name="mine", bits_per_weight=2.25, kl=.5)
composer.observe(lambda change: composer.add(mine) if change["new"]["scope"] == "model" else None, "picked")
composer"""
GPTQ = dict(zip(CHOICES, ("none", "searched", "feedback", "layer", "layer", "none"), strict=True))


@pytest.fixture(scope="module")
def explorer() -> live.Composer:
    return made(SOURCE)


@pytest.fixture(autouse=True)
def begun(request: pytest.FixtureRequest) -> None:
    """Every test starts from GPTQ."""
    if "page" in request.fixturenames:
        choose(request.getfixturevalue("page"), picked=GPTQ)


def option(page: object, kind: str, name: str) -> object:
    menu = page.locator("fieldset", has=page.get_by_text(kind, exact=True))
    return menu.get_by_role("radio", name=re.compile(rf"^{re.escape(name)}( \(impossible.*)?$"))


def verdict(page: object) -> str:
    return page.locator(".lb-co-verdict").inner_text()


def test_the_same_combinations_are_legal(page: object) -> None:
    every = combinations()
    assert data(page, "map") == "".join("0" if broken(one) else "1" for one in every)
    assert int(data(page, "count")) == data(page, "map").count("1")


def test_reasons_struck_options_and_names_are_the_packages(page: object, explorer: live.Composer) -> None:
    every = combinations()
    named = [one for one in every if key(one) in explorer.known]
    legal = [one for one in every if not broken(one)]
    draw = random.Random(0)
    family = [*draw.sample(named, 20), *draw.sample(legal, 25), *draw.sample(every, 35)]
    for one, said in zip(family, told(page, [{"picked": one} for one in family]), strict=True):
        assert said["key"] == key(one)
        assert said["why"].split("\n") == (with_picks(lb.Recipe(), one).reasons() or [""])
        assert (said["legal"] == "true") == (not broken(one))
        assert said["name"] == (lb.compose.known(with_picks(lb.Recipe(), one)) or "" if not broken(one) else "")
        struck = [f"{kind}={o}" for kind, options in CHOICES.items() for o in options if blocked(one, kind, o)]
        assert [*filter(None, said["struck"].split("\n"))] == struck


def test_a_struck_option_says_why_under_the_pointer_and_under_the_focus(page: object) -> None:
    why = blocked(GPTQ, "scope", "block")[0]
    hint, struck = page.locator(".lb-co-hint"), option(page, "scope", "block")
    struck.hover()
    assert why in hint.inner_text() and lb.compose.CHOICES["scope"]["block"] in hint.inner_text()
    page.locator(".lb-title").hover()
    assert why not in hint.inner_text()
    assert struck.locator("xpath=..").get_attribute("title") == why
    struck.focus()
    assert why in hint.inner_text()
    word = struck.locator("xpath=..").locator(".lb-co-word")
    assert "line-through" in word.evaluate("e => getComputedStyle(e).textDecoration")


def test_an_illegal_pick_is_explained_and_mended(page: object) -> None:
    option(page, "objective", "block").click()
    assert data(page, "legal") == "false" and verdict(page).startswith("✕ Not legal. ")
    picked = {**GPTQ, "objective": "block"}
    assert all(rule["why"] in verdict(page) for rule in broken(picked))
    fixes = page.locator(".lb-co-fixes button")
    legal = [one for one in combinations() if not broken(one) and one["objective"] == "block"]
    least = min(sum(one[kind] != picked[kind] for kind in CHOICES) for one in legal)
    assert fixes.count() >= 1 and all(words.count("→") == least for words in fixes.all_inner_texts())
    fixes.first.click()
    assert data(page, "legal") == "true" and data(page, "key").split("|")[3] == "block"


def test_published_methods_are_a_click_away(page: object, explorer: live.Composer) -> None:
    names = set(explorer.known.values())
    assert {"RTN", "GPTQ", "AWQ", "TesseraQ", "VPTQ", "CBQ", "OAC", "LRQuant"} <= names
    for name in names:
        button = page.locator(".lb-co-papers").get_by_role("button", name=name, exact=True)
        button.click()
        assert data(page, "name") == name and f"This is {name}." in verdict(page) and data(page, "legal") == "true"
        assert button.get_attribute("aria-pressed") == "true"


def test_the_code_is_the_recipe(page: object) -> None:
    for one in (GPTQ, {**GPTQ, "grid": "codebook", "scope": "model", "activations": "4"}):
        choose(page, picked=one)
        assert eval(page.locator(".lb-co-verdict code").inner_text(), {"lb": lb}) == with_picks(lb.Recipe(), one)


def test_arrow_keys_walk_through_a_menu(page: object) -> None:
    option(page, "transform", "none").focus()
    page.keyboard.press("ArrowDown")
    assert data(page, "key").split("|")[0] == "smooth"
    page.keyboard.press("ArrowUp")
    assert data(page, "key") == key(GPTQ)


def test_the_table_keeps_to_the_limit_and_shows_what_is_picked(page: object) -> None:
    rows = page.locator(".lb-co-table tbody tr")
    assert [t.split("\n")[0].split("\t")[0] for t in rows.all_inner_texts()][:2] == ["1", "2"]
    assert "begun at feedback" in rows.first.inner_text() and "0.260" in rows.first.inner_text()
    now = page.locator(".lb-co-table tr.lb-co-now")
    assert now.count() == 1 and "GPTQ, damp 0.1" in now.inner_text()
    assert page.locator(".lb-co-ring").count() == 1
    page.get_by_label("At most, honest bits", exact=True).fill("2.2")
    assert rows.count() == 2 and "VPTQ" in rows.first.inner_text()
    assert "2.20" in page.locator(".lb-co-table caption").inner_text()
    choose(page, limit=4.2, picked={**GPTQ, "activations": "4"})
    assert rows.count() == 1 and "GPTQ, W4A4" in rows.first.inner_text()
    choose(page, limit=2.31)


def test_the_plot_holds_the_points_and_a_click_picks_a_combination(page: object) -> None:
    plot = page.get_by_role("img", name=re.compile("KL against honest bits"))
    count = lambda kind: plot.locator(f".lb-co-point.lb-co-p-{kind}").count()  # noqa: E731
    choose(page, limit=2.6)
    assert (count("method"), count("combination"), count("yours")) == (4, 1, 0)  # PTQ1.61 lies to the left
    page.get_by_label("Plot", exact=True).select_option("all")
    assert count("method") == 5 and "PTQ1.61" in plot.get_attribute("aria-label")
    page.get_by_label("Plot", exact=True).select_option("near")
    choose(page, limit=2.31)
    plot.locator(".lb-co-p-combination").click()
    assert data(page, "key") == "none|searched|feedback, then progressive|block|block|none"
    assert "KL 0.260 (3\xa0seeds, 0.250 to 0.270)" in page.locator(".lb-readout").text_content()


def test_a_row_that_was_run_joins(page: object, explorer: live.Composer) -> None:
    row = {**with_picks(lb.Recipe(), GPTQ).picks, "name": "mine", "bits_per_weight": 2.25, "kl": 0.5}
    choose(page, points=[*explorer.points, *live.composer().add(row).points])
    assert page.locator(".lb-co-table tr.lb-co-yours").count() == 1
    assert page.locator("svg .lb-co-p-yours").count() == 2
    assert "best run in this kernel: mine" in page.locator(".lb-readout").inner_text()
    choose(page, points=explorer.points)


def test_every_control_has_a_name(page: object) -> None:
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img|radio)(:|$)", tree, re.M), tree
    for name in ('group "transform"', 'radio "codebook"', 'slider "At most, honest bits"', 'combobox "Plot"',
                 'button "GPTQ" [pressed]'):
        assert name in tree, tree
    assert tree.count('radio "') == sum(map(len, CHOICES.values()))


@pytest.mark.parametrize("width", [360, 600, 800, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_page(context: object, explorer: live.Composer, width: int, dark: bool,
                                        shots: Path | None) -> None:
    with at_width(context, explorer, width, dark, shots, "composer") as page:
        wrong = {**GPTQ, "rounding": "low rank", "grid": "signs", "transform": "smooth"}
        for one in ({**GPTQ, "activations": "8"}, wrong, GPTQ):
            choose(page, picked=one)
            fits(page, width)


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.Composer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "composer", shots) as tab:
        with key_pressed(tab, "At most, honest bits"):
            tab.page.wait_for_function("() => document.querySelector('.lb-co-table caption').textContent.includes('2.32')")
        option(tab.page, "scope", "model").click()  # Python sees it and adds a row
        tab.page.wait_for_function("() => document.querySelector('.lb-co-table tr.lb-co-yours')")
        assert data(tab.page, "key") == key({**GPTQ, "scope": "model"})
