"""The roofline explorer without kernel or network, and in JupyterLab: the package's numbers, controls, keys, clicks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from browser_lab import Lab, in_jupyterlab, key_pressed
from browser_pages import at_width, choose, data, fits, made, opened, told

from lowbit_nb import live
from lowbit_nb.live.roofline_model import BITS, MACHINES, OWN, Roofline
from lowbit_nb.tables import digits

SOURCE = """from lowbit_nb import live
times = {"library": {16: 115.2}, "a kernel": {4: 38.8, 2: 30.5, 1: 26.1}}
times |= {"another": {4: 69.2, 2: 68.1, 1: 66.7}, "books": {2.3: 50}}
points = [dict(d_out=8192, d_in=28672, bits=b, batch=1, us=t, name=n) for n, of in times.items() for b, t in of.items()]
points.append(dict(d_out=1000, d_in=3000, bits=2, batch=3, us=9, name="a kernel"))
live.roofline_explorer(points, kernels={"mine": {8: 3, 4: 2.5, 3: 4, 2: 2, 1: 1.5}}, name="one card")"""
SHAPES = ((8192, 28672), (4096, 11008), (1000, 3000), (64, 64))


@pytest.fixture(scope="module")
def explorer() -> live.RooflineExplorer:
    return made(SOURCE)


def readout(page: object) -> str:
    return page.locator(".lb-readout").inner_text().replace("\xa0", " ")


def numbers(words: str) -> list[float]:
    return [float(w) for w in words.split(",") if w]


def is_model(said: dict[str, str], r: Roofline) -> None:
    """What the page says of a setting is what the package says."""
    for name, of in {**r.bytes, **{k: getattr(r, k) for k in ("stored", "slots", "budget", "floor", "issue", "time")}}.items():
        assert float(said[name]) == pytest.approx(of, rel=1e-12, abs=1e-12), (name, r)
    assert said["binds"] == r.binds and said["verdict"] == r.verdict, r
    assert numbers(said["crossings"]) == pytest.approx(r.crossings, rel=1e-9)
    assert numbers(said["faster"]) == pytest.approx(list(r.faster.values()), rel=1e-12)


def test_every_number_is_the_packages(page: object, explorer: live.RooflineExplorer) -> None:
    rates = {m["name"]: m["slots"] for m in explorer.machines}
    kernels = [*explorer.model.kernels, OWN]
    cards = [("NVIDIA H200", 4.27, 2.1, 2.0), ("NVIDIA RTX 4090", 1.0, 0.0, 0.3), ("NVIDIA A100 80 GB", 8.0, 5.0, 9.0)]
    scales = [(128, False), (32, True), (0, True), (256, False), (64, False)]
    names = ("d_out", "d_in", "bits", "kernel", "group", "zeros", "batch", "machine", "bandwidth", "launch", "own")
    family = [
        dict(zip(names, (*shape, bits, kernel, *scale, batch, *card), strict=True))
        for (shape, bits, kernel), scale, batch, card in zip(
            itertools.product(SHAPES, BITS, kernels), itertools.cycle(scales), itertools.cycle([1, 8, 2, 3, 9, 16, 64]),
            itertools.cycle(cards), strict=False)
    ]
    assert len(family) == 4 * 7 * 4
    for state, said in zip(family, told(page, family), strict=True):
        given = {k: v for k, v in state.items() if k != "machine"}
        is_model(said, Roofline(**given, rate=rates[state["machine"]], kernels=explorer.model.kernels))


def test_it_opens_on_the_answer(page: object, explorer: live.RooflineExplorer) -> None:
    r = explorer.model
    tiles = page.locator(".lb-tile").all_inner_texts()
    values = (f"{digits(sum(r.bytes.values()) / 1e6)} MB", *(f"{digits(t)} µs" for t in (r.floor, r.issue, r.time)))
    notes = ("1.125 bits a weight", "time for 1.10 slots", "8.66 slots a weight, plain unpacking", "limit: instructions")
    for tile, value, note in zip(tiles, values, notes, strict=True):
        assert f"\n{value}\n" in tile.replace("\xa0", " ") and note in tile.replace("\xa0", " ")
    assert readout(page) == (
        "Instructions limit this kernel at every width. Against 4 bits: 4.00 times fewer bits, 3.66 times fewer bytes, 1.07 "
        "times as fast with the instructions counted, 1.07 with the launch. Measured: a kernel 26.1 µs, 3.37 times the floor; "
        "another 66.7 µs, 8.60 times the floor.")
    bars = page.get_by_role("img", name="times as fast as 4 bits")
    assert bars.locator(".lb-rf-bar").count() == 6 and "measured: a kernel 1.49" in bars.get_attribute("aria-label")


def test_points_of_this_shape_and_batch_are_drawn(page: object) -> None:
    points = page.locator(".lb-rf-both > div:first-child > svg .lb-rf-point")
    assert points.count() == 8
    low, high = (points.nth(i).bounding_box() for i in (3, 0))  # 26.1 and 115 us
    assert low["y"] > high["y"] and low["x"] < high["x"]
    choose(page, batch=2)
    assert points.count() == 0 and "Nothing was measured at 8192 × 28672, batch 2, 1 bit." in readout(page)
    choose(page, d_out=1000, d_in=3000, batch=3, bits=2)
    assert points.count() == 1 and "a kernel 9.00 µs" in readout(page)


def test_a_point_lies_where_its_numbers_are(page: object, explorer: live.RooflineExplorer) -> None:
    """Against the marks of two axis labels, both axes logarithmic."""
    ticks = {t.text_content(): (float(t.get_attribute("x")), float(t.get_attribute("y")))
             for t in page.locator(".lb-rf-both > div:first-child > svg > text").all()}
    (x4, _), (x8, _), (_, y10), (_, y100) = (ticks[k] for k in ("4", "8", "10", "100"))
    ring = page.locator(".lb-rf-both > div:first-child > svg .lb-rf-ring")
    cx, cy = (float(ring.get_attribute(k)) for k in ("cx", "cy"))
    r = explorer.model
    assert cx == pytest.approx(x4 + (x8 - x4) * math.log2(r.stored / 4), abs=0.2)
    assert cy == pytest.approx(y10 - 4 + (y100 - y10) * math.log10(r.time / 10), abs=0.2)


def test_controls_change_the_setting(page: object) -> None:
    by = lambda name: page.get_by_label(name, exact=True)  # noqa: E731
    by("Shape, out × in").select_option("14336 4096")
    assert (by("Rows, out").input_value(), by("Columns, in").input_value()) == ("14336", "4096")
    by("Columns, in").fill("8192")
    assert by("Shape, out × in").input_value() == "free" and by("Shape, out × in").locator("[value=free]").is_disabled()
    for name, value in (("Batch", "8"), ("Bandwidth", "2"), ("Launch", "0.5")):
        by(name).fill(value)
    for name, value in (("Bits", "2"), ("A scale for each", "64"), ("Zero points", "yes"), ("Kernel", "tensor cores")):
        by(name).select_option(value)
    r = Roofline(14336, 8192, 2, 64, True, 8, "tensor cores", 2.0, MACHINES[0].slots, 0.5)
    assert float(data(page, "time")) == pytest.approx(r.time)
    by("Own count").fill("3.5")
    assert by("Kernel").input_value() == OWN and float(data(page, "slots")) == 3.5
    by("Machine").select_option("NVIDIA A100 80 GB")
    assert float(by("Bandwidth").input_value()) == pytest.approx(2.04, abs=0.011)
    assert "data sheet, not measured" in page.locator(".lb-rf-source").inner_text()
    by("Bits").select_option("16")
    assert by("A scale for each").is_disabled() and by("Zero points").is_disabled() and not by("Kernel").is_disabled()
    by("Kernel").select_option("plain unpacking")
    assert by("Kernel").is_disabled() and "nothing to unpack" in page.locator(".lb-tile").nth(2).inner_text()


def test_settings_to_try(page: object) -> None:
    for name, kernel, batch, binds in (("1 bit, tensor cores", "tensor cores", 1, "memory"),
                                       ("1 bit, tensor cores, batch 16", "tensor cores", 16, "instructions"),
                                       ("1 bit, plain", "plain unpacking", 1, "instructions")):
        page.get_by_role("button", name=name, exact=True).click()
        [said] = told(page, [{}])
        is_model(said, Roofline(8192, 28672, 1, kernel=kernel, batch=batch))
        assert data(page, "binds") == binds
        assert page.locator(".lb-rf-cross").count() == (batch == 16)
    page.get_by_role("button", name="a card with less bandwidth").click()
    card = MACHINES[2]
    assert float(data(page, "floor")) == pytest.approx(Roofline(8192, 28672, 1, bandwidth=card.bandwidth).floor)
    page.get_by_role("button", name="a small layer").click()
    assert page.get_by_label("Shape, out × in", exact=True).input_value() == "4096 4096"


def test_every_control_has_a_name_and_answers_keys(page: object) -> None:
    names = page.locator(".lb-controls label").all_inner_texts()
    assert len(names) == 12 == len(set(names)) == page.locator(".lb-controls :is(input, select)").count()
    batch = page.get_by_label("Batch", exact=True)
    batch.focus()
    for key, wanted in (("ArrowRight", "2"), ("End", "64"), ("Home", "1")):
        page.keyboard.press(key)
        assert batch.input_value() == wanted == batch.get_attribute("aria-valuetext")
    page.get_by_label("Bits", exact=True).focus()
    page.keyboard.press("ArrowUp")
    assert page.get_by_label("Bits", exact=True).input_value() == "1.61"
    assert float(data(page, "stored")) == pytest.approx(1.603, abs=0.001)


def test_a_click_in_the_picture_chooses_a_width(page: object) -> None:
    for i, bits in ((0, "16"), (2, "4"), (5, "1.61")):
        page.get_by_role("img", name="time against bits").locator(".lb-click").nth(i).click()
        assert page.get_by_label("Bits", exact=True).input_value() == bits


@pytest.mark.parametrize("width", [360, 600, 800, 1000, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off(context: object, explorer: live.RooflineExplorer, width: int, dark: bool,
                            shots: Path | None) -> None:
    with at_width(context, explorer, width, dark, shots, "roofline") as page:
        for state in ({}, {"kernel": "tensor cores", "batch": 8}, {"kernel": OWN, "bits": 16.0},
                      {"d_out": 1000, "d_in": 3000, "batch": 3, "bits": 2.0, "launch": 0.0},
                      {"d_out": 32768, "d_in": 32768, "batch": 64, "bandwidth": 0.1, "launch": 10.0, "zeros": True,
                       "group": 32}):
            choose(page, **state)
            fits(page, width)


def test_without_points_the_model_is_shown(context: object) -> None:
    page, problems = opened(context, live.roofline_explorer(bits=2, kernel="tensor cores", batch=16))
    assert page.locator(".lb-rf-point").count() == 0 and "easured" not in page.locator(".lb-readout").inner_text()
    assert page.locator(".lb-rf-cross").count() == 1 and "cross at 1.32" in page.locator(".lb-rf-both").inner_text()
    assert not problems
    page.close()


def test_in_jupyterlab(lab: Lab, browser: object, explorer: live.RooflineExplorer, shots: Path | None) -> None:
    with in_jupyterlab(lab, browser, explorer, SOURCE, "roofline", shots) as tab:
        with key_pressed(tab, "Batch"):
            pass
        wanted = Roofline(8192, 28672, 1, batch=2, kernel="plain unpacking")
        assert float(data(tab.page, "issue")) == pytest.approx(wanted.issue)
