"""A decode step of Llama-shaped models with one launch between two products: 8 launches a block instead of some 45.

Layers that share an input (query, key, value; gate, up) become one product; what lies between products is one kernel each on a
GPU (`kernels.between`) and plain torch on the CPU.  Attribute names propose that a model has this shape; a trial token decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_nb.packed.fused import fuse
from lowbit_nb.packed.gpu import kernel
from lowbit_nb.packed.linear import PackedLinear, product
from lowbit_nb.packed.operands import Affine, Operand

ROTARY = ("default", "linear", "llama3", "yarn")  # positions whose angles do not depend on the length


@dataclass
class Product:
    """Layers that share an input, as one product.

    wants  the packed weight, if the kernel before may write x as the bytes that this weight meets; otherwise None

    Source: this project. Differs: no difference.
    """

    run: Callable[[Tensor], Tensor]
    wants: object | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.run(x)


@dataclass
class _Part:
    """What a step needs of one block."""

    norm: nn.Module
    qkv: Product
    out: Product
    norm2: nn.Module
    gate_up: Product
    down: Product
    scale: float


class Slim:
    """The step: tokens in, logits out; reads and writes the cache's slots.

    Source: fused decode kernels of inference engines. Differs: only what a Llama has; attention for short contexts.
    """

    def __init__(self, model: nn.Module, length: int, batch: int) -> None:
        base = model.model
        self.embed, self.last, self.head = base.embed_tokens, base.norm, joint([model.lm_head], batch, model.dtype)
        self.parts = [_part(block, batch, model.dtype) for block in base.layers]
        like = torch.zeros(1, 1, 1, device=self.embed.weight.device, dtype=self.embed.weight.dtype)
        cos, sin = base.rotary_emb(like, torch.arange(length, device=like.device)[None])
        self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()
        on_gpu = like.is_cuda and kernel("between") is not None
        self.between = kernel("between") if on_gpu else Plain

    def __call__(self, token: Tensor, cache: Sequence, slot: Tensor, pads: Tensor) -> Tensor:
        """Logits of the next token.

        Shapes:  token [batch, 1]; cache: keys and values a block; slot [1]; pads [batch]; returns [batch, vocabulary].
        Units:   logits.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        do, h, delta = self.between, self.embed(token)[:, 0], None
        for part, kept in zip(self.parts, cache, strict=True):
            h, x = do.add_norm(h, delta, part.norm.weight, part.norm.variance_epsilon, part.qkv.wants)
            x = do.attend(part.qkv(x), self.cos, self.sin, kept.keys, kept.values, slot, pads, part.scale)
            h, x = do.add_norm(h, part.out(x), part.norm2.weight, part.norm2.variance_epsilon, part.gate_up.wants)
            delta = part.down(do.gate(part.gate_up(x), part.down.wants))
        return self.head(do.add_norm(h, delta, self.last.weight, self.last.variance_epsilon, self.head.wants)[1])


