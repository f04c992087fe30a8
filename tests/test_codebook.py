"""Vector weights: what is on disk is what is counted, and what it stands for is what plain loops make of it."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowbit_nb import stored
from lowbit_nb.codebooks.codebook import Codebook, Stage, index_bits, pieces
from lowbit_nb.codebooks.vector import VectorWeight
from tests.test_stored import tensor_bytes

SWITCHES = list(itertools.product([False, True], repeat=5))  # groups, outliers, residual, norm, rows that do not divide


def stage(generator: torch.Generator, groups: int, k: int, v: int, d_out: int, n: int) -> Stage:
    idx = torch.randint(0, k, (-(-d_out // v), n), generator=generator, dtype=torch.int32)
    return Stage(torch.randn(groups, k, v, generator=generator).half(), idx)


def vector_weight(groups: bool, outliers: bool, residual: bool, norm: bool, ragged: bool, seed: int = 0,
                  k: int = 16) -> VectorWeight:
    g = torch.Generator().manual_seed(seed)
    d_out, d_in, v, G, n_out = (23 if ragged else 24), 20, 6, 5 if groups else 1, 5 if outliers else 0
    label = torch.tensor([0] * n_out + [1 + i % G for i in range(d_in - n_out)], dtype=torch.uint8)
    label = label[torch.randperm(d_in, generator=g)]
    return VectorWeight(
        d_out,
        stage(g, G, k, v, d_out, d_in - n_out),
        stage(g, G, 5, v, d_out, d_in - n_out) if residual else None,
        stage(g, 1, 300, 4, d_out, n_out) if outliers else None,
        *(torch.rand(2, d_in, generator=g).half() if norm else (None, None)),
        label if groups or outliers else None,
    )


def by_loops(w: VectorWeight) -> Tensor:
    """Every number of the weight by itself."""
    d_out, d_in = w.shape
    label = [1] * d_in if w.label is None else w.label.tolist()
    out = torch.zeros(d_out, d_in)
    for j in range(d_in):
        place = [c for c in range(d_in) if (label[c] == 0) == (label[j] == 0)].index(j)
        group = max(0, label[j] - 1)
        for i in range(d_out):
            stages = [w.outlier] if label[j] == 0 else [w.main, w.residual]
            for s in filter(None, stages):
                v = s.C.shape[2]
                out[i, j] += s.C[group, int(s.idx[i // v, place]), i % v].float()
            if w.s is not None:
                out[i, j] = out[i, j] * w.s[j].float() + w.m[j].float()
    return out


@pytest.mark.parametrize("switches", SWITCHES)
def test_it_stands_for_what_loops_make_of_it(switches):
    w = vector_weight(*switches)
    assert torch.equal(w.dequantize(), by_loops(w)) and w.shape == tuple(by_loops(w).shape)
    x = torch.randn(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(w.matvec(x), by_loops(w) @ x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("k", [2, 16, 300, 4096, 65536])
def test_counted_bits_are_the_bytes_on_disk_and_reading_back_is_exact(tmp_path, switches, k):
    w = vector_weight(*switches, k=k)
    save_file(w.pack(), tmp_path / "one.safetensors")
    assert w.bits().bits == 8 * tensor_bytes(tmp_path / "one.safetensors") and w.bits().n_weights == w.shape[0] * 20
    back = stored.unpack(load_file(tmp_path / "one.safetensors"), json.loads(json.dumps(w.meta())))
    assert back.pack().keys() == w.pack().keys()
    assert all(torch.equal(t, w.pack()[name]) for name, t in back.pack().items())
    assert torch.equal(back.main.idx, w.main.idx) and torch.equal(back.dequantize(), w.dequantize())
    assert stored.checksum(back) == stored.checksum(w)


def test_the_budget_names_its_items():
    items = {i.name: i for i in vector_weight(True, True, True, True, False).bits().items}
    assert list(items) == ["codes", "codebooks", "scales", "biases", "labels"]
    assert items["codebooks"].count == 5 * 16 * 6 + 5 * 5 * 6 + 300 * 4
    assert items["codes"].count == 2 * 4 * 15 + 6 * 5 and items["labels"].each == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_the_float32_value_rounded_once(dtype):
    w = vector_weight(True, True, True, True, True)
    assert torch.equal(w.dequantize(dtype), w.dequantize().to(dtype))


def test_rows_that_fill_the_last_piece_leak_nowhere():
    """Numbers of a vector beyond the last row are never seen."""
    w = vector_weight(False, False, False, False, True)
    C = w.main.C.clone()
    wild = VectorWeight(w.d_out, Stage(C, w.main.idx.clone()))
    last = wild.main.idx[-1]
    C[0, :, -1] = 999.0  # row 23 of 23: beyond the last
    assert 999.0 in wild.dequantize() and 999.0 not in wild.dequantize()[18:]
    assert wild.matvec(torch.ones(20))[18:].abs().max() < 900 and len(last) == 20


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_pieces_are_rows_of_a_column(d_out, v, n):
    W = torch.arange(1.0, d_out * n + 1).reshape(d_out, n)
    P = pieces(W.T, v)
    R = -(-d_out // v)
    assert P.shape == (n * R, v)
    for j, r, i in itertools.product(range(n), range(R), range(v)):
        assert P[j * R + r, i] == (W[r * v + i, j] if r * v + i < d_out else 0)


# Settings


def test_parts_go_by_importance():
    h = torch.tensor([3.0, 9.0, 1.0, 8.0, 2.0, 7.0, 5.0])
    assert Codebook(groups=1).labels(h).tolist() == [1] * 7
    assert Codebook(groups=2, outliers=0.1).labels(h).tolist() == [2, 0, 2, 1, 2, 1, 1]
    assert Codebook(groups=3, outliers=0.15).n_out(7) == 4  # two asked for, two left over
    assert [Codebook(outliers=s).n_out(100) for s in (0.0, 0.01, 0.011)] == [0, 1, 2]


@given(st.sampled_from([(4, 256, 0, 1, 0.0), (6, 4096, 16, 2, 0.0), (5, 300, 0, 4, 0.1), (8, 16, 4, 1, 0.25)]), st.booleans())
def test_the_size_of_a_shape_is_that_of_a_weight(setting, norm):
    v, k, k_res, groups, outliers = setting
    book = Codebook(v, k, k_res, groups, outliers, v_out=2, k_out=8)
    g = torch.Generator().manual_seed(0)
    d_out, d_in = 2 * v, 1024  # no words are left over
    label = book.labels(torch.rand(d_in, generator=g))
    n = int((label == 0).sum())
    residual = stage(g, groups, k_res, v, d_out, d_in - n) if k_res else None
    w = VectorWeight(d_out, stage(g, groups, k, v, d_out, d_in - n), residual, stage(g, 1, 8, 2, d_out, n) if n else None,
                     torch.ones(d_in).half() if norm else None, None, label if groups > 1 or n else None)
    expected, found = book.size(d_out, d_in, 16 if norm else 0), w.bits()
    padding = sum(item.padding for item in found.items)
    assert expected.bits == found.bits - padding and expected.n_weights == found.n_weights


L2_13B, L2_7B, L2_70B = (5120, 13824, 5120), (4096, 11008, 4096), (8192, 28672, 1024)  # hidden, feed-forward, keys
L3_8B, L3_70B = (4096, 14336, 1024), (8192, 28672, 1024)


def block_bits(shapes: tuple[int, int, int], book: Codebook) -> float:
    """Indices and codebooks of a block's seven layers, as the paper counts them."""
    d, ff, kv = shapes
    layers = [(d, d), (kv, d), (kv, d), (d, d), (ff, d), (ff, d), (d, ff)]
    sizes = [book.size(*shape) for shape in layers]
    return sum(i.bits for s in sizes for i in s.items if i.name in ("codes", "codebooks")) / sum(s.n_weights for s in sizes)


