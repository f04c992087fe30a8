"""Triton kernels for what PyTorch would do in thousands of small steps.  Each has a twin in plain PyTorch beside its caller.

Triton is optional: without it, and on the CPU, the twins run.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
except ImportError:
    triton = None


def ready(t: Tensor) -> bool:
    """Whether a kernel can take this tensor: float32 on a GPU, with Triton installed.

    Shapes:  any.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return triton is not None and t.is_cuda and t.dtype == torch.float32
