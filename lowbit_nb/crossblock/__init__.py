"""Several blocks at a time: the windows, a window as one block, outliers found coarse to fine, rounding by a product."""

from lowbit_nb.crossblock.coarse_to_fine import channel_factors, reserved, truncated
from lowbit_nb.crossblock.edits import WindowEdits
from lowbit_nb.crossblock.lora import LoRARounding
from lowbit_nb.crossblock.losses import branches, kl, predictions, size_and_shape
from lowbit_nb.crossblock.window import EveryOutput, Window, inside, schedule

__all__ = ["EveryOutput", "LoRARounding", "Window", "WindowEdits", "branches", "channel_factors", "inside", "kl",
           "predictions", "reserved", "schedule", "size_and_shape", "truncated"]
