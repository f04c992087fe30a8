"""Arithmetic compiled into few kernels where tensors are on a GPU; on the CPU functions run as they are written.

Set TORCH_COMPILE_DISABLE=1 to run everything as it is written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def fused(function: Callable) -> Callable:
    """The function, compiled for tensors on a GPU: many passes over memory become one.

    Shapes:  as the function; its first argument is a tensor and decides.
    Units:   none.
    Raises:  as the function.
    Source:  torch.compile.
    Differs: no difference.
    """
    compiled = torch.compile(function)

    @functools.wraps(function)
    def call(*args: object) -> object:
        return (compiled if args[0].is_cuda else function)(*args)

    return call
