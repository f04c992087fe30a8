"""Exercises of 02_packing: padding, the place of a column, multiplying without unpacking."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lowbit_nb import packing


def padding(attempt: Callable) -> None:
    """Against the words that the package makes."""
    for bits in (2, 4, 1, 8, 3):
        why = "3 bits are two kinds of words" if bits == 3 else f"a word has room for {32 // bits} codes"
        for d_in in (256, 100, 1, 33, 1100):
            want, got = 32 * packing.n_words(d_in, bits) - bits * d_in, attempt(d_in, bits)
            assert got == want, f"{d_in} codes of {bits} bits: {got} instead of {want} bits of padding; {why}"


def place(attempt: Callable) -> None:
    """Pack a row that is zero but for one column, and look where the bits are."""
    for width in (2, 8, 1, 4):
        for d_in in (64, 100, 300, 1100, 2500):
            for column in sorted({0, 1, d_in // 3, d_in // 2, d_in - 2, d_in - 1}):
                row = torch.zeros(1, d_in, dtype=torch.int32)
                row[0, column] = 1
                words = packing.pack(row, width)[0]
                word = int(words.nonzero())
                want = (word, (int(words[word]) & 0xFFFFFFFF).bit_length() - 1)
                last = " in the last slice" if column >= packing.slices(d_in, width)[-1][0] else ""
                got = attempt(column, d_in, width)
                case = f"column {column} of {d_in} at width {width}{last}"
                assert tuple(got or ()) == want, f"{case}: (word, shift) is {want}, not {got}"


def dot(attempt: Callable) -> None:
    """Against the dequantized weight times the input."""
    g = torch.Generator().manual_seed(0)
    for d_out, d_in in [(3, 64), (8, 256), (5, 768)]:
        q = torch.randint(0, 4, (d_out, d_in), generator=g)
        x, s = torch.randn(d_in, generator=g), torch.rand(d_out, generator=g) + 0.5
        words = packing.pack(q, 2)
        zeros = torch.randint(1, 4, (d_out,), generator=g).float()
        for z, why in [(0 * zeros, "which columns does field j hold?"), (zeros, "the zero point")]:
            want, got = s * ((q - z[:, None]) @ x), attempt(words.clone(), x.clone(), s.clone(), z.clone())
            assert got.shape == want.shape, f"y has shape {tuple(got.shape)}, not {tuple(want.shape)}"
            gap = float((got - want).abs().max())
            assert gap < 1e-2, f"d_in={d_in}: y is off by up to {gap:.3g} with z = {z[0]:.0f}; {why}"


EXERCISES = {"packing-1": padding, "packing-2": place, "packing-3": dot}
