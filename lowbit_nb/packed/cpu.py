"""Packed words as the CPU's lanes want them: runs of equal planes, each with its scales.

A row of words falls into segments: for every part of the width (3 bits are 2 and 1) the full slices as they lie, and the last,
narrower slice.  In a segment all planes are equally wide, and `together` neighbouring planes share a scale:

    field j of word w of slice t   <->   column  first + (t * E + j) * plane + w          E = 32 / width

Where groups do not fit the planes on disk, words are laid out anew in narrower planes (once; such a copy is not stored).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lowbit_nb import packing
from lowbit_nb.packed.planar import Planar

PLANES = (64, 32, 16)  # words a plane may have once laid out anew; 16 is one AVX-512 register


@dataclass(frozen=True)
class Segment:
    """Slices of equal planes.

    words     [d_out, slices * plane] int32, rows may lie apart      width  bits of a field
    first     the column of field 0 of word 0                        plane  words in a plane
    together  planes that share a scale                              s      [d_out, slices * E / together] float32

    Source: this project. Differs: no difference.
    """

    words: Tensor
    width: int
    first: int
    plane: int
    together: int
    s: Tensor

    @property
    def columns(self) -> int:
        return self.words.shape[1] * (32 // self.width)


@dataclass(frozen=True)
class Prepared:
    """All segments of a weight, and what its rulers add for sums of inputs: y = offset @ (sums of x by group) + segments.

    Source: this project. Differs: no difference.
    """

    segments: tuple[Segment, ...]
    offset: Tensor  # [d_out, n_groups]
    group: int
    reach: int  # columns of x that segments read; those from d_in on are zero


def fits(planar: Planar) -> bool:
    """Whether the CPU's lanes take a weight: one ruler a row, or groups of a multiple of 16 columns.

    Shapes:  a planar operand.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return planar.s.shape[1] == 1 or planar.group % PLANES[-1] == 0


def prepare(planar: Planar) -> Prepared:
    """Segments and offsets, made at the first call and kept with the weight.

    Shapes:  a planar operand.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    made = planar.prepared.get("cpu")
    if made is None:
        segments = tuple(_segments(planar))
        reach = max(segment.first + segment.columns for segment in segments)
        made = planar.prepared["cpu"] = Prepared(segments, planar.offset.contiguous(), planar.group, reach)
    return made


def product(x: Tensor, planar: Planar, add: Callable[[Segment, Tensor, Tensor], None]) -> Tensor:
    """x @ W_hat.T, with a lane's own way to add a segment's product.

    Shapes:  x [n, d_in]; add(segment, x [n, reach] float32, y [n, d_out] float32); returns [n, d_out] float32.
    Units:   those of the layer's output.
    Raises:  as the lane.
    Source:  the order of work of `stored.grouped_matvec`.
    Differs: no difference.
    """
    made = prepare(planar)
    n_groups = made.offset.shape[1]
    x = torch.nn.functional.pad(x.float(), (0, max(made.reach, n_groups * made.group) - x.shape[1])).contiguous()
    sums = x[:, : n_groups * made.group].reshape(len(x), n_groups, made.group).sum(2)
    y = sums @ made.offset.T
    for segment in made.segments:
        add(segment, x, y)
    return y


def by_rows(work: Callable[[int, int], None], rows: int) -> None:
    """Do rows first .. last - 1 in as many threads as torch uses; `work` must release Python's lock.

    Threads of Python, not of OpenMP: a second pool beside torch's would wait for a busy core.

    Shapes:  work(first, last).
    Units:   none.
    Raises:  as `work`.
    Source:  this project.
    Differs: no difference.
    """
    n = min(torch.get_num_threads(), max(1, rows // 256))
    if n == 1:
        return work(0, rows)
    cuts = [rows * i // n for i in range(n + 1)]
    list(_pool(n).map(work, cuts[:-1], cuts[1:]))


@cache
def _pool(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)


def _segments(planar: Planar) -> Iterator[Segment]:
    """Full slices and the last one, for every part of the width."""
    start = shift = 0
    for width in packing.WIDTHS[planar.bits]:
        per_word = 32 // width
        cut = packing.slices(planar.d_in, width)
        wide = sum(plane for _, plane in cut)
        words = planar.words[:, start : start + wide]
        full = sum(plane == packing.PLANE for _, plane in cut) * packing.PLANE
        for first, piece in ((0, words[:, :full]), (full * per_word, words[:, full:])):
            if piece.shape[1]:
                yield _segment(planar, piece, width, shift, first, packing.PLANE if first == 0 and full else piece.shape[1])
        start, shift = start + wide, shift + width


def _segment(planar: Planar, words: Tensor, width: int, shift: int, first: int, plane: int) -> Segment:
    group = planar.d_in if planar.s.shape[1] == 1 else planar.group
    whole = planar.s.shape[1] == 1
    if plane % PLANES[-1] or not (whole or (group % plane == 0 and first % plane == 0)):
        wanted = next(p for p in PLANES if whole or group % p == 0)
        words, plane = _anew(words, width, plane, wanted), wanted
    per_word = 32 // width
    together = next(p for p in (per_word, 8, 4, 2, 1) if p <= per_word and
                    (whole or (group % (p * plane) == 0 and first % (p * plane) == 0)))
    n_scales = words.shape[1] // plane * per_word // together
    at = (first + torch.arange(n_scales) * together * plane) // (planar.d_in if whole else group)
    s = planar.s.float()[:, at.clamp(max=planar.s.shape[1] - 1)] * 2.0**shift
    return Segment(words, width, first, plane, together, s.contiguous())


def _anew(words: Tensor, width: int, plane: int, wanted: int) -> Tensor:
    """The same codes in planes of another width; a last slice that is not full ends in zero codes."""
    per_word = 32 // width
    shifts = torch.arange(0, 32, width, dtype=torch.int32)[:, None]
    fields = (words.reshape(len(words), -1, 1, plane) >> shifts) & (2**width - 1)
    q = fields.reshape(len(words), -1)
    q = torch.nn.functional.pad(q, (0, -q.shape[1] % (per_word * wanted)))
    return (q.reshape(len(q), -1, per_word, wanted) << shifts).sum(2, dtype=torch.int32).flatten(1).contiguous()
