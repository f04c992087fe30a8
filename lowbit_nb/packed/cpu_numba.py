"""The CPU's lane through numba, which is optional: loops over planes, compiled at the first use.

The loops are spelled out for every width and number of planes that share a scale, so that the compiler unrolls the planes and
works on neighbouring words at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor

from lowbit_nb.packed import cpu
from lowbit_nb.packed.planar import Planar


@cache
def why_not() -> str | None:
    """Why the lane cannot run here, or None if it can.

    Shapes:  returns a sentence or None.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    try:
        import numba  # noqa: F401  heavy, and optional
    except ImportError as error:
        missing = "numba is not installed (pip install numba)"
        return missing if error.name == "numba" else f"numba cannot be imported: {error}"
    return None


def product(x: Tensor, planar: Planar) -> Tensor:
    """x @ W_hat.T.

    Shapes:  x [n, d_in]; returns [n, d_out] float32.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return cpu.product(x, planar, _add)


def _add(segment: cpu.Segment, x: Tensor, y: Tensor) -> None:
    run = _loops(segment.width, segment.plane, segment.together)
    rows, columns, row = *segment.words.shape, segment.words.stride(0)
    words = segment.words.as_strided(((rows - 1) * row + columns,), (1,)).numpy()  # rows may lie apart; loops want one axis
    fixed = (words, row, columns // segment.plane, segment.s.numpy())
    for x_m, y_m in zip(x[:, segment.first : segment.first + segment.columns].numpy(), y.numpy(), strict=True):
        cpu.by_rows(lambda first, last, x_m=x_m, y_m=y_m: run(*fixed, x_m, y_m, first, last), rows)


@cache
def _loops(width: int, plane: int, together: int) -> Callable:
    """The compiled loops of one kind of segment."""
    import numba
    import numpy as np

    scales, f32, i32 = 32 // width // together, np.float32, np.int32
    mask, step, columns = i32(2**width - 1), width * together, plane * together

    @numba.njit(fastmath=True, nogil=True, error_model="numpy")
    def run(words, row, slices, s, x, y, first, last):  # noqa: ANN001 [..], [d_out, n_scales], [columns], [d_out]
        for n in range(first, last):
            total = f32(0)
            for t in range(slices):
                here = n * row + t * plane
                for i in range(scales):
                    at, shift, dot = (t * scales + i) * columns, i32(i * step), f32(0)
                    for w in range(plane):
                        q, part = words[here + w] >> shift, f32(0)
                        for j in range(together):
                            part += f32(i32((q >> i32(j * width)) & mask)) * x[at + j * plane + w]
                        dot += part
                    total += s[n, t * scales + i] * dot
            y[n] += total

    return run
