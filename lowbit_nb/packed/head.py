"""The output head as one more quantized layer: at a few bits a weight in the blocks it is what a step would wait for.

A head of 128 256 x 4096 in 16 bits is 1.05 GB: as much as half of the blocks' weights at two bits.  Methods leave it alone, so
here it is rounded to the nearest mark, entered in the record and counted like every other layer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict

from torch import nn

from lowbit_nb.grid import Grid
from lowbit_nb.record import Quantized
from lowbit_nb.stored import AffineWeight
from lowbit_nb.subject import Subject

HEAD = Grid(4, group=128)


def quantize_head(quantized: Quantized, subject: Subject, grid: Grid = HEAD, clip: str = "minmax") -> Quantized:
    """The same record with the head in it, rounded to nearest.

    If the head is tied to the embedding, the head gets numbers of its own and the embedding stays as it was: the codes come on
    top of what the subject already holds.

    Shapes:  as the record, and one layer more.
    Units:   none.
    Raises:  ValueError if the subject has no linear head, the record has it already, activations are rounded, or the group
             does not divide the head's inputs.
    Source:  this project.
    Differs: no method's paper quantizes the head; perplexity with and without it is worth a look.
    """
    name, head = head_of(subject)
    if name in quantized.weights:
        raise ValueError(f"{name} is in the record already; quantize the head once")
    if quantized.activations:
        raise ValueError("this record rounds activations, which is not defined for the head; quantize the head of a record "
                         "without them")
    stored = AffineWeight.nearest(head.weight.detach(), grid, clip)
    said = {"head": {"method": "RTN", "grid": asdict(grid), "clip": clip, "tied": _tied(subject, head)}}
    return dataclasses.replace(quantized, weights=quantized.weights | {name: stored}, settings=quantized.settings | said)


def head_of(subject: Subject) -> tuple[str, nn.Linear]:
    """The output head and its full name.

    Shapes:  weight [vocabulary, d_model].
    Units:   none.
    Raises:  ValueError if there is none, or it is not a linear layer.
    Source:  transformers' get_output_embeddings.
    Differs: no difference.
    """
    head = subject.model.get_output_embeddings()
    name = next((name for name, m in subject.model.named_modules() if m is head), None)
    if not isinstance(head, nn.Linear) or name is None:
        raise ValueError(f"the head of {subject.name} is {type(head).__name__}, not a linear layer; leave it as it is")
    return name, head


def _tied(subject: Subject, head: nn.Linear) -> bool:
    return head.weight is getattr(subject.model.get_input_embeddings(), "weight", None)
