"""Windows of tokens: the one form in which text reaches the methods and the measurements."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowbit_nb import corpus


@dataclass(frozen=True)
class Windows:
    """Token windows of equal length, and the sentence that says how they were made.

    Shapes:  ids [n, length] int64.
    Units:   ids are token numbers of one tokenizer; sha256 is over the ids and the protocol.
    Raises:  ValueError if ids is not a two-dimensional int64 tensor.
    Source:  this project.
    Differs: no difference.
    """

    ids: Tensor
    protocol: str
    sha256: str = ""
    files: tuple[str, ...] = ()  # the modules, splits or file that the ids came from

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.dtype != torch.int64:
            raise ValueError(f"windows are int64 ids [n, length], not {self.ids.dtype} "
                             f"{list(self.ids.shape)}; stack rows of equal length and call .long()")
        if not self.sha256:
            object.__setattr__(self, "sha256", corpus.sha256([str(self.ids.tolist()), self.protocol]))

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, index: int | slice) -> Windows:
        """Some of the windows; an index gives one window, still as Windows."""
        rows = list(range(len(self))[index if isinstance(index, slice) else slice(index, index + 1 or None)])
        if not rows:
            raise IndexError(f"no window at {index}: there are {len(self)}")
        protocol = f"{self.protocol}; of these windows {rows[0]} to {rows[-1]}"
        return Windows(self.ids[rows], protocol, files=self.files)

    def to(self, device: torch.device | str) -> Windows:
        """The same windows on another device."""
        return replace(self, ids=self.ids.to(device))

    def __repr__(self) -> str:
        n, length = self.ids.shape
        return f"Windows({n} x {length} tokens, sha256 {self.sha256[:12]}: {self.protocol})"


def encode(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """The token numbers of a text; special=True adds the tokenizer's begin token where it has one.

    Shapes:  a list of any length.
    Units:   token numbers.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    # verbose=False: a whole corpus is longer than any context, and that is no reason to warn
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def too_short(part: str, tokens: int, n: int | None, length: int) -> ValueError:
    """The error for a text that holds less than was asked for: the counts and the way out.

    Shapes:  none.
    Units:   tokens.
    Raises:  nothing; it returns the error.
    Source:  this project.
    Differs: no difference.
    """
    fit = tokens // length
    way = (f"n <= {fit}, " if fit else "") + "a shorter length or a longer text"
    return ValueError(f"{part}: {tokens} tokens make {fit} windows of {length}, but {n or 'at least 1'} "
                      f"asked for; use {way}")


def spaced(ids: list[int], n: int | None, length: int, part: str, files: tuple[str, ...] = ()) -> Windows:
    """n of the N non-overlapping windows of a token list, evenly spaced: window k is number floor(k N / n).

    Shapes:  Windows with ids [n, length]; n=None takes all N.
    Units:   tokens.
    Raises:  ValueError if N < n or N < 1.
    Source:  this project.
    Differs: no difference.
    """
    fit = len(ids) // length
    if fit < (n or 1):
        raise too_short(part, len(ids), n, length)
    kept = [k * fit // (n or fit) for k in range(n or fit)]
    rows = torch.tensor(ids[: fit * length]).view(fit, length)[kept]
    which = "all" if len(kept) == fit else f"{len(kept)} of"
    protocol = f"{part}; {which} {fit} non-overlapping windows of {length} tokens"
    return Windows(rows, protocol, files=files or (part,))


def at_random(ids: list[int], n: int, length: int, seed: int, part: str) -> Windows:
    """n windows at random offsets of a token list, never more tokens than the list has.

    Shapes:  Windows with ids [n, length].
    Units:   tokens.
    Raises:  ValueError if the list is shorter than n windows.
    Source:  the offsets as the GPTQ code draws them for wikitext2.
    Differs: no difference.
    """
    if len(ids) < max(n * length, length + 2):
        raise too_short(part, len(ids), n, length)
    pick = random.Random(seed)
    starts = [pick.randint(0, len(ids) - length - 1) for _ in range(n)]
    rows = torch.tensor([ids[start : start + length] for start in starts])
    protocol = f"{part}; {n} windows of {length} tokens at random offsets, seed {seed}"
    return Windows(rows, protocol, files=(part,))
