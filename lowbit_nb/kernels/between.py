"""What lies between the products of a Llama-shaped block when one token is written: three kernels instead of forty launches.

    add_norm   residual stream + what a layer gave, and the norm of it
    attend     rotate query and key, put key and value into the cache, attend over the slots so far
    gate       silu(gate) * up

Numbers are rounded to the type of the residual stream where the separate steps of transformers round them.  Where the GPU can,
a kernel starts while the one before it ends, reads what does not depend on that one, and waits (programmatic dependent launch).
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # slots of the cache a step of `attend` looks at
WIDE = 1024  # numbers a program of `gate` makes


def add_norm(h: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """h += delta, in place; returns weight * h / sqrt(mean(h**2) + eps).

    Shapes:  h, delta [batch, d]; weight [d]; returns [batch, d]; d a few thousand.
    Units:   those of the residual stream; returns numbers of size 1.
    Raises:  nothing.
    Source:  RMSNorm (Zhang and Sennrich 2019), as transformers writes it.
    Differs: no difference.
    """
    y, d = torch.empty_like(h), h.shape[1]
    wide = triton.next_power_of_2(d)
    _add_norm[(len(h),)](h, h if delta is None else delta, weight, y, d, eps, delta is not None,
                         wide, num_warps=min(16, max(1, wide // 256)), **_early(h.device))
    return y


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slot: Tensor, pads: Tensor,
           scale: float) -> Tensor:
    """Attention of one new token a sequence; its key and value are put into the cache.

    Shapes:  qkv [batch, (heads + 2 kv_heads) width]; cos, sin [length, width]; keys, values [batch, kv_heads, length, width],
             written at `slot`; slot [1] int64; pads [batch] int64, slots at the left that hold nothing; returns
             [batch, heads width].
    Units:   those of the values.
    Raises:  nothing.
    Source:  online softmax (Milakov and Gimelshein 2018); rotary positions as transformers writes them.
    Differs: one program a key/value head and sequence: for contexts of some hundred slots; work grows with slots in use only.
    """
    batch, n_kv, length, width = keys.shape
    heads = qkv.shape[1] // width - 2 * n_kv
    out = qkv.new_empty(batch, heads * width)
    precision = "ieee" if qkv.dtype == torch.float32 else "tf32"
    _attend[(n_kv, batch)](qkv, cos, sin, keys, values, slot, pads, out, scale, length, qkv.shape[1], N_KV=n_kv,
                           GROUP=heads // n_kv, ROWS=max(16, triton.next_power_of_2(heads // n_kv)), HALF=width // 2,
                           BLOCK=BLOCK, PRECISION=precision, num_warps=4, num_stages=1 if precision == "ieee" else 3,
                           **_early(qkv.device))
    return out


def gate(both: Tensor) -> Tensor:
    """silu(first half) * second half.

    Shapes:  both [batch, 2 d]; returns [batch, d].
    Units:   those of the inputs.
    Raises:  nothing.
    Source:  SwiGLU (Shazeer 2020).
    Differs: no difference.
    """
    d = both.shape[1] // 2
    y = both.new_empty(len(both), d)
    _gate[(triton.cdiv(d, WIDE), len(both))](both, y, d, WIDE, num_warps=4, **_early(both.device))
    return y


@cache
def _early(device: torch.device) -> dict:
    """Settings of a launch that may begin before the one before it has ended."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"PDL": True, "launch_pdl": True} if able else {"PDL": False}


