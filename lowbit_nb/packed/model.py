"""A quantized model that runs from its packed bytes: a copy of the subject whose linear layers are `PackedLinear`."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from lowbit_nb.activations import apply_to
from lowbit_nb.activations.dressing import CLIP
from lowbit_nb.blocks import catch
from lowbit_nb.packed.fused import fuse
from lowbit_nb.packed.linear import PackedLinear
from lowbit_nb.record import Quantized, block_of
from lowbit_nb.stored import StoredWeight
from lowbit_nb.subject import Subject


def pack_model(quantized: Quantized, subject: Subject, fused: bool = False) -> Subject:
    """A subject that computes from packed weights: what `quantized.apply(subject)` computes, from fewer bytes.

    Edited norms and biases are in it, and activations are rounded if the record says so.  Everything else is shared with
    the original, which stays as it is.

    fused  layers that share an input become one product of all their rows, where their forms allow it

    Shapes:  as the subject.
    Units:   none.
    Raises:  ValueError if a layer is missing from the subject or has another shape.
    Source:  this project.
    Differs: no difference.
    """
    if subject.blockwise:
        raise ValueError("blocks on disk are not for packing: load the subject without blockwise=True")
    rest = dataclasses.replace(quantized, weights={}).apply(subject)  # a copy with edited norms and biases
    for name, stored in quantized.weights.items():
        _exchange(rest.model, name, stored)
    if fused:
        for mates in _sharing(subject, list(quantized.weights)):
            fuse([rest.model.get_submodule(name) for name in mates])
    if quantized.activations:
        apply_to(rest.model, {block_of(name): None for name in quantized.weights}, quantized.weights, quantized.activations)
    return dataclasses.replace(rest, name=f"{subject.name}, {quantized.title}, packed")


def _exchange(model: nn.Module, name: str, stored: StoredWeight) -> None:
    """Put a packed layer where the linear layer was."""
    path, _, last = name.rpartition(".")
    try:
        owner, linear = model.get_submodule(path), model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the subject has no layer {name}; these weights belong to another model") from None
    if tuple(linear.weight.shape) != stored.shape:
        raise ValueError(f"{name} is {tuple(linear.weight.shape)} in the subject and {stored.shape} in the stored weights")
    packed = PackedLinear.of(stored, linear.bias).to(linear.weight.device).train(linear.training)
    if (clip := getattr(linear, CLIP, None)) is not None:
        packed.register_parameter(CLIP, clip)
    setattr(owner, last, packed)


@torch.no_grad()
def _sharing(subject: Subject, names: list[str]) -> list[list[str]]:
    """Full names of layers that are handed the same tensor, from one token through every block."""
    blocks, x = catch(subject.model, torch.zeros(1, 1, dtype=torch.long))
    groups = [[f"{block.name}.{name}" for name in mates] for block in blocks for mates in block.shared_inputs(x)]
    return [mates for mates in groups if len(mates) > 1 and set(mates) <= set(names)]
