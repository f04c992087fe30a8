"""What lies between the products of a Llama-shaped block when one token is written: three kernels instead of forty launches.

    add_norm   residual stream + what a layer gave, and the norm of it
    attend     rotate query and key, put key and value into the cache, attend over the slots so far
    gate       silu(gate) * up

What the first and the last give may be the bytes that the next product's weight meets (`tensorcore.Bytes`), which spares that
product a launch.

Numbers are rounded to the type of the residual stream where the separate steps of transformers round them.  Where the GPU can,
a kernel starts while the one before it ends, reads what does not depend on that one, and waits (programmatic dependent launch).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_nb.kernels import digits
from lowbit_nb.kernels.launching import beside, early
from lowbit_nb.kernels.tensorcore import Bytes, Operand

BLOCK = 64  # slots of the cache a step of `attend` looks at


def add_norm(h: Tensor, delta: Tensor | None, weight: Tensor, eps: float,
             into: Operand | None = None) -> tuple[Tensor, Tensor | Bytes]:
    """h + delta, and weight * (h + delta) / sqrt(mean((h + delta)**2) + eps), for the product with `into` if there is one.

    Shapes:  h, delta [batch, d]; weight [d]; returns two [batch, d]; d a few thousand.
    Units:   those of the residual stream; the second: numbers of size 1.
    Raises:  nothing.
    Source:  RMSNorm (Zhang and Sennrich 2019), as transformers writes it.
    Differs: every program works out the norm for itself and gives one slice of columns.
    """
    d = h.shape[1]
    wide = triton.next_power_of_2(d)
    total = h if delta is None else torch.empty_like(h)
    y, pointers, sizes, n_slices = _left(into, len(h), d, h)
    _add_norm[(n_slices, len(h))](h, h if delta is None else delta, weight, total, *pointers, d, eps, ADD=delta is not None,
                                  D=wide, **sizes, num_warps=min(16, max(4, wide // 256)), **_early(h.device))
    return total, y


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


def gate(both: Tensor, into: Operand | None = None) -> Tensor | Bytes:
    """silu(first half) * second half, for the product with `into` if there is one.

    Shapes:  both [batch, 2 d]; returns [batch, d].
    Units:   those of the inputs.
    Raises:  nothing.
    Source:  SwiGLU (Shazeer 2020).
    Differs: no difference.
    """
    d = both.shape[1] // 2
    y, pointers, sizes, n_slices = _left(into, len(both), d, both)
    _gate[(n_slices, len(both))](both, *pointers, d, **sizes, num_warps=4, **_early(both.device))
    return y


def _left(into: Operand | None, rows: int, d: int, like: Tensor) -> tuple[Tensor | Bytes, tuple, dict, int]:
    """What a kernel leaves, a slice a program: numbers, or bytes for a weight; pointers, how they lie, number of slices."""
    if into is None:
        y = like.new_empty(rows, d)
        return y, (y, y, y), {"BITS": 0, "SEG": 64, **beside(rows, like.dtype)}, triton.cdiv(d, 64 * digits.planes(0))
    made = Bytes.room(into, rows, like)
    return made, made.pointers, {"BITS": into.bits, "SEG": into.seg, **beside(rows, like.dtype)}, into.n_slices


def _early(device: torch.device) -> dict:
    """Settings of a launch that may begin before the one before it has ended."""
    return {"PDL": True, "launch_pdl": True} if early(device) else {"PDL": False}


@triton.jit
def _wait(PDL: tl.constexpr):
    """Let the next kernel begin; go on when the one before has ended."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _leave(y, Y, SUMS, STEPS, t, m, at, d, BITS: tl.constexpr, SEG: tl.constexpr, C: tl.constexpr, R: tl.constexpr):
    """Slice t of row m as numbers, or as bytes for a weight."""
    if BITS == 0:
        tl.store(Y + m.to(tl.int64) * d + at, y, mask=at < d)
    else:
        digits.write(y.to(tl.float32), Y, SUMS, STEPS, t, m, BITS, digits.planes(BITS), digits.planes(BITS) * 64 // SEG, C, R)


@triton.jit
def _sum(H, DELTA, at, live, KIND: tl.constexpr, ADD: tl.constexpr):
    """h, or h + delta as its type holds it, in float32."""
    h = tl.load(H + at, mask=live, other=0.0).to(tl.float32)
    if ADD:
        h = (h + tl.load(DELTA + at, mask=live, other=0.0).to(tl.float32)).to(KIND).to(tl.float32)
    return h


@triton.jit
def _add_norm(H, DELTA, W, TOTAL, Y, SUMS, STEPS, d, eps, ADD: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr,
              SEG: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PDL: tl.constexpr):
    t, m, i = tl.program_id(0), tl.program_id(1), tl.arange(0, D)
    at, row = digits.columns(t, digits.planes(BITS)), m.to(tl.int64) * d
    KIND: tl.constexpr = W.dtype.element_ty
    w = tl.load(W + at, mask=at < d, other=0.0)
    _wait(PDL)
    h = _sum(H, DELTA, row + i, i < d, KIND, ADD)
    mine = _sum(H, DELTA, row + at, at < d, KIND, ADD)
    if ADD:
        tl.store(TOTAL + row + at, mine.to(KIND), mask=at < d)
    y = w * (mine * tl.rsqrt(tl.sum(h * h) / d + eps)).to(KIND)
    _leave(y, Y, SUMS, STEPS, t, m, at, d, BITS, SEG, C, R)


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
def _gate(BOTH, Y, SUMS, STEPS, d, BITS: tl.constexpr, SEG: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
          PDL: tl.constexpr):
    t, m = tl.program_id(0), tl.program_id(1)
    at = digits.columns(t, digits.planes(BITS))
    first = BOTH + m.to(tl.int64) * 2 * d + at
    _wait(PDL)
    a = tl.load(first, mask=at < d, other=0.0).to(tl.float32)
    b = tl.load(first + d, mask=at < d, other=0.0)
    _leave((a / (1 + tl.exp(-a))).to(b.dtype) * b, Y, SUMS, STEPS, t, m, at, d, BITS, SEG, C, R)
