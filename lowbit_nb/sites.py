"""Where a block can be scaled: names propose the places, a trial run decides.

Names alone would be wrong for blocks whose norm also feeds something else, or whose v is clamped on its way to o.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowbit_nb.blocks import Block
from lowbit_nb.experts import experts
from lowbit_nb.transforms import Site, channels, scale

# What makes the input of a layer, by the names that decoders use: (source, layers fed).
NORM_SITES = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("input_layernorm", ("self_attn.qkv_proj",)),
    ("self_attn_layer_norm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("post_attention_layernorm", ("mlp.gate_up_proj",)),
    ("final_layer_norm", ("fc1",)),
)
LINEAR_SITES = (
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("self_attn.v_proj", ("self_attn.out_proj",)),
    ("mlp.up_proj", ("mlp.down_proj",)),
)


def sites(block: Block, x: Tensor) -> list[Site]:
    """The places of a block where a scaling preserves the function: names propose, a trial run decides.

    Names alone would be wrong for blocks whose norm also feeds something else, or whose v is clamped on its way to o.

    Shapes:  x [1, length, d_model], any window; returns a list, empty if nothing proposed holds.
    Units:   none.
    Raises:  nothing.
    Source:  AWQ's code (auto_scale) for the places; the check is this project's.
    Differs: works for any decoder with the usual names; what it cannot verify it leaves alone.
    """
    have = dict(block.module.named_modules())
    found: list[Site] = []
    for site in [*_norm_sites(have), *_linear_sites(have), *_expert_sites(block)]:
        if not any(t in s.targets for s in found for t in site.targets) and _holds(block, site, x):
            found.append(site)
    return found


def query_key_site(block: Block, x: Tensor) -> Site | None:
    """The place between q and k, if the block keeps its function when rotary pairs share a factor.

    It matters when queries and keys are rounded themselves; for weights alone a row's factor vanishes in its step.

    Shapes:  x [1, length, d_model], any window.
    Units:   none.
    Raises:  nothing.
    Source:  OmniQuant, Sec. 3.3 (LET of queries and keys).
    Differs: its code gives every channel a factor of its own, which no longer commutes with the rotation; channels j and
             j + head_dim / 2 share one here, and so do all query heads that read one key head.
    """
    have = dict(block.module.named_modules())
    q, k = (have.get(f"self_attn.{name}_proj") for name in "qk")
    width = getattr(have.get("self_attn"), "head_dim", None)
    if q is None or k is None or width is None:
        return None
    site = Site("self_attn.q_proj", ("self_attn.k_proj",), "rotary", q.out_features // k.out_features, width)
    return site if _holds(block, site, x) else None


def _norm_sites(have: dict[str, nn.Module]) -> Iterator[Site]:
    for source, targets in NORM_SITES:
        if getattr(have.get(source), "weight", None) is not None and all(t in have for t in targets):
            yield from (Site(source, targets, kind) for kind in ("norm", "unit_norm"))


def _linear_sites(have: dict[str, nn.Module]) -> Iterator[Site]:
    for source, targets in LINEAR_SITES:
        if source in have and targets[0] in have:
            repeat = have[targets[0]].in_features // have[source].out_features
            yield Site(source, targets, "linear", repeat, have[source.rpartition(".")[0]].head_dim if repeat > 1 else 1)


def _expert_sites(block: Block) -> Iterator[Site]:
    """Inside each expert; not in front of them, where the router reads the same norm."""
    return (Site(f"{name}.up_proj", (f"{name}.down_proj",), "linear") for name in experts(block.module))


@torch.no_grad()
def _holds(block: Block, site: Site, x: Tensor) -> bool:
    """Whether the block's output stays the same, up to rounding, under a random scaling at this site."""
    generator = torch.Generator().manual_seed(0)
    s = torch.exp(0.5 * torch.randn(channels(block, site), generator=generator)).to(x.device)
    y, y_scaled = block.forward(x), block.forward(x, {name: t.to(x.dtype) for name, t in scale(block, site, s, {}).items()})
    half = x.dtype in (torch.float16, torch.bfloat16)
    return bool((y_scaled - y).float().norm() <= (5e-2 if half else 1e-3) * (y - x).float().norm())
