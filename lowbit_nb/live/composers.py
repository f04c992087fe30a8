"""The composer: one choice of each kind, whether they go together and why not, and what came of them where it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import traitlets
from matplotlib.axes import Axes

from lowbit_nb import compose, show
from lowbit_nb.live.base import Explorer, Frame, module, styles
from lowbit_nb.live.composed import (
    CHOICES,
    RULES,
    blocked,
    broken,
    combinations,
    front,
    key,
    of_key,
    points,
    said,
    told,
    with_picks,
)

DEFAULTS = {f.name: f.default for f in fields(compose.Recipe)}
KINDS = {"method": "single methods", "combination": "combinations", "yours": "run here"}


class Composer(Explorer):
    """Menus of choices beside a plot of what was measured; `recipe` is what is picked. Source, Differs: this project."""

    _esm = module("dom", "composer")
    _css = styles("base", "composer")
    heading = "Composer"
    picked = traitlets.Dict().tag(sync=True)  # {kind of choice: option}
    choices = traitlets.List().tag(sync=True)  # [kind, [[option, what it is], ...]], in menu order
    rules = traitlets.List().tag(sync=True)
    known = traitlets.Dict().tag(sync=True)  # {key of a combination: the published method that it is}
    published = traitlets.List().tag(sync=True)  # [name, key of one combination that it is], in the methods' order
    points = traitlets.List().tag(sync=True)
    limit = traitlets.Float(2.3).tag(sync=True)  # honest bits a weight: what the table compares
    base = traitlets.Dict().tag(sync=True)  # bits, group, budget, seed: what the menus do not ask
    defaults = traitlets.Dict().tag(sync=True)
    begun = compose.Recipe()  # whose bits, group, budget and seed `recipe` has

    @property
    def recipe(self) -> compose.Recipe:
        """What is picked in the menus, legal or not: `recipe.reasons()` says which."""
        return with_picks(self.begun, self.picked)

    def add(self, row: Mapping[str, Any]) -> Composer:
        """Let a row join plot and table: the fields of a recipe or a method's name, `bits_per_weight` and `kl`."""
        self.points = [*self.points, *points([row], "yours")]
        return self

    def shown(self) -> list[dict]:
        """The points whose activations are rounded as those of the picked recipe."""
        return [p for p in self.points if p["activations"] == self.picked["activations"]]

    def best(self, kind: str) -> dict | None:
        """The point of least KL of one kind that fits the limit."""
        fit = (p for p in self.shown() if p["kind"] == kind and p["bits"] <= self.limit)
        return min(fit, key=lambda p: p["kl"], default=None)

    def here(self) -> list[dict]:
        """Points of what is picked: the very same choices, and the best variant of the published method that it is."""
        of, name = key(self.picked), self.known.get(key(self.picked))
        nominal = [float(self.base["bits"]), str(self.base["group"])]
        variants = [p for p in self.shown() if name and not p["key"] and p["nominal"] == nominal
                    and (p["family"] == name or p["family"].startswith(f"{name}+"))]
        return [p for p in self.points if p["key"] == of] + sorted(variants, key=lambda p: p["kl"])[:1]

    def sentence(self) -> str:
        n = sum(not broken(one) for one in combinations())
        best = [f"best of the {words}: {_measured(found)}" for kind, words in KINDS.items() if (found := self.best(kind))]
        fits = f" Measured, at most {show.digits(self.limit)} bits a weight: {'; '.join(best)}." if best else ""
        return (f"Composer, {self.about}. {told(self.picked)}: {self.verdict(self.picked)} {n} of "
                f"{math.prod(map(len, CHOICES.values()))} combinations are legal.{fits}")

    def verdict(self, picked: Mapping[str, str]) -> str:
        if reasons := [rule["why"] for rule in broken(picked)]:
            return f"not legal. {' '.join(reasons)}"
        name = self.known.get(key(picked))
        return f"legal; this is {name}." if name else "legal; no paper of this kit has it."

    def frames(self) -> list[Frame]:
        others = [of_key(p["key"]) for p in self.points if p["kind"] == "combination" and p["key"] != key(self.picked)]
        wrong = next(one for one in combinations() if broken(one) and sum(one[k] != self.picked[k] for k in one) == 1)
        plots = [self._plot_frame()] if self.shown() else []
        return [*map(self._menu_frame, [self.picked, *others[:1], wrong]), *plots]

    def _menu_frame(self, picked: Mapping[str, str]) -> Frame:
        rows, gone = max(map(len, CHOICES.values())), []
        fig, ax = show.subplots(10.5, 0.7 + 0.32 * rows)
        for x, (kind, options) in enumerate(CHOICES.items()):
            ax.text(x, 0, kind, fontweight="bold", fontsize=10)
            for y, option in enumerate(options, 1):
                words = option.replace(", then ", ",\nthen ") if len(option) > 20 else option
                ax.text(x, y, words, va="center", **_look(picked, kind, option))
                if blocked(picked, kind, option) and picked[kind] != option:
                    gone.append(f"{kind} {option}")
        ax.set(xlim=(-0.05, len(CHOICES) - 0.3), ylim=(rows + 0.6, -0.5))
        ax.axis("off")
        title = f"{told(picked)}: {self.verdict(picked)}"
        return Frame(title, f"{title} Impossible beside the other choices: {', '.join(gone) or 'nothing'}.", fig)

    def _plot_frame(self) -> Frame:
        fig, ax = show.subplots(8, 4.2)
        everything, edge = self.shown(), front(self.shown())
        for i, (kind, words) in enumerate(KINDS.items()):
            if of := [p for p in everything if p["kind"] == kind]:
                ax.scatter([p["bits"] for p in of], [p["kl"] for p in of], label=words, zorder=3 + i, **show.dots(i))
        ax.step([p["bits"] for p in edge], [p["kl"] for p in edge], where="post", color="#222222", lw=1, label="not beaten")
        ax.set(yscale="log", xlabel="bits a weight, everything counted", ylabel="KL from the original, nats a token",
               title="What was measured")
        _logarithmic(ax)
        ax.legend(loc="upper right")
        words = "; ".join(map(_measured, edge))
        return Frame(f"KL against honest bits, {len(everything)} settings",
                     f"KL against honest bits; no other setting is better at no more bits: {words}.", fig)


