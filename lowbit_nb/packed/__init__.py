"""Quantized weights at work: linear layers that multiply from the bytes that are stored, on whatever machine there is."""

from lowbit_nb.packed.choice import lanes, only
from lowbit_nb.packed.linear import PackedLinear
from lowbit_nb.packed.model import pack_model

__all__ = ["PackedLinear", "lanes", "only", "pack_model"]
