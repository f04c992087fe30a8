"""A packed weight in full slices: what the kernels for long rows ask of a weight, and how it is made ready for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit_nb import packing
from lowbit_nb.kernels import tiles

BLOCK = 64  # rows of a weight are padded to a multiple of this


def fits(d_out: int, d_in: int, group: int | None) -> bool:
    """Whether groups are whole planes: a multiple of 64 columns that divides d_in, or one scale a row.

    Shapes:  ints; group None or d_in: a scale a row.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return d_out > 0 and d_in > 0 and (group in (None, d_in) or (group % 64 == 0 and d_in % group == 0))


def count(d_in: int, bits: int) -> int:
    """How many slices a row has.

    Shapes:  ints.
    Units:   slices.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return -(-d_in // tiles.WIDTHS[bits])


def full(words: Tensor, bits: int, d_in: int) -> Tensor:
    """Words whose rows are full slices, and whose rows are a multiple of 64.

    Shapes:  words [d_out, n_words(d_in, bits)] int32 of `packing.pack`; returns [padded d_out, full words].
    Units:   packed codes; what is added is zero codes.
    Raises:  nothing.
    Source:  this project.
    Differs: a copy only where a row ends in a narrower slice, or rows are not a multiple of 64.
    """
    padded = count(d_in, bits) * tiles.WIDTHS[bits]
    if padded != d_in:
        words = packing.pack(pad(packing.unpack(words, bits, d_in), (0, padded - d_in)), bits)
    more = -len(words) % BLOCK
    return (pad(words, (0, 0, 0, more)) if more else words).contiguous()  # padding by nothing would copy


def spread(t: Tensor, bits: int, d_in: int, group: int, seg: int) -> Tensor:
    """A number a group as a number for every `seg` columns, zero behind the last column and the last row.

    Shapes:  t [d_out, n_groups]; returns [n_slices, scales of a slice, padded d_out] float32.
    Units:   those of t.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    n = count(d_in, bits)
    start = torch.arange(0, n * tiles.WIDTHS[bits], seg, device=t.device)
    t = t.float()[:, (start // group).clamp(max=t.shape[1] - 1)] * (start < d_in)
    return pad(t, (0, 0, 0, -len(t) % BLOCK)).t().reshape(n, tiles.WIDTHS[bits] // seg, -1)
