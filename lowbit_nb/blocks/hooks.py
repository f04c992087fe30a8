"""Looking into a forward pass: hooks that are gone afterwards, and a way out once enough was seen."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class Stop(Exception):
    """Raised by a hook to leave a forward pass once it has seen enough."""


class Hooks:
    """Forward pre-hooks that are gone when the `with` ends, whatever happens inside.

    Source: this project. Differs: no difference.
    """

    def __init__(self, wanted: list[tuple[nn.Module, Callable]], with_kwargs: bool = False) -> None:
        self.wanted, self.with_kwargs, self.handles = wanted, with_kwargs, []

    def __enter__(self) -> None:
        self.handles = [m.register_forward_pre_hook(f, with_kwargs=self.with_kwargs) for m, f in self.wanted]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
