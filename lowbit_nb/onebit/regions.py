"""Which columns of a block get a second sign plane, and which weights lie far out: the two searches of BiLLM.

Both are made for one block of columns at a time, on its current values.  The paper searches on the weights; its code, in the
setting it documents, on the saliency matrix  s_ij = w_ij**2 D_j, and uses the weights only for the levels in the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.feedback import feedback
from lowbit_nb.hessian import condition, error_share
from lowbit_nb.onebit import signs
from lowbit_nb.onebit.binary import BinaryWeight
from lowbit_nb.onebit.blockwise import FEEDBACKS, BlockRounder, Decide, compensating

SEARCHES = ("weight", "saliency")
WAYS = (*FEEDBACKS, "column")  # of making up for errors: between blocks only, or inside them too


def saliency(W: Tensor, cost: Tensor) -> Tensor:
    """s = w**2 D: what a weight would cost if it were dropped and all later columns made up for it.

    Shapes:  W [d_out, width]; cost [width]; returns the shape of W.
    Units:   those of D * w**2.
    Raises:  nothing.
    Source:  BiLLM; D_j = 1 / U_jj**2 with the Cholesky factor of inv(H), as in Alg. 1 and the code.
    Differs: no difference.
    """
    return W.square() * cost


def two_plane_error(W: Tensor, support: Tensor) -> Tensor:
    """The squared error of two sign planes on a support.

    Shapes:  W [d_out, width]; support [..., d_out, width]; returns [..., d_out].
    Units:   those of the weight, squared.
    Raises:  nothing.
    Source:  BiLLM.
    Differs: no difference.
    """
    mu = signs.row_mean(W.expand(support.shape), support)
    a = signs.row_mean((W - mu[..., None]).abs(), support)
    return signs.plane_error(signs.residual(W.expand(support.shape), mu, a), support)


def salient_errors(T: Tensor, order: Tensor, most: int, rest_planes: int) -> Tensor:
    """The squared error if the first k columns of an order get two planes and the rest one or two, for k = 1 .. most - 1.

    Shapes:  T [d_out, width]; order [width]; returns [k].
    Units:   those of T, squared.
    Raises:  nothing.
    Source:  BiLLM, Alg. 2 and its code.
    Differs: many k at once.
    """
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = torch.arange(1, min(most, len(order)), device=order.device)
    rest = signs.plane_error if rest_planes == 1 else two_plane_error
    errors = []
    for some in counts.split(max(1, signs.CHUNK // T.numel())):
        first = (place < some[:, None])[:, None].expand(-1, *T.shape)
        errors.append((two_plane_error(T, first) + rest(T, ~first)).sum(1))
    return torch.cat(errors) if errors else T.new_zeros(0)


def salient_columns(T: Tensor, score: Tensor, most: int = 50, rest_planes: int = 2) -> Tensor:
    """The columns of highest score, as many as make the error of the whole block least; at least one, fewer than `most`.

    Shapes:  T [d_out, width] what is searched on; score [width]; returns [width] boolean.
    Units:   none.
    Raises:  nothing.
    Source:  BiLLM, Alg. 2; most = 50 and rest_planes = 2 in its code, rest_planes = 1 in the paper.
    Differs: a block of one column has no salient one.
    """
    order = score.argsort(descending=True, stable=True)
    errors = salient_errors(T, order, most, rest_planes)
    chosen = torch.zeros_like(score, dtype=torch.bool)
    if len(errors):
        chosen[order[: int(errors.argmin()) + 1]] = True
    return chosen


def regions(W: Tensor, cost: Tensor, search: str = "weight", most: int = 50, rest_planes: int = 2,
            per_row: bool = False) -> tuple[Tensor, Tensor]:
    """Salient columns of a block, and which of the other weights are far.

    Shapes:  W [d_out, width]; cost [width]; returns [width] and [d_out, width], boolean; salient columns are not far.
    Units:   none.
    Raises:  ValueError for an unknown search.
    Source:  BiLLM, Alg. 1-2.
    Differs: both searches of paper and code by name.
    """
    if search not in SEARCHES:
        raise ValueError(f"search={search!r} is unknown; use one of {', '.join(SEARCHES)}")
    s = saliency(W, cost)
    T = W if search == "weight" else s
    salient = salient_columns(T, s.sum(0), most, rest_planes)
    far = (T.abs() >= signs.split_threshold(T, ~salient, per_row)) & ~salient
    return salient, far


def planes(W: Tensor, salient: Tensor, far: Tensor) -> BinaryWeight:
    """The stored form of a block: two planes in salient columns, one plane a region elsewhere, each with its mean.

    Shapes:  W [d_out, width]; salient [width]; far [d_out, width]; returns one block.
    Units:   those of the weight.
    Raises:  nothing.
    Source:  BiLLM; the means from its code.
    Differs: no difference.
    """
    near = ~far & ~salient
    (mu_near, a_near), (mu_far, a_far) = signs.one_plane(W, near), signs.one_plane(W, far)
    mu, a1, a2 = signs.two_planes(W, salient.expand_as(W))
    centre = torch.where(salient, mu[:, :1], torch.where(far, mu_far[:, None], mu_near[:, None]))
    second = signs.residual(W, mu[:, 0], a1) >= mu[:, 1:]
    levels, means = (torch.stack(t, -1)[:, None].to(torch.float16)
                     for t in ((a_near, a_far, a1, a2), (mu_near, mu_far, mu.sum(1))))
    return BinaryWeight(W >= centre, torch.where(salient, second, far), salient, levels, means, None, W.shape[1])


class LevelRounder(BlockRounder):
    """Decide a block's levels and salient columns at once, then every column with feedback: the nearest of a row's four levels.

    Regions are stored anyway, so any weight may take any of its row's four levels: the sign code is a two-bit quantizer with
    free levels, and can be rounded like one.

    Source: this project. Differs: BiLLM fixes signs and regions of a whole block before any of its errors is known.
    """

    def start(self, j: int, now: Tensor) -> None:
        """Decide the levels of the block that begins at column j.

        Shapes:  now [width, d_out].
        Units:   those of the weight.
        Raises:  ValueError as `decide`.
        Source:  this project.
        Differs: no difference.
        """
        super().start(j, now)
        self.choices = self.parts[-1].choices().to(now.dtype)

    def round(self, j: int, t: Tensor) -> Tensor:
        """The nearest level for every row of column j.

        Shapes:  t [d_out]; returns [d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  GPTQ, Alg. 1.
        Differs: no difference.
        """
        part, c = self.parts[-1], j % self.span
        levels = self.choices[..., c]
        nearest = (levels - t).abs().argmin(0)
        part.signs[:, c], part.seconds[:, c] = nearest >= 2, nearest % 2 == 1
        return levels.gather(0, nearest[None])[0]

    def stretch(self, j: int, W: Tensor, T: Tensor, V: Tensor) -> Tensor:
        """Several columns of the block, one after the other.

        Shapes:  W, T [k, d_out] original and current values; V [k, k]; returns [k, d_out].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  GPTQ, Alg. 1.
        Differs: no difference.
        """
        W_hat = torch.empty_like(W)
        for i in range(len(W)):
            W_hat[i] = self.round(j + i, T[i])
            T[i + 1 :].addr_(V[i, i + 1 :], W[i] - W_hat[i])
        return W_hat


def signs_by_block(W: Tensor, H: Tensor, decide: Decide, span: int, way: str, damp: float) -> tuple[BinaryWeight, float]:
    """Round a weight to sign planes block by block, with one of the ways of making up for errors.

    Shapes:  W [d_out, d_in]; H [d_in, d_in], not conditioned.
    Units:   the second value is tr(E H E.T) / tr(W H W.T) with the undamped H, no unit.
    Raises:  ValueError as `condition`, `factor` and `decide`.
    Source:  BiLLM, Alg. 1.
    Differs: see `LevelRounder` for way="column".
    """
    Hc, dead = condition(H, damp)
    rounder = (LevelRounder if way == "column" else BlockRounder)(span, decide)
    feedback(W.masked_fill(dead, 0.0), Hc if way == "column" else compensating(Hc, way, span), rounder)
    stored = BinaryWeight.join(rounder.parts)
    return stored, error_share(W, stored.dequantize(), H)
