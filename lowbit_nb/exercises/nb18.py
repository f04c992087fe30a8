"""Exercises of 18_compose_your_own: parts in each other's way, a margin that counts, all steps of a row at once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch


def in_the_way(attempt: Callable) -> None:
    """Independent parts give 1; the two weights of the notebook 26."""
    draw = random.Random(0)
    for _ in range(20):
        neither, one, two, extra = (draw.uniform(0.1, 5) for _ in range(4))
        want = 0.5 + extra
        got = float(attempt(neither, neither * one, neither * two, neither * one * two * want))
        assert math.isfinite(got), f"{got} is no number"
        hint = "compare with gains that multiply; each part leaves a share of what neither leaves"
        assert math.isclose(got, want, rel_tol=1e-9), f"got {got:.4g}, not {want:.4g}: {hint}"
    assert math.isclose(attempt(2.08, 0.13, 0.08, 0.13), 26), "the two weights at the top give 26; gains that multiply give 1"


def margin(attempt: Callable) -> None:
    """Against a sort of all fair rivals."""
    for seed in range(30):
        draw = random.Random(seed)

        def of(name: str, bits: float, draw: random.Random = draw) -> dict:
            return {"name": name, "bits": bits, "kls": [draw.uniform(0.3, 0.4) for _ in range(draw.choice((1, 3, 5)))]}

        singles = [of(name, draw.choice((2.1, 2.2, 2.3, 2.4))) for name in "abcdefgh"] + [of("always fair", 2.1)]
        tempting = {"name": "too many bits", "bits": 2.3 + 1e-3, "kls": [0.1]}
        lucky = {"name": "one lucky seed", "bits": 2.1, "kls": [0.2, 0.9]}
        least = {"name": "as many bits", "bits": 2.3, "kls": [0.29, 0.31]}
        singles += [tempting, lucky] + ([least] if seed % 2 else [])
        draw.shuffle(singles)
        for kls in ([0.31, 0.28], [0.25, 0.2, 0.22], [0.35, 0.36], [0.295]):
            _margin_of(attempt, {"name": "both", "bits": 2.3, "kls": kls}, singles)


def _margin_of(attempt: Callable, combination: dict, singles: list[dict]) -> None:
    fair = [one for one in singles if one["bits"] <= combination["bits"]]
    mean, name, rival = sorted((sum(one["kls"]) / len(one["kls"]), one["name"], one) for one in fair)[0]
    got = attempt(dict(combination), [dict(one) for one in singles])
    assert isinstance(got, tuple) and len(got) == 3, f"expected a name, a share, and True or False; got {got!r}"
    assert got[0] == name, f"the rival is {name!r} (mean {mean:.3f}, {rival['bits']} bits), not {got[0]!r}"
    saved = 1 - sum(combination["kls"]) / len(combination["kls"]) / mean
    assert math.isclose(got[1], saved, abs_tol=1e-9), f"the share of the rival's mean KL saved is {saved:.3f}, not {got[1]:.3f}"
    real, others = max(combination["kls"]) < min(rival["kls"]), [round(k, 3) for k in rival["kls"]]
    assert bool(got[2]) == real, f"real should be {real}: seeds {combination['kls']} against {others}"


def refit_all(attempt: Callable) -> None:
    """No step can be moved for the better: the error has no slope in any of them."""
    for seed, (rows, groups, g) in enumerate(((1, 2, 4), (5, 3, 8), (4, 6, 4))):
        draw = torch.Generator().manual_seed(seed)
        d = groups * g
        X = torch.randn(4 * d, d, generator=draw, dtype=torch.float64)
        X = X + 0.8 * X.roll(1, 1) + 0.8 * X[:, :1]
        H = X.T @ X / len(X)
        z = torch.randint(1, 3, (rows, groups), generator=draw).double().repeat_interleave(g, 1)
        W = torch.randn(rows, d, generator=draw, dtype=torch.float64)
        q = (W / 0.7 + z).round().clamp(0, 3)
        s = attempt(W.clone(), q.clone(), z.clone(), H.clone(), g)
        assert tuple(s.shape) == (rows, groups), f"expected the shape {(rows, groups)}, got {tuple(s.shape)}"
        c = q - z
        E = W - s.repeat_interleave(g, 1) * c
        slope = ((E @ H) * c).reshape(rows, groups, g).sum(-1)
        own = ((W @ H) * c).reshape(rows, groups, g).sum(-1).abs().max()
        row, k = divmod(int(slope.abs().argmax()), groups)
        assert float(slope.abs().max() / own) < 1e-8, (
            f"the step of row {row}, group {k} could still be moved: the slope there is {float(slope[row, k]):.3g}; "
            "what another step does to this one must be counted")


EXERCISES = {"compose-1": in_the_way, "compose-2": margin, "compose-3": refit_all}
