"""Stored forms: what is on disk is what is counted, and what is read back is what was written."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lowbit_nb import stored
from lowbit_nb.grid import SCALE_DTYPES, Grid, dequantize, fit, quantize
from lowbit_nb.stored import AffineWeight

KINDS = [{}, {"symmetric": True}, {"zero_inside": False}]


def weights(seed: int, d_out: int, d_in: int, grid: Grid, permuted: bool = False) -> AffineWeight:
    generator = torch.Generator().manual_seed(seed)
    w = AffineWeight.nearest(torch.randn(d_out, d_in, generator=generator), grid)
    perm = torch.randperm(d_in, generator=generator) if permuted else None
    return AffineWeight(w.q, w.s, w.z, grid, perm)


def equal(a: AffineWeight, b: AffineWeight) -> bool:
    pairs = [(a.q, b.q), (a.s, b.s), (a.z, b.z), (a.perm, b.perm)]
    return a.grid == b.grid and all(
        x is y if x is None or y is None else x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs
    )


def tensor_bytes(path) -> int:
    """The size of a safetensors file less its header, from the file alone."""
    data = path.read_bytes()
    return len(data) - 8 - struct.unpack("<Q", data[:8])[0]


SHAPES = st.sampled_from([(1, 1, None), (3, 100, None), (5, 96, 32), (4, 256, 64), (7, 65, 13), (2, 2304, 64), (16, 33, 11)])


@given(
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.sampled_from(KINDS),
    st.sampled_from(sorted(SCALE_DTYPES)),
    SHAPES,
    st.booleans(),
)
def test_counted_bits_are_the_bytes_on_disk_and_reading_back_is_exact(
    tmp_path_factory, seed, bits, kind, scale, shape, permuted
):
    d_out, d_in, group = shape
    w = weights(seed, d_out, d_in, Grid(bits, group, scale_dtype=scale, **kind), permuted)
    path = tmp_path_factory.mktemp("stored") / "one.safetensors"
    save_file(w.pack(), path)
    assert w.bits().bits == 8 * tensor_bytes(path) and w.bits().n_weights == d_out * d_in
    back = stored.unpack(load_file(path), json.loads(json.dumps(w.meta())))
    assert equal(back, w)
    assert torch.equal(back.dequantize(), w.dequantize()) and stored.checksum(back) == stored.checksum(w)


@pytest.mark.parametrize(
    "d_in, dtype, each",
    [(2**15 - 1, torch.int16, 16), (2**15, torch.int32, 32), (2**15 + 1, torch.int32, 32)],
)
def test_permutations_take_two_bytes_as_long_as_they_fit(d_in, dtype, each):
    w = weights(0, 1, d_in, Grid(1), permuted=True)
    assert w.pack()["perm"].dtype == dtype
    assert next(line.bits for line in w.bits().items if line.name == "perm") == each * d_in
    assert torch.equal(AffineWeight.unpack(w.pack(), w.meta()).perm, w.perm)


@given(st.integers(0, 2**31), st.integers(1, 8), st.sampled_from(KINDS), st.sampled_from(["float16", "bfloat16"]))
def test_the_value_is_the_formula_in_exact_arithmetic(seed, bits, kind, scale):
    w = weights(seed, 3, 12, Grid(bits, 4, scale_dtype=scale, **kind))
    zero = torch.full_like(w.s, 2 ** (bits - 1)) if w.z is None else w.z
    exact = w.s.double().repeat_interleave(4, 1) * (w.q.double() - zero.double().repeat_interleave(4, 1))
    if kind == {"zero_inside": False}:  # two roundings of float32, the same on every machine
        torch.testing.assert_close(w.dequantize().double(), exact, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(w.dequantize().double(), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_the_float32_value_rounded_once(dtype):
    w = weights(3, 8, 64, Grid(3, 16), permuted=True)
    assert w.dequantize(dtype).dtype == dtype
    assert torch.equal(w.dequantize(dtype), w.dequantize().to(dtype))


def test_a_permutation_puts_every_column_where_it_belongs():
    w = weights(4, 2, 12, Grid(4, 4), permuted=True)
    plain = AffineWeight(w.q, w.s, w.z, w.grid).dequantize()
    for column, home in enumerate(w.perm.tolist()):
        assert torch.equal(w.dequantize()[:, home], plain[:, column])


def test_nearest_is_fit_and_quantize():
    W, grid, importance = torch.randn(4, 32), Grid(2, 8), torch.rand(32)
    s, z = fit(W, grid, "mse", importance)
    q = quantize(W, s, z, grid)
    w = AffineWeight.nearest(W, grid, "mse", importance)
    assert torch.equal(w.q, q) and torch.equal(w.s.float(), s) and torch.equal(w.zero, z) and w.shape == (4, 32)
    assert torch.equal(w.dequantize(), dequantize(q, s, z, grid))
    assert torch.equal(AffineWeight.nearest(W.half(), grid).q, AffineWeight.nearest(W.half().float(), grid).q)


def test_real_zeros_and_symmetric_ones():
    assert weights(0, 2, 8, Grid(3, symmetric=True)).z is None
    assert weights(0, 2, 8, Grid(3, symmetric=True)).zero.unique().tolist() == [4.0]
    assert weights(0, 2, 8, Grid(3, zero_inside=False)).z.dtype == torch.float16
    assert weights(0, 2, 8, Grid(3)).z.dtype == torch.uint8


def test_a_checksum_sees_one_changed_code():
    w = weights(0, 4, 16, Grid(2))
    q = w.q.clone()
    q[3, 15] ^= 1
    assert stored.checksum(AffineWeight(q, w.s, w.z, w.grid)) != stored.checksum(w)


def test_packed_tensors_are_contiguous_and_do_not_share_memory():
    """safetensors refuses views of one tensor; a slice of stacked rows is such a view."""
    w = weights(0, 8, 64, Grid(2, 16))
    halves = [AffineWeight(w.q[i : i + 4], w.s[i : i + 4], w.z[i : i + 4], w.grid) for i in (0, 4)]
    assert all(t.is_contiguous() for t in halves[1].pack().values())


# What is refused


def test_a_step_that_its_type_cannot_hold_is_refused():
    with pytest.raises(
        ValueError,
        match=r"s is not finite or not representable in float16; round s before choosing codes",
    ):
        AffineWeight.of(torch.zeros(1, 4), torch.tensor([[0.1]]), torch.tensor([[0.0]]), Grid(2))


@pytest.mark.parametrize("name", ["codes", "scales", "zeros"])
def test_a_missing_tensor_is_named(name):
    w = weights(0, 2, 16, Grid(2, 8))
    tensors = {k: t for k, t in w.pack().items() if k != name}
    with pytest.raises(ValueError, match=f"lacks {name} .*truncated or edited"):
        stored.unpack(tensors, w.meta())


@pytest.mark.parametrize("name", ["codes", "scales", "zeros"])
def test_a_tensor_of_another_size_is_refused(name):
    w = weights(0, 2, 96, Grid(2, 8))
    tensors = w.pack()
    tensors[name] = tensors[name][:, :-1].contiguous()
    with pytest.raises(ValueError):
        stored.unpack(tensors, w.meta())


@pytest.mark.parametrize("kind, name", [({}, "codes"), ({}, "scales"), ({"zero_inside": False}, "zeros")])
def test_a_tensor_with_a_row_too_few_is_refused(kind, name):
    w = weights(0, 2, 96, Grid(2, 8, **kind))
    tensors = w.pack()
    tensors[name] = tensors[name][:1]
    with pytest.raises(ValueError):
        stored.unpack(tensors, w.meta())


def test_an_unknown_form_is_refused():
    w = weights(0, 2, 16, Grid(2))
    with pytest.raises(ValueError, match="stored form 'lattice' is unknown; this version reads affine"):
        stored.unpack(w.pack(), w.meta() | {"form": "lattice"})
