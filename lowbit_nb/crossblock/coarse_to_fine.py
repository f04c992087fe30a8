"""Coarse to fine: which few magnitudes stand out so far that they would ruin a ruler, and what is done about them.

Coarse: everything above Q3 + 1.5 (Q3 - Q1) is a candidate.  Fine: the candidates are cut in two where the gap is wide and what
is kept below it lies close together.  Weights above the cut are clamped to it; channels of activations above it are divided.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reserved(x: Tensor, reach: float = 1.5, weight: float = 1.0) -> Tensor:
    """The largest magnitude that is not an outlier.

    Candidates o_1 <= ... <= o_m lie above tau = Q3 + reach (Q3 - Q1).  Of the cuts between them, the one with the greatest
    (o_{i+1} - o_i)**2 - weight var(o_1 .. o_i) is taken, and o_i returned; of a single candidate, what lies below it.

    Shapes:  any; returns a scalar.
    Units:   those of x.
    Raises:  nothing.
    Source:  CBQ, Sec. 3.4 and Alg. 1 (coarse-to-fine preprocessing); the squared gap.
    Differs: prefix sums instead of a scan for every cut; the paper does not say what becomes of one candidate.

    >>> reserved(torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 2.9, 3.0, 9.0]), 1.5).item()
    3.0
    """
    sizes = x.detach().abs().flatten().sort().values
    q1, q3 = _quantile(sizes, 0.25), _quantile(sizes, 0.75)
    start = int(torch.searchsorted(sizes, q3 + reach * (q3 - q1), right=True))
    found = sizes[start:]
    if len(found) < 2:
        return sizes[start - 1]
    o = found.double() - found.double().mean()
    count = torch.arange(1, len(o) + 1, device=o.device, dtype=o.dtype)
    variance = (o.square().cumsum(0) / count - (o.cumsum(0) / count).square()).clamp(min=0)
    score = o.diff().square() - weight * variance[:-1]
    return found[int(score.argmax())]


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Linear interpolation in a sorted list of any length."""
    place = share * (len(ordered) - 1)
    low, high = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
    return low + (place - int(place)) * (high - low)


def truncated(W: Tensor, reach: float = 1.5, weight: float = 1.0) -> Tensor:
    """The weight with its outliers clamped to the largest magnitude that is none.

    Shapes:  W [d_out, d_in]; returns the same.
    Units:   those of the weight.
    Raises:  nothing.
    Source:  CBQ, Sec. 3.4 (weights are truncated).
    Differs: no difference.
    """
    most = reserved(W, reach, weight)
    return W.clamp(-most, most)


def channel_factors(peak: Tensor, reach: float = 1.5, weight: float = 1.0) -> Tensor:
    """What channels are divided by: sqrt(peak / reserved) where a channel stands out, 1 elsewhere.

    Shapes:  peak [channels], the largest |activation| of each; returns [channels].
    Units:   no unit.
    Raises:  nothing.
    Source:  CBQ, Sec. 3.4 (activations are scaled).
    Differs: no difference.
    """
    most = reserved(peak, reach, weight)
    return torch.where(peak > most, (peak / most.clamp(min=1e-12)).sqrt(), torch.ones_like(peak))
