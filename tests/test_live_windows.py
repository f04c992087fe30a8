"""The window explorer: its plans are those of the package, as CBQ carries them out; what is told, stored and refused."""

from __future__ import annotations

import base64
import re

import pytest

from lowbit_nb import live
from lowbit_nb.crossblock import schedule
from lowbit_nb.grid import Grid
from lowbit_nb.live.windows import Plan
from lowbit_nb.methods.cbq import CBQ

RUNS = {"block by block": [0.004, 0.012, 0.03, 0.09], "windows of two": [0.005, 0.01, 0.02, 0.06]}
FAMILY = [(n, width, overlap) for n in range(2, 11) for width in range(1, n + 1) for overlap in range(width)]


def walked(n: int, width: int, overlap: int) -> list[str]:
    """What every block is in every step, by carrying soft blocks from window to window as the walk over a model does."""
    rows, hard, carried = [], set(), set()
    for first, left, seen in CBQ(Grid(2), window=width, overlap=overlap).windows(n):
        window = range(first, first + seen)
        rows.append("".join("h" if b in hard else "w" if b in carried else "s" if b in window else "u" for b in range(n)))
        assert carried <= set(window) and not hard & set(window)
        hard |= set(window[:left])
        carried = set(window[left:])
    assert hard == set(range(n)) and not carried
    return rows


@pytest.mark.parametrize("of", FAMILY)
def test_a_plan_is_what_the_walk_does(of):
    plan = Plan(*of)
    assert plan.steps == schedule(*of) and plan.rows == walked(*of)
    assert plan.visits == sum(seen for _, _, seen in plan.steps) == sum(plan.learned)
    assert min(plan.learned) >= 1 and plan.together == min(of[1], of[0])


def test_plans_worked_out_by_hand():
    assert Plan(4, 2, 1).rows == ["ssuu", "hwsu", "hhws"] and Plan(4, 2, 1).learned == [1, 2, 2, 1]
    assert Plan(5, 3, 2).rows == ["sssuu", "hwwsu", "hhwws"] and Plan(5, 3, 2).learned == [1, 2, 3, 2, 1]
    assert Plan(5, 3, 0).rows == ["sssuu", "hhhss"] and Plan(3, 1, 0).rows == ["suu", "hsu", "hhs"]
    assert (Plan(32, 2, 1).visits, Plan(8, 4, 2).visits, Plan(8, 8, 0).visits) == (62, 12, 8)


def test_the_sentence_holds_the_numbers():
    alt = live.window_explorer(RUNS, name="test model").alt
    for words in ("test model: errors of 2 runs. 4 blocks, windows of 2 that overlap by 1: 3 steps, 6 block-visits, 1.50 times",
                  "learned once: 2 blocks, twice: 2 blocks; 2 in memory", "block by block 9.00 %; windows of two 6.00 %"):
        assert words in alt
    alone = live.window_explorer(n=6, window=6, overlap=0).alt
    assert "1 step, 6 block-visits, 1.00 times block by block; every block is learned once; 6 in memory" in alone
    assert "Error" not in alone and "1 step," in alone
    assert "a block is learned 1 to 5 times; 5 in memory" in live.window_explorer(n=12, window=5, overlap=4).alt


def test_without_n_there_are_as_many_blocks_as_in_the_runs():
    assert live.window_explorer(RUNS).n == 4 and live.window_explorer().n == 8 and live.window_explorer(RUNS, n=4).n == 4


@pytest.mark.parametrize("given", [{"errors": RUNS}, {"n": 32}, {"n": 2, "window": 1, "overlap": 0},
                                   {"n": 48, "window": 8, "overlap": 7}])
def test_stored_pictures_are_small_and_told_in_words(given):
    explorer = live.window_explorer(**given)
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert len(images) in (3, 4) and len({alt for alt, _ in images}) == len(images)
    assert all(len(base64.b64decode(code)) <= 40_000 for _, code in images)
    told = [alt for alt, _ in images]
    assert told[0].startswith(f"{explorer.n} blocks, {explorer.plan.words}. Learned in step 1: block")
    if "errors" in given:
        assert "block by block 0.400 %, 1.20 %, 3.00 %, 9.00 %; windows of two 0.500 %" in told[-1]


@pytest.mark.parametrize(("errors", "scale"), [(RUNS, "log"), ({"a": [0.02, 0.05, 0.19]}, "linear"),
                                               ({"a": [0.0, 0.1, 0.4]}, "linear")])
def test_more_than_a_decade_wants_a_logarithmic_axis(errors, scale):
    assert live.window_explorer(errors).frames()[-1].figure.axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"errors": {"a": [0.1, 0.2], "b": [0.1]}}, "leave n out"),
        ({"errors": {"a": [0.1, 0.2]}, "n": 3}, "leave n out"),
        ({"errors": {str(i): [0.1, 0.2] for i in range(7)}}, "up to 6 runs"),
        ({"errors": {"a": [0.1, float("nan")]}}, "not finite"),
        ({"errors": {"a": [0.1, -0.1]}}, "below 0"),
        ({"errors": {"a": []}}, "use 2 to 48 blocks"),
        ({"n": 1, "window": 1, "overlap": 0}, "use 2 to 48 blocks"),
        ({"n": 49}, "use 2 to 48 blocks"),
        ({"n": 4, "window": 5}, "windows of 1 to n"),
        ({"window": 2, "overlap": 2}, "less than the window's 2"),
        ({"window": 2, "overlap": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_shown_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        live.window_explorer(**given)
