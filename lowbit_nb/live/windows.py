"""The window explorer: which blocks are learned together, which go on from the window before, which are hard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import traitlets
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from lowbit_nb import show
from lowbit_nb.crossblock import schedule
from lowbit_nb.live.base import Explorer, Frame, module, percent, styles

MOST, MOST_RUNS = 48, 6  # blocks that have room beside each other; lines that can be told apart
STATES = {"u": "untouched", "s": "soft", "w": "warm", "h": "hard"}
FILLS = {"u": "#ffffff", "s": "#c7dcec", "w": "#f6d7a0", "h": "#6b6e72"}


@dataclass(frozen=True)
class Plan:
    """Windows over n blocks, and what they come to. Source, Differs: as `crossblock.schedule`."""

    n: int
    width: int
    overlap: int

    @property
    def steps(self) -> list[tuple[int, int, int]]:
        """First block, how many are made hard at the end, how many are learned."""
        return schedule(self.n, self.width, self.overlap)

    @property
    def rows(self) -> list[str]:
        """A letter of STATES for every block while a step is learned."""
        rows, begun = [], 0
        for first, _, seen in self.steps:
            rows.append("h" * first + "w" * (begun - first) + "s" * (first + seen - max(first, begun)))
            begun = first + seen
            rows[-1] += "u" * (self.n - begun)
        return rows

    @property
    def learned(self) -> list[int]:
        """In how many steps every block is learned."""
        return [sum(row[block] in "sw" for row in self.rows) for block in range(self.n)]

    @property
    def visits(self) -> int:
        return sum(self.learned)

    @property
    def together(self) -> int:
        """The most blocks learned in one step."""
        return max(seen for *_, seen in self.steps)

    @property
    def name(self) -> str:
        if self.width == 1:
            return "block by block"
        return f"windows of {self.width}" + (f" that overlap by {self.overlap}" if self.overlap else " side by side")

    @property
    def words(self) -> str:
        return (f"{self.name}: {len(self.steps)} step{'s' * (len(self.steps) > 1)}, {self.visits} block-visits, "
                f"{show.digits(self.visits / self.n)} times block by block; {self.often}; {self.together} in memory at once")

    @property
    def often(self) -> str:
        """How many blocks are learned how often."""
        times = sorted(Counter(self.learned).items())
        if len(times) == 1:
            return f"every block is learned {_times(times[0][0])}"
        if len(times) > 3:
            return f"a block is learned {times[0][0]} to {times[-1][0]} times"
        return "learned " + ", ".join(f"{_times(k)}: {blocks} block{'s' * (blocks > 1)}" for k, blocks in times)



class WindowExplorer(Explorer):
    """A schedule and the errors of some runs; the browser works the schedule out. Source, Differs: this project."""

    _esm = module("dom", "window")
    _css = styles("base", "window")
    heading = "Window explorer"
    n = traitlets.Int(8).tag(sync=True)
    window = traitlets.Int(2).tag(sync=True)
    overlap = traitlets.Int(1).tag(sync=True)
    step = traitlets.Int(1).tag(sync=True)  # from 1
    runs = traitlets.List().tag(sync=True)  # name, then the error after each block

    @property
    def plan(self) -> Plan:
        return Plan(self.n, self.window, self.overlap)

    def sentence(self) -> str:
        told = f"Window explorer, {self.about}. {self.n} blocks, {self.plan.words}."
        ends = "; ".join(f"{name} {percent(errors[-1])}" for name, errors in self.runs)
        return f"{told} Error after the last block: {ends}." if self.runs else told

    def frames(self) -> list[Frame]:
        four = min(4, self.n)
        wanted = [(self.window, self.overlap), (1, 0), (2, 0), (four, min(2, four - 1)), (2, 1), (self.n, 0)]
        plans = [Plan(self.n, *of) for of in dict.fromkeys(wanted)][: 3 if self.runs else 4]
        return [*map(_schedule_frame, plans), *([self._errors_frame()] if self.runs else [])]

    def _errors_frame(self) -> Frame:
        fig, ax = show.subplots(8, 3.2)
        for i, (name, errors) in enumerate(self.runs):
            ax.plot(range(len(errors)), [100 * e for e in errors], label=name, **show.line(i))
        every = [e for _, errors in self.runs for e in errors]
        ax.set(title="Error of the output after each block, %", xlabel="block")
        if decade(every):
            marks = [k * 10.0**e for e in range(-6, 4) for k in (1, 2, 5)]
            ax.set_yscale("log")
            ax.set_yticks([m for m in marks if min(every) <= m / 100 <= max(every)], minor=False)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.minorticks_off()
        else:
            ax.set_ylim(0, None)
        ax.legend(fontsize=9)
        told = "; ".join(f"{name} {', '.join(map(percent, errors))}" for name, errors in self.runs)
        return Frame("Error against depth", f"Error of the output after blocks 0 to {len(errors) - 1}: {told}.", fig)


def decade(values: Sequence[float]) -> bool:
    """Whether these span more than a factor of ten, so that they want a logarithmic axis."""
    return min(values) > 0 and max(values) > 10 * min(values)


def _schedule_frame(plan: Plan) -> Frame:
    fig, ax = show.subplots(8, min(4.2, 1.5 + 0.24 * len(plan.steps)))
    _draw(ax, plan)
    seen = [f"step {k}: {_span(first, seen)}" for k, (first, _, seen) in enumerate(plan.steps, 1)]
    shown = seen if len(seen) < 10 else [*seen[:3], "and so on", seen[-1]]
    title = f"{plan.n} blocks, {plan.words}"
    return Frame(title, f"{title}. Learned in {', '.join(shown)}.", fig)


def _draw(ax: Axes, plan: Plan) -> None:
    """Blocks across, steps down; a letter or, where there is no room, a mark in every cell; a bar where it is made hard."""
    rows, roomy = plan.rows, plan.n <= 16 and len(plan.steps) <= 12
    ax.imshow([[to_rgb(FILLS[state]) for state in row] for row in rows], aspect="auto", interpolation="nearest")
    for y, (row, (first, left, _)) in enumerate(zip(rows, plan.steps, strict=True)):
        for x, state in enumerate(row):
            if roomy:
                ax.text(x, y, STATES[state] if state != "u" else "·", ha="center", va="center", fontsize=9,
                        color="white" if state == "h" else "#222222")
            elif state == "w":
                ax.plot(x, y, "x", ms=3, color="#222222")
        ax.plot([first - 0.46, first + left - 0.54], [y + 0.42, y + 0.42], color="#222222", lw=2.4, solid_capstyle="butt")
    every = max(1, math.ceil(plan.n / 24))
    ax.set_xticks(range(0, plan.n, every), [f"{b}\n{plan.learned[b]}×" for b in range(0, plan.n, every)])
    down = max(1, math.ceil(len(rows) / 12))
    ax.set_yticks(range(0, len(rows), down), range(1, len(rows) + 1, down))
    marks = "" if roomy else "dark: hard, crosses: warm, blue: soft; "
    ax.set(title=f"{plan.name[0].upper()}{plan.name[1:]}; {marks}bar: made hard at the end", ylabel="step",
           xlabel="block, and in how many steps it is learned")
    ax.set_xticks([b - 0.5 for b in range(1, plan.n)], minor=True)
    ax.set_yticks([k - 0.5 for k in range(1, len(rows))], minor=True)
    ax.grid(which="minor", color="#bbbbbb", lw=0.8)
    ax.tick_params(which="both", length=0)


def _times(k: int) -> str:
    return "once" if k == 1 else "twice" if k == 2 else f"{k} times"


def _span(first: int, count: int) -> str:
    return f"block {first}" if count == 1 else f"blocks {first} {'and' if count == 2 else 'to'} {first + count - 1}"


def window_explorer(errors: Mapping[str, Sequence[float]] | None = None, n: int | None = None, window: int = 2,
                    overlap: int = 1, name: str = "the subject") -> WindowExplorer:
    """A widget that walks through windows of blocks; make it the last expression of a cell.

    Shapes:  errors {run: [blocks]}, the relative error of the output after each block; n: as many, or 8 without errors.
    Units:   errors are shares: 0.02 is 2 %; n, window, overlap in blocks.
    Raises:  ValueError for a schedule or errors that cannot be shown.
    Source:  CBQ, Sec. 3.2 (windows and overlap).
    Differs: as `crossblock.schedule`: a last window that would reach beyond the end is cut.
    """
    runs = [[str(run), [float(e) for e in of]] for run, of in (errors or {}).items()]
    lengths = sorted({len(of) for _, of in runs})
    if len(lengths) > 1 or len(runs) > MOST_RUNS or (n and lengths and lengths != [n]):
        raise ValueError(f"errors of {len(runs)} runs tell of {lengths} blocks, and n={n}; give up to {MOST_RUNS} runs over "
                         "the same blocks, and leave n out")
    if not all(math.isfinite(e) and e >= 0 for _, of in runs for e in of):
        raise ValueError("an error is not finite or below 0; give relative errors of the output, such as 0.02 for 2 %")
    n = n if n is not None else lengths[0] if lengths else 8
    if not (2 <= n <= MOST and 1 <= window <= n):
        raise ValueError(f"n={n}, window={window}: use 2 to {MOST} blocks and windows of 1 to n of them")
    schedule(n, window, overlap)  # refuses an overlap that the window does not leave room for
    runs_told = f": errors of {len(runs)} run{'s' * (len(runs) > 1)}" if runs else ""
    return WindowExplorer(n=n, window=window, overlap=overlap, runs=runs, about=f"{name}{runs_told}")
