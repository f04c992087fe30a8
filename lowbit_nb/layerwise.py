"""One block, layer by layer: whose Hessian, which rows together, which target.  The feedback methods share it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_nb.blocks import Block
from lowbit_nb.record import Phases
from lowbit_nb.stored import StoredWeight
from lowbit_nb.streams import Streams
from lowbit_nb.targets import mismatch, shifted
from lowbit_nb.transforms import current

Solve = Callable[..., tuple[StoredWeight, float]]  # W [d_out, d_in], H [d_in, d_in] (, s, z) -> stored form, error share
Split = Callable[[StoredWeight, list[int]], list[StoredWeight]]


def layer_by_layer(block: Block, streams: Streams, solve: Solve, phases: Phases, split: Split | None = None,
                   sequential: bool = False, shift: bool = False,
                   metrics: dict[str, Tensor] | None = None, params: dict[str, Tensor] | None = None,
                   rulers: dict[str, tuple[Tensor, Tensor]] | None = None) -> tuple[dict[str, StoredWeight], dict]:
    """Round a block's layers, each under its metric: the Hessian of its input, or the one that is given.

    sequential  one Hessian pass for each input, the layers before it rounded, instead of one for all
    shift       aim at the weight that makes up for the error of the inputs (`targets.shifted`); needs both streams
    params      edits of the block that come first: edited weights are rounded, behind edited norms
    rulers      {linear name: (s, z)} that `solve` is given too

    Shapes:  split takes stacked rows apart again (None: layers of one input are solved one by one); metrics
             {linear name: [d_in, d_in]} or None.
    Units:   the second value, {"error_share": {name: tr(E H E.T) / tr(W H W.T)}}, has none; strengths of the shift beside it.
    Raises:  ValueError as `solve` (message names the layers).
    Source:  GPTQ, Alg. 1; OAC, Alg. 1.
    Differs: rows of layers that share an input may be stacked: one factor, one run.
    """
    X, given, params = streams.quant, metrics is not None, params or {}
    edits = {} if X is None else {name: t.to(X.dtype) for name, t in params.items()}
    shared = [[name] for name in block.linears] if X is None else block.shared_inputs(X[:1])
    done: dict[str, StoredWeight] = {}
    story: dict = {"error_share": {}} | ({"shift": {}} if shift else {})
    with phases("hessian"):
        waiting = [] if given or sequential or shift else block.hessians(X, shared, edits)
    for names in shared:
        swapped = edits | {name: w.dequantize(X.dtype) for name, w in done.items()} if sequential else edits
        with phases("hessian"):
            pair = mismatch(block, streams.full, X, names[0], swapped) if shift else None
            H = None if given else pair.H if pair else (waiting.pop(0) if waiting else block.hessians(X, [names], swapped)[0]).H
        for together in [names] if split and not given else [[name] for name in names]:
            with phases("solve"), block.naming(*together):
                W = torch.cat([current(block, params, name).float() for name in together])
                ruler = [torch.cat(parts) for parts in zip(*(rulers[name] for name in together), strict=True)] if rulers else []
                if pair:
                    W, story["shift"][together[0]] = shifted(W, pair)
                stored, story["error_share"][together[0]] = solve(W, metrics[together[0]].float() if given else H, *ruler)
            sizes = [block.linears[name].out_features for name in together]
            done |= dict(zip(together, split(stored, sizes) if split else [stored], strict=True))
    return {name: done[name] for name in block.linears}, story
