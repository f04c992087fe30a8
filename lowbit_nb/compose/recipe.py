"""One pick of each menu as a method of the kit: the methods put together, with no loop of their own.

The method that rounds to nearest with a transform and grid is where feedback begins; feedback is where progressive rounding
begins.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lowbit_nb.activations import Activations
from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.compose.menus import CHOICES, KNOWN, LEARNED, MARKS, RULES
from lowbit_nb.endtoend import EndToEnd, finetune
from lowbit_nb.grid import Grid
from lowbit_nb.methods import AWQ, CBQ, GPTQ, OAC, PTQ161, RTN, VPTQ, BiLLM, Joint, LRQuant, OmniQuant, SmoothQuant, TesseraQ
from lowbit_nb.quantize import Method, quantize
from lowbit_nb.reconstruct import Budget, budget
from lowbit_nb.record import Quantized
from lowbit_nb.subject import Subject
from lowbit_nb.text import Windows

TWICE = "block, then model"


@dataclass(frozen=True)
class Recipe:
    """One pick of each choice, and what it may cost.

    bits, group   of marks; codebooks take bits from 1 to 4 and no group, signs neither
    activations   None, or the bits of activations: in view where the method learns with them, behind it otherwise
    budget, seed  as in the methods that learn

    Source: this project. Differs: no difference.
    """

    transform: str = "none"
    grid: str = "searched"
    rounding: str = "nearest"
    objective: str = "layer"
    scope: str = "layer"
    bits: int = 2
    group: int | None = 64
    activations: int | None = None
    budget: str | Budget = "demo"
    seed: int = 0

    @property
    def picks(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in CHOICES}

    @property
    def name(self) -> str:
        """A short title: what is picked, in menu order, without a transform that is none."""
        first = {"none": [], "smooth": ["smoothed"], "searched": ["scaled"], "learned": ["learned scaling"],
                 "logarithm": ["scaled from logarithms"]}.get(self.transform, [self.transform])
        last = [f"A{self.activations}"] if self.activations else []
        return " · ".join([*first, self.grid, self.rounding, self.objective, self.scope, *last])

    def reasons(self) -> list[str]:
        """Why this combination cannot be run, a sentence each; an empty list if it can.

        Shapes:  a list.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        unknown = [f"{name}={pick!r} is unknown; use one of {', '.join(map(repr, CHOICES[name]))}."
                   for name, pick in self.picks.items() if pick not in CHOICES[name]]
        if unknown:
            return unknown
        sizes = {"bits": lambda: self._book() if self.grid == "codebook" else Grid(self.bits, group=self.group),
                 "activations": self._rounded, "budget": lambda: budget(self.budget)}
        return [rule.why for rule in RULES if rule.broken(self.picks)] + [said for ask in sizes.values() for said in _says(ask)]

    def method(self) -> Method:
        """The method of the kit that this combination is, with the right settings.

        Shapes:  none.
        Units:   none.
        Raises:  ValueError with all reasons if the combination does not go together.
        Source:  this project.
        Differs: no difference.
        """
        if wrong := self.reasons():
            raise ValueError(f"{self.name}: {' '.join(wrong)}")
        if self.grid in ("signs", "codebook"):
            return self._signs() if self.grid == "signs" else self._vectors()
        if self.rounding in ("nearest", "feedback"):
            return self._nearest() if self.rounding == "nearest" else self._feedback(self._tuned())
        then = self.rounding == "feedback, then progressive"
        if self.scope != "window" and self.rounding != "low rank":
            blockwise = TesseraQ(self._feedback() if then else self._nearest(), activations=self._rounded(), **self._learning())
            together = {"activations": self._rounded(), "seed": self.seed}
            return Joint(blockwise, self.budget, **together) if self.scope == TWICE else blockwise
        width = {} if self.scope == "window" else {"window": 1, "overlap": 0}
        full = {} if self.rounding == "low rank" else {"rank": None, "sharpness": 300.0}
        start = self._feedback() if then else self._nearest() if self._edited() else None
        loss = {"mse": "mse", "mse+nlc": "mse+kl" if self._teachers() == 2 else "mse+nlc"}[self._loss()]
        return CBQ(self._grid(), self._rounded(), self.budget, loss=loss, teachers=self._teachers(), start=start,
                   clip=self._clip("mse"), seed=self.seed, **width, **full)

    def run(self, subject: Subject, windows: Windows | None, workdir: str | Path | None = None,
            progress: bool = True) -> Quantized:
        """Quantize; then round activations if the method has not, and learn what stays continuous if the scope is the model.

        Shapes:  as `quantize`.
        Units:   none.
        Raises:  ValueError as `method`, `quantize` and `finetune`.
        Source:  this project.
        Differs: no difference.
        """
        method = self.method()
        made = quantize(subject, method, windows, workdir, progress)
        if self.activations and not made.activations:
            made = made.with_activations(self._rounded())
        if self.scope == "model":
            began, spent = time.perf_counter(), budget(self.budget)
            how = EndToEnd(max(1, spent.rounds // 2), spent.steps, 2 * spent.batch, seed=self.seed,
                           norms=self.grid not in MARKS)
            made, story = finetune(subject, made, windows, how)
            last = made.trace[-1]
            seconds = last.get("seconds", 0.0) + time.perf_counter() - began
            made.trace[-1] = last | {"end_to_end": story, "seconds": seconds}
        return dataclasses.replace(made, settings=made.settings | {"recipe": asdict(self)})

    # what the parts are made of

    def _grid(self) -> Grid:
        learned = self.grid == "learned clip"  # one bit: two marks anywhere, but learned ends hold zero between them
        return Grid(self.bits, group=self.group, zero_inside=self.bits > 1 or learned)

    def _rounded(self) -> Activations | None:
        return Activations(self.activations) if self.activations else None

    def _book(self) -> Codebook:
        books = {1: Codebook(8, 256), 2: Codebook(4, 256), 3: Codebook(4, 256, k_res=16), 4: Codebook(4, 256, k_res=256)}
        if self.bits not in books:
            raise ValueError(f"bits={self.bits}: codebooks take {', '.join(map(str, books))}.")
        return books[self.bits]

    def _loss(self) -> str:
        return "mse" if self.objective.endswith("block") else "mse+nlc"

    def _teachers(self) -> int:
        return 2 if self.objective.endswith("two teachers") else 1

    def _learning(self) -> dict:
        return {"budget": self.budget, "seed": self.seed, "objective": self._loss(), "teachers": self._teachers()}

    def _tuned(self) -> dict:
        """How steps or vectors are learned after feedback, if a block's output is what counts."""
        learning = {"tune": self.budget, "objective": self._loss(), "teachers": self._teachers(), "seed": self.seed}
        return learning if self.objective in LEARNED else {}

    def _clip(self, searched: str) -> str:
        return "minmax" if self.grid == "affine" else searched

    def _edited(self) -> bool:
        return self.transform != "none" or self.grid == "learned clip"

    def _nearest(self) -> Method:
        """Rounding to nearest with this transform and grid: where the other roundings begin."""
        grid, learned = self._grid(), self.grid == "learned clip"
        seen = self._clip("mse" if self.objective == "weight" else "gram")
        start = {"smooth": SmoothQuant(grid, clip="minmax" if learned else seen, activations=self._rounded()),
                 "searched": AWQ(grid, clip=seen)}.get(self.transform)
        if not learned:
            plain = RTN(grid, seen) if seen != "gram" else AWQ(grid, scaling=False)
            return start or plain
        if self.transform == "logarithm" and self.rounding == "nearest":
            return LRQuant(grid, self._rounded(), self.budget, loss=self._loss(), teachers=self._teachers(), seed=self.seed)
        return OmniQuant(grid, scaling=self.transform in ("learned", "logarithm"), start=start, activations=self._rounded(),
                         base=2.0 if self.transform == "logarithm" else None, **self._learning())

    def _feedback(self, tuned: dict | None = None) -> Method:
        backend = GPTQ(self._grid(), clip=self._clip("mse"), groups="static" if self.grid == "learned clip" else "dynamic",
                       start=self._nearest() if self._edited() else None, **(tuned or {}))
        return OAC(backend, seed=self.seed) if self.objective.startswith("loss") else backend

    def _vectors(self) -> Method:
        backend = VPTQ(self._book(), **{"seed": self.seed} | self._tuned())
        return OAC(backend, seed=self.seed) if self.objective == "loss" else backend

    def _signs(self) -> Method:
        if self.objective in LEARNED:
            return PTQ161(signs=self.rounding, **self._learning())
        return OAC(BiLLM(), seed=self.seed) if self.objective == "loss" else BiLLM()


def _says(ask: Callable[[], object]) -> list[str]:
    """What a setting that cannot be made says about it."""
    try:
        ask()
    except ValueError as error:
        return [str(error)]
    return []


def known(recipe: Recipe) -> str | None:
    """The published method that these picks are, or None; bits, group and activations do not matter.

    Shapes:  none.
    Units:   none.
    Raises:  nothing.
    Source:  the table of methods in ARCHITECTURE.md.
    Differs: no difference.

    >>> known(Recipe(rounding="feedback")), known(Recipe(rounding="feedback", scope="model"))
    ('GPTQ', None)
    """
    return next((name for name, said in KNOWN if all(recipe.picks[choice] in said[choice] for choice in CHOICES)), None)
