"""Kernels of others that `packed.py` measures beside ours: a product, the bytes it reads of the weight, and the weight.

PyTorch's own 4-bit kernel (tinygemm), bitsandbytes (NF4), gemlite, and AQLM's for codebooks, built by nvcc at the first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import torch

GROUP = 128
AQLM = {"AQLM 2x8": (2, 8), "AQLM 1x16": (1, 16)}  # codebooks, bits of an index; vectors of 8 along the input
ABSENT = {"tilus": "its wheel is a compiler; the low-bit product is an example in its repository and is not installed",
          "Marlin": "no wheel; to be built from its repository"}
Made = tuple[Callable[[torch.Tensor], torch.Tensor], int, Callable[[], torch.Tensor]]


def kernels(absent: dict[str, str]) -> Iterator[tuple[str, float, Callable, tuple[int, ...]]]:
    """Name, bits, maker and batches of those that are there; the others and why, into `absent`."""
    absent |= ABSENT
    yield "tinygemm", 4, tinygemm, (1, 2, 4, 8, 16)
    for name, widths, make in (("bitsandbytes", (4,), bitsandbytes), ("gemlite", (4, 2, 1), gemlite), ("aqlm", (2,), None)):
        try:
            importlib.import_module(name)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        if make:
            yield from ((name, bits, make, (1,)) for bits in widths)
        else:
            yield from ((kind, 2, lambda o, i, b, kind=kind: aqlm(o, i, kind), (1,)) for kind in AQLM)


def aqlm(d_out: int, d_in: int, kind: str) -> Made:
    """Codebooks along the input."""
    from aqlm import QuantizedLinear

    n, bits = AQLM[kind]
    layer = QuantizedLinear(d_in, d_out, 8, 1, n, bits, bias=False, device="cuda", dtype=torch.float16).requires_grad_(False)
    layer.codebooks.normal_()
    layer.codes.random_(-(2 ** (bits - 1)), 2 ** (bits - 1))
    layer.scales.fill_(1 / 64)

    def weight() -> torch.Tensor:
        index = layer.codes.long() % 2**bits
        W = sum(layer.codebooks[k, :, 0].double()[index[..., k]] for k in range(n))
        return W.reshape(d_out, d_in) / 64

    return layer, sum(p.numel() * p.element_size() for p in (layer.codes, layer.codebooks, layer.scales)), weight


def tinygemm(d_out: int, d_in: int, bits: int) -> Made:
    """PyTorch's 4-bit kernel; in bfloat16."""
    q = torch.randint(0, 16, (d_out, d_in), device="cuda", dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack(((q[:, ::2] << 4) | q[:, 1::2]).to(torch.uint8).contiguous(), 8)
    s = (torch.rand(d_in // GROUP, d_out, device="cuda") / 64).bfloat16()
    both = torch.stack([s, torch.zeros_like(s)], -1).contiguous()
    return (lambda x: torch.ops.aten._weight_int4pack_mm(x.bfloat16() if x.dtype != torch.bfloat16 else x, packed, GROUP, both),
            q.numel() // 2 + 2 * both.numel(),
            lambda: (q.double() - 8) * s.t().double().repeat_interleave(GROUP, 1))


def gemlite(d_out: int, d_in: int, bits: int) -> Made:
    """Its two kernels for few rows."""
    from gemlite import DType, GemLiteLinear

    q = torch.randint(0, 2**bits, (d_out, d_in), device="cuda", dtype=torch.uint8)
    s = torch.rand(d_out, d_in // GROUP, device="cuda").half() / 64
    z = torch.full_like(s, 2 ** (bits - 1))
    layer = GemLiteLinear(bits, group_size=GROUP, in_features=d_in, out_features=d_out, input_dtype=DType.FP16,
                          output_dtype=DType.FP16).pack(q, s.reshape(-1, 1), z.reshape(-1, 1), None)
    return (lambda x: layer.forward_manual(x, matmul_type="GEMV_REVSPLITK" if len(x) <= 4 else "GEMM_SPLITK"),
            q.numel() * bits // 8 + 4 * s.numel(),
            lambda: (q.double() - 2 ** (bits - 1)) * s.double().repeat_interleave(GROUP, 1))


def bitsandbytes(d_out: int, d_in: int, bits: int) -> Made:
    """NF4 in blocks of 64."""
    from bitsandbytes import functional

    W = torch.randn(d_out, d_in, device="cuda", dtype=torch.float16) / 64
    q, state = functional.quantize_4bit(W, blocksize=64, quant_type="nf4")
    return (lambda x: functional.gemv_4bit(x, q.t(), state=state), q.numel() * q.element_size() + 4 * state.absmax.numel(),
            lambda: functional.dequantize_4bit(q, state).double())
