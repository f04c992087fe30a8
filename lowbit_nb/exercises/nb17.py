"""Exercises of 17_the_table: changes paired by seed, a front in several costs, how often luck deals such a difference."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable


def paired(attempt: Callable) -> None:
    """Ratios inside seeds, over the seeds that both have."""
    got = attempt({0: 1.0, 1: 4.0, 2: 1.0}, {0: 0.5, 1: 4.4, 2: 0.9})
    assert len(got) == 2, f"return two numbers, the mean relative change and how many seeds became better; got {got!r}"
    assert abs(got[0] + 0.5 / 3) < 1e-9, f"changes are -0.5, +0.1 and -0.1, their mean -0.1667; got {got[0]:.4f}: divide " \
                                         "inside each seed, then take the mean"
    assert got[1] == 2, f"KL fell for two of these three seeds, got {got[1]}"
    for seed in range(4):
        draw = random.Random(seed)
        old, new = ({k: draw.uniform(0.5, 1.5) for k in draw.sample(range(8), 5)} for _ in range(2))
        both = [k for k in old if k in new]
        want = sum(new[k] / old[k] - 1 for k in both) / len(both), sum(new[k] < old[k] for k in both)
        try:
            got = attempt(dict(old), dict(new))
        except KeyError as missing:
            raise AssertionError(f"seed {missing} is not in both: use the seeds that both have") from missing
        assert abs(got[0] - want[0]) < 1e-9 and got[1] == want[1], \
            f"over the seeds that both have, {sorted(both)}: wanted {want[0]:.4f} and {want[1]}, got {got[0]:.4f} and {got[1]}"
    assert attempt({0: 1.0}, {0: 1.0})[1] == 0, "an equal KL is not a better one"


def front_of_many(attempt: Callable) -> None:
    """By the definition, in two to four costs, with ties."""
    same = attempt({"a": (1, 2, 3), "b": (1, 2, 3)})
    assert same == ["a", "b"], f"equal in everything, so neither beats the other: both stay; got {same}"
    alone = attempt({"cheap": (1, 9, 9), "good": (9, 1, 9), "quick": (9, 9, 1), "middle": (5, 5, 5), "worse": (5, 5, 6)})
    assert "worse" not in alone, "'middle' is nowhere worse than 'worse' and somewhere better: it beats it"
    assert alone == ["cheap", "good", "middle", "quick"], f"being better in one cost is not enough to beat: nowhere worse is " \
                                                          f"needed too; got {alone}"
    for seed in range(8):
        draw = random.Random(seed)
        of = {name: tuple(draw.randint(1, 4) for _ in range(2 + seed % 3)) for name in "hgfedcba"}
        want = sorted(n for n, a in of.items() if not any(
            b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in of.values()))
        assert attempt(dict(of)) == want, f"{of}: wanted {want}, got {attempt(dict(of))}"


def chance(attempt: Callable) -> None:
    """All deals counted, the real one among them."""
    got = attempt([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert abs(got - 1 / 20) < 1e-9, f"three and three, fully separate: 1 of 20 deals is so extreme; got {got:.4f}"
    try:
        got = attempt([1.0, 1.0], [1.0, 1.0])
    except ZeroDivisionError as error:
        raise AssertionError("with equal results nobody was left for the second: places, not values, are dealt") from error
    assert abs(got - 1) < 1e-9, f"equal results: all deals differ by 0; got {got:.4f}: places, not values, are dealt"
    got = attempt([2.0, 2.1], [1.0, 1.1, 1.2])
    assert abs(got - 1) < 1e-9, f"the second is lower throughout: every deal has a second minus first at least as large; got " \
                                f"{got:.4f}"
    for seed in range(6):
        draw = random.Random(seed)
        first, second = ([draw.choice((0.1, 0.2, 0.3, 0.7)) for _ in range(n)] for n in (3 + seed % 2, 3))
        got, want = attempt(list(first), list(second)), _share(first, second)
        assert abs(got - want) < 1e-9, f"{first} and {second}: wanted {want:.4f}, got {got:.4f}; equal means count too, " \
                                       "so compare with a small tolerance"


def _share(first: list[float], second: list[float]) -> float:
    """Whole tenths, so that equal means are equal."""
    pool, k = [round(10 * x) for x in (*first, *second)], len(first)
    sums = [sum(pool[i] for i in deal) for deal in itertools.combinations(range(len(pool)), k)]
    return sum(of <= sums[0] for of in sums) / len(sums)  # the smaller the first sum, the larger the difference


EXERCISES = {"table-1": paired, "table-2": front_of_many, "table-3": chance}
