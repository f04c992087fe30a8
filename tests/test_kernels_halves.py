"""The packed product in pairs of half-precision numbers: its twin in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.test_kernels_product import error, inputs, run_here, weight

# d_out, d_in, bits, group, real zero points: a narrow last slice, a group that straddles slices, one scale a row, few rows
CASES = [(64, 4096, 1, 128, False), (128, 2048, 2, 128, False), (64, 1024, 4, 128, True), (64, 512, 8, 64, True),
         (100, 1344, 4, 192, True), (64, 1500, 2, 1500, False), (64, 2048, 1, 64, True)]


def compare(device: str, asm: bool, most: float) -> None:
    """The product against float64, for every case; run in this process."""
    from lowbit_nb.kernels import halves, tiles

    for d_out, d_in, bits, group, zeros in CASES:
        words, s, z, W_hat = weight(d_out, d_in, bits, group, zeros, True)
        made = halves.operand(words.to(device), bits, d_in, s.to(device), None if z is None else z.to(device), group)
        every = device == "cuda" or bits == 4  # the interpreter is slow
        for scale in (1.0, 1e-3) if every else (1.0,):
            x = (inputs(1, d_in) * scale).half()
            for plan in (tiles.Plan(32, 2, 2, 4), tiles.Plan(8, 3, 3, 1)) if every else (tiles.Plan(32, 2, 1, 4),):
                y, again = (halves.product(x.to(device).float(), made, asm=asm, plan=plan) for _ in range(2))
                found = error(y, x.double() @ W_hat.T)
                name = f"{d_out} x {d_in}, bits {bits}, group {group}, {plan}"
                assert torch.equal(y, again), f"{name}: not the same twice"
                assert found <= most, f"{name}: {found:.1e}"


def test_in_the_interpreter_the_product_is_right():
    pytest.importorskip("triton", reason="Triton is optional; without it the plain product is all there is")
    run_here("from tests.test_kernels_halves import compare; compare('cpu', False, 5e-4)", True)


def test_a_number_stands_for_its_code():
    """What the assembly's constants say: 1024 + code * 2**p, times 2**-p, less the rest, is the code less its middle."""
    pytest.importorskip("triton", reason="Triton is optional")
    run_here("""
from lowbit_nb.kernels import halves
import re, struct
def half(pair): return struct.unpack('<e', struct.pack('<H', int(pair, 16) & 0xFFFF))[0]
for bits in halves.BITS:
    code, _ = halves.assembly(bits, 1)
    steps = re.findall(r"0x([0-9a-f]+),0x64006400,0xea; mov.b32 m,0x([0-9a-f]+); mov.b32 c,0x([0-9a-f]+);", code)
    assert len(steps) == 16 // bits
    for mask, m, c in steps:
        low = int(mask, 16) & 0xFFFF
        p = (low & -low).bit_length() - 1
        assert low == (2**bits - 1) << p and p + bits <= 10
        for q in range(2**bits):
            assert (1024 + q * 2**p) * half(m) + half(c) == q - 2 ** (bits - 1)
""", False)


def test_it_says_what_it_takes():
    pytest.importorskip("triton", reason="Triton is optional")
    run_here("""
import torch
from lowbit_nb.kernels.halves import fits, operand, product
assert fits(64, 1344, 2, 64) and not fits(64, 1024, 3, 128) and not fits(64, 1024, 2, 32)
words = torch.zeros(4, 64, dtype=torch.int32)
for wrong in (lambda: operand(words, 2, 1024, torch.ones(4, 32), None, 32),
              lambda: product(torch.zeros(2, 1024), operand(words, 2, 1024, torch.ones(4, 8), None, 128))):
    try:
        wrong()
    except ValueError as e:
        assert "use" in str(e) or "give" in str(e)
    else:
        raise AssertionError("taken")
""", False)


@pytest.mark.gpu
def test_on_a_gpu_the_product_is_right_with_and_without_assembly():
    compare("cuda", False, 5e-4)
    compare("cuda", True, 2e-3)
