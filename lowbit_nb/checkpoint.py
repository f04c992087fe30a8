"""Files: quantized weights to and from safetensors, whole or block by block, never half-written.

One file holds the packed tensors, named `layer/tensor`, and, as text beside them, every setting, each layer's layout, the
story of each block, a hash of all of that and, for one layer of every block, a hash of its *dequantized* weight: a
reader that decodes differently is caught, not only a file that was damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lowbit_nb import bilevel, sparse, stored  # noqa: F401  forms that a file may hold
from lowbit_nb.codebooks import across, vector  # noqa: F401
from lowbit_nb.onebit import binary, mixed, partial, signweight  # noqa: F401
from lowbit_nb.record import Quantized
from lowbit_nb.stored import StoredWeight

FORMAT = "lowbit-nb 1"
FILE = "quantized.safetensors"
PARAMS = "params"  # edited parameters that are not linear layers lie under this name


def save_quantized(quantized: Quantized, folder: str | Path) -> Path:
    """Write a quantized model to `folder`/quantized.safetensors; an earlier file stays until the new one is complete.

    Shapes:  tensors as each stored form packs them.
    Units:   bytes on disk = quantized.bits().bytes plus the header.
    Raises:  OSError if the folder cannot be written.
    Source:  this project.
    Differs: no pickle; settings travel with the tensors.
    """
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, quantized.weights, quantized.params, {"settings": quantized.settings, "trace": quantized.trace})
    return path


def load_quantized(folder: str | Path) -> Quantized:
    """Read a quantized model and verify it.

    Shapes:  as saved.
    Units:   none.
    Raises:  FileNotFoundError if there is no such file; ValueError if it is truncated, edited or of another format.
    Source:  this project.
    Differs: no difference.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {FILE} in {folder}; save one with lb.save_quantized(quantized, folder)")
    weights, params, notes = _read(path)
    return Quantized(weights, notes["settings"], notes["trace"], params)


class FinishedBlock(Protocol):
    """What is kept of a block.

    Source: this project. Differs: no difference.
    """

    weights: dict[str, StoredWeight]
    params: dict[str, Tensor]
    trace: dict


class WorkFolder:
    """Finished blocks of a run, one file each, so that a killed run goes on where it stopped.

    Source: this project. Differs: no difference.
    """

    def __init__(self, folder: str | Path | None, settings: dict) -> None:
        self.folder = None if folder is None else Path(folder)
        self.settings = json.loads(json.dumps(settings))

    def _path(self, index: int) -> Path:
        return self.folder / f"block_{index:03d}.safetensors"

    def write(self, index: int, result: FinishedBlock) -> None:
        """Keep a finished block.

        Shapes:  weights {linear name: stored weight}, params {parameter name: tensor}, trace of plain numbers.
        Units:   none.
        Raises:  OSError if the folder cannot be written.
        Source:  this project.
        Differs: no difference.
        """
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self._path(index), result.weights, result.params, {"settings": self.settings, "trace": result.trace})

    def read(self, index: int) -> SimpleNamespace | None:
        """A finished block (weights, params, trace), or None if it has yet to be done.

        Shapes:  as written.
        Units:   none.
        Raises:  ValueError if the file is damaged (message says which file to delete) or is another run's.
        Source:  this project.
        Differs: no difference.
        """
        if not self.folder or not self._path(index).exists():
            return None
        weights, params, notes = _read(self._path(index))
        theirs = notes["settings"]
        if differ := [k for k in self.settings if self.settings[k] != theirs.get(k)]:
            raise ValueError(f"{self.folder} holds another run: {', '.join(differ)} differ "
                             f"({differ[0]}: {theirs.get(differ[0])} there, {self.settings[differ[0]]} here); "
                             "give this run a folder of its own, or delete that one")
        return SimpleNamespace(weights=weights, params=params, trace=notes["trace"])


def _write(path: Path, weights: dict[str, StoredWeight], params: dict[str, Tensor], notes: dict) -> None:
    tensors = {f"{layer}/{name}": t.cpu() for layer, w in weights.items() for name, t in w.pack().items()}
    tensors |= {f"{PARAMS}/{name}": t.cpu() for name, t in params.items()}
    notes = notes | {"format": FORMAT, "layers": {layer: w.meta() for layer, w in weights.items()},
                     "dequantized_sha256": {k: stored.checksum(weights[k]) for k in _probes(weights)}}
    text = json.dumps(notes)
    _replace(path, save(tensors, metadata={"lowbit_nb": text, "sha256": _hash(text, tensors)}))


def _read(path: Path) -> tuple[dict[str, StoredWeight], dict[str, Tensor], dict]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise _damaged(path, f"it is truncated or not a safetensors file ({error})") from None
    if "lowbit_nb" not in header:
        raise _damaged(path, "it was not written by this kit")
    if _hash(header["lowbit_nb"], tensors) != header.get("sha256"):
        raise _damaged(path, "it was edited: its contents do not match their recorded hash")
    notes = json.loads(header["lowbit_nb"])
    if notes.get("format") != FORMAT:
        raise _damaged(path, f"its format is {notes.get('format')!r}, and this version reads {FORMAT!r}")
    weights = {layer: stored.unpack(_of(tensors, layer), meta) for layer, meta in notes["layers"].items()}
    for layer, expected in notes["dequantized_sha256"].items():
        if stored.checksum(weights[layer]) != expected:
            raise _damaged(path, f"{layer} decodes to another weight than the one that was saved")
    return weights, _of(tensors, PARAMS), notes


def _damaged(path: Path, why: str) -> ValueError:
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


def _replace(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, then rename: the name always means a complete file."""
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
