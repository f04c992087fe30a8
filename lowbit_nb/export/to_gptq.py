"""GPTQ's layout: codes packed down the columns of the transposed weight, a group number for every input."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit_nb.codebooks.vptq_format import pack_stream
from lowbit_nb.export import folder as folders
from lowbit_nb.record import Quantized, block_of
from lowbit_nb.stored import AffineWeight
from lowbit_nb.subject import Subject

LAYOUT = "GPTQ's layout"
LESS = {"gptq": 1, "gptq_v2": 0}  # what is taken from a zero point before it is written
BITS = (2, 3, 4, 8)


def gptq(quantized: Quantized, subject: Subject, folder: str | Path, dtype: torch.dtype | None = None,
         checkpoint_format: str = "gptq") -> Path:
    """Write a model in the layout of GPTQ checkpoints (GPTQModel, vLLM and others).

    The first kernels added 1 to every zero point that they read; so the first format, "gptq", stores z - 1, and "gptq_v2"
    stores z.  Readers that find no `checkpoint_format` take the first.

    Shapes:  qweight [d_in bits / 32, d_out] int32, qzeros [n_groups, d_out bits / 32] int32, scales [n_groups, d_out],
             g_idx [d_in] int32.
    Units:   streams of codes, lowest bit first; real units per step; numbers of groups. dtype: as `compressed_tensors`.
    Raises:  ValueError for weights that are not on one affine grid of 2, 3, 4 or 8 bits with integer zero points, sizes that
             are not multiples of 32, a linear layer of a block that is not quantized, rounded activations, parameters that
             the architecture lacks, steps that are not numbers of dtype, and a zero point of 0 in the first format.
    Source:  AutoGPTQ 0.7.1 and GPTQModel 7.7.0 (nn_modules/qlinear); vLLM pull request 26092 for the second format.
    Differs: a symmetric grid's middle is written as its zero point. The first format never holds z = 0: z - 1 would be
             2**bits - 1, and readers disagree on whether adding 1 gives 0 or 2**bits.
    """
    if checkpoint_format not in LESS:
        raise ValueError(f"checkpoint_format={checkpoint_format!r} is unknown; use one of {', '.join(LESS)}")
    folders.check(quantized, subject, LAYOUT)
    layers, dtype = folders.affine(quantized, LAYOUT), folders.own_dtype(subject, dtype)
    _check_alike(layers, subject)
    tensors = folders.rest(quantized, subject, dtype)
    for name, weight in layers.items():
        tensors |= {f"{name}.{part}": t for part, t in layer_tensors(name, weight, checkpoint_format).items()}
    return folders.write(folder, subject, tensors, _quantization(layers, checkpoint_format), dtype)


def layer_tensors(name: str, weight: AffineWeight, checkpoint_format: str = "gptq") -> dict[str, Tensor]:
    """The tensors of one layer, by their names in a checkpoint.

    Shapes:  as `gptq`.
    Units:   as `gptq`.
    Raises:  ValueError if the layer's sizes do not fill whole words, or a zero point is 0 in the first format.
    Source:  AutoGPTQ 0.7.1 (nn_modules/qlinear).
    Differs: no difference.
    """
    (d_out, d_in), bits = weight.shape, weight.grid.bits
    if d_in % 32 or d_out % 32:
        raise ValueError(f"{name} is [{d_out}, {d_in}], and readers of {LAYOUT} expect multiples of 32; use "
                         "export.compressed_tensors, which takes any size")
    (q, g_idx), z, less = folders.columns(weight), weight.zero.long().T, LESS[checkpoint_format]
    if less and not z.all():
        raise ValueError(f"{name} has {int((z == 0).sum())} zero points of 0, and the format 'gptq' stores z - 1; use "
                         "checkpoint_format='gptq_v2', which stores z, or a symmetric grid")
    return {"qweight": pack_stream(q, bits).T, "qzeros": pack_stream(z - less, bits), "scales": weight.s.T,
            "g_idx": g_idx.to(torch.int32)}


def _check_alike(layers: dict[str, AffineWeight], subject: Subject) -> None:
    """One grid for all layers, and no linear layer of a block left out: the configuration has one entry for them all."""
    (first, weight), *others = layers.items()
    if weight.grid.bits not in BITS:
        raise ValueError(f"bits={weight.grid.bits}: {LAYOUT} has {', '.join(map(str, BITS))} bits; use one of them, or "
                         "export.compressed_tensors, which has 1 to 8")
    for name, other in others:
        if other.grid != weight.grid:
            raise ValueError(f"{first} lies on {weight.grid} and {name} on {other.grid}; {LAYOUT} names one grid for all "
                             "layers; use export.compressed_tensors, which names as many as there are")
    left = [name for name, m in subject.model.named_modules()
            if isinstance(m, nn.Linear) and block_of(name) and name not in layers]
    if left:
        raise ValueError(f"{left[0]} is not quantized, and readers of {LAYOUT} expect every linear layer of a block to be; use "
                         "export.compressed_tensors, which names those that are not")


def _quantization(layers: dict[str, AffineWeight], checkpoint_format: str) -> dict:
    grid = next(iter(layers.values())).grid
    scattered = any((folders.columns(weight)[1].diff() < 0).any() for weight in layers.values())
    return {"quant_method": "gptq", "bits": grid.bits, "group_size": grid.group or -1, "desc_act": scattered,
            "sym": grid.symmetric, "lm_head": False, "checkpoint_format": checkpoint_format, "pack_dtype": "int32"}
