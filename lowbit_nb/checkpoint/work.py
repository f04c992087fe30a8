"""Finished blocks of a run, one file each."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

from torch import Tensor

from lowbit_nb.checkpoint.files import read, write
from lowbit_nb.stored import StoredWeight


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

    def path(self, index: int) -> Path:
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
            write(self.path(index), result.weights, result.params, {"settings": self.settings, "trace": result.trace})

    def read(self, index: int) -> SimpleNamespace | None:
        """A finished block (weights, params, trace), or None if it has yet to be done.

        Shapes:  as written.
        Units:   none.
        Raises:  ValueError if the file is damaged (message says which file to delete) or is another run's.
        Source:  this project.
        Differs: no difference.
        """
        if not self.folder or not self.path(index).exists():
            return None
        weights, params, notes = read(self.path(index))
        theirs = notes["settings"]
        if differ := [k for k in self.settings if self.settings[k] != theirs.get(k)]:
            raise ValueError(f"{self.folder} holds another run: {', '.join(differ)} differ "
                             f"({differ[0]}: {theirs.get(differ[0])} there, {self.settings[differ[0]]} here); "
                             "give this run a folder of its own, or delete that one")
        return SimpleNamespace(weights=weights, params=params, trace=notes["trace"])
