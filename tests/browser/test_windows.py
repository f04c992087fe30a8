"""The window explorer without kernel or network, and in JupyterLab: the package's schedule, player, keys, clicks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, choose, data, fits, made, opened, told

from lowbit_nb import live
from lowbit_nb.live.base import percent
from lowbit_nb.live.windows import STATES, Plan

SOURCE = """from lowbit_nb import live
runs = {"block by block": [.004, .007, .012, .018, .026, .041, .06, .11]}
runs["windows of two"] = [.0045, .0065, .01, .014, .02, .031, .045, .08]
live.window_explorer(runs, name="test model")"""
FAMILY = [dict(n=n, window=width, overlap=overlap)
          for n in range(2, 11) for width in range(1, n + 1) for overlap in range(width)]


@pytest.fixture(scope="module")
def explorer() -> live.WindowExplorer:
    return made(SOURCE)


def is_at(page: object, n: int, width: int, overlap: int, step: int) -> None:
    """The page shows this step of the package's schedule: in its data, in its picture and in its words."""
    plan = Plan(n, width, overlap)
    first, left, seen = plan.steps[step - 1]
    assert [int(data(page, k)) for k in ("n", "window", "overlap", "step")] == [n, width, overlap, step]
    rows = page.locator(".lb-w-row")
    assert rows.count() == len(plan.steps)
    row = rows.nth(step - 1)
    for state in STATES:
        assert row.locator(f"rect.lb-w-{state}").count() == plan.rows[step - 1].count(state)
    assert row.locator(".lb-w-end").count() == left and "lb-w-current" in row.get_attribute("class")
    words = page.locator(".lb-w-now").inner_text()
    assert words.startswith(f"Step {step} of {len(plan.steps)}: block") and f"block{'s' * (left > 1)} {first}" in words
    assert ("warm" in words) == ("w" in plan.rows[step - 1]) and ("untouched" in words) == ("u" in plan.rows[step - 1])
    tiles = page.locator(".lb-tile").all_inner_texts()
    assert f"\n{len(plan.steps)}\n" in tiles[0] and f"\n{plan.visits}\n" in tiles[1] and f"\n{plan.together} block" in tiles[3]


def test_every_schedule_is_the_packages(page: object) -> None:
    for of, seen in zip(FAMILY, told(page, FAMILY), strict=True):
        plan = Plan(*of.values())
        assert seen["steps"] == " ".join(",".join(map(str, step)) for step in plan.steps), of
        assert seen["rows"].split(" ") == plan.rows and seen["learned"] == ",".join(map(str, plan.learned)), of
        assert (int(seen["visits"]), int(seen["together"])) == (plan.visits, plan.together), of


def test_every_step_is_drawn_and_told(page: object) -> None:
    for n, width, overlap in ((8, 2, 1), (7, 3, 0), (9, 4, 2), (5, 5, 0), (6, 1, 0)):
        choose(page, n=n, window=width, overlap=overlap)
        for step in range(1, len(Plan(n, width, overlap).steps) + 1):
            choose(page, step=step)
            is_at(page, n, width, overlap, step)


def test_the_story_of_one_step(page: object) -> None:
    choose(page, n=8, window=2, overlap=1, step=3)
    assert page.locator(".lb-w-now").inner_text().replace("\xa0", " ") == (
        "Step 3 of 7: blocks 2 and 3 are learned together. Block 2 is warm: soft, and going on where step 2 has left it. "
        "Block 3 is soft, learned for the first time. When the step ends, block 2 is made hard; block 3 stays soft for the "
        "next window. Blocks 0 and 1 are hard already. Blocks 4 to 7 are untouched. "
        "Error after block 3: block by block 1.80 %; windows of two 1.40 %.")


def test_controls_offer_only_what_exists(page: object) -> None:
    n, window, overlap = (page.get_by_label(name, exact=True) for name in ("Blocks", "Window", "Overlap"))
    for blocks, width in ((8, 2), (8, 5), (3, 3), (8, 1), (2, 2), (32, 9)):
        n.fill(str(blocks))
        assert window.get_attribute("max") == str(blocks)
        window.fill(str(width))
        assert int(overlap.get_attribute("max")) == width - 1 and overlap.is_disabled() == (width == 1)
        if width > 1:
            overlap.fill(str(width - 1))
        is_at(page, blocks, width, width - 1, int(data(page, "step")))
    n.fill("4")  # a shorter model takes a shorter window with it
    is_at(page, 4, 4, 3, 1)


def test_states_that_do_not_exist_are_settled(page: object) -> None:
    choose(page, n=5, window=9, overlap=9, step=99)  # as Python could set them
    is_at(page, 5, 5, 4, 1)
    choose(page, window=2, step=99)
    is_at(page, 5, 2, 1, 4)


