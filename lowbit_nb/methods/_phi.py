"""What was learned about a block, as text: kept in the trace so that learning can go on from there."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit_nb.reconstruct import Learnable
from lowbit_nb.scaling import Transform


def variables(edits: Transform, learn: dict[str, Learnable]) -> list[Tensor]:
    """All variables in a fixed order: those of the edits, then layer by layer.

    Shapes:  any.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return [p for one in (edits, *learn.values()) for group in one.parameters() for p in group["params"]]


def packed(tensors: Sequence[Tensor]) -> str:
    """The numbers of some tensors (there may be none) in float32, compressed, as letters.

    Shapes:  any; one string.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    flat = torch.cat([torch.zeros(0), *(p.detach().float().cpu().flatten() for p in tensors)])
    return base64.b64encode(zlib.compress(flat.numpy().tobytes())).decode()


@torch.no_grad()
def fill(into: Sequence[Tensor], text: str) -> None:
    """Put the numbers back, in place.

    Shapes:  tensors of the same sizes in the same order.
    Units:   none.
    Raises:  ValueError if there are more or fewer numbers.
    Source:  this project.
    Differs: no difference.
    """
    numbers = bytearray(zlib.decompress(base64.b64decode(text)))
    flat = torch.frombuffer(numbers, dtype=torch.float32) if numbers else torch.zeros(0)
    if len(flat) != sum(p.numel() for p in into):
        raise ValueError(f"what was kept has {len(flat)} numbers and the block {sum(p.numel() for p in into)}; "
                         "it belongs to other settings or another model")
    for p, part in zip(into, flat.split([p.numel() for p in into]), strict=True):
        p.copy_(part.view_as(p))