def _measured(p: Mapping[str, Any]) -> str:
    return f"{p['name']} {show.digits(p['bits'])} bits, KL {show.digits(p['kl'])}"


def _look(picked: Mapping[str, str], kind: str, option: str) -> dict[str, Any]:
    """How an option is drawn: picked on a filled box, impossible hatched and in italics."""
    bad = bool(blocked(picked, kind, option))
    if picked[kind] == option:
        box = {"boxstyle": "round,pad=0.25", "fc": show.PALETTE[3 if bad else 0], "ec": "none"}
        return {"fontsize": 10, "color": "white", "bbox": box}
    if bad:
        box = {"boxstyle": "round,pad=0.2", "fc": "none", "ec": "#cccccc", "hatch": "////", "lw": 0.6}
        return {"fontsize": 9.5, "color": "#767676", "fontstyle": "italic", "bbox": box}
    return {"fontsize": 10, "color": "#222222"}


def _logarithmic(ax: Axes) -> None:
    """Plain numbers at 1, 2, 5 and so on, instead of powers of ten."""
    low, high = ax.get_ylim()
    ax.set_yticks([t for e in range(-3, 3) for k in (1, 2, 5) if low <= (t := k * 10.0**e) <= high])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()


def composer(rows: Iterable[Mapping[str, Any]] = (), recipe: compose.Recipe | None = None, limit: float | None = None,
             name: str = "the bundled model") -> Composer:
    """A widget that composes a method from one choice of each kind; its `recipe` is what is picked.

    Shapes:  rows: dicts with `bits_per_weight`, `kl`, and a `method` or the fields of a recipe (`composed.points`).
    Units:   KL in nats a token; limit in honest bits a weight, None: a little above the recipe's.
    Raises:  ValueError for a row without its numbers, or a recipe with options that the menus do not have.
    Source:  this project: `compose.CHOICES` and `compose.RULES`.
    Differs: no difference.
    """
    recipe = recipe or compose.Recipe()
    picked = {kind: said(getattr(recipe, kind)) for kind in CHOICES}
    for kind, option in picked.items():
        if option not in CHOICES[kind]:
            raise ValueError(f"{kind}={option!r} is not in the menu; use one of {', '.join(CHOICES[kind])}")
    rest = {k: getattr(recipe, k) for k in DEFAULTS if k not in CHOICES}
    base = {k: value for k, value in rest.items() if isinstance(value, (str, int, type(None)))}  # a Budget stays in Python
    named = {key(one): found for one in combinations() if not broken(one) and (found := compose.known(with_picks(recipe, one)))}
    published = [[one, next(k for k, v in named.items() if v == one)] for one in dict(compose.KNOWN) if one in named.values()]
    bits = base["bits"] + (20.0 / base["group"] if base["group"] else 0.1)
    about = f"{name}, {base['bits']} bits, " + (f"groups of {base['group']}" if base["group"] else "one ruler a row")
    made = Composer(picked=picked, base=base, points=points(rows), limit=round(limit or bits, 2), known=named, rules=RULES,
                    choices=[[kind, [list(item) for item in options.items()]] for kind, options in CHOICES.items()],
                    defaults={k: said(v) for k, v in DEFAULTS.items()}, about=about, published=published)
    made.begun = recipe
    return made