def test_known_schedules_are_a_click_away(page: object) -> None:
    for name, (width, overlap) in {"block by block": (1, 0), "pairs side by side": (2, 0), "pairs that overlap": (2, 1),
                                   "fours that overlap": (4, 2), "all at once": (8, 0)}.items():
        page.get_by_role("button", name=name).click()
        is_at(page, 8, width, overlap, 1)


def test_a_click_on_a_row_chooses_its_step(page: object) -> None:
    page.get_by_role("img", name="8 blocks across, 7 steps down").locator(".lb-click").nth(4).click()
    is_at(page, 8, 2, 1, 5)
    assert page.get_by_label("Step", exact=True).input_value() == "5"


def test_keys_step_and_space_plays(context: object, explorer: live.WindowExplorer) -> None:
    page, problems = opened(context, explorer)
    page.clock.install()
    step = page.get_by_label("Step", exact=True)
    step.focus()
    for key, at in (("ArrowRight", 2), ("ArrowLeft", 1), ("End", 7), ("Home", 1)):
        page.keyboard.press(key)
        is_at(page, 8, 2, 1, at)
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Pause", exact=True).is_visible()
    page.clock.run_for(2250)
    assert data(page, "step") == "2" and page.locator(".lb-w-now").get_attribute("aria-live") == "off"
    page.keyboard.press("Space")
    page.clock.run_for(9000)
    assert data(page, "step") == "2"
    play = page.get_by_role("button", name="Play", exact=True)
    play.focus()
    page.keyboard.press("ArrowRight")
    is_at(page, 8, 2, 1, 3)
    play.click()
    page.clock.run_for(20_000)
    assert data(page, "step") == "7" and page.locator(".lb-w-now").get_attribute("aria-live") == "polite"
    play.click()  # from the end it starts again
    assert data(page, "step") == "1" and not problems


def test_lines_are_the_runs_and_this_steps_blocks_are_marked(page: object, explorer: live.WindowExplorer) -> None:
    choose(page, window=3, overlap=1, step=2)
    plot = page.get_by_role("img", name="error of the output after each block, logarithmic")
    assert plot.locator("path.lb-w-line").count() == 2 and plot.locator(".lb-w-dot").count() == 16
    assert plot.locator(".lb-w-big").count() == 2 * 3 and "marked: blocks 2 to 4" in plot.get_attribute("aria-label")
    path = plot.locator("path.lb-w-line").first.get_attribute("d")
    heights = [float(y) for y in re.findall(r",([\d.]+)", path)]
    ours = dict(explorer.runs)["block by block"]
    assert sorted(heights, reverse=True) == [heights[i] for i in sorted(range(8), key=lambda i: ours[i])]
    keys = page.locator(".lb-w-keys").all_inner_texts()[1].replace("\xa0", " ")
    assert all(f"{name}: {percent(errors[4])} after block 4" in keys for name, errors in explorer.runs)
    choose(page, n=6)
    assert "They have 8 blocks, the schedule 6" in page.locator(".lb-live").inner_text()


def test_without_errors_there_is_no_plot(context: object) -> None:
    page, problems = opened(context, live.window_explorer(n=32))
    assert page.get_by_role("img").count() == 1 and "Error" not in page.locator(".lb-live").inner_text()
    is_at(page, 32, 2, 1, 1)
    assert not problems


def test_every_control_has_a_name_and_a_key(page: object) -> None:
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for name in ('slider "Blocks"', 'slider "Window"', 'slider "Overlap"', 'slider "Step"', 'button "Play"', 'img "8 blocks'):
        assert name in tree, tree
    for control in page.locator(".lb-live input").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        control.focus()
        page.keyboard.press("ArrowUp")
        if control.input_value() == start:
            page.keyboard.press("ArrowDown")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before


@pytest.mark.parametrize("width", [360, 600, 800, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_page(context: object, explorer: live.WindowExplorer, width: int, dark: bool,
                                        shots: Path | None) -> None:
    with at_width(context, explorer, width, dark, shots, "window") as page:
        for n, window, overlap, step in ((32, 32, 31, 1), (32, 12, 11, 20), (2, 1, 0, 2), (32, 2, 1, 31), (8, 2, 1, 3)):
            choose(page, n=n, window=window, overlap=overlap, step=step)
            fits(page, width)


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.WindowExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "window", shots) as tab:
        with key_pressed(tab, "Step"):
            tab.page.wait_for_function("() => document.querySelector('.lb-window').dataset.step === '2'")
        is_at(tab.page, 8, 2, 1, 2)
