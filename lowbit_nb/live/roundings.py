"""The rounding player: when each weight's rounding is decided, and what deciding costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import traitlets
from matplotlib.axes import Axes

from lowbit_nb import show
from lowbit_nb.live.base import Explorer, Frame, module, percent, styles

KEPT = ("soft", "flips", "histogram", "hard", "dead", "strip", "state", "nearest")  # what a layer tells in a round
SOFT, AWAY = show.PALETTE[0], show.PALETTE[3]
DRAWN = 32  # weights of the strip in a stored picture: as many as have room for a number of 9 pt
MARKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)  # shares named on a square-root axis


@dataclass(frozen=True)
class Moment:
    """One layer after one round (counted from 1), and the block's two losses then."""

    number: int
    told: Mapping[str, Any]
    soft_loss: float
    hard_loss: float

    @property
    def n_weights(self) -> int:
        return sum(self.told["histogram"]) + sum(self.told["hard"]) + self.told["dead"]

    @property
    def cost(self) -> float:
        """What deciding everything now would add to the soft loss."""
        return self.hard_loss - self.soft_loss

    @property
    def away(self) -> list[bool]:
        """Which weights of the strip are, or lean, away from their nearest mark; never the dead."""
        told = self.told
        return [s != "d" and (h > 0.5) != (n == "1")
                for h, s, n in zip(told["strip"], told["state"], told["nearest"], strict=True)]


def moment(record: Mapping[str, Any], layer: str, number: int) -> Moment:
    """The same numbers as the browser's, read from the record.

    Shapes:  number from 1 to the count of rounds.
    Units:   losses in those of the record.
    Raises:  KeyError for an unknown layer.
    Source:  this project.
    Differs: no difference.
    """
    one = record["rounds"][number - 1]
    return Moment(number, one["layers"][layer], one["soft_loss"], one["hard_loss"])


