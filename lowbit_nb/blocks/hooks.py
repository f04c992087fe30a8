"""Looking into a forward pass: hooks that are gone afterwards, and a way out once enough was seen."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class Stop(Exception):
    """Raised by a hook to leave a forward pass once it has seen enough."""


class Hooks:
    """Forward pre-hooks, or hooks that see the output (`after`), that are gone when the `with` ends, whatever happens inside.

    Source: this project. Differs: no difference.
    """

    def __init__(self, wanted: list[tuple[nn.Module, Callable]], with_kwargs: bool = False, after: bool = False) -> None:
        self.wanted, self.with_kwargs, self.after, self.handles = wanted, with_kwargs, after, []

    def __enter__(self) -> None:
        add = "register_forward_hook" if self.after else "register_forward_pre_hook"
        self.handles = [getattr(module, add)(hook, with_kwargs=self.with_kwargs) for module, hook in self.wanted]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
