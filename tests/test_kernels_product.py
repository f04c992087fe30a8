"""The packed product on integer tensor cores: its twin in Triton's interpreter, its bill, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from lowbit_nb import packing
from lowbit_nb.grid import Grid
from lowbit_nb.kernels.slices import full
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.stored import AffineWeight

# d_out, d_in, bits, group, real zero points, rows of x, scales exact in float16: a narrow last slice, a group that straddles
# slices, one scale a row, rows that do not fill a tile, every number of words of scales, every width of the bytes of x
CASES = [(64, 2048, 1, 128, False, 1, True), (64, 2048, 2, 128, True, 2, True), (64, 2048, 3, 128, False, 1, True),
         (64, 1024, 4, 128, True, 1, True), (64, 512, 8, 128, True, 1, True), (128, 1344, 2, 64, True, 2, True),
         (100, 384, 4, 192, False, 3, False), (64, 640, 3, 640, True, 5, True), (64, 256, 8, 256, True, 9, True),
         (64, 2048, 1, 128, True, 12, True)]


def weight(d_out: int, d_in: int, bits: int, group: int, zeros: bool, half: bool, seed: int = 0) -> tuple:
    """Words, scales, zero points and the float64 weight that they stand for."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (d_out, d_in), generator=g)
    s = (torch.rand(d_out, d_in // group, generator=g) * 0.02 + 0.01).half().float() * (1.0 if half else 1.0001)
    z = (torch.rand(s.shape, generator=g) * (2**bits - 1)).half().float() if zeros else None
    middle = torch.full_like(s, 2 ** (bits - 1)) if z is None else z
    W_hat = s.double().repeat_interleave(group, 1) * (q - middle.double().repeat_interleave(group, 1))
    return packing.pack(q, bits), s, z, W_hat


def inputs(rows: int, d_in: int, seed: int = 1) -> torch.Tensor:
    """Numbers of very different size: a few channels are thirty times as large."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d_in, generator=g) * torch.where(torch.rand(d_in, generator=g) < 0.01, 30.0, 1.0)


def error(y: torch.Tensor, ref: torch.Tensor) -> float:
    return float((y.double().cpu() - ref).norm() / ref.norm())


def compare(device: str, asm: bool) -> None:
    """The product against float64, for every case; run in this process."""
    from lowbit_nb.kernels import tensorcore

    for d_out, d_in, bits, group, zeros, rows, half in CASES:
        words, s, z, W_hat = weight(d_out, d_in, bits, group, zeros, half)
        made = tensorcore.operand(words.to(device), bits, d_in, s.to(device), None if z is None else z.to(device), group)
        x, name = inputs(rows, d_in), f"{d_out} x {d_in}, bits {bits}, group {group}, {rows} rows"
        ref = x.double() @ W_hat.T
        for dtype, most in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
            y = tensorcore.product(x.to(device, dtype), made, asm=asm)
            again = tensorcore.product(x.to(device, dtype), made, asm=asm)
            assert y.dtype == dtype and torch.equal(y, again), f"{name}: not the same twice"
            assert error(y, ref) <= most, f"{name}, {dtype}: {error(y, ref):.1e}"


def compare_sums(device: str) -> None:
    """A launch of its own adds up what the last program of a share would, in the same order; half a slice a program."""
    from lowbit_nb.kernels import tensorcore, tiles

    words, s, z, W_hat = weight(128, 1024, 4, 128, True, True)
    made = tensorcore.operand(words.to(device), 4, 1024, s.to(device), z.to(device), 128)
    for rows in (1, 5):
        x = inputs(rows, 1024)
        y, apart = (tensorcore.product(x.to(device), made, asm=device == "cuda", plan=tiles.Plan(64, 1, 2, 4, apart=apart))
                    for apart in (False, True))
        halved = tensorcore.product(x.to(device), made, asm=device == "cuda", plan=tiles.Plan(64, 2, 1, 4, parts=2))
        assert torch.equal(y, apart) and max(error(t, x.double() @ W_hat.T) for t in (y, halved)) <= 1e-5, rows


def compare_mixed(device: str, asm: bool) -> None:
    """PTQ1.61's form: both parts in one launch."""
    from lowbit_nb.kernels import tensorcore

    g = torch.Generator().manual_seed(0)
    W, salient = torch.randn(72, 700, generator=g), torch.rand(700, generator=g) < 0.2
    rest = W[:, ~salient]
    high = AffineWeight.nearest(W[:, salient], Grid(4, group=None))
    low = SignWeight.of(rest > 0, rest.abs().mean(1, True), rest.mean(1, True), torch.rand(rest.shape[1], generator=g) + 0.5)
    a, mu = low.a.float().to(device), low.mu.float().to(device)
    codes, s, z = (t.to(device) for t in (high.pack()["codes"], high.s, high.zero))
    parts = (tensorcore.operand(codes, 4, high.shape[1], s, z, None),
             tensorcore.operand(low.pack()["signs"].to(device), 1, low.shape[1], 2 * a, 0.5 - mu / (2 * a), None))
    made = tensorcore.mixed_operand(salient.to(device), *parts, low.v.to(device))
    for rows in (1, 3):
        x = inputs(rows, 700)
        ref = x.double() @ MixedWeight.of(salient, high, low).dequantize().double().T
        y = tensorcore.mixed_product(x.to(device), made, asm=asm)
        assert error(y, ref) <= 1e-5, f"mixed, {rows} rows: {error(y, ref):.1e}"


def run_here(code: str, interpret: bool) -> str:
    env = os.environ | ({"TRITON_INTERPRET": "1"} if interpret else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_in_the_interpreter_the_product_is_exact():
    pytest.importorskip("triton", reason="Triton is optional; without it the plain product is all there is")
    run_here("from tests.test_kernels_product import *; compare('cpu', False); compare_mixed('cpu', False); "
             "compare_sums('cpu')", True)


def test_the_kernel_says_what_it_takes():
    pytest.importorskip("triton", reason="Triton is optional")
    code = """
from lowbit_nb.kernels.tensorcore import fits, operand, product
import torch
assert fits(64, 1344, 2, 64) and fits(100, 700, 4, None) and fits(64, 640, 3, 640)
assert not fits(64, 1024, 2, 32) and not fits(64, 1000, 2, 128) and not fits(64, 1024, 5, 128)
words = torch.zeros(4, 64, dtype=torch.int32)
for wrong in (lambda: operand(words, 2, 1024, torch.ones(4, 32), None, 32),
              lambda: product(torch.zeros(17, 1024), operand(words, 2, 1024, torch.ones(4, 8), None, 128))):
    try:
        wrong()
    except ValueError as e:
        assert "use" in str(e) or "give" in str(e)
    else:
        raise AssertionError("taken")
"""
    run_here(code, False)


def test_words_that_need_no_padding_are_not_copied():
    words = torch.arange(128 * 256, dtype=torch.int32).reshape(128, 256)
    assert full(words, 2, 4096).data_ptr() == words.data_ptr()
    more = full(words[:100], 2, 4096)
    assert more.shape == words.shape and torch.equal(more[:100], words[:100]) and not more[100:].any()


@pytest.mark.parametrize(("bits", "rows", "most"), [(1, 1, 1.0), (2, 1, 1.2), (3, 1, 1.6), (4, 1, 2.0), (2, 16, 1.7)])
def test_the_bill_of_the_inner_loop(bits, rows, most):
    """Issue slots a weight stay under what streaming the words at 4.3 TB/s leaves: 1.1, 2.1, 3.2 and 4.1."""
    pytest.importorskip("triton", reason="Triton is optional")
    code = f"""
from lowbit_nb.kernels import bill
if bill.tool() is None:
    print("no cuobjdump")
else:
    b = bill.bill({bits}, 8192, 28672, {rows})
    print(f"{{b.slots:.3f}} {{b.stack}} {{b.copies}} {{b.conversions}} {{sum(b.products.values())}}")
"""
    said = run_here(code, False).strip()
    if said == "no cuobjdump":
        warnings.warn("the bill was NOT read: this Triton has no cuobjdump", stacklevel=1)
        pytest.skip("this Triton has no cuobjdump")
    slots, stack, copies, conversions, products = map(float, said.split())
    assert slots <= most and stack <= 64 and conversions == 0, said  # a register cap may cost some words and still be fastest
    assert copies >= 8 and products > 0, said


def compile_small() -> None:
    """The kernels that write bytes of x, for every width: what the interpreter takes, the compiler may not."""
    from lowbit_nb.kernels import between, bill, shares

    def pointers(kind: str, bytes: bool, order: str) -> dict[str, str]:
        return dict.fromkeys(("x", "H", "DELTA", "W", "TOTAL", "BOTH"), kind) | {
            "bytes": "*i8", "bytes2": "*i8", "Y": "*i8" if bytes else kind, "columns": order, "columns2": order, "eps": "fp32",
            **dict.fromkeys(("sums", "sums2", "steps", "steps2", "factors2", "SUMS", "STEPS"), "*fp32")}

    for bits, kind, C in [(0, "*fp32", 4), *((bits, "*fp16", 2) for bits in (0, 1, 2, 3, 4, 8))]:
        left = {"BITS": bits, "SEG": 128, "C": C, "R": 4, "PDL": True}
        types = pointers(kind, bits > 0, kind)
        bill.compiled(between._add_norm, left | {"ADD": True, "D": 4096}, types, num_warps=16)
        bill.compiled(between._gate, left, types, num_warps=4)
        for mixed in (False, True) if bits else ():
            ways = left | {"FIRST": 2, "BITS2": 1, "SEG2": 2048, "MIXED": mixed}
            bill.compiled(shares.prepare, ways, pointers(kind, True, "*i32" if mixed else kind), num_warps=4)


def test_kernels_that_write_bytes_can_be_compiled():
    pytest.importorskip("triton", reason="Triton is optional")
    run_here("from tests.test_kernels_product import *; compile_small()", False)


@pytest.mark.gpu
def test_on_a_gpu_the_product_is_exact_with_and_without_assembly():
    for asm in (False, True):
        compare("cuda", asm)
        compare_mixed("cuda", asm)
    compare_sums("cuda")


@pytest.mark.gpu
def test_on_a_gpu_the_product_can_be_captured():
    from lowbit_nb.kernels import tensorcore

    words, s, z, W_hat = weight(256, 2048, 2, 128, True, True)
    made = tensorcore.operand(words.cuda(), 2, 2048, s.cuda(), z.cuda(), 128)
    x = inputs(1, 2048).cuda()
    tensorcore.product(x, made)  # compile, make the scratch
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = tensorcore.product(x, made)
    for seed in (2, 3):
        new = inputs(1, 2048, seed)
        x.copy_(new)
        graph.replay()
        assert error(y, new.double() @ W_hat.T) <= 1e-5
