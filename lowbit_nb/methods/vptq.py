"""VPTQ: columns normalised, codebooks instead of rulers, error feedback with the nearest vector, the layer's output.

A codebook is learned once a layer by weighted k-means; then columns are rounded one by one, the later ones making up for the
earlier, as in GPTQ.  A second stage of vectors, outlier columns with a codebook of their own and groups of columns are options.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.codebooks.across import AcrossRounder, AcrossWeight, whole
from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.codebooks.kmeans import STARTS, kmeans
from lowbit_nb.codebooks.norming import NORMS, Normalised, normalise
from lowbit_nb.codebooks.refine import fit, reassign
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.codebooks.vectors import VectorRounder
from lowbit_nb.feedback import ORDERS, feedback, order
from lowbit_nb.hessian import check_damping, condition, error_share
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.methods import _targets, _tune
from lowbit_nb.quantize import BlockResult
from lowbit_nb.reconstruct import Budget, budget
from lowbit_nb.record import Phases
from lowbit_nb.streams import Streams

WEIGHTS = ("one", "h", "schur")


@dataclass(frozen=True)
class VPTQ:
    """Error feedback on codebooks.

    norm     none | std | mean-std | minmax: how columns are brought to one scale; H is rescaled with them
    weight   what a column's pieces weigh in k-means. one: 1; h: diag(H); schur: D = 1 / U_jj**2, what an error in that column
             costs once the later ones have made up for it
    start, iterations, tol, sample   of k-means, as in `kmeans`
    retrain  how often the codebook is learned again from the columns as feedback has left them, and the run repeated
    refine   how often codebooks are refitted by least squares and pieces reassigned after the last run
    tune     None, or the budget (demo, fast, paper, or a Budget) for learning a block's codebooks, scales and norms together
    rate     its learning rate, in units of a codebook's spread; norms and scales take a tenth of it
    objective, teachers   of that learning, as in TesseraQ
    order, damp, shrink, sequential, shift   as in GPTQ
    axis     output: pieces run along a column, VPTQ's way; input: along a row, to compare (one codebook, nothing else)
    compat   corrected | reference: as the published code has it, for study (see `norming`)

    Source: VPTQ (2024), Alg. 1-2; its code for norm, order and the second pass.
    Differs: H follows the norm; the defaults normalise, weigh by D and refine; the paper weighs by diag(H), starts from random
    points for 100 iterations and leaves codebooks and indices as the last run has them.
    """

    book: Codebook = Codebook()
    norm: str = "std"
    weight: str = "schur"
    start: str = "gaussian"
    iterations: int = 12
    tol: float = 1e-4
    sample: int | None = None
    retrain: int = 0
    refine: int = 4
    tune: str | Budget | None = None
    rate: float = 1e-2
    order: str = "act"
    damp: float = 0.01
    shrink: float = 0.0
    sequential: bool = False
    shift: bool = False
    axis: str = "output"
    compat: str = "corrected"
    seed: int = 0
    objective: str = "mse"
    teachers: int = 1

    def __post_init__(self) -> None:
        _targets.check(self.objective, self.teachers)
        known = {"norm": NORMS, "weight": WEIGHTS, "start": STARTS, "order": ORDERS, "compat": ("corrected", "reference"),
                 "axis": ("output", "input")}
        for field, names in known.items():
            if getattr(self, field) not in names:
                raise ValueError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(names)}")
        if min(self.iterations, self.retrain, self.refine) < 0:
            raise ValueError(f"iterations={self.iterations}, retrain={self.retrain} and refine={self.refine} count something: "
                             "none may be negative")
        plain = self.book == Codebook(self.book.v, self.book.k) and not self.tune and self.norm in ("none", "std")
        if self.axis == "input" and not plain:
            raise ValueError("axis='input' is there to compare: it takes v and k, norm none or std, no groups, second stage, "
                             "outliers or tuning")
        check_damping(self.damp, self.shrink)
        budget(self.tune or "demo")  # refuses an unknown name before any calibration is spent

    @property
    def streams(self) -> tuple[str, ...]:
        return ("full", "quant") if self.shift or self.tune else ("quant",)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Round one block's linear layers, one by one; then learn the block's codebooks together, if asked.

        Shapes:  one stored weight a linear layer; with `tune`, the block's norms.
        Units:   trace: error_share as in GPTQ, before tuning; losses of the block's output as in TesseraQ.
        Raises:  ValueError as `quantize_layer` (message names the layer) and `reconstruct`.
        Source:  VPTQ, Alg. 2 and Sec. 3.4.
        Differs: Hessians see the blocks before quantized, and tuning too; the paper's inputs are those of the original model.
        """
        phases = Phases()
        weights, story = layer_by_layer(block, streams, self.quantize_layer, phases, sequential=self.sequential,
                                        shift=self.shift)
        result = BlockResult(weights, story | {"phases": phases})
        if not self.tune:
            return result
        return _tune.tuned(block, streams, result, self.tune, self.rate, self.seed, self.objective, self.teachers)

    def quantize_layer(self, W: Tensor, H: Tensor) -> tuple[VectorWeight | AcrossWeight, float]:
        """Round one weight under one metric.

        Shapes:  W [d_out, d_in] float32; H [d_in, d_in].
        Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
        Raises:  ValueError as `condition`, `factor`, `Codebook.labels` and `kmeans`.
        Source:  VPTQ, Alg. 1-2.
        Differs: see the class.
        """
        Hc, dead = condition(H, self.damp, self.shrink)
        unit = normalise(W.masked_fill(dead, 0.0), Hc, self.norm, self.compat == "reference")
        if self.axis == "input":
            return self._across(unit, W, H)
        perm = order(unit.H, self.order, 1)
        metric = unit.metric(perm)
        label = self.book.labels(unit.H.diagonal())
        rounder = self._rounder(label[perm], unit.H.diagonal()[perm], ~dead[perm])
        feedback(unit.W, metric, rounder, perm)
        for _ in range(self.retrain):
            rounder = rounder.again()
            feedback(unit.W, metric, rounder, perm)
        if self.book.k_res:
            rounder = rounder.with_residual()
            feedback(unit.W, metric, rounder, perm)
        stored = rounder.result(perm, unit.s, unit.m)
        for _ in range(self.refine):
            stored = reassign(fit(stored, unit.W, unit.H), unit.W, unit.H)
        return stored, error_share(W, stored.dequantize(), H)

    def _across(self, unit: Normalised, W: Tensor, H: Tensor) -> tuple[AcrossWeight, float]:
        perm = whole(unit.H, self.book.v)
        rounder = AcrossRounder(perm, self.book.v, self.book.k, torch.Generator().manual_seed(self.seed), self.iterations,
                                self.start, metric=self.weight != "one")
        feedback(unit.W, unit.H, rounder, perm)
        stored = rounder.result(unit.s)
        return stored, error_share(W, stored.dequantize(), H)

    def _rounder(self, label: Tensor, h: Tensor, live: Tensor) -> VectorRounder:
        """The first rounder, whose codebooks have yet to be learned; everything in visiting order."""
        generator = torch.Generator().manual_seed(self.seed)

        def learn(points: Tensor, weights: Tensor, k: int, begin: Tensor | None) -> Tensor:
            return kmeans(points, weights, k, generator=generator, start=self.start if begin is None else begin,
                          iterations=self.iterations, tol=self.tol, sample=self.sample).C

        weigh = {"one": torch.ones_like, "h": lambda D: h.to(D), "schur": lambda D: D}[self.weight]
        return VectorRounder(self.book, label, learn, lambda D: weigh(D) * live)
