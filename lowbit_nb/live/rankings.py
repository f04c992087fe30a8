"""The ranking explorer: a table that can be sorted, and the same entries as points with the front that nothing beats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import traitlets

from lowbit_nb import show
from lowbit_nb.live.base import Explorer, Frame, module, percent, styles
from lowbit_nb.live.ranking_model import COSTS, EVERY, JUDGES, RISING, Entry, View, summary

SHARES = ("top1", "parse")
MOST_FAMILIES = 6


class RankingExplorer(Explorer):
    """Entries and how they are seen; the browser sorts, filters and finds the front. Source, Differs: this project."""

    _esm = module("dom", "ranking")
    _css = styles("base", "ranking")
    heading = "Ranking explorer"
    entries = traitlets.List().tag(sync=True)  # Entry as a dict, with its name
    levels = traitlets.List().tag(sync=True)
    families = traitlets.List().tag(sync=True)
    original = traitlets.Dict().tag(sync=True)  # what the original model scores, where that is known
    level = traitlets.Unicode(EVERY).tag(sync=True)
    judge = traitlets.Unicode("kl").tag(sync=True)
    cost = traitlets.Unicode("bits").tag(sync=True)
    sort = traitlets.Unicode("kl").tag(sync=True)
    falling = traitlets.Bool(False).tag(sync=True)
    paper = traitlets.Bool(True).tag(sync=True)
    only_front = traitlets.Bool(False).tag(sync=True)
    marked = traitlets.Int(-1).tag(sync=True)  # which entry is told about; -1: none

    @property
    def view(self) -> View:
        found = [Entry(**{k: v for k, v in e.items() if k != "name"}) for e in self.entries]
        return View(found, self.level, self.judge, self.cost, self.sort, self.falling, self.paper, self.only_front)

    def sentence(self) -> str:
        view = self.view
        front = "; ".join(f"{view.entries[i].name} {_at(view, i)}" for i in view.front)
        return (f"Ranking explorer, {self.about}. {_title(view)}: {len(view.seen)} entries. "
                f"Not beaten, from the cheapest: {front}.")

    def frames(self) -> list[Frame]:
        views = [replace(self.view, only_front=False), replace(self.view, level=EVERY, only_front=False)]
        fronts = [self._front_frame(view) for view in dict.fromkeys(map(_settings, views))]
        ranked = [level for level in self.levels if level != EVERY]
        first = self.level if self.level in ranked else ranked[0]
        return [*fronts, *(self._rank_frame(level) for level in dict.fromkeys((first, ranked[-1])))]

    def _front_frame(self, settings: tuple) -> Frame:
        view = View(self.view.entries, *settings)
        fig, ax = show.subplots(8, 4.4)
        for n, family in enumerate(self.families):
            of = [view.entries[i] for i in view.seen if view.entries[i].family == family]
            if of:
                ax.scatter([e.values[view.cost][0] for e in of], [e.values[view.judge][0] for e in of], label=family,
                           zorder=3, **show.dots(n))
        at = [(view.entries[i].values[view.cost][0], view.entries[i].values[view.judge][0]) for i in view.front]
        ax.step(*zip(*at, strict=True), where="post", color="#222222", lw=1, label="not beaten")
        if view.judge not in SHARES:
            _logarithmic(ax, [view.entries[i].values[view.judge][0] for i in view.seen])
        if view.cost != "bits":
            ax.set_xscale("log")
        ax.set(xlabel=COSTS[view.cost], ylabel=JUDGES[view.judge], title=_title(view))
        ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
        told = "; ".join(f"{view.entries[i].name} {_at(view, i)}" for i in view.front)
        return Frame(_title(view), f"{_title(view)}, {len(view.seen)} entries. Not beaten, from the cheapest: {told}.", fig)

    def _rank_frame(self, level: str) -> Frame:
        """One level, best first: a dot at the mean, a line from the least to the most of the seeds."""
        view = View(self.view.entries, level, self.judge, "bits", self.judge, self.judge in RISING, self.paper)
        rows = [view.entries[i] for i in view.order]
        fig, ax = show.subplots(8, 0.9 + 0.26 * len(rows))
        for y, e in enumerate(rows):
            mean, low, high = e.values[self.judge]
            ax.plot([low, high], [y, y], color="#222222", lw=1.5)
            ax.scatter([mean], [y], zorder=3, **show.dots(self.families.index(e.family)))
        ax.set_yticks(range(len(rows)), [f"{e.name}  {e.values['bits'][0]:.2f}" for e in rows])
        ax.invert_yaxis()
        if self.judge not in SHARES and all(e.values[self.judge][1] > 0 for e in rows):
            ax.set_xscale("log")
            low, high = ax.get_xlim()
            ax.set_xticks(_ticks(low, high))
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.minorticks_off()
        title = f"Level {level}, by {JUDGES[self.judge]}"
        ax.set(xlabel=f"{JUDGES[self.judge]}; line: all seeds; beside the names: bits a weight", title=title)
        return Frame(title, f"{title}: {'; '.join(f'{e.name} {_value(self.judge, e)}' for e in rows)}.", fig)


def _settings(view: View) -> tuple:
    return (view.level, view.judge, view.cost, view.sort, view.falling, view.paper, view.only_front)


def _title(view: View) -> str:
    where = view.level if view.level == EVERY else f"level {view.level}"
    return f"{where[0].upper()}{where[1:]}: {JUDGES[view.judge]} against {COSTS[view.cost]}"


def _value(measure: str, entry: Entry) -> str:
    mean = entry.values[measure][0]
    return percent(mean) if measure in SHARES else show.digits(mean)


def _at(view: View, i: int) -> str:
    return f"{_value(view.judge, view.entries[i])} at {show.digits(view.entries[i].values[view.cost][0])}"


def _ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 100 else (1,)
    return [t for e in range(-4, 7) for k in steps if low <= (t := k * 10.0**e) <= high]


def _logarithmic(ax: Any, values: list[float]) -> None:
    if values and min(values) > 0:
        ax.set_yscale("log")
        ax.set_yticks(_ticks(*ax.get_ylim()))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.minorticks_off()


def ranking_explorer(rows: Iterable[Mapping[str, Any]], families: Mapping[str, str] | None = None, level: str = EVERY,
                     judge: str = "kl", cost: str = "bits", original: Mapping[str, float] | None = None,
                     name: str = "the subject") -> RankingExplorer:
    """A widget that ranks methods by what one asks for; make it the last expression of a cell.

    Shapes:  rows as `summary` takes them, one a seed; families {method: family}, six at most; original {judge: value}.
    Units:   as `summary`.
    Raises:  ValueError for rows that cannot be summed up or shown, or a level, judge or cost that is not there.
    Source:  this project.
    Differs: no difference.
    """
    rows = list(rows)
    found = summary(rows, families)
    if not found:
        raise ValueError("there are no rows to rank; give those of data/benchmarks/the_table_h200.json, or your own")
    if bad := [e.name for e in found if not all(math.isfinite(x) and x >= 0 for of in e.values.values() for x in of)]:
        raise ValueError(f"{', '.join(bad)}: a value is not finite or below 0; leave such runs out")
    levels = list(dict.fromkeys(e.level for e in found))
    levels = [EVERY, *levels] if any("A" not in of for of in levels) else levels
    for what, value, known in (("level", level, levels), ("judge", judge, JUDGES), ("cost", cost, COSTS)):
        if value not in known:
            raise ValueError(f"{what}={value!r} is not there; use one of {', '.join(known)}")
    kinds = list(dict.fromkeys(e.family for e in found))
    if len(kinds) > MOST_FAMILIES:
        raise ValueError(f"{len(kinds)} families; only {MOST_FAMILIES} can be told apart, so put some together")
    seeds = sum(e.seeds for e in found)
    return RankingExplorer(entries=[asdict(e) | {"name": e.name} for e in found], levels=levels, families=kinds, level=level,
                           judge=judge, sort=judge, falling=judge in RISING, cost=cost, original=dict(original or {}),
                           about=f"{name}: {len(found)} entries of {seeds} runs")
