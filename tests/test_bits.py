"""The bit budget: sums, padding, merged lines, and the formulas of the papers."""

from __future__ import annotations

import pytest
import torch

from lowbit_nb.bits import BitBudget, Item, item
from lowbit_nb.grid import Grid
from lowbit_nb.stored import AffineWeight


def budget(d_out: int, d_in: int, grid: Grid) -> BitBudget:
    return AffineWeight.nearest(torch.randn(d_out, d_in), grid).bits()


@pytest.mark.parametrize(
    "bits, group, expected",
    [
        (2, 64, 2 + 18 / 64),
        (2, 128, 2 + 18 / 128),
        (3, 64, 3 + 19 / 64),
        (4, 128, 4 + 20 / 128),
        (1, 32, 1 + 17 / 32),
        (8, 256, 8 + 24 / 256),
    ],
)
def test_without_padding_it_is_the_formula_of_gptq_files(bits, group, expected):
    """b + (16 + b) / g: codes, float16 scales, packed integer zero points."""
    found = budget(64, 256, Grid(bits, group))
    assert found.per_weight == pytest.approx(expected, abs=1e-12) and found.nominal == bits
    assert all(line.padding == 0 for line in found.items)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"symmetric": True}, 2 + 16 / 64),
        ({"zero_inside": False}, 2 + 32 / 64),
        ({"zero_inside": False, "scale_dtype": "float32"}, 2 + 64 / 64),
        ({"scale_dtype": "bfloat16"}, 2 + 18 / 64),
    ],
)
def test_each_kind_of_zero_point_costs_what_it_stores(settings, expected):
    assert budget(64, 256, Grid(2, 64, **settings)).per_weight == pytest.approx(expected, abs=1e-12)


def test_padding_is_counted_and_named():
    """d_in = 100 at 2 bits takes 7 words a row: 224 bits for 200; 3 zero points of 2 bits take one word."""
    lines = {line.name: line for line in budget(3, 100, Grid(2)).items}
    assert lines["codes"] == Item("codes", 300, 2, 3 * 224) and lines["codes"].padding == 72
    assert lines["zeros"] == Item("zeros", 3, 2, 32) and lines["zeros"].padding == 26
    assert lines["scales"] == Item("scales", 3, 16, 48)


def test_a_permutation_is_counted():
    w = AffineWeight.nearest(torch.randn(4, 64), Grid(2, 16))
    with_perm = AffineWeight(w.q, w.s, w.z, w.grid, torch.arange(63, -1, -1))
    assert with_perm.bits().bits == w.bits().bits + 16 * 64
    assert [line.name for line in with_perm.bits().items] == ["codes", "scales", "zeros", "perm"]


def test_adding_sums_every_line_and_the_weights():
    parts = [budget(3, 100, Grid(2)), budget(64, 256, Grid(4, 64)), budget(8, 64, Grid(2, symmetric=True))]
    total = parts[0] + parts[1] + parts[2]
    assert total.bits == sum(p.bits for p in parts) and total.n_weights == 300 + 64 * 256 + 8 * 64
    assert total.bytes == total.bits / 8 and total.per_weight == total.bits / total.n_weights
    for name in ("codes", "scales", "zeros"):
        lines = [line for p in parts for line in p.items if line.name == name]
        merged = next(line for line in total.items if line.name == name)
        assert merged.count == sum(line.count for line in lines) and merged.bits == sum(line.bits for line in lines)
        assert merged.padding == pytest.approx(sum(line.padding for line in lines))
    assert total.nominal == pytest.approx((300 * 2 + 64 * 256 * 4 + 512 * 2) / total.n_weights)


def test_rows_end_in_a_total_that_is_the_sum():
    found = budget(3, 100, Grid(3)) + budget(4, 64, Grid(3))
    *rows, total = found.rows()
    assert [row["item"] for row in rows] == ["codes", "scales", "zeros"] and total["item"] == "total"
    for column in ("padding bits", "bits", "bits/weight"):
        assert total[column] == pytest.approx(sum(row[column] for row in rows))
    assert total["bits/weight"] == found.per_weight


def test_an_item_measures_the_tensor_and_not_a_formula():
    assert item("scales", torch.zeros(5, dtype=torch.float32), 5, 16) == Item("scales", 5, 16, 160)
    assert item("scales", torch.zeros(5, dtype=torch.float32), 5, 16).padding == 80
