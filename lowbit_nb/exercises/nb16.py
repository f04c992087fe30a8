"""Exercises of 16_speed_runs: a fair ratio, bits for a wanted speed, a queue of launches that is not endless."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median


def faster(attempt: Callable) -> None:
    """Ratios inside rounds: a machine that slows down for a while changes none of them."""
    for seed in range(4):
        draw = random.Random(seed)
        slow = [1 + 3 * draw.random() ** 4 for _ in range(31)]  # how slow the machine was in each round
        old = [90.0, 70.0] + [6 * s * draw.uniform(0.95, 1.05) for s in slow]
        new = [50.0, 1.0] + [2 * s * draw.uniform(0.95, 1.05) for s in slow]
        old[9], new[17] = 60.0, 60.0  # somebody else's work fell into one of the two
        got = attempt(list(old), list(new), 2)
        want = median(a / b for a, b in zip(old[2:], new[2:], strict=True))
        upside_down = got > 0 and abs(1 / got - want) < 0.1
        assert not upside_down, f"{got:.3g}: that is new over old; how many times as fast is old over new"
        assert abs(got - want) < 1e-9, f"wanted {want:.4f}, got {got:.4f}: drop the first 2 rounds, divide inside every " \
                                       "round, then take the median"
    assert abs(attempt([9.0, 4.0, 8.0], [1.0, 2.0, 2.0], 1) - 3) < 1e-9, "ratios 2 and 4: the median of two is between them"


def bits_for(attempt: Callable) -> None:
    """Weights' time plus the rest must not exceed 1 / target."""
    for target, weights, bandwidth, rest in ((100, 8e9, 4e12, 0.0), (500, 8e9, 4e12, 0.4e-3), (900, 7e9, 2e12, 0.9e-3),
                                             (40, 7e10, 4e12, 2e-3)):
        got, want = attempt(target, weights, bandwidth, rest), min(16.0, 8 * bandwidth * (1 / target - rest) / weights)
        assert got is not None, f"{target} tokens a second can be had with {want:.3g} bits"
        seconds = weights * got / 8 / bandwidth + rest
        assert got <= 16, f"{got:.3g} bits: the model has 16, more are never needed"
        assert seconds * target < 1 + 1e-9, f"with {got:.3g} bits a token takes {1e3 * seconds:.3g} ms, the rest included; " \
                                            f"{target} a second leave {1e3 / target:.3g} ms"
        assert abs(got - want) < 1e-6, f"{target} a second: {want:.4g} bits would do, got {got:.4g}"
    for rest in (2e-3, 3e-3):
        none = attempt(500, 8e9, 4e12, rest) is None
        assert none, f"the rest alone takes {1e3 * rest:.0f} of 2 ms: no number of bits will do"


def finish(attempt: Callable) -> None:
    """Against a table of starts and ends, for queues of several depths."""
    alike = attempt([5.0, 5.0, 5.0], 1.0, 3)
    assert abs(alike - 16) < 1e-9, f"three kernels of 5 µs, 1 µs a launch, room for 3: they end at 16 µs, got {alike:.3g}"
    for seed in range(6):
        draw = random.Random(seed)
        work = [draw.choice((1.0, 2.0, 30.0)) for _ in range(24)]
        for depth in (1, 2, 4, 24):
            got, want = attempt(list(work), 4.0, depth), _ends(work, 4.0, depth)[-1]
            assert abs(got - want) < 1e-9, f"depth {depth}: the last kernel ends at {want:.1f} µs, got {got:.1f}; launch k " \
                                           f"waits for the end of kernel k - {depth}"


def _ends(work: list[float], issue: float, depth: int) -> list[float]:
    """When every kernel ends."""
    launched: list[float] = []
    ends: list[float] = []
    for k, w in enumerate(work):
        free = ends[k - depth] if k >= depth else 0.0
        launched.append(max(launched[k - 1] if k else 0.0, free) + issue)
        ends.append(max(launched[k], ends[k - 1] if k else 0.0) + w)
    return ends


EXERCISES = {"speed-1": faster, "speed-2": bits_for, "speed-3": finish}
