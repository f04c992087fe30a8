"""OAC: any feedback method, with the end loss instead of the layer's output.

The backend decides transform, grid and rounding; this file only hands it another metric, the output-adaptive Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lowbit_nb.adaptive import LossMetric, LossView
from lowbit_nb.blocks import Block
from lowbit_nb.grid import Grid
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.methods._start import Rulers
from lowbit_nb.methods.arbllm import ARBLLM
from lowbit_nb.methods.billm import BiLLM
from lowbit_nb.methods.gptq import GPTQ
from lowbit_nb.methods.spqr import SpQR
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.quantize import BlockResult
from lowbit_nb.record import Phases
from lowbit_nb.streams import Streams


@dataclass(frozen=True)
class OAC:
    """A feedback backend under the output-adaptive Hessian.

    sequential  the Hessians of a block come from a model whose blocks before are quantized (a pass a block); otherwise all
                from one pass over the original model
    at_once     blocks whose Hessians are held together in that one pass, which is then made anew for the next ones; None: all
    form, labels, batch, scale   as in `LossMetric`

    A backend with shift=True aims at the shifted target, computed from the inputs, and rounds it under the loss's metric.

    Source: OAC, Sec. 3, Alg. 1. Differs: the single pass, the shifted target; damping is over columns that are alive.
    """

    backend: GPTQ | SpQR | VPTQ | BiLLM | ARBLLM
    sequential: bool = True
    form: str = "auto"
    labels: str = "data"
    batch: int = 4
    scale: float = 1.0
    seed: int = 0
    at_once: int | None = None

    def __post_init__(self) -> None:
        LossMetric(self.form, self.labels, self.batch, self.scale)  # refuses bad settings before any calibration is spent
        if self.at_once is not None and (self.at_once < 1 or self.sequential):
            raise ValueError(f"at_once={self.at_once} must be at least 1 and needs sequential=False: the sequential schedule "
                             "holds one block's Hessians anyway")
        if getattr(self.backend, "sequential", False):
            raise ValueError("the backend's sequential belongs to the input Hessian, which OAC replaces; leave it False "
                             "(OAC has its own)")
        if getattr(self.backend, "tune", None):
            raise ValueError("OAC does not tune what its backend has stored: leave the backend's tune None")
        if isinstance(self.backend, GPTQ) and self.backend.start:
            raise ValueError("the loss is asked about the model's own layers: a backend under OAC has no start")

    @property
    def streams(self) -> tuple[str, ...]:
        """The loss; inputs behind the quantized blocks for the sequential schedule, both kinds for a shifted target."""
        inputs = ("full", "quant") if self.backend.shift else ("quant",) if self.sequential else ()
        return (*inputs, "loss")

    @property
    def grid(self) -> Grid | None:
        """The backend's grid; codebooks and signs have none."""
        return getattr(self.backend, "grid", None)

    def view(self, model: nn.Module, ids: Tensor, blocks: list[Block]) -> LossView:
        """How a run asks the loss.

        Shapes:  ids [n, length].
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        metric = LossMetric(self.form, self.labels, self.batch, self.scale)
        return LossView(metric, model, ids, blocks, self.sequential, self.seed, self.at_once)

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult:
        """Ask the loss about one block's layers and let the backend round them.

        Shapes:  one stored weight a linear layer.
        Units:   trace: error_share under the output-adaptive metric.
        Raises:  ValueError as `LossMetric.hessians` and the backend.
        Source:  OAC, Alg. 1.
        Differs: see the class.
        """
        phases = Phases()
        with phases("loss hessian"):
            metrics = streams.loss(block, streams.quant)
        weights, story = layer_by_layer(block, streams, self.backend.quantize_layer, phases, shift=self.backend.shift,
                                        metrics=metrics)
        return BlockResult(weights, story | {"phases": phases})

    def begin(self, block: Block, X: Tensor, Y: Tensor | None, phases: Phases,
              loss: Callable[[Block, Tensor | None], dict[str, Tensor]]) -> tuple[dict[str, Tensor], Rulers]:
        """What the backend would round each weight to, under the loss's metric: where progressive rounding can begin.

        Shapes:  as `GPTQ.begin`; loss: what `view` has made.
        Units:   as `GPTQ.begin`.
        Raises:  ValueError as `GPTQ.begin`, or if the backend is not GPTQ.
        Source:  this project.
        Differs: no difference.
        """
        if not isinstance(self.backend, GPTQ):
            raise ValueError(f"{type(self.backend).__name__} has no rulers that roundings could be learned on; use GPTQ")
        with phases("loss hessian"):
            metrics = loss(block, X)
        return self.backend.begin(block, X, Y, phases, metrics)
