"""Rankings worked out: seeds summed up, what is shown in which order, and the front that nothing beats.

    value   mean of the seeds, with the least and the most of them; seconds and memory are the least of the seeds, because what
            else runs on a device only adds to them
    front   nobody costs less (or as much) and is better: go from cheap to dear, keep whatever is better than all before it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

JUDGES = {"kl": "KL, nats", "perplexity": "perplexity", "top1": "top-1 agreement", "parse": "parse rate"}
COSTS = {"bits": "bits a weight", "seconds": "seconds", "memory": "peak memory, GB"}
RISING = ("top1", "parse")  # more is better
EVERY = "all weights alone"  # the levels at which activations keep their precision
NEEDED = ("level", "method", "kl", "perplexity", "top1", "parse", "bits_per_weight", "seconds", "peak_bytes")


@dataclass(frozen=True)
class Entry:
    """A method at a level: each value as (what is shown, least, most) of its seeds. Source, Differs: this project."""

    level: str
    method: str
    budget: str
    family: str
    seeds: int
    values: dict[str, tuple[float, float, float]]

    @property
    def name(self) -> str:
        """The method, and whether it had a paper's budget."""
        return self.method + (", paper's budget" if self.budget == "paper" else "")


def summary(rows: Iterable[Mapping[str, Any]], families: Mapping[str, str] | None = None) -> list[Entry]:
    """Rows of single seeds summed up, in the order in which methods first appear.

    Shapes:  rows are dicts with the names in NEEDED, and budget, seed where there is one; families {method: family}.
    Units:   bits a weight, nats, shares, seconds; peak_bytes become GB.
    Raises:  ValueError if a row lacks a name, or a method has two rows of one seed.
    Source:  this project.
    Differs: no difference.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if lacking := [name for name in NEEDED if name not in row]:
            raise ValueError(f"a row lacks {', '.join(lacking)}; give rows as data/benchmarks/the_table.py writes them")
        groups.setdefault((row["level"], row["method"], row.get("budget", "shared")), []).append(row)
    for (level, method, _), of in groups.items():
        if len({row.get("seed") for row in of}) < len(of):
            raise ValueError(f"{method} at level {level} has two rows of one seed; keep one of them")
    return [Entry(*of, (families or {}).get(of[1], "other"), len(found), _values(found)) for of, found in groups.items()]


def _values(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    of = {name: [float(row[name]) for row in rows] for name in (*JUDGES, "seconds")}
    of |= {"bits": [float(row["bits_per_weight"]) for row in rows], "memory": [row["peak_bytes"] / 1e9 for row in rows]}
    middle = {"seconds": min, "memory": min, "bits": median}  # of equal sizes exactly that size, which a mean may miss
    return {name: (middle.get(name, fmean)(seen), min(seen), max(seen)) for name, seen in of.items()}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (cost, loss) no other beats, from the cheapest to the dearest.

    Shapes:  a list of pairs; returns their places in it.
    Units:   none.
    Raises:  nothing.
    Source:  Pareto's order, by one pass over sorted points.
    Differs: of equal points the first is kept.

    >>> front([(2, 0.9), (4, 0.1), (3, 0.3), (3, 0.2), (5, 0.4)])
    [0, 3, 1]
    """
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not kept or points[i][1] < points[kept[-1]][1]:
            kept.append(i)
    return kept


@dataclass(frozen=True)
class View:
    """What is shown of the entries. Source, Differs: this project."""

    entries: Sequence[Entry]
    level: str = EVERY
    judge: str = "kl"
    cost: str = "bits"
    sort: str = "kl"
    falling: bool = False
    paper: bool = True
    only_front: bool = False

    @property
    def seen(self) -> list[int]:
        """Entries of this level and these budgets, in their own order."""
        every = self.level == EVERY
        return [i for i, e in enumerate(self.entries) if (self.paper or e.budget != "paper")
                and ("A" not in e.level if every else e.level == self.level)]

    @property
    def front(self) -> list[int]:
        seen, sign = self.seen, -1 if self.judge in RISING else 1
        at = [(self.entries[i].values[self.cost][0], sign * self.entries[i].values[self.judge][0]) for i in seen]
        return [seen[k] for k in front(at)]

    @property
    def order(self) -> list[int]:
        """Rows from top to bottom."""
        rows = sorted(self.front) if self.only_front else self.seen
        value = (lambda i: self.entries[i].name.lower()) if self.sort == "name" else (
            lambda i: self.entries[i].values[self.sort][0])
        return sorted(rows, key=value, reverse=self.falling)

    def rank(self, i: int) -> int:
        """1 for the best by this judge."""
        sign, mine = -1 if self.judge in RISING else 1, self.entries[i].values[self.judge][0]
        return 1 + sum(sign * self.entries[k].values[self.judge][0] < sign * mine for k in self.seen)

    def beaten_by(self, i: int) -> list[int]:
        """Who costs no more and is better, or costs less and is as good; the best of them first."""
        sign = -1 if self.judge in RISING else 1

        def at(k: int) -> tuple[float, float]:
            return sign * self.entries[k].values[self.judge][0], self.entries[k].values[self.cost][0]

        better = [k for k in self.seen if at(k)[0] <= at(i)[0] and at(k)[1] <= at(i)[1] and at(k) != at(i)]
        return sorted(better, key=at)
