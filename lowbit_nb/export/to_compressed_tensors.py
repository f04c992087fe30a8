"""compressed-tensors, format pack-quantized: every row one stream of codes, the scheme spelled out in the configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit_nb.activations import Activations
from lowbit_nb.codebooks.vptq_format import pack_stream
from lowbit_nb.export import folder as folders
from lowbit_nb.record import Quantized, block_of
from lowbit_nb.stored import AffineWeight
from lowbit_nb.subject import Subject

LAYOUT, FORMAT = "compressed-tensors", "pack-quantized"


def compressed_tensors(quantized: Quantized, subject: Subject, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a model for transformers (with the compressed-tensors package) and vLLM.

    Shapes:  weight_packed [d_out, ceil(d_in bits / 32)] int32, weight_scale [d_out, n_groups], weight_shape [2] int64,
             weight_zero_point [ceil(d_out bits / 32), n_groups] int32 unless the grid is symmetric.
    Units:   streams of codes, lowest bit first; real units per step. dtype: of everything else and of the computation (None:
             the subject's own).
    Raises:  ValueError for weights that are not on affine grids with integer zero points, groups of scattered columns (GPTQ's
             order="act" with dynamic groups), parameters that the architecture lacks, mixtures of experts, steps that are not
             numbers of dtype, and activations that the scheme rounds in another way: symmetric rulers, queries, keys and
             values, input clips, layers whose tokens come without a batch axis (OPT's fc1 and fc2).
    Source:  compressed-tensors 0.20.0 (compressors/pack_quantized, quantization/quant_scheme.py).
    Differs: its zero points are shifted by 2**(bits-1) in memory; on disk both are from 0 on. Activations: a token whose
             numbers all have one sign gets a ruler that reaches to 0 there, and one without that mark here; in half
             precision its rulers are laid in that type, ours in float32. Codes of 3, 5, 6 and 7 bits lie across words, as
             the package has them from 0.18.0 on (0.17.1 padded them); 1, 2, 4 and 8 bits are the same in both.
    """
    folders.check(quantized, subject, LAYOUT, activations=True)
    layers, dtype = folders.affine(quantized, LAYOUT), folders.own_dtype(subject, dtype)
    _check_activations(quantized, subject)
    tensors = folders.rest(quantized, subject, dtype)
    for name, weight in layers.items():
        tensors |= {f"{name}.{part}": t for part, t in layer_tensors(name, weight).items()}
    return folders.write(folder, subject, tensors, _quantization(quantized, layers, subject), dtype)


def layer_tensors(name: str, weight: AffineWeight) -> dict[str, Tensor]:
    """The tensors of one layer, by their names in a checkpoint.

    Shapes:  as `compressed_tensors`.
    Units:   as `compressed_tensors`.
    Raises:  ValueError if the columns of a group are not neighbours.
    Source:  compressed-tensors 0.20.0 (compressors/pack_quantized).
    Differs: no difference.
    """
    (q, g_idx), bits = folders.columns(weight), weight.grid.bits
    if (g_idx.diff() < 0).any():
        raise ValueError(f"the groups of {name} hold columns that are not neighbours, and {LAYOUT} has no place for their "
                         "order; quantize with GPTQ(order='gar') or groups='static', or use export.gptq, which stores it")
    out = {"weight_packed": pack_stream(q, bits), "weight_scale": weight.s, "weight_shape": torch.tensor(weight.shape)}
    if weight.z is not None:
        out["weight_zero_point"] = pack_stream(weight.z.T, bits).T
    return out


def _check_activations(quantized: Quantized, subject: Subject) -> None:
    activations = quantized.activations
    if not folders.rounds(quantized):
        return
    if activations.symmetric:
        raise ValueError(f"Activations(symmetric=True) lays 2**{activations.bits} - 2 steps over twice the largest number of a "
                         f"token, {LAYOUT} 2**{activations.bits} - 1; use symmetric=False, which agrees")
    if activations.qkv:
        raise ValueError(f"queries, keys and values are rounded too, which {LAYOUT} cannot say token by token; use "
                         "quantized.with_activations(lb.Activations(bits, qkv=False))")
    if flat := _without_batch(subject.model, [name for name in quantized.weights if activations.touches(block_of(name))]):
        raise ValueError(f"{flat} is handed tokens without a batch axis, and the reader lays one ruler over all of them, not "
                         "one a token; quantized.with_activations(lb.Activations(16)) leaves activations as they are")


@torch.no_grad()
def _without_batch(model: nn.Module, layers: list[str]) -> str | None:
    """The first layer whose input is [n, d_in] and not [batch, length, d_in], found by a trial run of two tokens."""
    found: list[str] = []

    def look(name: str, x: Tensor) -> None:
        if x.ndim < 3:
            found.append(name)

    hooks = [model.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: look(name, args[0]))
             for name in layers]
    try:
        model(torch.zeros(1, 2, dtype=torch.int64, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _quantization(quantized: Quantized, layers: dict[str, AffineWeight], subject: Subject) -> dict:
    """The `quantization_config`: one group of layers for every scheme."""
    schemes: dict[str, list[str]] = {}
    described = {}
    for name, weight in layers.items():
        own = {"weights": _weights(weight), "input_activations": _inputs(quantized.activations, name)}
        described[str(own)] = own
        schemes.setdefault(str(own), []).append(name)
    others = [name for name, m in subject.model.named_modules() if isinstance(m, nn.Linear) and name not in layers]
    alone = len(schemes) == 1  # the usual way to say it: a kind of module, and what is not meant
    groups = {f"group_{i}": described[key] | {"targets": ["Linear"] if alone else names, "output_activations": None,
                                              "format": FORMAT} for i, (key, names) in enumerate(schemes.items())}
    return {"quant_method": LAYOUT, "format": FORMAT, "quantization_status": "compressed", "config_groups": groups,
            "ignore": others, "kv_cache_scheme": None}


def _weights(weight: AffineWeight) -> dict:
    grid = weight.grid
    scope = {"strategy": "group", "group_size": grid.group} if grid.group else {"strategy": "channel", "group_size": None}
    return {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False, **scope}


def _inputs(activations: Activations | None, layer: str) -> dict | None:
    if activations is None or not activations.touches(block_of(layer)):
        return None
    return {"num_bits": activations.bits, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