def decided(record: Mapping[str, Any], layer: str, until: int | None = None) -> list[int | None]:
    """The round in which each weight of the strip was made hard; 0 for the dead, None for the undecided.

    Shapes:  one entry a weight of the strip.
    Units:   rounds, from 1.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    states = [one["layers"][layer]["state"] for one in record["rounds"][:until]]
    return [0 if of[0] == "d" else next((r for r, s in enumerate(of, 1) if s == "h"), None)
            for of in zip(*states, strict=True)]


class RoundingPlayer(Explorer):
    """The record of one block; the rest happens in the browser. Source, Differs: this project."""

    _esm = module("dom", "rounding")
    _css = styles("base", "rounding")
    heading = "Rounding player"
    record = traitlets.Dict().tag(sync=True)
    layer = traitlets.Unicode().tag(sync=True)
    round = traitlets.Int(1).tag(sync=True)

    @property
    def n_rounds(self) -> int:
        return len(self.record["rounds"])

    def sentence(self) -> str:
        last = self._now(self.n_rounds)
        told = ". ".join(self._words(n) for n in self._stored())
        return (f"Rounding player, {self.about}; {self.layer}, {last.n_weights} weights. {told}. "
                f"Rounded to nearest, the start has a loss of {show.digits(self.record['start'])}; "
                f"the best decided state, which is kept, {show.digits(self.record['end'])}.")

    def frames(self) -> list[Frame]:
        return [self._frame(n) for n in self._stored()]

    def _now(self, number: int) -> Moment:
        return moment(self.record, self.layer, number)

    def _stored(self) -> list[int]:
        """Four rounds: the first, two between, the last."""
        return sorted({1 + half_up(t * (self.n_rounds - 1)) for t in (0, 1 / 3, 2 / 3, 1)})

    def _words(self, number: int) -> str:
        now = self._now(number)
        return (f"After round {number} of {self.n_rounds} {percent(now.told['soft'])} are soft, {percent(now.told['flips'])} "
                f"differ from nearest, loss {show.digits(now.soft_loss)} soft and {show.digits(now.hard_loss)} if hardened")

    def _frame(self, number: int) -> Frame:
        now, title = self._now(number), self._words(number)
        fig, axes = show.subplots(8, 4.6, rows=2, cols=2, height_ratios=(1, 1.25))
        grid = axes[0, 0].get_gridspec()
        for ax in axes[0]:
            ax.remove()
        _draw_strip(fig.add_subplot(grid[0, :]), now, decided(self.record, self.layer, number))
        _draw_histogram(axes[1, 0], now, max(map(_tallest, map(self._now, range(1, self.n_rounds + 1)))))
        self._draw_losses(axes[1, 1], now)
        states, away = now.told["state"][:DRAWN], now.away[:DRAWN]
        alt = (f"{title}. In the strip of {len(states)} weights {states.count('s')} are soft, {states.count('h')} hard, "
               f"{sum(away)} stand away from their nearest mark. Of all {now.n_weights}, {now.told['hard'][0]} are hard "
               f"below and {now.told['hard'][1]} hard above.")
        return Frame(title, alt, fig)

    def _draw_losses(self, ax: Axes, now: Moment) -> None:
        rounds = range(1, self.n_rounds + 1)
        all_ = [self._now(n) for n in rounds]
        ax.plot(rounds, [m.hard_loss for m in all_], color=AWAY, marker="s", ls="--", ms=4, label="if hardened now")
        ax.plot(rounds, [m.soft_loss for m in all_], color=SOFT, marker="o", ms=4, label="soft")
        ax.axhline(self.record["start"], color="#444444", ls=":", lw=1.3, label="start, to nearest")
        ax.axvline(now.number, color="#222222", lw=1)
        ax.set(title="Loss of the block's output", xlabel="round", ylim=(0, None))
        ax.legend(fontsize=9, frameon=True, facecolor="white", edgecolor="none", framealpha=0.9)


def _draw_strip(ax: Axes, now: Moment, when: list[int | None]) -> None:
    """Every weight of the strip on its track from 0 to 1, with the round that decided it below."""
    away = now.away[:DRAWN]
    parts = (now.told[key][:DRAWN] for key in ("strip", "state", "nearest"))
    for x, (h, state, nearest) in enumerate(zip(*parts, strict=True)):
        ax.plot([x, x], [0, 1], color="#cccccc", lw=1, marker="", ls=":" if state == "d" else "-")
        if state == "d":
            continue
        colour = AWAY if away[x] else SOFT
        ax.plot(x, int(nearest), marker="_", ms=9, mew=2, color="#555555")
        look = {"marker": "s"} if state == "h" else {"marker": "o", "markerfacecolor": "white"}
        ax.plot(x, h, color=colour, ms=6.5, mew=1.8, ls="", **look)
        if away[x]:
            ax.plot(x, h, color="white" if state == "h" else colour, marker="o", ms=2, ls="")
        if when[x]:
            ax.text(x, -0.36, str(when[x]), ha="center", va="center", fontsize=9, color="#444444")
    ax.set(xlim=(-0.8, len(away) - 0.2), ylim=(-0.5, 1.15), yticks=[0, 1], yticklabels=["mark below", "mark above"], xticks=[],
           title="Ring soft, square hard, dot away from nearest; number: decided in round")
    ax.grid(False)


def _draw_histogram(ax: Axes, now: Moment, most: float) -> None:
    """Where the soft ones stand, with a tower at each end for the hard ones."""
    n = now.n_weights
    soft = np.sqrt(np.array(now.told["histogram"]) / n)
    below, above = np.sqrt(np.array(now.told["hard"]) / n)
    ax.bar((np.arange(20) + 0.5) / 20, soft, width=0.046, color=SOFT, label="soft")
    ax.bar([-0.07, 1.07], [below, above], width=0.08, color="#555555", hatch="//", edgecolor="white", lw=0, label="hard")
    marks = [m for m in MARKS if m <= most]
    ax.set(title="Where all weights stand, %", xlabel="h: 0 = mark below, 1 = mark above", ylabel="square-root scale",
           yticks=np.sqrt(marks), yticklabels=[f"{100 * m:g}" for m in marks], ylim=(0, math.sqrt(most) * 1.06))
    ax.legend(fontsize=9, loc="upper center")


def _tallest(now: Moment) -> float:
    return max(*now.told["histogram"], *now.told["hard"]) / now.n_weights


def half_up(x: float) -> int:
    """Half up, as in the browser."""
    return math.floor(x + 0.5)


def rounding_player(
    trace_of_one_block: Mapping[str, Any], layer: str | None = None, name: str | None = None
) -> RoundingPlayer:
    """A widget that plays the rounds of progressive adaptive rounding; make it the last expression of a cell.

    Shapes:  the trace of one block, e.g. `quantized.trace[2]`; layer names a linear layer (the first if None).
    Units:   losses in those of the trace.
    Raises:  ValueError if the trace tells of no such rounds, holds losses that are not finite, or lacks the layer.
    Source:  this project.
    Differs: no difference.
    """
    rounds = trace_of_one_block.get("rounds") or []
    layers = list(rounds[0]["layers"]) if rounds else []
    if not layers or any(key not in one["layers"][n] for one in rounds for n in layers for key in KEPT):
        raise ValueError("this trace tells of no rounds of adaptive rounding; use the trace of one block of TesseraQ, "
                         "e.g. quantized.trace[2]")
    layer = layers[0] if layer is None else layer
    if layer not in layers:
        raise ValueError(f"layer={layer!r} is not in this block; use one of {', '.join(layers)}")
    losses = [trace_of_one_block["start"], *(one[k] for one in rounds for k in ("soft_loss", "hard_loss"))]
    if not all(map(math.isfinite, losses)):
        raise ValueError("a loss of this trace is not finite; use a trace whose rounds all ended well")
    record = {"start": trace_of_one_block["start"], "end": trace_of_one_block["end"], "rounds": [
        {"soft_loss": one["soft_loss"], "hard_loss": one["hard_loss"],
         "layers": {n: {key: one["layers"][n][key] for key in KEPT} for n in layers}} for one in rounds]}
    name = name or (f"block {trace_of_one_block['block']}" if "block" in trace_of_one_block else "one block")
    about = f"{name}: {len(layers)} linear layers, {len(rounds)} rounds"
    return RoundingPlayer(record=record, layer=layer, about=about)
