"""What every layout shares: which records it may hold, the tensors that are not quantized, and the files around them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowbit_nb.activations.tokens import FULL
from lowbit_nb.experts import experts
from lowbit_nb.record import Quantized
from lowbit_nb.stored import AffineWeight
from lowbit_nb.subject import Subject

STAY = "lb.save_quantized(quantized, folder) keeps any record"


def check(quantized: Quantized, subject: Subject, layout: str, activations: bool = False) -> None:
    """Refuse a record that is not this subject's, or that says what no layout says: parameters the architecture lacks.

    Shapes:  every layer a linear layer of the subject, every edited parameter one of its own, of the same shapes.
    Units:   none.
    Raises:  ValueError naming the layer or parameter; for mixtures of experts; and, unless activations=True, for rounded
             activations.
    Source:  this project.
    Differs: no difference.
    """
    if subject.blockwise:
        raise ValueError("an export writes the whole model: load the subject without blockwise=True")
    if mixed := experts(subject.model):
        raise ValueError(f"{next(iter(mixed))} is one expert of several; architectures name those on disk in ways of their "
                         f"own, and a reader of {layout} may pass over them without a word, so they stay in the kit ({STAY})")
    linears = {name: m for name, m in subject.model.named_modules() if isinstance(m, nn.Linear)}
    for name, weight in quantized.weights.items():
        if name not in linears or tuple(linears[name].weight.shape) != tuple(weight.shape):
            found = list(linears[name].weight.shape) if name in linears else "none"
            raise ValueError(f"{name} is {list(weight.shape)} in the record and {found} among the subject's linear layers; "
                             "export a record with the subject that it was made from")
    own = subject.model.state_dict()
    for name, value in quantized.params.items():
        if name not in own or own[name].shape != value.shape:
            raise ValueError(f"{name} was added by the method, and {type(subject.model).__name__} has no such parameter: an "
                             f"engine would leave it out; run the method without shifts and input clips ({STAY})")
    if rounds(quantized) and not activations:
        raise ValueError(f"this record rounds activations to {quantized.activations.bits} bits, which {layout} cannot say; "
                         "quantized.with_activations(lb.Activations(16)) leaves them, export.compressed_tensors can say it")


def rounds(quantized: Quantized) -> bool:
    """Whether the record rounds activations at all.

    Shapes:  none.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return quantized.activations is not None and quantized.activations.bits != FULL


def affine(quantized: Quantized, layout: str) -> dict[str, AffineWeight]:
    """The layers of a record whose weights are all codes with integer zero points, or none.

    Shapes:  {layer: stored weight}.
    Units:   none.
    Raises:  ValueError naming the first layer of another form, or with real zero points.
    Source:  this project.
    Differs: no difference.
    """
    for name, weight in quantized.weights.items():
        if not isinstance(weight, AffineWeight):
            raise ValueError(f"{name} is stored as {weight.form!r}, and {layout} holds codes on affine grids only; quantize "
                             f"with a method that has them (RTN, GPTQ, AWQ and others; {STAY})")
        if weight.grid.stored_zero == "real":
            raise ValueError(f"{name} has real zero points, and {layout} holds integer ones; use Grid(zero_inside=True) "
                             f"({STAY})")
    return dict(quantized.weights)


def columns(weight: AffineWeight) -> tuple[Tensor, Tensor]:
    """Codes in the weight's own column order, and the group of every column.

    Shapes:  returns q [d_out, d_in] uint8 and g_idx [d_in] int64.
    Units:   codes; numbers of groups.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    d_in = weight.shape[1]
    g_idx = torch.arange(d_in, device=weight.q.device).div(weight.grid.g(d_in), rounding_mode="floor")
    if weight.perm is None:
        return weight.q, g_idx
    home = weight.perm.long().argsort()  # column c of the weight is column home[c] of the codes
    return weight.q[:, home], g_idx[home]


def rest(quantized: Quantized, subject: Subject, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that is not a quantized weight, edited or as the model has it; of tensors that share memory the first.

    Shapes:  as the model has them.
    Units:   none.
    Raises:  ValueError if a value is too large for dtype, or a step of the record is not one of its numbers.
    Source:  this project.
    Differs: no difference.
    """
    for name, weight in quantized.weights.items():
        s = getattr(weight, "s", None)
        if isinstance(weight, AffineWeight) and not torch.equal(s.to(dtype).float(), s.float()):
            raise ValueError(f"the steps of {name} are {_short(s.dtype)} and not numbers of {_short(dtype)}, in which engines "
                             f"hold them; use dtype=torch.{_short(s.dtype)} or Grid(scale_dtype='{_short(dtype)}')")
    out, seen = {}, set()
    for name, t in subject.model.state_dict().items():
        if name.removesuffix(".weight") in quantized.weights or t.data_ptr() in seen:
            continue
        seen.add(t.data_ptr())
        t = quantized.params.get(name, t)
        kept = t.to(dtype) if t.is_floating_point() else t
        if kept.is_floating_point() and not torch.isfinite(kept).all():
            raise ValueError(f"{name} reaches {float(t.abs().max()):.3g}, more than {_short(dtype)} holds; use "
                             "dtype=torch.bfloat16 or torch.float32")
        out[name] = kept.cpu().contiguous()
    return out


def write(folder: str | Path, subject: Subject, tensors: dict[str, Tensor], quantization: dict, dtype: torch.dtype) -> Path:
    """Tensors, then the tokenizer, then the configuration: a folder with a config.json is complete.

    Shapes:  tensors as they go to disk.
    Units:   none.
    Raises:  OSError if the folder cannot be written.
    Source:  the layout of Hugging Face checkpoints.
    Differs: one file of tensors, whatever its size.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    part = folder / "model.safetensors.part"
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, part, metadata={"format": "pt"})
    os.replace(part, folder / "model.safetensors")
    around(folder, subject)
    said = {"architectures": [type(subject.model).__name__], "dtype": _short(dtype), "quantization_config": quantization}
    config = subject.model.config.to_dict() | said
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str), encoding="utf-8")
    return folder


def around(folder: Path, subject: Subject) -> None:
    """The files that belong to a checkpoint beside its tensors: how to generate, and the tokenizer if there is one.

    Shapes:  none.
    Units:   none.
    Raises:  OSError if the folder cannot be written.
    Source:  the layout of Hugging Face checkpoints.
    Differs: no difference.
    """
    for part in (getattr(subject.model, "generation_config", None), subject.tokenizer):
        if part is not None:
            part.save_pretrained(folder)


def name_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Say in a configuration which type its tensors have: loaders that are told none take that one.

    Shapes:  none.
    Units:   none.
    Raises:  OSError if the folder cannot be written.
    Source:  the layout of Hugging Face checkpoints.
    Differs: no difference.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": _short(dtype)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def own_dtype(subject: Subject, dtype: torch.dtype | None) -> torch.dtype:
    """The type that was asked for, or the one that the subject's weights have.

    Shapes:  none.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return dtype or next(subject.model.parameters()).dtype


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
