"""Files of quantized weights: safetensors with every setting, hashes over all of it, never half-written.

One file holds the packed tensors, named `layer/tensor`, and, as text beside them, every setting, each layer's layout, the
story of each block, a hash of all of that and, for one layer of every block, a hash of its *dequantized* weight: a
reader that decodes differently is caught, not only a file that was damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lowbit_nb import bilevel, sparse, stored  # noqa: F401  forms that a file may hold
from lowbit_nb.codebooks import across, vector  # noqa: F401
from lowbit_nb.onebit import binary, mixed, partial, signweight  # noqa: F401
from lowbit_nb.stored import StoredWeight

FORMAT = "lowbit-nb 1"
PARAMS = "params"  # edited parameters that are not linear layers lie under this name


def write(path: Path, weights: dict[str, StoredWeight], params: dict[str, Tensor], notes: dict) -> None:
    """Pack weights into one file; an earlier one stays until the new one is complete.

    Shapes:  tensors as each stored form packs them.
    Units:   none.
    Raises:  OSError if the file cannot be written.
    Source:  this project.
    Differs: no pickle; settings travel with the tensors.
    """
    tensors = {f"{layer}/{name}": t.cpu() for layer, w in weights.items() for name, t in w.pack().items()}
    tensors |= {f"{PARAMS}/{name}": t.cpu().contiguous() for name, t in params.items()}
    notes = notes | {"format": FORMAT, "layers": {layer: w.meta() for layer, w in weights.items()},
                     "dequantized_sha256": {k: stored.checksum(weights[k]) for k in _probes(weights)}}
    text = json.dumps(notes)
    replace(path, save(tensors, metadata={"lowbit_nb": text, "sha256": _hash(text, tensors)}))


def read(path: Path, verify: bool = True) -> tuple[dict[str, StoredWeight], dict[str, Tensor], dict]:
    """The weights, parameters and notes of a file; `verify=False` for one that was verified before.

    Shapes:  as written.
    Units:   none.
    Raises:  ValueError if it is truncated, edited or of another format (message says which file to delete).
    Source:  this project.
    Differs: no difference.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise damaged(path, f"it is truncated or not a safetensors file ({error})") from None
    if "lowbit_nb" not in header:
        raise damaged(path, "it was not written by this kit")
    if verify and _hash(header["lowbit_nb"], tensors) != header.get("sha256"):
        raise damaged(path, "it was edited: its contents do not match their recorded hash")
    notes = json.loads(header["lowbit_nb"])
    if notes.get("format") != FORMAT:
        raise damaged(path, f"its format is {notes.get('format')!r}, and this version reads {FORMAT!r}")
    weights = {layer: stored.unpack(_of(tensors, layer), meta) for layer, meta in notes["layers"].items()}
    for layer, expected in notes["dequantized_sha256"].items() if verify else ():
        if stored.checksum(weights[layer]) != expected:
            raise damaged(path, f"{layer} decodes to another weight than the one that was saved")
    return weights, _of(tensors, PARAMS), notes


def stamp(path: Path) -> str:
    """The hash that a file says it has.

    Shapes:  64 hexadecimal digits.
    Units:   none.
    Raises:  ValueError if it is truncated or was not written by this kit.
    Source:  this project.
    Differs: no difference.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise damaged(path, f"it is truncated or not a safetensors file ({error})") from None
    if not found:
        raise damaged(path, "it was not written by this kit")
    return found


def damaged(path: Path, why: str) -> ValueError:
    """What is said of a file that cannot be used.

    Shapes:  none.
    Units:   none.
    Raises:  nothing; returns the error.
    Source:  this project.
    Differs: no difference.
    """
    return ValueError(f"{path} cannot be used: {why}; delete it and make it again")


def _of(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name.rsplit("/", 1)[1]: t for name, t in tensors.items() if name.rsplit("/", 1)[0] == layer}


def _probes(weights: dict[str, StoredWeight]) -> list[str]:
    """One layer of every block: the first whose name has a block's prefix."""
    first: dict[str, str] = {}
    for name in weights:
        block = next((".".join(name.split(".")[: i + 1]) for i, part in enumerate(name.split(".")) if part.isdigit()), "")
        first.setdefault(block, name)
    return list(first.values())


def _hash(text: str, tensors: dict[str, Tensor]) -> str:
    """sha256 over the notes and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        digest.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def replace(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, then rename: the name always means a complete file.

    Shapes:  none.
    Units:   none.
    Raises:  OSError if the file cannot be written; nothing half-written is left.
    Source:  this project.
    Differs: no difference.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
