"""Products with codebook weights straight from packed indices: every index fetches the v numbers of its vector.

    y[m, r v + i] = sum_c x[m, c] (s_c (C[idx[r, c], i] + C_res[idx_res[r, c], i]) + m_c)

A program takes a few rows of pieces from the first column to the last; nobody else writes its outputs, so the same bits every
time.  Vectors come from the codebook through the cache: one of 4096 vectors stays in a multiprocessor's own, one of 65536 does
not, and then the traffic is 32 bytes a piece however few bits the index has.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_nb.kernels import together
from lowbit_nb.kernels.together import anywhere, indices

LANES = 256  # columns a program takes at once, at most 256: the narrowest slice
SUMS = 8  # running vectors of a lane: rows of pieces that share what is read of x, times rows of x that share a vector
TOKENS = 8  # rows of x that share a vector, at most
MANY = 4  # rows of x in half precision from which on tensor cores are the faster way


class Stage(NamedTuple):
    """Planes of indices and the codebooks they point into.

    planes  one or two [R, n_words] int32, at most eight bits each, low bits first        bits  of an index
    C       [n_groups, k, padded] float16, a vector's numbers filled up to a power of two   v    how many of them count

    Source: this project. Differs: no difference.
    """

    planes: tuple[Tensor, ...]
    bits: int
    C: Tensor
    v: int


class Operand(NamedTuple):
    """A codebook weight ready for `product`.

    parts   (main, residual or None, columns or None, first vector of each column's codebook or None), one a set of columns
    scale, bias   [d_in] or None

    Source: this project. Differs: no difference.
    """

    d_out: int
    d_in: int
    parts: tuple[tuple[Stage, Stage | None, Tensor | None, Tensor | None], ...]
    scale: Tensor | None
    bias: Tensor | None


def operand(tensors: dict[str, Tensor], meta: dict) -> Operand:
    """What `product` needs, from the tensors of a `VectorWeight` as they lie on disk; indices stay packed as they are.

    Shapes:  as `VectorWeight.pack` and `VectorWeight.meta`.
    Units:   as there.
    Raises:  KeyError if a tensor is missing.
    Source:  this project.
    Differs: no difference.
    """
    label = tensors.get("label")
    groups, d_in = meta["main_shape"][0], meta["d_in"]
    inliers, offset, outliers = None, None, None
    if label is not None:
        label = _labels(label, max(1, groups.bit_length()), d_in)
        inliers, outliers = (mask.nonzero()[:, 0].to(torch.int32) for mask in (label > 0, label == 0))
        offset = ((label[inliers.long()] - 1) * meta["main_shape"][1]).to(torch.int32) if groups > 1 else None
    second = _stage(tensors, "residual_", meta["residual_shape"]) if "residual_shape" in meta else None
    if second is not None and offset is not None:
        offset = torch.stack([offset, (label[inliers.long()] - 1).to(torch.int32) * meta["residual_shape"][1]])
    elif offset is not None:
        offset = offset[None]
    parts = [(_stage(tensors, "", meta["main_shape"]), second, inliers, offset)]
    if "outlier_shape" in meta:
        parts.append((_stage(tensors, "outlier_", meta["outlier_shape"]), None, outliers, None))
    return Operand(meta["d_out"], d_in, tuple(parts), tensors.get("scale"), tensors.get("bias"))


def product(x: Tensor, operand: Operand, dtype: torch.dtype | None = None) -> Tensor:
    """x @ W_hat.T from packed indices and codebooks.

    Shapes:  x [M, d_in]; returns [M, d_out] in `dtype`, that of x unless named.
    Units:   those of the layer's output; sums in float32.
    Raises:  ValueError if x has not d_in columns.
    Source:  VPTQ code (csrc: gemv), AQLM's kernels (large codebooks past the first cache).
    Differs: deterministic; any number of index bits, outlier columns and groups.
    """
    if x.shape[1] != operand.d_in:
        raise ValueError(f"x has {x.shape[1]} columns; the weight has {operand.d_in}")
    x, y = x.contiguous(), None
    many = MANY <= len(x) <= together.MOST and x.dtype != torch.float32
    for i, part in enumerate(operand.parts):
        last = i == len(operand.parts) - 1
        if i == 0 and many and (step := _fast_step(*part[:2])):
            y = together.product(x, operand, part, step, (dtype or x.dtype) if last else torch.float32)
            continue
        y = _launch(x, operand, part, y, (dtype or x.dtype) if last else torch.float32)
    return y


def _launch(x: Tensor, o: Operand, part: tuple, base: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The product of one set of columns, added to what is there."""
    main, second, columns, offset = part
    M, rows, n = len(x), len(main.planes[0]), o.d_in if columns is None else len(columns)
    y = torch.empty(M, o.d_out, dtype=dtype, device=x.device)
    tokens = min(TOKENS, triton.next_power_of_2(M))
    at_once = min(2, max(1, SUMS // tokens))
    res = second or main
    w = [main.planes[0], main.planes[-1], res.planes[0], res.planes[-1]]
    step = _fast_step(main, second)
    _gather[(triton.cdiv(rows, at_once), triton.cdiv(M, tokens))](
        x, o.scale, o.bias, columns, offset, *w, main.C, res.C, base, y, M, o.d_out, o.d_in, rows, n, *(t.stride(0) for t in w),
        BITS=main.bits, RES=second.bits if second else 0, V=main.v, PADDED=main.C.shape[-1], STEP=step, LANES=LANES,
        ROWS=at_once, TOKENS=tokens, num_warps=LANES // 32)
    return y


def _stage(tensors: dict[str, Tensor], prefix: str, shape: list[int]) -> Stage:
    bits = max(1, (shape[1] - 1).bit_length())
    planes = tuple(tensors[f"{prefix}index_{i}"].contiguous() for i in range(-(-bits // 8)))
    filled = torch.nn.functional.pad(tensors[f"{prefix}codebook"], (0, triton.next_power_of_2(shape[2]) - shape[2]))
    return Stage(planes, bits, filled.contiguous(), shape[2])


def _labels(words: Tensor, bits: int, d_in: int) -> Tensor:
    """Unpack one row of labels, by the map of `packing`. [d_in] int64"""
    q, column, start, shift = 0, torch.arange(d_in, device=words.device), 0, 0
    for width in (8, 4, 2, 1):
        if bits & width:
            E = 32 // width
            t = column // (E * 64)
            plane = (d_in - t * (E * 64) + E - 1).div(E, rounding_mode="floor").clamp(max=64)
            within = column - t * (E * 64)
            word = words[0, start + t * 64 + within % plane].long()
            q = q | ((word >> (within // plane * width)) & (2**width - 1)) << shift
            start, shift = start + -(-d_in // E), shift + width
    return q


def _fast(stage: Stage) -> bool:
    """Whether its index planes are of four or eight bits, which the unrolled loop takes."""
    return stage.bits in (4, 8, 12, 16)


def _fast_step(main: Stage, second: Stage | None) -> int:
    """Columns of a slice that the unrolled loops take, or 0."""
    stages = [stage for stage in (main, second) if stage is not None]
    return max(_step(stage.bits) for stage in stages) if all(map(_fast, stages)) else 0


def _step(bits: int) -> int:
    """Columns of a whole slice of the narrowest plane."""
    return 512 if bits % 8 else 256


@triton.jit
def _gather(X, SCALE, BIAS, COLUMNS, OFFSET, I0, I1, R0, R1, C, C_RES, BASE, Y, M, d_out, d_in, rows, n, i0, i1, r0, r1,
            BITS: tl.constexpr, RES: tl.constexpr, V: tl.constexpr, PADDED: tl.constexpr, STEP: tl.constexpr,
            LANES: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    first_row = tl.program_id(0) * ROWS
    first_token = tl.program_id(1) * TOKENS
    lane, i = tl.arange(0, LANES), tl.arange(0, PADDED)
    acc = (tl.zeros((LANES, PADDED), tl.float32),) * (ROWS * TOKENS)
    bias = (tl.zeros((LANES,), tl.float32),) * TOKENS
    done = 0
    if STEP > 0:  # whole slices, one for every 64 lanes: a word is read once and serves all its planes
        done = n // STEP * STEP
        for first in range(0, done, STEP * (LANES // 64)):
            there = tl.minimum(lane // 64, (done - first) // STEP - 1) * 64 + lane % 64  # behind the last slice: it again
            words = (lane,) * (16 * ROWS)
            for j in tl.static_range(STEP // 64):
                read, main, second = (), (), ()
                for r in tl.static_range(ROWS):
                    line = tl.minimum(first_row + r, rows - 1).to(tl.int64)
                    index, now = indices(I0 + line * i0, I1 + line * i1, first, n, there, j, words, 16 * r, BITS, STEP)
                    main, read = main + (index,), read + now
                    if RES > 0:
                        index, now = indices(R0 + line * r0, R1 + line * r1, first, n, there, j, words, 16 * r + 8, RES, STEP)
                    second, read = second + (index,), read + now
                words = read
                column = first + (lane // 64) * STEP + j * 64 + lane % 64
                acc, bias = _add(acc, bias, X, SCALE, BIAS, COLUMNS, OFFSET, C, C_RES, main, second, column, done, first_token,
                                 M, d_in, n, i, RES, ROWS, TOKENS)
    for first in range(done, n, LANES):  # what is left, and index planes of other widths: word by word
        main, second = (), ()
        for r in tl.static_range(ROWS):
            line = tl.minimum(first_row + r, rows - 1).to(tl.int64)
            index = anywhere(I0 + line * i0, I1 + line * i1, first, n, lane, BITS)
            main = main + (index,)
            if RES > 0:
                index = anywhere(R0 + line * r0, R1 + line * r1, first, n, lane, RES)
            second = second + (index,)
        acc, bias = _add(acc, bias, X, SCALE, BIAS, COLUMNS, OFFSET, C, C_RES, main, second, first + lane, n, first_token, M,
                         d_in, n, i, RES, ROWS, TOKENS)
    for r in tl.static_range(ROWS):
        o = (first_row + r) * V + i
        for m in tl.static_range(TOKENS):
            there = (i < V) & (o < d_out) & (first_token + m < M)
            at = (first_token + m).to(tl.int64) * d_out + o
            y = tl.sum(acc[r * TOKENS + m], 0) + tl.sum(bias[m], 0)
            if BASE is not None:
                y += tl.load(BASE + at, mask=there, other=0.0)
            tl.store(Y + at, y.to(Y.dtype.element_ty), mask=there)


@triton.jit
def _add(acc, bias, X, SCALE, BIAS, COLUMNS, OFFSET, C, C_RES, main, second, column, end, first_token, M, d_in, n, i,
         RES: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """One vector of every lane and row, times x of its column; nothing from column `end` on."""
    inside = column < end
    at = column if COLUMNS is None else tl.load(COLUMNS + column, mask=inside, other=0)
    xs, biases = (), ()
    for m in tl.static_range(TOKENS):
        token = tl.minimum(first_token + m, M - 1)
        x = tl.load(X + token * d_in + at, mask=inside, other=0.0).to(tl.float32)
        if BIAS is not None:
            biases = biases + (bias[m] + x * tl.load(BIAS + at, mask=inside, other=0.0).to(tl.float32),)
        if SCALE is not None:
            x *= tl.load(SCALE + at, mask=inside, other=0.0).to(tl.float32)
        xs = xs + (x,)
    book, book_res = 0, 0
    if OFFSET is not None:
        book = tl.load(OFFSET + column, mask=inside, other=0)
        if RES > 0:
            book_res = tl.load(OFFSET + n + column, mask=inside, other=0)
    added = ()
    for r in tl.static_range(ROWS):
        w = tl.load(C + (main[r] + book)[:, None] * i.shape[0] + i[None, :]).to(tl.float32)
        if RES > 0:
            w += tl.load(C_RES + (second[r] + book_res)[:, None] * i.shape[0] + i[None, :]).to(tl.float32)
        for m in tl.static_range(TOKENS):
            added = added + (acc[r * TOKENS + m] + w * xs[m][:, None],)
    return added, biases if BIAS is not None else bias
