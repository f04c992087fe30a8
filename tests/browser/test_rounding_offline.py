"""The rounding player in a page without kernel or network: the package's numbers, keys, play and pause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_pages import data, page_of

from lowbit_nb import live
from lowbit_nb.live import roundings
from lowbit_nb.show import digits
from tests import players

LAYER = "self_attn.k_proj"


@pytest.fixture(scope="module")
def player() -> live.RoundingPlayer:
    return live.rounding_player(players.trace(), LAYER, name="test block")


@pytest.fixture(scope="module", params=["reduce", "no-preference"])
def context(browser: object, request: pytest.FixtureRequest) -> Iterator[object]:
    offline = browser.new_context(offline=True, viewport={"width": 1080, "height": 1000}, reduced_motion=request.param)
    yield offline
    offline.close()


def opened(context: object, widget: live.Explorer, dark: bool = False) -> tuple[object, list[str]]:
    page, problems = context.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.clock.install()
    page.set_content(page_of(widget, dark))
    page.wait_for_function("() => window.ready", timeout=30_000)
    page.wait_for_selector(".lb-live svg")
    return page, problems


def test_every_round_and_layer_shows_the_packages_numbers(context: object, player: live.RoundingPlayer) -> None:
    page, problems = opened(context, player)
    for layer in (LAYER, "mlp.down_proj"):
        page.get_by_label("Layer", exact=True).select_option(layer)
        for r in range(1, 7):
            page.get_by_label("Round", exact=True).fill(str(r))
            now = roundings.moment(player.record, layer, r)
            for name, value in (("soft", now.told["soft"]), ("flips", now.told["flips"]), ("soft-loss", now.soft_loss),
                                ("hard-loss", now.hard_loss), ("weights", now.n_weights), ("round", r)):
                assert float(data(page, name)) == value
            assert int(data(page, "strip-away")) == sum(now.away)
            assert int(data(page, "strip-soft")) == now.told["state"].count("s")
            when = roundings.decided(player.record, layer, r)
            assert data(page, "decided") == ",".join("" if w is None else str(w) for w in when)
            words = page.locator(".lb-readout").inner_text()
            assert f"Round {r} of 6, {layer}" in words and f"{digits(now.hard_loss)} if the rest" in words
            assert page.locator(".lb-r-body .lb-r-mark:not(.lb-r-soft)").count() == now.told["state"].count("h")
            assert page.locator(".lb-r-body .lb-r-mark.lb-r-away").count() == sum(now.away)
    assert not problems


def test_markers_stand_where_h_is(context: object, player: live.RoundingPlayer) -> None:
    page, problems = opened(context, player)
    page.get_by_label("Round", exact=True).fill("2")
    told = roundings.moment(player.record, LAYER, 2).told
    places = page.locator(".lb-r-body").evaluate_all("all => all.map((g) => Number(/\\((.*)px\\)/.exec(g.style.transform)[1]))")
    heights = [h for h, s in zip(told["strip"], told["state"], strict=True) if s != "d"]
    ground = places[0] + 84 * heights[0]
    assert places == pytest.approx([ground - 84 * h for h in heights], abs=0.02)
    assert not problems


def test_keys_move_the_round_and_space_plays(context: object, player: live.RoundingPlayer) -> None:
    page, problems = opened(context, player)
    page.get_by_label("Round", exact=True).focus()
    for key, r in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 6), ("Home", 1)):
        page.keyboard.press(key)
        assert int(data(page, "round")) == r
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Pause", exact=True).is_visible()
    page.clock.run_for(1650)
    assert int(data(page, "round")) == 2  # one step in calm pace or in the usual one
    page.keyboard.press("Space")
    page.clock.run_for(5000)
    assert int(data(page, "round")) == 2
    button = page.get_by_role("button", name="Play", exact=True)
    button.focus()
    page.keyboard.press("ArrowRight")
    assert int(data(page, "round")) == 3 and not problems


def test_play_ends_at_the_last_round_and_starts_again(context: object, player: live.RoundingPlayer) -> None:
    page, problems = opened(context, player)
    page.get_by_label("Round", exact=True).fill("5")
    page.get_by_role("button", name="Play", exact=True).click()
    assert page.locator(".lb-readout").get_attribute("aria-live") == "off"
    page.clock.run_for(10_000)
    assert int(data(page, "round")) == 6 and page.locator(".lb-readout").get_attribute("aria-live") == "polite"
    page.get_by_role("button", name="Play", exact=True).click()
    assert int(data(page, "round")) == 1
    page.get_by_role("button", name="deciding costs most").click()  # choosing a round stops the play
    costs = [roundings.moment(player.record, LAYER, r).cost for r in range(1, 7)]
    page.clock.run_for(5000)
    assert int(data(page, "round")) == 1 + costs.index(max(costs)) and not problems


def test_everything_has_a_name(context: object, player: live.RoundingPlayer) -> None:
    page, problems = opened(context, player)
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for name in ('slider "Round"', 'combobox "Layer"', 'button "Play"', 'img "strip of 48 weights', 'img "histogram of h'):
        assert name in tree, tree
    assert not problems


def test_a_click_in_the_chart_chooses_a_round(context: object, player: live.RoundingPlayer) -> None:
    page, problems = opened(context, player)
    page.get_by_role("img", name="loss after round").locator(".lb-click").nth(3).click()
    assert int(data(page, "round")) == 4 and page.get_by_label("Round", exact=True).input_value() == "4"
    assert not problems


def test_markers_glide_only_where_motion_is_welcome(context: object, player: live.RoundingPlayer) -> None:
    page, _ = opened(context, player)
    still = page.evaluate("() => matchMedia('(prefers-reduced-motion: reduce)').matches")
    glide = page.locator(".lb-r-body").first.evaluate("g => getComputedStyle(g).transitionDuration")
    assert (glide in ("0s", "")) == still


@pytest.mark.parametrize("width", [360, 620, 1100])
def test_nothing_is_wider_than_the_page(context: object, player: live.RoundingPlayer, width: int, shots: Path | None) -> None:
    for dark in (False, True):
        page, problems = opened(context, player, dark)
        page.set_viewport_size({"width": width, "height": 900})
        page.clock.run_for(300)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        if shots:
            page.get_by_label("Round", exact=True).fill("3")
            page.screenshot(path=shots / f"page_rounding_{width}{'_dark' if dark else ''}.png", full_page=True)
        assert not problems
        page.close()
