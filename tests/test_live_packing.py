"""The packing explorer shows the words that the package packs; its stored pictures say so in numbers."""

from __future__ import annotations

import re

import pytest
import torch

from lowbit_nb import packing
from lowbit_nb.live import packings


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("d_in", packings.SIZES)
def test_places_are_those_of_the_package(bits, d_in):
    q = torch.randint(0, 2**bits, (1, d_in), generator=torch.Generator().manual_seed(d_in))
    words, start = packing.pack(q, bits)[0].tolist(), 0
    found = [0] * d_in
    for part in packings.parts(bits, d_in):
        for field, row in enumerate(part.where):
            for word, column in enumerate(row):
                if column >= 0:
                    code = (words[start + word] >> (field * part.width)) & (2**part.width - 1)
                    found[column] |= code << part.low
        start += part.n_words
    assert start == len(words) and found == q[0].tolist()


@pytest.mark.parametrize("layout", packings.LAYOUTS)
def test_every_column_has_one_place(layout):
    for part in packings.parts(3, 1100, layout):
        columns = [c for row in part.where for c in row if c >= 0]
        assert sorted(columns) == list(range(1100))
        assert part.padding == part.n_words * 32 - part.width * 1100


def test_one_shift_gives_neighbours_only_in_planes():
    planar, interleaved = (packings.parts(2, 256, layout)[0] for layout in packings.LAYOUTS)
    assert packings.run_of(planar, 200) == "columns 192 to 207, in order"
    assert packings.run_of(interleaved, 200) == "columns 8, 24, 40, … 248, every 16th"


def test_fallback_has_four_small_pictures_with_words():
    explorer = packings.packing_explorer(bits=2, d_in=256, column=200)
    assert explorer.fallback.count("<details") == 4
    assert all("bits 2" in alt or "word" in alt for alt in re.findall(r'alt="([^"]+)"', explorer.fallback))
    assert "bits 24 to 25 of 2-bit word 8" in explorer.alt
    assert len(explorer.fallback) < 200_000


@pytest.mark.parametrize("bad", [{"bits": 9}, {"d_in": 0}, {"layout": "woven"}, {"column": 256}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="use "):
        packings.packing_explorer(**bad)
