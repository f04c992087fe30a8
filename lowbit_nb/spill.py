"""Streams that lie elsewhere than the model: in the computer's memory beside a GPU, or in a file if they are too large for it.

A file is mapped: the system keeps as much of it in memory as there is room for, and writes the rest to disk.  On the CPU such
a tensor is like any other.  With a model on a GPU the stream stays behind, and pieces that are taken out of it come to the GPU.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SHARE = 8  # a stream of more than this part of the computer's memory goes to disk


@dataclass(frozen=True)
class Room:
    """A place for streams, and the device where pieces of them are wanted.

    disk    True: in files; False: in memory; None: in memory, unless a stream would take more than an eighth of it
    folder  of the files; None: the system's place for temporary ones.  They have no name there and are gone with their tensor,
            also if the process is killed

    Source: this project. Differs: no difference.

    >>> X = Room(disk=True).empty((2, 3), torch.float32)
    >>> X[0] = 1.0; X[1] = 2.0
    >>> X.sum().item(), isinstance(X[0], Spilled)
    (9.0, False)
    """

    home: torch.device | str = "cpu"
    disk: bool | None = None
    folder: str | Path | None = None

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Spilled:
        """A tensor there, its numbers not yet set.

        Shapes:  as asked; at least one number.
        Units:   none.
        Raises:  OSError if there is not enough room on the disk.
        Source:  this project.
        Differs: no difference.
        """
        n = math.prod(shape) * dtype.itemsize
        pages = self._mapped(n) if self.disk or (self.disk is None and n > _memory() / SHARE) else None
        if pages is None:
            X = torch.empty(shape, dtype=dtype, pin_memory=torch.device(self.home).type == "cuda").as_subclass(Spilled)
        else:
            X = torch.frombuffer(pages, dtype=dtype).view(*shape).as_subclass(Spilled)
        X.room, X.pages = self, pages
        return X

    def _mapped(self, n: int) -> mmap.mmap:
        if self.folder:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n)  # a full disk is an error now, not a signal later
            else:
                file.truncate(n)
            return mmap.mmap(file.fileno(), n)


def _memory() -> float:
    """Bytes of the computer's memory; 0 where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError):
        return 0.0


class Spilled(Tensor):
    """A tensor that lies in a room; pieces taken out of it are ordinary tensors where they are wanted.

    Source: this project. Differs: no difference.
    """

    room: Room
    pages: mmap.mmap | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # results of arithmetic are ordinary tensors

    def __getitem__(self, index: object) -> Tensor:
        index = index.cpu() if isinstance(index, Tensor) else index
        return self.as_subclass(Tensor)[index].to(self.room.home)


def like(X: Tensor) -> Tensor:
    """A tensor of that shape and type in the same place, its numbers not yet set.

    Shapes:  as X.
    Units:   none.
    Raises:  OSError as `Room.empty`.
    Source:  this project.
    Differs: no difference.
    """
    return X.room.empty(X.shape, X.dtype) if isinstance(X, Spilled) else torch.empty_like(X)


def copied(X: Tensor, to: Tensor | None = None) -> Tensor:
    """The same numbers once more: in the same place, or in a tensor that is given.

    Shapes:  as X.
    Units:   those of X.
    Raises:  OSError as `Room.empty`.
    Source:  this project.
    Differs: window by window, so that neither file has to be in memory as a whole.
    """
    out = like(X) if to is None else to
    for i in range(len(X)):
        out[i] = X[i]
        forget(X, out)
    return out


def at_home(X: Tensor) -> Tensor:
    """The whole of X as an ordinary tensor, where it is computed with.

    Shapes:  as X.
    Units:   those of X.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return X[:]


def home(X: Tensor) -> torch.device:
    """Where X is computed with.

    Shapes:  any.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return torch.device(X.room.home) if isinstance(X, Spilled) else X.device


def forget(*streams: Tensor) -> None:
    """Let the pages of streams on disk leave memory; what was written stays in the file. Other tensors are left alone.

    Shapes:  any.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: the system would do so by itself once memory is short; this keeps the process small before that.
    """
    for X in streams:
        if isinstance(X, Spilled) and X.pages and hasattr(mmap, "MADV_DONTNEED"):
            X.pages.madvise(mmap.MADV_DONTNEED)
