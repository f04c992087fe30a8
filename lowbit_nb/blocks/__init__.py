"""A decoder block as this kit sees it: its linear layers, which of them share an input, how to run it, what flows in.

Nothing here knows a model by name.  The decoder's blocks are its longest list of equal modules; what each block needs
beside its input (masks, rotary tables) is caught once from the model itself; layers that are handed the very same tensor
share an input.  Weights are exchanged functionally, so the model under study is never edited.
"""

from lowbit_nb.blocks.block import Block
from lowbit_nb.blocks.catching import block_of, catch, layers
from lowbit_nb.blocks.ondisk import give_back, handing_on, put, put_on_disk, resident

__all__ = ["Block", "block_of", "catch", "give_back", "handing_on", "layers", "put", "put_on_disk", "resident"]
