"""Files: quantized weights to and from safetensors, whole or block by block, never half-written."""

from lowbit_nb.checkpoint.saving import FILE, load_quantized, save_quantized
from lowbit_nb.checkpoint.shards import Shards
from lowbit_nb.checkpoint.work import WorkFolder

__all__ = ["FILE", "Shards", "WorkFolder", "load_quantized", "save_quantized"]