@triton.jit
def _wait(PDL: tl.constexpr):
    """Let the next kernel begin; go on when the one before has ended."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _add_norm(H, DELTA, W, Y, d, eps, ADD: tl.constexpr, D: tl.constexpr, PDL: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64) * d, tl.arange(0, D)
    live = i < d
    w = tl.load(W + i, mask=live, other=0.0)
    _wait(PDL)
    h = tl.load(H + row + i, mask=live, other=0.0).to(tl.float32)
    if ADD:
        h = (h + tl.load(DELTA + row + i, mask=live, other=0.0).to(tl.float32)).to(w.dtype)
        tl.store(H + row + i, h, mask=live)
        h = h.to(tl.float32)
    y = h * tl.rsqrt(tl.sum(h * h) / d + eps)
    tl.store(Y + row + i, w * y.to(w.dtype), mask=live)


@triton.jit
def _rotate(a, b, ca, cb, sa, sb):
    """Both halves of a rotated head, rounded as separate steps round them."""
    t = a.dtype
    return (a * ca).to(t) - (b * sa).to(t), (b * cb).to(t) + (a * sb).to(t)


@triton.jit
def _attend(QKV, COS, SIN, K, V, SLOT, PADS, OUT, scale, length, row, N_KV: tl.constexpr, GROUP: tl.constexpr,
            ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    kv, b = tl.program_id(0), tl.program_id(1)
    slot, pad = tl.load(SLOT), tl.load(PADS + b)
    i, g, t = tl.arange(0, HALF), tl.arange(0, ROWS), tl.arange(0, BLOCK)
    at = (slot - pad) * 2 * HALF + i  # a sequence begins after its padding
    ca, cb, sa, sb = tl.load(COS + at), tl.load(COS + at + HALF), tl.load(SIN + at), tl.load(SIN + at + HALF)
    _wait(PDL)
    q = QKV + b * row + (kv * GROUP + g[:, None]) * 2 * HALF + i[None, :]
    mine = (g < GROUP)[:, None]
    qa, qb = tl.load(q, mask=mine, other=0.0), tl.load(q + HALF, mask=mine, other=0.0)
    qa, qb = _rotate(qa, qb, ca[None, :], cb[None, :], sa[None, :], sb[None, :])
    k = QKV + b * row + (N_KV * GROUP + kv) * 2 * HALF + i
    ka, kb = _rotate(tl.load(k), tl.load(k + HALF), ca, cb, sa, sb)
    v = k + N_KV * 2 * HALF
    va, vb = tl.load(v), tl.load(v + HALF)
    cache = (b * N_KV + kv).to(tl.int64) * length * 2 * HALF
    new = cache + slot * 2 * HALF + i
    tl.store(K + new, ka)
    tl.store(K + new + HALF, kb)
    tl.store(V + new, va)
    tl.store(V + new + HALF, vb)
    # The new token itself comes first, from registers: nobody waits for what was just stored.
    top = tl.sum(qa.to(tl.float32) * ka[None, :].to(tl.float32), 1) + tl.sum(qb.to(tl.float32) * kb[None, :].to(tl.float32), 1)
    top = top * scale
    total = tl.full((ROWS,), 1.0, tl.float32)
    ya = tl.zeros((ROWS, HALF), tl.float32) + va[None, :].to(tl.float32)
    yb = tl.zeros((ROWS, HALF), tl.float32) + vb[None, :].to(tl.float32)
    for step in tl.range(pad // BLOCK, tl.cdiv(slot, BLOCK)):
        u = step * BLOCK + t
        live = (u < slot) & (u >= pad)
        here = cache + u[:, None] * 2 * HALF + i[None, :]
        s = tl.dot(qa, tl.trans(tl.load(K + here, mask=live[:, None], other=0.0)), input_precision=PRECISION)
        s = tl.dot(qb, tl.trans(tl.load(K + here + HALF, mask=live[:, None], other=0.0)), s, input_precision=PRECISION)
        s = tl.where(live[None, :], s * scale, float("-inf"))
        best = tl.maximum(top, tl.max(s, 1))
        p, old = tl.exp(s - best[:, None]), tl.exp(top - best)
        total, top = total * old + tl.sum(p, 1), best
        p = p.to(va.dtype)
        ya = tl.dot(p, tl.load(V + here, mask=live[:, None], other=0.0), ya * old[:, None], input_precision=PRECISION)
        yb = tl.dot(p, tl.load(V + here + HALF, mask=live[:, None], other=0.0), yb * old[:, None], input_precision=PRECISION)
    out = OUT + (b * N_KV + kv) * GROUP * 2 * HALF + g[:, None] * 2 * HALF + i[None, :]
    tl.store(out, (ya / total[:, None]).to(va.dtype), mask=mine)
    tl.store(out + HALF, (yb / total[:, None]).to(va.dtype), mask=mine)


@triton.jit
def _gate(BOTH, Y, d, WIDE: tl.constexpr, PDL: tl.constexpr):
    i = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    live, row = i < d, tl.program_id(1).to(tl.int64)
    _wait(PDL)
    a = tl.load(BOTH + row * 2 * d + i, mask=live, other=0.0).to(tl.float32)
    b = tl.load(BOTH + row * 2 * d + d + i, mask=live, other=0.0)
    tl.store(Y + row * d + i, (a / (1 + tl.exp(-a))).to(b.dtype) * b, mask=live)
