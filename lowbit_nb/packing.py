"""Integer codes in 32-bit words, exactly: one layout for every width, on disk and in the kernels.

A row of d_in codes of `bits` bits is cut into slices.  A full slice is PLANE = 64 words wide and holds E * 64 codes,
E = 32 / bits; the codes lie *plane by plane*, not word by word:

    field j of word w of slice t   <->   column  t * E * 64  +  j * 64  +  w

so that one shift and one mask of 64 neighbouring words give 64 neighbouring columns, in order.  What is left of the row
after the full slices is one last, narrower slice whose plane is ceil(rest / E) words wide; a row that does not fill it
ends in zero codes.  A kernel reads full slices as they lie and needs only the width of the last one.

Three bits are the 2-bit words of each code's low bits followed by the 1-bit words of its high bit: 3.0 bits exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANE = 64
WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # bits -> widths of its parts


def pack(q: Tensor, bits: int) -> Tensor:
    """Put codes into 32-bit words.

    Shapes:  q [d_out, d_in] integers in 0 .. 2**bits - 1; returns [d_out, n_words(d_in, bits)] int32.
    Units:   32 / bits codes a word.
    Raises:  ValueError for a width outside 1..8 or a code outside the range (message names both).
    Source:  planar words, this project; compare the interleaved int32 columns of the GPTQ code.
    Differs: columns that are neighbours in a row are neighbours in a plane, so unpacking needs no shuffle.

    >>> pack(torch.tensor([[1, 2, 3, 0]]), bits=8).tolist()   # one 1-word plane each: 1 + 2*2**8 + 3*2**16
    [[197121]]
    """
    _check_bits(bits)
    if q.numel() and not 0 <= int(q.min()) <= int(q.max()) < 2**bits:
        raise ValueError(f"codes run from {int(q.min())} to {int(q.max())}; {bits} bits hold 0 to {2**bits - 1}")
    parts, shift = [], 0
    for width in WIDTHS[bits]:
        parts.append(_pack_width((q.to(torch.int32) >> shift) & (2**width - 1), width))
        shift += width
    return torch.cat(parts, dim=1)


def unpack(words: Tensor, bits: int, d_in: int) -> Tensor:
    """Take codes out of 32-bit words; the exact inverse of `pack`.

    Shapes:  words [d_out, n_words(d_in, bits)] int32; returns [d_out, d_in] uint8.
    Units:   codes, 0 .. 2**bits - 1.
    Raises:  ValueError if the number of words does not fit d_in and bits (message names all three).
    Source:  planar words, this project.
    Differs: see `pack`.

    >>> unpack(torch.tensor([[197121]], dtype=torch.int32), bits=8, d_in=4).tolist()
    [[1, 2, 3, 0]]
    """
    _check_bits(bits)
    if words.shape[1] != n_words(d_in, bits):
        raise ValueError(f"{words.shape[1]} words a row do not hold d_in={d_in} codes of {bits} bits; "
                         f"{n_words(d_in, bits)} words do")
    q, start, shift = torch.zeros(words.shape[0], d_in, dtype=torch.uint8, device=words.device), 0, 0
    for width in WIDTHS[bits]:
        count = _words(d_in, width)
        q |= _unpack_width(words[:, start : start + count], width, d_in) << shift
        start, shift = start + count, shift + width
    return q


def n_words(d_in: int, bits: int) -> int:
    """How many 32-bit words a packed row takes.

    Shapes:  two ints in, one int out.
    Units:   words of 32 bits.
    Raises:  ValueError for a width outside 1..8.
    Source:  planar words, this project.
    Differs: no difference.

    >>> n_words(256, 2), n_words(256, 3), n_words(100, 2)
    (16, 24, 7)
    """
    _check_bits(bits)
    return sum(_words(d_in, width) for width in WIDTHS[bits])


def slices(d_in: int, width: int) -> list[tuple[int, int]]:
    """The slices of a packed row: (first column, words in its plane), for one part of 1, 2, 4 or 8 bits.

    Shapes:  two ints in; a list with one pair a slice.
    Units:   columns and words.
    Raises:  nothing.
    Source:  planar words, this project.
    Differs: no difference.

    >>> slices(11008, 2)[-2:]
    [(9216, 64), (10240, 48)]
    """
    per_word = 32 // width
    full = d_in // (per_word * PLANE)
    out = [(t * per_word * PLANE, PLANE) for t in range(full)]
    rest = d_in - full * per_word * PLANE
    return out + ([(full * per_word * PLANE, -(-rest // per_word))] if rest else [])


def _words(d_in: int, width: int) -> int:
    return -(-d_in // (32 // width))


def _pack_width(q: Tensor, width: int) -> Tensor:
    d_out, d_in = q.shape
    shifts = torch.arange(0, 32, width, dtype=torch.int32, device=q.device)[:, None]
    out = []
    for first, plane in slices(d_in, width):
        part = q[:, first : first + plane * len(shifts)]
        part = torch.nn.functional.pad(part, (0, plane * len(shifts) - part.shape[1]))
        fields = part.reshape(d_out, len(shifts), plane) << shifts
        out.append(fields.sum(dim=1, dtype=torch.int32))  # the fields do not overlap, so the sum is their union
    return torch.cat(out, dim=1) if out else q.new_zeros(d_out, 0)


def _unpack_width(words: Tensor, width: int, d_in: int) -> Tensor:
    shifts = torch.arange(0, 32, width, dtype=torch.int32, device=words.device)[:, None]
    out, start = [], 0
    for _, plane in slices(d_in, width):
        fields = (words[:, None, start : start + plane] >> shifts) & (2**width - 1)
        out.append(fields.flatten(1))
        start += plane
    return torch.cat(out, dim=1)[:, :d_in].to(torch.uint8) if out else words.new_zeros(words.shape[0], 0, dtype=torch.uint8)


def _check_bits(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"bits={bits!r} cannot be packed; use a whole number from 1 to 8")
