"""Planar words: exact for every width and every row length, at the documented places, as dense as promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit_nb.packing import WIDTHS, n_words, pack, slices, unpack
from tests.reference import field_of

BITS = range(1, 9)
LENGTHS = [
    1,
    2,
    3,
    31,
    32,
    33,
    63,
    64,
    65,
    100,
    127,
    128,
    255,
    256,
    257,
    511,
    512,
    513,
    768,
    1000,
    1023,
    1024,
    1025,
    2047,
    2048,
    2049,
    2304,
    4096,
    4097,
    5000,
]


def random_codes(d_out: int, d_in: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**bits, (d_out, d_in), generator=torch.Generator().manual_seed(seed))


def code_by_hand(words: list[int], bits: int, column: int, d_in: int) -> int:
    """The code of one column, put together from its parts with Python integers."""
    value, shift = 0, 0
    for width in {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}[bits]:
        value |= field_of(words, width, column, d_in) << shift
        words, shift = words[-(-d_in // (32 // width)) :], shift + width
    return value


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("d_in", LENGTHS)
def test_unpacking_gives_back_every_code(bits, d_in):
    q = random_codes(3, d_in, bits)
    words = pack(q, bits)
    assert words.dtype == torch.int32 and words.shape == (3, n_words(d_in, bits))
    back = unpack(words, bits, d_in)
    assert back.dtype == torch.uint8 and torch.equal(back.long(), q)


@given(st.integers(1, 8), st.integers(1, 4500), st.integers(0, 2**31))
def test_every_code_lies_at_its_documented_place(bits, d_in, seed):
    q = random_codes(1, d_in, bits, seed)
    words = pack(q, bits)[0].tolist()
    columns = range(d_in) if d_in < 300 else sorted({0, d_in - 1, *torch.randint(0, d_in, (100,)).tolist()})
    assert [code_by_hand(words, bits, c, d_in) for c in columns] == [int(q[0, c]) for c in columns]


@pytest.mark.parametrize("bits", BITS)
def test_one_code_changes_one_word_a_part_and_rows_do_not_mix(bits):
    base = torch.zeros(2, 150, dtype=torch.int64)
    one = base.clone()
    one[1, 149] = 2**bits - 1
    changed = (pack(base, bits) != pack(one, bits)).nonzero().tolist()
    assert len(changed) == len(WIDTHS[bits]) and {row for row, _ in changed} == {1}


@pytest.mark.parametrize("bits", BITS)
def test_padding_is_zero_and_no_wider_than_a_word_a_field(bits):
    for d_in in LENGTHS:
        words = pack(torch.full((1, d_in), 2**bits - 1), bits)
        ones = sum(bin(w % 2**32).count("1") for w in words[0].tolist())
        assert ones == bits * d_in  # every field holds one code or zero
        assert 0 <= 32 * words.shape[1] - bits * d_in < 32 * len(WIDTHS[bits])
        if d_in % 32 == 0:
            assert 32 * words.shape[1] == bits * d_in


def test_golden_words():
    """Written by hand from the documented layout; a change of layout must not go unseen."""
    q = torch.arange(100).remainder(4)[None]  # 2 bits, 16 fields, one slice with a plane of ceil(100 / 16) = 7 words
    fields = [[(7 * j + w) % 4 if 7 * j + w < 100 else 0 for j in range(16)] for w in range(7)]
    by_hand = [sum(f << 2 * j for j, f in enumerate(word)) for word in fields]
    assert [w % 2**32 for w in pack(q, 2)[0].tolist()] == by_hand
    assert pack(torch.ones(1, 32, dtype=torch.int64), 1).tolist() == [[-1]]
    assert pack(torch.tensor([[5, 2, 7]]), 3).tolist() == [[1 + (2 << 2) + (3 << 4), 1 + (0 << 1) + (1 << 2)]]
    assert pack(torch.tensor([[0xAB, 0xCD, 0xEF]]), 8).tolist() == [[0xEFCDAB]]
    assert pack(torch.tensor([[255, 1, 0, 2, 3, 4, 128, 5]]), 8).tolist() == [
        [255 | 3 << 16 | -128 << 24, 1 | 2 << 8 | 4 << 16 | 5 << 24]
    ]
    assert pack(torch.tensor([[9, 3, 12]]), 4).tolist() == [[9 + (3 << 4) + (12 << 8)]]


def test_golden_words_of_two_slices():
    """4 bits: slices of 8 * 64 = 512 columns. Column 512 + c of a 520-column row lies in the last slice: one word."""
    q = torch.zeros(1, 520, dtype=torch.int64)
    q[0, 0], q[0, 63], q[0, 64], q[0, 511], q[0, 512], q[0, 519] = 1, 2, 3, 4, 5, 6
    words = [w % 2**32 for w in pack(q, 4)[0].tolist()]
    expected = [0] * 65
    expected[0] = 1 | 3 << 4  # columns 0 (plane 0) and 64 (plane 1)
    expected[63] = 2 | 4 << 28  # columns 63 (plane 0) and 511 = 7 * 64 + 63 (plane 7)
    expected[64] = 5 | 6 << 28  # columns 512 and 519 of a plane of one word
    assert words == expected


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_full_slices_are_the_planar_words_that_kernels_read(bits):
    """word w of K-slice t, field j  <->  k = t * E * BW + j * BW + w with BW = 64, row-major: a shift and a mask."""
    fields = 32 // bits
    d_in = 3 * fields * 64
    q = random_codes(5, d_in, bits)
    words = pack(q, bits).reshape(5, 3, 64)
    planes = torch.stack([(words >> bits * j) & (2**bits - 1) for j in range(fields)], dim=2)  # [rows, slices, fields, 64]
    assert torch.equal(planes.reshape(5, d_in).long(), q)


def test_three_bits_are_two_tensors_side_by_side():
    q = random_codes(4, 2048 * 2, 3)
    words = pack(q, 3)
    low, high = words[:, : 4096 // 16], words[:, 4096 // 16 :]
    assert torch.equal(low, pack(q & 3, 2)) and torch.equal(high, pack(q >> 2, 1))


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_slices_tile_the_row(width):
    for d_in in LENGTHS:
        covered = [first + k for first, plane in slices(d_in, width) for k in range(plane * (32 // width))]
        assert covered[:d_in] == list(range(d_in)) and len(covered) - d_in < 32 // width
        assert all(plane == 64 for _, plane in slices(d_in, width)[:-1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_codes_of_any_integer_type_and_layout(dtype):
    q = random_codes(70, 9, 3).to(dtype)
    assert torch.equal(pack(q.T, 3), pack(q.T.contiguous(), 3))
    assert torch.equal(unpack(pack(q, 3), 3, 9).to(dtype), q)


@pytest.mark.parametrize("bits", BITS)
def test_codes_out_of_range_are_refused(bits):
    for bad in (-1, 2**bits):
        with pytest.raises(ValueError, match=rf"codes run from .*{bad}.*; {bits} bits hold 0 to {2**bits - 1}"):
            pack(torch.tensor([[0, bad, 0]]), bits)


@pytest.mark.parametrize("bits", [0, 9, 16, -1])
def test_unknown_widths_are_refused(bits):
    for call in (
        lambda: pack(torch.zeros(1, 4, dtype=torch.int64), bits),
        lambda: unpack(torch.zeros(1, 1, dtype=torch.int32), bits, 4),
        lambda: n_words(4, bits),
    ):
        with pytest.raises(ValueError, match=f"bits={bits} cannot be packed; use a whole number from 1 to 8"):
            call()


def test_words_that_do_not_fit_the_row_are_refused():
    words = pack(random_codes(2, 100, 2), 2)
    for wrong in (words[:, :-1], torch.cat([words, words[:, :1]], 1)):
        with pytest.raises(
            ValueError,
            match=rf"{wrong.shape[1]} words a row do not hold d_in=100 codes of 2 bits; 7 words do",
        ):
            unpack(wrong, 2, 100)
