"""A quantized model to disk and back: in one file, or in one a block."""

from __future__ import annotations

from pathlib import Path

from lowbit_nb.checkpoint.files import read, write
from lowbit_nb.checkpoint.shards import INDEX, Shards, load_shards, save_shards
from lowbit_nb.record import Quantized

FILE = "quantized.safetensors"


def save_quantized(quantized: Quantized, folder: str | Path) -> Path:
    """Write a quantized model to `folder`/quantized.safetensors; an earlier file stays until the new one is complete.

    The result of a blockwise run, whose weights stay in the files of its work folder, is saved as such files and an index.

    Shapes:  tensors as each stored form packs them.
    Units:   bytes on disk = quantized.bits().bytes plus the header.
    Raises:  OSError if the folder cannot be written.
    Source:  this project.
    Differs: no pickle; settings travel with the tensors.
    """
    path, other = Path(folder) / FILE, Path(folder) / INDEX
    if isinstance(quantized.weights, Shards):
        made = save_shards(quantized, Path(folder))
        path.unlink(missing_ok=True)
        return made
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, quantized.weights, quantized.params, {"settings": quantized.settings, "trace": quantized.trace})
    other.unlink(missing_ok=True)
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
    if (index := Path(folder) / INDEX).is_file():
        return load_shards(index)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {FILE} in {folder}; save one with lb.save_quantized(quantized, folder)")
    weights, params, notes = read(path)
    return Quantized(weights, notes["settings"], notes["trace"], params)
