"""Function-preserving scalings: the same block, with its difficulty moved from one tensor to another.

A linear layer computes X @ W.T.  Dividing input channel i by s_i and multiplying column i of W by s_i changes nothing,
provided that whatever makes the input can absorb the division.  A Llama-type block has four such places (sites):

    norm -> q, k, v      norm -> gate, up      v -> o      up -> down

A fifth moves difficulty between q and k; behind a rotary embedding its factors must agree within every rotary pair.

Every edit here is a dict {parameter name: new tensor} for `Block.forward`; the block itself is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_nb.blocks import Block


@dataclass(frozen=True)
class Site:
    """Where a scaling can go: `source` absorbs the division, the columns of `targets` the multiplication.

    kind    "norm", "unit_norm" (its gain is 1 + weight), "linear", or "rotary" (q -> k; one factor a rotary pair)
    repeat  query heads that read one key-value head (v -> o and q -> k), each head_dim channels wide

    Source: AWQ, Sec. 3; the four sites of its code. Differs: v -> o also with grouped queries, the scale shared in a group.
    """

    source: str
    targets: tuple[str, ...]
    kind: str
    repeat: int = 1
    head_dim: int = 1

    def expand(self, s: Tensor) -> Tensor:
        """The scale of every input channel of the targets: that of the source, repeated for every query head that reads it.

        Shapes:  s [channels of the source]; returns [d_in of the targets].
        Units:   no unit.
        Raises:  nothing.
        Source:  this project.
        Differs: AWQ's code skips v -> o when queries are grouped.
        """
        return s if self.repeat == 1 else s.reshape(-1, 1, self.head_dim).expand(-1, self.repeat, -1).flatten()

    def gather(self, x: Tensor) -> Tensor:
        """The largest value among the input channels that share a scale; the inverse direction of `expand`.

        Shapes:  x [d_in of the targets]; returns [channels of the source].
        Units:   those of x.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return x if self.repeat == 1 else x.reshape(-1, self.repeat, self.head_dim).amax(1).flatten()


def channels(block: Block, site: Site) -> int:
    """How many factors a site has.

    Shapes:  a count.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if site.kind == "rotary":
        return block.weight(site.targets[0]).shape[0] // 2
    return len(block.weight(site.source) if site.kind == "linear" else block.module.get_parameter(f"{site.source}.weight"))


def scale(block: Block, site: Site, s: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide what flows through a site by s, and multiply the layers behind it: the block's function stays the same.

    Shapes:  s [channels(block, site)]; params {name: tensor} edits so far; returns them with this one added.
    Units:   no unit.
    Raises:  ValueError if s is not positive and finite, or a norm divided by it does not fit its type.
    Source:  SmoothQuant, Eq. 3; AWQ, Eq. 2.
    Differs: nothing is changed in place; a norm's gain is rounded as it will be stored, and the layers are multiplied by
             the factor that it then really divides by, so the identity survives storage.
    """
    if not (torch.isfinite(s) & (s > 0)).all():
        raise ValueError("a scaling needs finite positive factors; "
                         f"these run from {float(s.min()):.3g} to {float(s.max()):.3g}")
    out = scaled(block, site, s, params)
    if not all(torch.isfinite(out[name]).all() for name in out if name.startswith(site.source)):
        raise ValueError(f"{block.name}.{site.source} divided by factors down to {float(s.min()):.3g} does not fit its type")
    return out


