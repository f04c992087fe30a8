"""A key/value cache that never changes its size or place, behind transformers' cache interface.

Every block keeps `length` slots for each sequence of the batch.  Which slots a forward pass fills is a tensor on the device, so
the same launches serve every step and can be captured as a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Place:
    """Where the next forward pass writes: the same for every block.

    slots  [n] int64, the slots that are filled        seen  slots filled before: an int, or a tensor on the device

    Source: this project. Differs: no difference.
    """

    slots: Tensor
    seen: int | Tensor = 0


class _Slots(CacheLayerMixin):
    """Keys and values of one block: [batch, heads, length, width], allocated by the first pass."""

    is_compileable = True
    is_sliding = False  # a sliding window is a matter of the mask here

    def __init__(self, length: int, place: Place) -> None:
        super().__init__()
        self.length, self.place = length, place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (t.new_zeros(*t.shape[:2], self.length, t.shape[-1]) for t in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self.place.slots, key_states)
        self.values.index_copy_(2, self.place.slots, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length, 0

    def get_seq_length(self) -> int | Tensor:
        return self.place.seen

    def get_max_length(self) -> int:
        return self.length


class SlotCache(Cache):
    """The cache of a whole model, all of whose blocks attend over the same slots.

    Source: transformers' StaticCache. Differs: one position for all blocks, kept by the caller; windows are masked, not rolled.
    """

    def __init__(self, n_blocks: int, length: int) -> None:
        self.length, self.place = length, Place(torch.arange(0))
        super().__init__(layers=[_Slots(length, self.place) for _ in range(n_blocks)])

    @property
    def bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.numel() * t.element_size() for slots in self.layers if slots.is_initialized
                   for t in (slots.keys, slots.values))
