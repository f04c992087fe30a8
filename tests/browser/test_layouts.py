"""The layout explorer without kernel or network, and in JupyterLab: the package's words, tables and lanes, pointer and keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, choose, data, fits, made, told

from lowbit_nb import live
from lowbit_nb.live import lanes
from lowbit_nb.live.lanes import BITS, NUMBERS, ORDERS

SOURCE = """from lowbit_nb import live
live.layout_explorer(name="test codes")"""
PLACES = [(0, 0, 0), (3, 5, 1), (9, 38, 2), (15, 63, -1), (6, 17, -2)]  # row, word, plane; from the last one if below 0
FAMILY = [(bits, order, number, row, word, plane % lanes.n_planes(bits)) for bits in BITS for order in ORDERS
          for number in NUMBERS for row, word, plane in PLACES]
NAMES = ("bits", "order", "number", "row", "word", "plane")
STATES = [dict(zip(NAMES, of, strict=True)) for of in FAMILY]


@pytest.fixture(scope="module")
def explorer() -> live.LayoutExplorer:
    return made(SOURCE)


def facts(bits: int, order: str, number: str, row: int, word: int, plane: int) -> dict[str, int]:
    """What the package says of one field, in integers."""
    of = NUMBERS[number]
    lane, register, place = lanes.lane_of(row, word, of)
    column = lanes.column_of(bits, order, word, plane)
    return {"column": column, "lane": lane, "register": register, "place": place, "copier": lanes.copier_of(row, word),
            "needed": lanes.lane_of(row, column, of)[0]}


def shown(page: object) -> dict[str, int]:
    return {name: int(data(page, name)) for name in ("column", "lane", "register", "place", "copier", "needed")}


def test_every_place_is_the_packages(page: object, explorer: live.LayoutExplorer) -> None:
    for of, seen in zip(FAMILY, told(page, STATES), strict=True):
        wanted = facts(*of)
        assert {name: int(seen[name]) for name in wanted} == wanted, of


def test_every_code_and_number_is_the_packages(page: object, explorer: live.LayoutExplorer) -> None:
    for setting, seen in zip(FAMILY, told(page, STATES), strict=True):
        (bits, order, *_, plane), at, of = setting, explorer.at(*setting), NUMBERS[setting[2]]
        assert int(seen["code"]) == at.code
        if bits != 3 or order == "planar":  # else the lane has two of three bits
            pos = lanes.pieces(bits, plane, of)[0].pos
            assert int(seen["value"]) == at.value and int(seen["pattern"]) == at.code << pos ^ of.one.get(bits, 0)


def test_the_story_of_one_field(page: object) -> None:
    choose(page, number="fp16", plane=2)
    story = " ".join(page.locator(".lb-l-now").inner_text().replace("\xa0", " ").split())
    assert story == (
        "Lane 1 of the warp that copies rows 0 and 1 brings words 4 to 7 of row 0 (16 bytes) to shared memory. "
        "Lane 2 of the warp that multiplies row 0 reads words 4 and 5 there, joins their low halves and frees two weights "
        "at once: (joined & 0x00300030) | 0x64006400. Word 5’s is 0x6430 = 1072 = 3 × 2⁴ + 1024, in operand register 0. "
        "x of this plane was divided by 2⁴, so it counts 3 + 64. The 1024 times the sum of x as it is multiplied is taken "
        "off once a group. Lane 2 is also the one that multiplies column 133: nothing moves.")
    choose(page, number="int8", order="interleaved", plane=11)
    story = page.locator(".lb-l-now").inner_text()
    assert "joins their bytes 2" in story and "(joined >> 4) & 0x0c0c0c0c" in story
    assert "column 91 in lane 2: a shuffle from lane 1" in story
    choose(page, bits=3, order="planar", plane=20)
    assert "then with the high bits" in page.locator(".lb-l-now").inner_text()
    assert page.get_by_role("img", name="word 5 of row 0").count() == 2
    choose(page, order="interleaved")
    assert "The high bit lies elsewhere" in page.locator(".lb-l-now").inner_text()


@pytest.mark.parametrize("bits", BITS)
def test_lines_end_in_the_operand_register(page: object, explorer: live.LayoutExplorer, bits: int) -> None:
    for number, of in NUMBERS.items():
        choose(page, bits=bits, number=number, row=4, word=22, plane=1)
        last = page.get_by_role("img", name=re.compile(r"^(2-bit )?word 2[02] 0x")).get_attribute("aria-label").split()[-1]
        register, first = int(last, 16), 22 - 22 % of.pack
        for k in range(of.pack):
            asked = explorer.at(bits, "planar", number, 4, first + k, 1)
            pattern = register >> (of.size * k) & (2**of.size - 1)
            assert pattern == asked.code << lanes.pieces(bits, 1, of)[0].pos ^ of.one.get(bits, 0)


def test_the_operand_shows_the_lanes(page: object) -> None:
    for number in NUMBERS:
        choose(page, number=number, row=9, word=21)
        grid = page.locator("svg[aria-label^='operand of 16 rows']")
        mine = facts(2, "planar", number, 9, 21, 1)["lane"]
        assert grid.locator(".lb-l-mine").count() == 4 and grid.locator(".lb-l-lane").count() == 128
        registers = [words for words in grid.locator("text").all_text_contents() if words.startswith("reg ")]
        assert sorted(registers) == [f"reg {i}" for i in range(4)]
        assert f"in lane {mine}, and lies in lane {mine}" in grid.get_attribute("aria-label")


def test_the_pointer_looks_and_a_click_chooses(page: object) -> None:
    page.get_by_role("img", name="word 5 of row 0").scroll_into_view_if_needed()
    word = page.get_by_role("img", name="word 5 of row 0").locator(".lb-click")
    box = word.bounding_box()
    page.mouse.move(box["x"] + box["width"] * (1 - 6.5 / 16), box["y"] + 10)
    assert data(page, "plane") == "6" and page.evaluate("() => model.get('plane')") == 1
    page.mouse.move(2, 2)
    assert data(page, "plane") == "1"
    page.mouse.click(box["x"] + box["width"] * (1 - 6.5 / 16), box["y"] + 10)
    page.mouse.move(2, 2)
    assert data(page, "plane") == "6" and page.get_by_label("Field (plane)").input_value() == "6"
    strip = page.get_by_role("img", name="the 64 words of row 0").locator(".lb-click")
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 42.5 / 64, box["y"] + 5)
    grid = page.locator("svg[aria-label^='operand of 16 rows'] .lb-click")
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 3.5 / 32, box["y"] + box["height"] * 12.5 / 16)
    page.mouse.move(2, 2)
    assert (data(page, "row"), data(page, "word"), data(page, "plane")) == ("12", "35", "6")
    assert shown(page) == facts(2, "planar", "int8", 12, 35, 6)


def test_fewer_planes_take_the_field_with_them(page: object) -> None:
    choose(page, bits=1, plane=31)
    page.get_by_label("Bits a code").select_option("8")
    field = page.get_by_label("Field (plane)")
    assert (field.get_attribute("max"), field.input_value(), data(page, "plane")) == ("3", "3", "3")
    choose(page, plane=99)  # as Python could set it
    assert data(page, "plane") == "3"


def test_known_places_are_a_click_away(page: object) -> None:
    wanted = {"the other order": (2, "interleaved", "int8", 0, 5, 1), "the word beside it": (2, "interleaved", "int8", 0, 4, 1),
              "eight rows down": (2, "interleaved", "int8", 8, 4, 1), "3 bits": (3, "planar", "int8", 8, 4, 1)}
    for name, of in wanted.items():
        page.get_by_role("button", name=name).click()
        assert shown(page) == facts(*of) and [data(page, name) for name in NAMES] == [str(v) for v in of]


def test_counts_are_told(page: object) -> None:
    for bits in BITS:
        for number, of in NUMBERS.items():
            choose(page, bits=bits, number=number)
            counted = lanes.counted(bits, of)
            words = page.locator(".lb-tile").all_inner_texts()[3]
            assert f"\n{counted['together']['sum']}\n" in words and counted["single"]["sum"] in words
            bars = page.locator(".lb-l-costs").get_attribute("aria-label")
            assert f"words together {counted['together']['sum']}: join" in bars


def test_every_control_has_a_name_and_a_key(page: object) -> None:
    tree = page.locator(".lb-live").aria_snapshot()
    assert not re.search(r"^\s*- (slider|combobox|button|img)(:|$)", tree, re.M), tree
    for name in ("Bits a code", "Order of the columns", "What is multiplied"):
        assert f'combobox "{name}"' in tree, tree
    for control in page.locator(".lb-live :is(input, select)").all():
        before, start = page.locator(".lb-live").inner_html(), control.input_value()
        control.focus()
        page.keyboard.press("ArrowDown")
        if control.input_value() == start:
            page.keyboard.press("ArrowUp")
        assert control.input_value() != start and page.locator(".lb-live").inner_html() != before


@pytest.mark.parametrize("width", [360, 600, 800, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_page(context: object, explorer: live.LayoutExplorer, width: int, dark: bool,
                                        shots: Path | None) -> None:
    with at_width(context, explorer, width, dark, shots, "layout") as page:
        for bits, order, number, plane in ((1, "interleaved", "fp16", 31), (3, "planar", "int8", 31), (8, "planar", "int8", 0),
                                           (3, "interleaved", "fp16", 31), (2, "interleaved", "int8", 7)):
            choose(page, bits=bits, order=order, number=number, plane=plane, row=15, word=63)
            fits(page, width)


def test_it_works_in_jupyterlab(lab: Lab, browser: object, explorer: live.LayoutExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "layout", shots) as tab:
        with key_pressed(tab, "Word"):
            tab.page.wait_for_function("() => document.querySelector('.lb-layout').dataset.word === '6'")
        assert shown(tab.page) == facts(2, "planar", "int8", 0, 6, 1)
