"""The logarithmic start of channel factors."""

from __future__ import annotations

import torch
from torch import Tensor


def log_start(a: Tensor, base: float = 2.0, least: float = 1e-5) -> Tensor:
    """Logarithmic activation equalisation: s = a / log_base(base + a), so that the largest activation becomes the logarithm.

    Shapes:  a [channels], the largest |activation| of each channel; returns [channels].
    Units:   no unit.
    Raises:  nothing.
    Source:  LRQuant, Sec. 3.1 (base 2); clamps of its code.
    Differs: the base is a setting.

    >>> log_start(torch.tensor([2.0, 6.0])).tolist()
    [1.0, 2.0]
    """
    a = a.clamp(min=least)
    return (a * torch.log(torch.tensor(base)) / torch.log(base + a)).clamp(min=least)