@pytest.mark.parametrize(
    "shapes, book, expected, printed",
    [
        (L2_13B, Codebook(2, 16), 2.000, 2.0),
        (L2_13B, Codebook(4, 256), 2.000, 2.01),
        (L2_13B, Codebook(6, 4096), 2.010, 2.02),
        (L2_13B, Codebook(8, 65536), 2.185, 2.19),
        (L2_13B, Codebook(12, 4096, 4096), 2.036, 2.04),
        (L2_13B, Codebook(6, 4096, outliers=0.01, k_out=4096), 2.025, 2.03),
        (L2_13B, Codebook(6, 4096, outliers=0.02, k_out=4096), 2.035, 2.04),
        (L2_13B, Codebook(6, 4096, outliers=0.05, k_out=4096), 2.065, 2.07),
        (L2_13B, Codebook(12, 4096, 4096, 1, 0.01, 4, 4096), 2.051, 2.06),
        (L2_13B, Codebook(12, 4096, 4096, 2, 0.01, 4, 4096), 2.086, 2.09),
        (L2_13B, Codebook(12, 4096, 4096, 4, 0.01, 4, 4096), 2.156, 2.17),
        (L2_13B, Codebook(12, 4096, 4096, 8, 0.01, 4, 4096), 2.295, 2.3),
        (L2_13B, Codebook(4, 4096), 3.006, 3.01),
        (L2_13B, Codebook(6, 4096, 4096), 4.019, 4.02),
        (L2_7B, Codebook(6, 4096), 2.014, 2.02),
        (L2_7B, Codebook(12, 4096, 4096, 4, 0.01, 4, 8192), 2.252, 2.26),
        (L2_13B, Codebook(12, 4096, 4096, 4, 0.02, 4, 8192), 2.177, 2.18),
        (L2_70B, Codebook(12, 4096, 4096, 4, 0.01, 4, 8192), 2.070, 2.07),
        (L2_70B, Codebook(12, 4096, 4096, 8, 0.01, 4, 8192), 2.121, 2.11),
        (L3_8B, Codebook(12, 4096, 4096, 1, 0.01, 4, 4096), 2.071, 2.08),
        (L3_8B, Codebook(6, 4096, 0, 16, 0.01, 4, 8192), 2.234, 2.24),
        (L3_70B, Codebook(12, 4096, 4096), 2.014, 2.02),
        (L3_70B, Codebook(6, 4096, 0, 16, 0.01, 4, 4096), 2.065, 2.07),
    ],
)
def test_published_bits_are_reproduced(shapes, book, expected, printed):
    assert block_bits(shapes, book) == pytest.approx(expected, abs=0.015)
    assert block_bits(shapes, book) == pytest.approx(printed, abs=0.02)


