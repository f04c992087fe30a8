"""Affine grids: which values a weight may take, which of them it takes, and how the ruler is laid."""

from lowbit_nb.grid.marks import (
    MAX_BITS,
    SCALE_DTYPES,
    Grid,
    as_stored,
    codes,
    dequantize,
    grouped,
    quantize,
    ruler,
    shorter,
)
from lowbit_nb.grid.ranges import SHRINK, fit

__all__ = ["MAX_BITS", "SCALE_DTYPES", "SHRINK", "Grid", "as_stored", "codes", "dequantize", "fit", "grouped", "quantize",
           "ruler", "shorter"]