class Plain:
    """The three pieces in plain torch, for the CPU; see `kernels.between` for shapes.

    Source: transformers' Llama. Differs: no difference.
    """

    @staticmethod
    def add_norm(h: Tensor, delta: Tensor | None, weight: Tensor, eps: float, into: None = None) -> tuple[Tensor, Tensor]:
        """h + delta; the norm of it."""
        h = h if delta is None else h + delta
        wide = h.float()
        return h, weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(h.dtype)

    @staticmethod
    def attend(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slot: Tensor, pads: Tensor,
               scale: float) -> Tensor:
        """Rotate, keep, attend."""
        (batch, n_kv, length, width), at = keys.shape, slot - pads
        heads = qkv.view(batch, -1, width)
        n = heads.shape[1] - 2 * n_kv
        rotated = _rotate(heads[:, : n + n_kv], cos[at, None], sin[at, None])
        keys.index_copy_(2, slot, rotated[:, n:, None])
        values.index_copy_(2, slot, heads[:, n + n_kv :, None])
        t = torch.arange(length, device=slot.device)
        live = (t <= slot) & (t >= pads[:, None])
        q = rotated[:, :n].reshape(batch, n_kv, -1, width)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=live[:, None, None], scale=scale).flatten(1)

    @staticmethod
    def gate(both: Tensor, into: None = None) -> Tensor:
        """silu(first half) * second half."""
        a, b = both.chunk(2, -1)
        return F.silu(a) * b


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def joint(linears: list[nn.Module], batch: int = 1, dtype: torch.dtype = torch.float32) -> Product:
    """Layers that share an input as one product of all their rows.

    Ordinary layers' weights are laid under one another, each becoming a view of the whole: the same numbers, kept once.

    Shapes:  layers with one d_in; the product takes [batch, d_in] of that type and gives [batch, sum of d_out].
    Units:   none.
    Raises:  nothing; layers that cannot be joined (packed in different ways) are called one by one.
    Source:  this project.
    Differs: no difference.
    """
    one_by_one = Product(lambda x: torch.cat([linear(x) for linear in linears], -1))
    if len(linears) == 1 and type(linears[0]) is not PackedLinear:
        return Product(linears[0])
    biases = [linear.bias for linear in linears]
    if any(b is None for b in biases) and any(b is not None for b in biases):
        return one_by_one
    bias = None if biases[0] is None else torch.cat(biases)
    if all(type(linear) is PackedLinear for linear in linears):
        operand = linears[0].operand if len(linears) == 1 else getattr(fuse(linears), "operand", None)
        return one_by_one if operand is None else _packed(operand, bias, batch, dtype)
    if all(type(linear) is nn.Linear for linear in linears):
        whole = torch.cat([linear.weight for linear in linears])
        for linear, rows in zip(linears, whole.split([linear.out_features for linear in linears]), strict=True):
            linear.weight.data = rows
        return Product(lambda x: F.linear(x, whole, bias))
    return one_by_one


def _packed(operand: Operand, bias: Tensor | None, batch: int, dtype: torch.dtype) -> Product:
    """A packed weight's product; the kernel before it may make the bytes of x where its own kernel can take them."""
    own = operand.prepared(batch, dtype) if isinstance(operand, Affine) else None
    run = partial(product, operand) if own is None else partial(kernel("tensorcore").product, weight=own)
    return Product(run if bias is None else lambda x: run(x) + bias, own)


def why_not(model: nn.Module) -> str | None:
    """Why a model's step cannot be slim, by its settings and names, or None.

    Shapes:  a decoder; returns a sentence or None.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    config = model.config
    if getattr(config, "sliding_window", None):
        return "it attends through a sliding window"
    if getattr(config, "hidden_act", None) != "silu":
        return "its activation is not silu"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in ROTARY:
        return "its rotary positions are of a kind that depends on the length"
    try:
        passed = [m for b in model.model.layers for m in (*_names(b), b.input_layernorm, b.post_attention_layernorm)]
        if any(m._forward_hooks or m._forward_pre_hooks for m in (*passed, model.model.norm, model.lm_head)):
            return "hooks of its layers would not run (rounded activations, or a norm with a bias)"
        model.model.embed_tokens, model.model.norm.variance_epsilon, model.model.rotary_emb  # noqa: B018
    except AttributeError as error:
        return f"it is not built like a Llama ({error})"
    width = model.model.layers[0].self_attn.head_dim
    return None if width in (32, 64, 128, 256) or model.device.type == "cpu" else f"heads are {width} wide"


def _names(block: nn.Module) -> tuple[nn.Module, ...]:
    a, m = block.self_attn, block.mlp
    for norm in (block.input_layernorm, block.post_attention_layernorm):
        norm.variance_epsilon, norm.weight  # noqa: B018
    return a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj


def _part(block: nn.Module, batch: int, dtype: torch.dtype) -> _Part:
    q, k, v, out, gate, up, down = _names(block)
    qkv, out, gate_up, down = (joint(linears, batch, dtype) for linears in ([q, k, v], [out], [gate, up], [down]))
    return _Part(block.input_layernorm, qkv, out, block.post_attention_layernorm, gate_up, down, block.self_attn.scaling)
