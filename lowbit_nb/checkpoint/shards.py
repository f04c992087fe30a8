"""A quantized model in many files, one a block, for models that are larger than memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import add
from pathlib import Path

from torch import Tensor

from lowbit_nb.bits import BitBudget
from lowbit_nb.checkpoint.files import FORMAT, damaged, read, replace, stamp, write
from lowbit_nb.record import Quantized
from lowbit_nb.stored import StoredWeight

INDEX = "quantized.json"


class Shards(Mapping):
    """{full name of the linear layer: stored weight}, left in the files of the blocks; one block's are in memory at a time.

    Source: the sharded checkpoints of transformers. Differs: weights are read when they are asked for.
    """

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}  # by the full name of the block
        self._block_of: dict[str, str] = {}
        self._held: tuple[str, dict[str, StoredWeight]] = ("", {})
        self._bits: BitBudget | None = None

    def put(self, block: str, file: Path, layers: Iterable[str]) -> None:
        """Add a block whose file was written, or verified, just now.

        Shapes:  block: its full name; layers: names inside it.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        self.files[block], self._bits = file, None
        self._block_of |= {f"{block}.{layer}": block for layer in layers}

    def __getitem__(self, name: str) -> StoredWeight:
        block = self._block_of[name]
        if self._held[0] != block:
            self._held = ("", {})  # before the next ones come
            self._held = (block, read(self.files[block], verify=False)[0])
        return self._held[1][name.removeprefix(f"{block}.")]

    def __iter__(self) -> Iterator[str]:
        return iter(self._block_of)

    def __len__(self) -> int:
        return len(self._block_of)

    def __repr__(self) -> str:
        return f"Shards({len(self)} layers in {len(self.files)} files)"

    def bits(self) -> BitBudget:
        """The itemised size of all of them, counted once.

        Shapes:  one line an item, summed over layers.
        Units:   bits.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        if self._bits is None:
            self._bits = reduce(add, (weight.bits() for weight in self.values()))
        return self._bits


def save_shards(quantized: Quantized, folder: Path) -> Path:
    """Link or copy the files of the blocks into a folder; an index, written last, says which belong together.

    An earlier result in the folder can be read until then.

    Shapes:  one file a block, and one of edited parameters.
    Units:   bytes on disk = quantized.bits().bytes plus headers; nearly none if the blocks' files are on the same disk.
    Raises:  OSError if the folder cannot be written; ValueError if a file is gone or is none of this kit's.
    Source:  this project.
    Differs: no difference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(_entries(folder / INDEX)) if (folder / INDEX).is_file() else set()
    blocks = {block: _bring(file, folder) for block, file in quantized.weights.files.items()}
    beside = folder / "params.part.safetensors"
    write(beside, {}, quantized.params, {"of": list(blocks.values())})
    params = _bring(beside, folder)
    beside.unlink()
    notes = json.dumps({"format": FORMAT, "settings": quantized.settings, "trace": quantized.trace, "blocks": blocks,
                        "params": params})
    replace(folder / INDEX, json.dumps({"notes": notes, "sha256": _sha(notes)}).encode())
    for old in before - {*blocks.values(), params}:
        (folder / old).unlink(missing_ok=True)
    return folder / INDEX


def load_shards(index: Path) -> Quantized:
    """The record that an index describes; every file is read once, to verify it, and left on disk.

    Shapes:  as saved.
    Units:   none.
    Raises:  ValueError if a file is missing, damaged or another one.
    Source:  this project.
    Differs: no difference.
    """
    notes, shards = _notes(index), Shards()
    for block, name in notes["blocks"].items():
        shards.put(block, index.parent / name, _checked(index.parent / name)[0])
    return Quantized(shards, notes["settings"], notes["trace"], _checked(index.parent / notes["params"])[1])


def _bring(file: Path, folder: Path) -> str:
    """Put a file into the folder under a name that says what it holds; returns the name."""
    if not file.is_file():
        raise ValueError(f"{file} is gone, and the weights with it: keep the work folder until the result is saved")
    name = f"{file.name.split('.')[0].split('-')[0]}-{stamp(file)[:16]}.safetensors"
    if not (folder / name).exists():
        part = folder / f"{name}.part"
        part.unlink(missing_ok=True)
        try:
            os.link(file, part)
        except OSError:  # another disk
            shutil.copyfile(file, part)
        os.replace(part, folder / name)
    return name


def _checked(file: Path) -> tuple[dict[str, StoredWeight], dict[str, Tensor], dict]:
    if not file.is_file():
        raise ValueError(f"{file} is missing; its neighbours are of no use without it: save the result anew")
    if stamp(file)[:16] != file.stem.rpartition("-")[2]:
        raise damaged(file, "it is not the file that the index names")
    return read(file)


def _entries(index: Path) -> list[str]:
    notes = _notes(index)
    return [*notes["blocks"].values(), notes["params"]]


def _notes(index: Path) -> dict:
    try:
        outside = json.loads(index.read_text(encoding="utf-8"))
        whole = outside["sha256"] == _sha(outside["notes"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise damaged(index, "it was edited or cut off: its contents do not match their recorded hash")
    notes = json.loads(outside["notes"])
    if notes.get("format") != FORMAT:
        raise damaged(index, f"its format is {notes.get('format')!r}, and this version reads {FORMAT!r}")
    return notes


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
