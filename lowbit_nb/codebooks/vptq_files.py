"""A folder in the layout of VPTQ checkpoints: weights in safetensors, the quantization beside the model's own configuration."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowbit_nb.codebooks import vptq_format
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.record import Quantized
from lowbit_nb.subject import Subject

MARK = ".centroids.weight"


def save_vptq(quantized: Quantized, subject: Subject, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a vector-quantized model as the `vptq` package and transformers expect it.

    Shapes:  as `vptq_format.layer_tensors`; everything that is not quantized as the model has it.
    Units:   none.
    Raises:  ValueError if a layer is not a vector weight, or as `layer_tensors`; OSError if the folder cannot be written.
    Source:  VPTQ code; transformers' VptqConfig.
    Differs: one file.
    """
    if other := [name for name, w in quantized.weights.items() if not isinstance(w, VectorWeight)]:
        raise ValueError(f"{other[0]} is not a vector weight, and this layout holds no others; lb.save_quantized writes any")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _rest(quantized, subject, dtype)
    layers = {}
    for name, weight in quantized.weights.items():
        tensors |= {f"{name}.{part}": t.cpu() for part, t in vptq_format.layer_tensors(weight, dtype).items()}
        layers[name] = vptq_format.layer_config(weight, bias=f"{name}.bias" in tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {"quant_method": "vptq", "config_for_layers": layers, "shared_layer_config": {},
                    "modules_to_not_convert": None, "enable_proxy_error": False}
    config = subject.model.config.to_dict() | {"quantization_config": quantization}
    config["architectures"] = [type(subject.model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str), encoding="utf-8")
    return folder


def load_vptq(folder: str | Path) -> tuple[dict[str, VectorWeight], dict[str, Tensor], dict]:
    """Read such a folder, the kit's own or a published one, in one file or several.

    Shapes:  {layer: stored weight}, {name: tensor} of everything else, and the configuration.
    Units:   none.
    Raises:  FileNotFoundError if there is no configuration; ValueError if it is not VPTQ's, a layer has no entry in it, or as
             `vptq_format.read_layer`.
    Source:  VPTQ code; transformers' VptqConfig.
    Differs: keys that are not known are left alone; a layer without an entry of its own takes the shared one of its last name.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"there is no config.json in {folder}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = config.get("quantization_config") or {}
    if about.get("quant_method") != "vptq":
        raise ValueError(f"{folder} is not a VPTQ checkpoint: its quantization_config says {about.get('quant_method')!r}")
    tensors = {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}
    weights = {}
    for layer in [name.removesuffix(MARK) for name in tensors if name.endswith(MARK)]:
        own = (about.get("config_for_layers") or {}).get(layer)
        own = own or (about.get("shared_layer_config") or {}).get(layer.rpartition(".")[2])
        if own is None:
            raise ValueError(f"{layer} has codebooks but no entry in config_for_layers or shared_layer_config")
        parts = {name.removeprefix(f"{layer}."): t for name, t in tensors.items() if name.startswith(f"{layer}.")}
        weights[layer] = vptq_format.read_layer(parts, own)
        tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{layer}.") or name == f"{layer}.bias"}
    return weights, tensors, config


def _rest(quantized: Quantized, subject: Subject, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that is not a quantized weight; of tensors that share memory the first."""
    rest, seen = {}, set()
    for name, t in subject.model.state_dict().items():
        if name.removesuffix(".weight") in quantized.weights or t.data_ptr() in seen:
            continue
        seen.add(t.data_ptr())
        t = quantized.params.get(name, t)
        rest[name] = (t.to(dtype) if t.is_floating_point() else t).cpu().contiguous()
    return rest