def scaled(block: Block, site: Site, s: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """`scale` without its checks: differentiable in s, and no number leaves the device.

    Shapes:  as `scale`.
    Units:   no unit.
    Raises:  nothing.
    Source:  as `scale`.
    Differs: as `scale`.
    """
    s = s.to(next(block.module.parameters()).device)
    out, down, up = dict(params), s, site.expand(s)
    if site.kind == "rotary":
        pairs = s.reshape(-1, 1, site.head_dim // 2).repeat(1, 2, 1).flatten(1)  # [key heads, head_dim]
        down, up = pairs.repeat_interleave(site.repeat, 0).flatten(), pairs.flatten()
    if site.kind in ("linear", "rotary"):
        out[site.source] = current(block, params, site.source) / down[:, None]
    else:
        down, out[f"{site.source}.weight"] = _absorb(block, site, s, params)
        up = down
    if _has_bias(block, site.source):
        out[f"{site.source}.bias"] = current(block, params, f"{site.source}.bias") / down
    for name in site.targets:
        W = current(block, out, name)
        out[name] = W * (up[:, None] if site.kind == "rotary" else up)
        if site.kind == "rotary" and _has_bias(block, name):
            out[f"{name}.bias"] = current(block, params, f"{name}.bias") * up
    return out


def shift(block: Block, site: Site, delta: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take delta off what flows through a site, and give it back in the biases of the layers behind it.

    The block's function stays the same, but rounding the layers no longer meets the part of their input that is constant.

    Shapes:  delta [channels(block, site)]; params as in `scale`; returns them with this one added.
    Units:   those of the input of the layers behind the site, before a scaling.
    Raises:  ValueError if the site has no biases to keep it (`shiftable`).
    Source:  OmniQuant, Eq. 3 (LET).
    Differs: only where biases exist already; the reference adds them to Llama blocks and then never learns them.
    """
    if not shiftable(block, site):
        raise ValueError(f"{block.name}.{site.source} and the layers behind it need biases to absorb a shift; scale only")
    out = dict(params)
    out[f"{site.source}.bias"] = current(block, params, f"{site.source}.bias") - delta
    for name in site.targets:
        W = current(block, params, name)
        out[f"{name}.bias"] = current(block, params, f"{name}.bias") + W @ site.expand(delta).to(W.dtype)
    return out


def shiftable(block: Block, site: Site) -> bool:
    """Whether the source and all layers behind it have biases, so that a shift has where to go.

    A norm passes a shift on, and so does attention, whose weights sum to one; a product with a gate does not.

    Shapes:  none.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    passes = site.kind in ("norm", "unit_norm") or site.source.endswith("v_proj")
    return passes and all(_has_bias(block, name) for name in (site.source, *site.targets))


def _has_bias(block: Block, name: str) -> bool:
    return getattr(block.module.get_submodule(name), "bias", None) is not None


def _absorb(block: Block, site: Site, s: Tensor, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The norm's weight divided by s, in a value that its stored type holds, and the factor that it really divides by."""
    one = 1.0 if site.kind == "unit_norm" else 0.0
    name = f"{site.source}.weight"
    weight = current(block, params, name)
    kept = ((weight + one) / s - one).to(_type_of(block, name)).to(weight.dtype)
    alive = (kept + one) * (weight + one) > 0  # a gain that would round to nothing keeps its channel as it was
    kept = torch.where(alive, kept, weight)
    return torch.where(alive, (weight + one) / (kept + one), torch.ones_like(s)), kept


def _type_of(block: Block, name: str) -> torch.dtype:
    """How an edited norm is stored: in the model's own half type, or in float16."""
    own = block.module.get_parameter(name).dtype
    return own if own in (torch.float16, torch.bfloat16) else torch.float16


def current(block: Block, params: dict[str, Tensor], name: str) -> Tensor:
    """A tensor of the block after the edits so far, in float32 or wider; linear layers go by their own name.

    Shapes:  that of the tensor.
    Units:   those of the tensor.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    own = block.weight(name) if name in block.linears else block.module.get_parameter(name).detach()
    tensor = params.get(name, own)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def norms(block: Block, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The edits that are not linear layers' weights, in the type they are stored in.

    A half type if it holds the values exactly, as it does for gains that `scale` has rounded; float32 otherwise (biases).

    Shapes:  {parameter name: tensor}.
    Units:   those of the parameter.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    edited = {name: t.float() for name, t in params.items() if name not in block.linears}
    halves = {name: t.to(_type_of(block, name)) for name, t in edited.items()}
    return {name: halves[name] if torch.equal(halves[name].float(), t) else t for name, t in edited.items()}


def smoothing(x_max: Tensor, w_max: Tensor, alpha: float = 0.5, least: float = 1e-5) -> Tensor:
    """SmoothQuant's factors: s = x_max**alpha / w_max**(1 - alpha).

    Shapes:  x_max, w_max [channels]: largest |activation| and largest |weight| of each channel; returns [channels].
    Units:   no unit; alpha = 1 makes the activations of all channels alike, 0 the weights.
    Raises:  nothing.
    Source:  SmoothQuant, Eq. 4; clamps of its code.
    Differs: x_max is kept from 0 as well.

    >>> smoothing(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.0])).tolist()
    [2.0, 1.0]
    """
    return (x_max.clamp(min=least) ** alpha / w_max.clamp(min=least) ** (1 - alpha)).clamp(min=least)


def salience(size: Tensor, ratio: float) -> Tensor:
    """AWQ's factors: the size of activations to a power, centred so that the largest and smallest are each other's inverse.

    Shapes:  size [channels], e.g. mean |x| or its root mean square; returns [channels].
    Units:   no unit; ratio = 0 gives ones.
    Raises:  nothing.
    Source:  AWQ, Eq. 4-5; normalisation of its code.
    Differs: no difference.

    >>> salience(torch.tensor([16.0, 1.0]), 0.5).tolist()
    [2.0, 0.5]
    """
    s = size.pow(ratio).clamp(min=1e-4)
    return s / (s.max() * s.min()).sqrt()
