"""Function-preserving scalings: the same block, with its difficulty moved from one tensor to another.

A linear layer computes X @ W.T.  Dividing input channel i by s_i and multiplying column i of W by s_i changes nothing,
provided that whatever makes the input can absorb the division.  A Llama-type block has four such places (sites):

    norm -> q, k, v      norm -> gate, up      v -> o      up -> down

Every edit here is a dict {parameter name: new tensor} for `Block.forward`; the block itself is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit_nb.blocks import Block

# What makes the input of a layer, by the names that decoders use: (source, layers fed).  "o" sites repeat over query groups.
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


@dataclass(frozen=True)
class Site:
    """Where a scaling can go: `source` absorbs the division, the columns of `targets` the multiplication.

    Source: AWQ, Sec. 3; the four sites of its code. Differs: v -> o also with grouped queries, the scale shared in a group.
    """

    source: str
    targets: tuple[str, ...]
    kind: str  # "norm", "unit_norm" (gain is 1 + weight) or "linear"
    repeat: int = 1  # query heads that read one key-value head

    def expand(self, s: Tensor) -> Tensor:
        """The scale of every input channel of the targets, from that of every channel of the source.

        Shapes:  s [channels of the source]; returns [d_in of the targets].
        Units:   no unit.
        Raises:  nothing.
        Source:  this project.
        Differs: AWQ's code skips v -> o when queries are grouped.
        """
        return s


@dataclass(frozen=True)
class HeadSite(Site):
    """v -> o: query head h reads key-value head h // repeat, so that many heads of o's input share one scale.

    Source: this project, for grouped queries. Differs: see `Site`.
    """

    head_dim: int = 1

    def expand(self, s: Tensor) -> Tensor:
        """Repeat each head's scales for the query heads that read it.

        Shapes:  s [n_kv * head_dim]; returns [n_q * head_dim].
        Units:   no unit.
        Raises:  nothing.
        Source:  this project.
        Differs: see `Site`.
        """
        return s.reshape(-1, 1, self.head_dim).expand(-1, self.repeat, -1).flatten()


def sites(block: Block) -> list[Site]:
    """The places of a block where a scaling preserves the function.

    Shapes:  one block in, a list out; empty if none of the known names is there.
    Units:   none.
    Raises:  nothing.
    Source:  AWQ's code (auto_scale); names of Llama, Mistral, Qwen, Gemma, Phi-3 and OPT blocks.
    Differs: fc1 -> fc2 through a ReLU and anything behind a non-linearity is left out.
    """
    have = dict(block.module.named_modules())
    found: list[Site] = []
    for source, targets in NORM_SITES:
        if source in have and all(t in have for t in targets) and not any(t in s.targets for s in found for t in targets):
            kind = "unit_norm" if "Gemma" in type(have[source]).__name__ else "norm"
            found.append(Site(source, targets, kind))
    for source, targets in LINEAR_SITES:
        if source in have and targets[0] in have:
            found.append(_linear_site(have, source, targets))
    return found


def _linear_site(have: dict[str, nn.Module], source: str, targets: tuple[str, ...]) -> Site:
    repeat = have[targets[0]].in_features // have[source].out_features
    if "v_proj" not in source:
        return Site(source, targets, "linear")
    head_dim = have[source.rsplit(".", 1)[0]].head_dim
    return HeadSite(source, targets, "linear", repeat, head_dim)


def scale(block: Block, site: Site, s: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide what flows through a site by s, and multiply the layers behind it: the block's function stays the same.

    Shapes:  s [channels of the source]; params {name: tensor} edits so far; returns them with this one added.
    Units:   no unit.
    Raises:  ValueError if s is not positive and finite.
    Source:  SmoothQuant, Eq. 3; AWQ, Eq. 2.
    Differs: nothing is changed in place.
    """
    if not (torch.isfinite(s) & (s > 0)).all():
        raise ValueError("a scaling needs finite positive factors; "
                         f"these run from {float(s.min()):.3g} to {float(s.max()):.3g}")
    out = dict(params)
    if site.kind == "linear":
        out[site.source] = _current(block, site.source, params) / s[:, None]
        if block.module.get_submodule(site.source).bias is not None:
            out[f"{site.source}.bias"] = _current(block, f"{site.source}.bias", params) / s
    else:
        gain = _current(block, f"{site.source}.weight", params)
        out[f"{site.source}.weight"] = (gain + 1) / s - 1 if site.kind == "unit_norm" else gain / s
        if getattr(block.module.get_submodule(site.source), "bias", None) is not None:
            out[f"{site.source}.bias"] = _current(block, f"{site.source}.bias", params) / s
    for name in site.targets:
        out[name] = _current(block, name, out) * site.expand(s)
    return out


def current(block: Block, params: dict[str, Tensor], name: str) -> Tensor:
    """A linear layer's weight after the edits so far, in float32.

    Shapes:  returns [d_out, d_in].
    Units:   those of the weight.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return params.get(name, block.weight(name)).float()


def norms(block: Block, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The edits that are not linear layers' weights, in the type they are stored in.

    Shapes:  {parameter name: tensor}, float16.
    Units:   those of the parameter.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return {name: t.half() for name, t in params.items() if name not in block.linears}


def _current(block: Block, name: str, params: dict[str, Tensor]) -> Tensor:
    """A tensor as it is after the edits so far; linear layers by their own name."""
    if name in params:
        return params[name]
    return block.weight(name) if name in block.linears else block.module.get_parameter(name).detach()


def smoothing(x_max: Tensor, w_max: Tensor, alpha: float = 0.5, least: float = 1e-5) -> Tensor:
    """SmoothQuant's factors: s = x_max**alpha / w_max**(1 - alpha).

    Shapes:  x_max, w_max [channels]: largest |activation| and largest |weight| of each channel; returns [channels].
    Units:   no unit; alpha = 0 leaves the activations alone, 1 makes them all alike.
    Raises:  nothing.
    Source:  SmoothQuant, Eq. 4; clamps of its code.
    Differs: no difference.

    >>> smoothing(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.0])).tolist()
    [2.0, 1.0]
    """
    return (x_max.clamp(min=least) ** alpha / w_max.clamp(min=least) ** (1 - alpha)).clamp(min=least)


def salience(x_mean: Tensor, ratio: float) -> Tensor:
    """AWQ's factors: mean |activation| to a power, centred so that the largest and smallest are each other's inverse.

    Shapes:  x_mean [channels]; returns [channels].
    Units:   no unit; ratio = 0 gives ones.
    Raises:  nothing.
    Source:  AWQ, Eq. 4-5; normalisation of its code.
    Differs: no difference.

    >>> salience(torch.tensor([16.0, 1.0]), 0.5).tolist()
    [2.0, 0.5]
    """
    s = x_mean.pow(ratio).clamp(min=1e-4)
    return s / (s.max() * s.min()).sqrt()