def test_the_worked_example_and_small_layers():
    one = Codebook(8, 256).size(4096, 4096)
    assert one.per_weight == pytest.approx(1.002, abs=0.001) and one.nominal == 1.0
    small = Codebook(6, 4096).size(256, 256)  # where codebooks are larger than what they describe
    assert small.per_weight > 8


# What is refused


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(v=0), "v too small"),
        (dict(k=1), "k too small"),
        (dict(k_res=1), "codebooks hold 2 to 65536 vectors"),
        (dict(k=2**17), "codebooks hold 2 to 65536 vectors"),
        (dict(groups=255), "groups are 254 at most"),
        (dict(outliers=1.0), "outliers=1.0 is a share"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Codebook(**change)


def test_groups_that_leave_columns_over_need_a_codebook_for_them():
    with pytest.raises(ValueError, match="groups=3 do not divide d_in=64; use a number that does, or outliers > 0"):
        Codebook(groups=3).n_out(64)
    with pytest.raises(ValueError, match="leave none for 1 groups"):
        Codebook(outliers=0.99).n_out(10)


def test_labels_come_with_parts_and_numbers_are_finite_halves():
    w = vector_weight(False, False, False, True, False)
    with pytest.raises(ValueError, match="columns need labels if and only if"):
        VectorWeight(24, w.main, label=torch.ones(20, dtype=torch.uint8))
    with pytest.raises(ValueError, match="columns need labels if and only if"):
        VectorWeight(24, vector_weight(True, False, False, False, False).main)
    for bad in (w.main.C.float(), w.main.C * torch.inf):
        with pytest.raises(ValueError, match="main codebooks, scales and biases must be finite float16"):
            VectorWeight(24, Stage(bad, w.main.idx))


@pytest.mark.parametrize("name", sorted(vector_weight(True, True, True, True, False).pack()))
def test_a_missing_or_shorter_tensor_is_refused(name):
    w = vector_weight(True, True, True, True, False)
    tensors = w.pack()
    with pytest.raises(ValueError, match="truncated or edited"):
        stored.unpack({n: t for n, t in tensors.items() if n != name}, w.meta())
    with pytest.raises(ValueError, match="truncated or edited"):
        stored.unpack(tensors | {name: tensors[name][..., :-1].contiguous()}, w.meta())


def test_an_index_beyond_the_codebook_is_refused():
    w = vector_weight(False, False, False, False, False, k=300)
    idx = w.main.idx.clone()
    idx[0, 0] = 400
    edited = VectorWeight(24, Stage(w.main.C, idx)).pack()
    with pytest.raises(ValueError, match="shorter than an index says"):
        stored.unpack(edited, w.meta())


def test_index_bits():
    assert [index_bits(k) for k in (2, 3, 4, 256, 257, 65536)] == [1, 2, 2, 8, 9, 16]
