"""Exercises of 00_start_here: honest bits, KL from logits, rounding with feedback."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def honest_bits(attempt: Callable[[int, int], float]) -> None:
    """b + (16 + b) / g."""
    for b, g in [(2, 64), (3, 128), (4, 32), (8, 1)]:
        found = attempt(b, g)
        assert found > b, f"{found} for b={b}, g={g}: the codes alone take {b}"
        assert found <= b + 16 + b, "the step and the zero point are shared by the group"
        assert abs(found - (b + 16 / g + b / g)) < 1e-9, f"{found} for b={b}, g={g}: one step of 16 bits, one zero of b bits"


def kl_from_logits(attempt: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """KL(softmax(a) || softmax(b)), mean over rows."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 7, generator=g), 3 * torch.randn(5, 7, generator=g)
    assert abs(float(attempt(a, a))) < 1e-6, "a model is at distance 0 from itself"
    assert abs(float(attempt(a + 100, b)) - float(attempt(a, b))) < 1e-4, "logits may be shifted: only their differences count"
    forth, back = (float(F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean"))
                   for p, q in [(a, b), (b, a)])
    found = float(attempt(a, b))
    assert abs(found - back) > 1e-4, "the order matters: the original's probabilities are the weights"
    assert abs(found - forth) < 1e-4, f"{found:.4f} instead of {forth:.4f}: sum over the vocabulary, mean over positions"


def round_with_feedback(attempt: Callable[[list, list], list]) -> None:
    """t_j = w_j + undone / x_j; what is left undone is measured at the output."""
    assert attempt([0.45, 0.40], [1.0, 1.0]) == [0, 1], "with equal inputs, (0.45, 0.40) becomes (0, 1)"
    assert attempt([0.45, 0.40], [1.0, 3.0]) == [0, 1], "what is left undone is measured at the output: 0.45 * 1 / 3 is asked"
    assert attempt([0.4, 0.0, 0.3], [1.0, 10.0, 1.0]) == [0, 0, 1], "everything that was left undone must be passed on"
    assert attempt([1.2, -0.6], [2.0, -0.5]) == [1, -1], "with x = (2, -0.5), 0.4 undone asks the second weight for -0.8 more"


EXERCISES = {"start-bits": honest_bits, "start-kl": kl_from_logits, "start-feedback": round_with_feedback}
