"""Packed products against the plain one, for every stored form; packed models against dequantized ones."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lowbit_nb as lb
from lowbit_nb import packed, packing, stored
from lowbit_nb.bilevel import BilevelWeight, Coded, Second
from lowbit_nb.codebooks.across import AcrossWeight
from lowbit_nb.codebooks.codebook import Stage
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.grid import Grid
from lowbit_nb.methods import RTN, BiLLM
from lowbit_nb.onebit.binary import BinaryWeight
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.partial import PartialWeight
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.packed import PackedLinear, choice, cpu, cpu_compile, cpu_native, reference
from lowbit_nb.packed.fused import fuse
from lowbit_nb.packed.planar import Planar
from lowbit_nb.sparse import CorrectedWeight
from lowbit_nb.stored import AffineWeight, StoredWeight
from tests import tiny
from tests.walks import subject, walk, whole

SHAPES = ((5, 96, 32), (3, 65, 13), (7, 256, 64), (2, 1088, 64), (4, 300, None), (6, 768, 128))
ROWS = (1, 2, 5, 16, 17)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=gen(seed)).half()


def flags(*shape: int, seed: int, share: float = 0.5) -> Tensor:
    return torch.rand(*shape, generator=gen(seed)) < share


# One maker a form: (d_out, d_in, group, seed) -> stored weight


def affine(d_out, d_in, group, seed, bits=2, permuted=False, **kind) -> AffineWeight:
    w = AffineWeight.nearest(torch.randn(d_out, d_in, generator=gen(seed)), Grid(bits, group, **kind))
    return AffineWeight(w.q, w.s, w.z, w.grid, torch.randperm(d_in, generator=gen(seed)) if permuted else None)


def bilevel(d_out, d_in, group, seed) -> BilevelWeight:
    grid, second = Grid(3, group, zero_inside=False), Second(3, 3, 1)
    n = grid.n_groups(d_in)
    scale, zero = (Coded.of(1 + torch.rand(d_out, n, generator=gen(seed + i)), 3, 1) for i in range(2))
    q = torch.randint(0, 8, (d_out, d_in), generator=gen(seed)).to(torch.uint8)
    return BilevelWeight(q, scale, zero, grid, second, torch.randperm(d_in, generator=gen(seed)))


def corrected(d_out, d_in, group, seed) -> CorrectedWeight:
    few = torch.randn(d_out, d_in, generator=gen(seed)) * flags(d_out, d_in, seed=seed + 1, share=0.05)
    return CorrectedWeight.of(bilevel(d_out, d_in, group, seed), few)


def sign(d_out, d_in, group, seed, factors=True) -> SignWeight:
    n = Grid(1, group).n_groups(d_in)
    a, mu = half(d_out, n, seed=seed).abs(), half(d_out, n, seed=seed + 1)
    a[0, 0] = 0  # one group of equal weights
    return SignWeight(flags(d_out, d_in, seed=seed), a, mu, half(d_in, seed=seed + 2) if factors else None)


def mixed(d_out, d_in, group, seed) -> StoredWeight:
    salient = flags(d_in, seed=seed, share=0.2)
    n = int(salient.sum())
    return MixedWeight.of(salient, affine(d_out, n, None, seed, bits=4), sign(d_out, d_in - n, None, seed))


def binary(d_out, d_in, group, seed, means=True, factors=True) -> BinaryWeight:
    span = group or d_in // 3
    n = -(-d_in // span)
    return BinaryWeight(flags(d_out, d_in, seed=seed), flags(d_out, d_in, seed=seed + 1), flags(d_in, seed=seed + 2, share=0.1),
                        half(d_out, n, 4, seed=seed), half(d_out, n, 3, seed=seed + 1) if means else None,
                        half(2, d_in, seed=seed + 2) if factors else None, span)


def partial(d_out, d_in, group, seed) -> PartialWeight:
    salient, n = flags(d_out, d_in, seed=seed, share=0.1), Grid(1, group).n_groups(d_in)
    q = torch.randint(0, 256, (int(salient.sum()),), generator=gen(seed)).to(torch.uint8)
    z = torch.randint(0, 256, (d_out, 1), generator=gen(seed)).to(torch.uint8)
    return PartialWeight(salient, q, half(d_out, 1, seed=seed) / 256, z, flags(d_out, d_in, seed=seed + 1) & ~salient,
                         half(d_out, n, seed=seed), half(d_out, n, seed=seed + 1))


def stage(n_groups, k, v, rows, columns, seed) -> Stage:
    return Stage(half(n_groups, k, v, seed=seed), torch.randint(0, k, (rows, columns), generator=gen(seed)).to(torch.int32))


def vector(d_out, d_in, group, seed) -> VectorWeight:
    """Two groups, a second stage, outlier columns, indices of nine bits, rows that no piece divides."""
    label = torch.randint(0, 3, (d_in,), generator=gen(seed)).to(torch.uint8)
    n = int((label > 0).sum())
    return VectorWeight(d_out, stage(2, 300, 6, -(-d_out // 6), n, seed), stage(2, 16, 6, -(-d_out // 6), n, seed + 1),
                        stage(1, 256, 4, -(-d_out // 4), d_in - n, seed + 2), half(d_in, seed=seed), half(d_in, seed=seed + 1),
                        label)


def across(d_out, d_in, group, seed) -> AcrossWeight:
    v = next(v for v in (4, 5, 3, 1) if d_in % v == 0)
    return AcrossWeight(stage(1, 64, v, d_out, d_in // v, seed), half(d_in, seed=seed))


MAKERS = {
    **{f"affine {bits}": lambda *a, bits=bits: affine(*a, bits=bits) for bits in range(1, 9)},
    "affine, symmetric": lambda *a: affine(*a, bits=4, symmetric=True),
    "affine, real zeros": lambda *a: affine(*a, bits=3, zero_inside=False),
    "affine, own order": lambda *a: affine(*a, permuted=True),
    "bilevel": bilevel, "corrected": corrected, "sign": sign, "sign, no factors": lambda *a: sign(*a, factors=False),
    "mixed": mixed, "binary": binary, "binary, no means": lambda *a: binary(*a, means=False),
    "binary, no factors": lambda *a: binary(*a, factors=False), "partial": partial, "vector": vector,
    "vector, plain": lambda d_out, d_in, g, seed: VectorWeight(d_out, stage(1, 256, 4, -(-d_out // 4), d_in, seed)),
    "across": across,
}


def gap(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def compare(weight: StoredWeight, device: str, bound: float, dtype: torch.dtype = torch.float32,
            rows: tuple[int, ...] = ROWS) -> None:
    """A packed layer against the weight that it stands for, for few and many rows."""
    layer, W_hat = PackedLinear.of(weight).to(device), weight.dequantize().double()
    for n in rows:
        x = torch.randn(n, weight.shape[1], generator=gen(n)).to(device, dtype)
        y = layer(x)
        assert y.dtype == dtype and y.shape == (n, weight.shape[0])
        found = gap(y.cpu(), x.double().cpu() @ W_hat.T)
        assert found <= bound, f"{n} rows: {found:.2g}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_the_packed_product_is_the_dequantized_product(name, shape):
    weight = MAKERS[name](*shape, 7)
    compare(weight, "cpu", 1e-5)
    layer = PackedLinear.of(weight)
    assert torch.equal(layer.dequantize(), weight.dequantize())
    x = torch.randn(2, shape[1], generator=gen(1))
    assert torch.equal(reference.product(x, weight.pack(), weight.meta()), x @ weight.dequantize().T)


def test_every_stored_form_has_an_operand():
    assert {make(4, 96, 32, 0).form for make in MAKERS.values()} == set(stored.FORMS)


@pytest.mark.parametrize("name", MAKERS)
def test_what_a_layer_keeps_is_what_is_counted_and_what_is_on_disk(name, tmp_path):
    weight = MAKERS[name](6, 96, 32, 3)
    layer = PackedLinear.of(weight)
    before = layer(torch.randn(2, 96, generator=gen(0)))  # operands are made, and are not in the state
    state = layer.state_dict()
    assert sum(t.numel() * t.element_size() for t in state.values()) == weight.bits().bytes == layer.bytes
    wanted = {f"packed.{k}": t for k, t in weight.pack().items()}
    assert state.keys() == wanted.keys() and all(torch.equal(state[k], t) for k, t in wanted.items())
    save_file(state, tmp_path / "layer.safetensors")
    back = PackedLinear({k: torch.zeros_like(t) for k, t in weight.pack().items()}, layer.meta)
    back.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(back(torch.randn(2, 96, generator=gen(0))), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["affine 2", "mixed", "corrected", "vector"])
def test_half_inputs_give_half_outputs(name, dtype):
    compare(MAKERS[name](5, 256, 64, 2), "cpu", 1e-2, dtype)


def test_any_leading_shape_and_a_bias():
    weight, bias = affine(5, 96, 32, 0), torch.randn(5, generator=gen(1))
    layer = PackedLinear.of(weight, bias)
    for shape in ((96,), (1, 96), (2, 3, 96), (0, 96), (2, 0, 96), (40, 2, 96)):
        x = torch.randn(*shape, generator=gen(2))
        wanted = x @ weight.dequantize().T + bias
        assert layer(x).shape == wanted.shape and torch.allclose(layer(x), wanted, atol=1e-5)


def test_float64_and_gradients_take_the_weight_out():
    weight = affine(5, 96, 32, 0)
    layer, x = PackedLinear.of(weight), torch.randn(3, 96, generator=gen(1)).double()
    assert torch.equal(layer(x), x @ weight.dequantize(torch.float64).T)
    x = x.float().requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, weight.dequantize().sum(0).expand(3, -1), atol=1e-5)


def test_another_type_for_activations_leaves_the_bytes_alone():
    weight = corrected(4, 96, 32, 0)
    layer = PackedLinear.of(weight, torch.zeros(4))
    x = torch.randn(2, 96, generator=gen(1))
    before = layer(x)
    changed = copy.deepcopy(layer).to(torch.bfloat16)
    assert changed.bias.dtype == torch.bfloat16
    assert all(t.dtype == weight.pack()[k].dtype and torch.equal(t, weight.pack()[k]) for k, t in changed.tensors.items())
    assert torch.equal(changed(x), before)


def test_new_numbers_in_a_layer_are_seen():
    a, b = affine(4, 96, 32, 0), affine(4, 96, 32, 1)
    layer, x = PackedLinear.of(a), torch.randn(2, 96, generator=gen(1))
    layer(x)
    layer.load_state_dict({f"packed.{k}": t for k, t in b.pack().items()})
    assert gap(layer(x), x @ b.dequantize().T) < 1e-5


# Lanes

LANE_SHAPES = ((5, 256, 64), (4, 768, 128), (3, 1100, 1100), (6, 2816, 128), (5, 480, 32), (2, 1152, 192), (3, 33, 33),
               (2, 300, 48))
CASES = [(bits, *shape) for bits in range(1, 9) for shape in LANE_SHAPES]


def planar(bits: int, d_out: int, d_in: int, group: int) -> Planar:
    n = -(-d_in // group)
    q = torch.randint(0, 2**bits, (d_out, d_in), generator=gen(bits))
    s, z = (torch.rand(d_out, n, generator=gen(seed)) for seed in (1, 2))
    return Planar(packing.pack(q, bits), bits, s, z * (2**bits - 1), group, d_in)


def lane_agrees(name: str, cases: list, rows: tuple[int, ...] = (1, 4, 7)) -> None:
    reason = choice.lanes()[name]
    if not reason.startswith("ready"):
        pytest.skip(reason)
    for case in cases:
        weight = planar(*case)
        for n in rows:
            x = torch.randn(n, weight.d_in, generator=gen(n))
            with packed.only(name):
                assert gap(choice.product(x, weight), x.double() @ weight.dequantize().double().T) < 1e-5, (case, n)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_native_lane(bits):
    lane_agrees("native", [case for case in CASES if case[0] == bits])


def test_the_native_lane_leaves_tiny_numbers_alone():
    """A library that was linked for fast and loose arithmetic would turn them into 0 in the whole process."""
    if reason := cpu_native.why_not():
        pytest.skip(reason)
    tiny_number = torch.full((4,), 1e-40)
    assert (tiny_number * 1.0 == tiny_number).all() and 5e-324 * 1.0 > 0


def test_the_native_lane_without_wide_registers(monkeypatch, tmp_path):
    """The plain C that other processors run."""
    if cpu_native.compiler() is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("LOWBIT_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu_native, "OPTIONS", ("-O1", "-shared", "-fPIC"))
    cpu_native._library.cache_clear()
    try:
        assert cpu_native.way() == "plain C"
        lane_agrees("native", CASES)
    finally:
        cpu_native._library.cache_clear()


def test_the_numba_lane():
    lane_agrees("numba", [case for case in CASES if case[0] in (1, 3, 8)], (1, 2))


def test_the_compiled_lane_computes_its_formula():
    """The formula without its compiler, which takes long; `data/benchmarks` runs the compiled one."""
    for case in CASES:
        weight = planar(*case)
        x = torch.randn(2, weight.d_in, generator=gen(0))
        def add(segment, x, y):
            run = cpu_compile.formula(segment.width, segment.plane, segment.together)
            for x_m, y_m in zip(x[:, segment.first : segment.first + segment.columns], y, strict=True):
                y_m += run(segment.words, x_m, segment.s)
        assert gap(cpu.product(x, weight, add), x.double() @ weight.dequantize().double().T) < 1e-5, case


def test_a_torch_compile_that_fails_says_so_once_and_steps_back(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such header\nand more")
    monkeypatch.setattr(cpu_compile, "compiled", broken)
    monkeypatch.setattr(cpu_compile, "_failed", [])
    weight, x = planar(2, 5, 256, 64), torch.randn(1, 256, generator=gen(0))
    if cpu_compile.why_not():
        pytest.skip(cpu_compile.why_not())
    with packed.only("compile", "unpack"):
        with pytest.warns(RuntimeWarning, match="RuntimeError: no such header; packed products take the weight out instead"):
            y = choice.product(x, weight)
        assert gap(y, x @ weight.dequantize().T) < 1e-5 and choice.choose(weight).name == "unpack"


def test_several_threads_share_the_rows():
    weight, x = planar(2, 1030, 256, 64), torch.randn(2, 256, generator=gen(0))
    alone = choice.product(x, weight)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(choice.product(x, weight), alone)
    finally:
        torch.set_num_threads(before)


def test_groups_that_fit_no_plane_take_the_plain_lane():
    assert choice.choose(planar(2, 3, 65, 13)).name == "unpack"
    assert not cpu.fits(planar(2, 3, 65, 13)) and cpu.fits(planar(2, 3, 65, 65))


def test_a_lane_that_cannot_run_says_why(monkeypatch):
    assert set(packed.lanes()) == {lane.name for lane in choice.TABLE}
    assert all(text.startswith(("ready: ", "not here: ")) for text in packed.lanes().values())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    cpu_native._library.cache_clear()
    try:
        said = packed.lanes()
        assert "no C compiler" in said["native"] and "C++ compiler" in said["compile"]
        with packed.only("native"), pytest.raises(RuntimeError, match="native: there is no C compiler.*allow 'unpack'"):
            choice.choose(planar(2, 5, 256, 64))
        assert choice.choose(planar(2, 5, 256, 64)).name in ("numba", "unpack")
    finally:
        cpu_native._library.cache_clear()
    with pytest.raises(ValueError, match="abacus: no such lane; there are tensorcore"), packed.only("abacus"):
        pass


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cannot compile today' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    cpu_native._library.cache_clear()
    try:
        assert "failed" in cpu_native.why_not()
    finally:
        cpu_native._library.cache_clear()


# Models


def test_a_packed_model_is_the_dequantized_model():
    found, ids = whole(), tiny.windows().ids
    plain = found.apply(subject()).model
    for fused in (False, True):
        model = packed.pack_model(found, subject(), fused).model
        for part in (ids[:1, :1], ids[:1, :9], ids):  # few rows, and many
            assert gap(model(part).logits, plain(part).logits) < 1e-5
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert sum(m.bytes for m in layers) == found.bits().bytes and len(layers) == len(found.weights)


@pytest.mark.parametrize("kind", [kind for kind in tiny.ARCHITECTURES if kind != "llama"])
def test_other_decoders_run_packed(kind):
    known = tiny.subject(kind)
    found = lb.quantize(known, RTN(Grid(4, 16)), progress=False)
    ids = tiny.windows(1, 8).ids
    model = packed.pack_model(found, known, fused=True).model
    assert gap(model(ids).logits, found.apply(known).model(ids).logits) < 1e-5


def test_the_subject_stays_as_it_is():
    known = subject()
    before = tiny.state(known.model)
    packed.pack_model(whole(), known, fused=True)
    assert tiny.unchanged(known.model, before) and tiny.n_hooks(known.model) == 0


def test_a_saved_model_runs_packed(tmp_path):
    lb.save_quantized(whole(), tmp_path)
    ids = tiny.windows(1, 8).ids
    there, here = (packed.pack_model(q, subject()).model(ids).logits for q in (lb.load_quantized(tmp_path), whole()))
    assert torch.equal(there, here)


def test_edited_norms_biases_and_rounded_activations_are_in_it():
    known = tiny.subject("llama")
    found = lb.quantize(known, RTN(Grid(4, 16)), progress=False)
    name = next(n for n, _ in known.model.named_parameters() if n.endswith("input_layernorm.weight"))
    layer = next(iter(found.weights))
    found.params.update({name: torch.randn(tiny.WIDTH, generator=gen(0)),
                         f"{layer}.bias": torch.randn(found.weights[layer].shape[0], generator=gen(1)),
                         f"{layer}.input_clip": torch.tensor(0.8)})
    # rounding turns the last bit of a sum into a step, so rounded activations are compared where both multiply alike
    for record, length in ((found, 8), (found, 24), (found.with_activations(lb.Activations(8)), 24)):
        ids = tiny.windows(1, length).ids
        plain, made = record.apply(known).model(ids).logits, packed.pack_model(record, known, fused=True).model(ids).logits
        assert gap(made, plain) < 1e-5 and gap(made, known.model(ids).logits) > 1e-2


@pytest.mark.parametrize("method", [RTN(Grid(2, 64))], ids=["affine"])
def test_the_bundled_subject_runs_packed(method):
    known = lb.load()
    found = lb.quantize(known, method, progress=False)
    ids = torch.randint(3, 4096, (1, 12), generator=gen(0))
    plain, model = found.apply(known).model, packed.pack_model(found, known, fused=True).model
    assert gap(model(ids).logits, plain(ids).logits) < 1e-5
    assert torch.equal(model.generate(ids, max_new_tokens=4), plain.generate(ids, max_new_tokens=4))


def test_two_planes_in_a_model():
    found = walk(method=BiLLM())
    ids = tiny.windows(1, 8).ids
    assert gap(packed.pack_model(found, subject()).model(ids).logits, found.apply(subject()).model(ids).logits) < 1e-5


# Fused layers


def test_fused_layers_keep_their_words_once_and_give_what_each_gives():
    weights = [affine(d_out, 256, 64, d_out) for d_out in (6, 3, 3)]
    layers = [PackedLinear.of(w) for w in weights]
    both = fuse(layers)
    x = torch.randn(2, 256, generator=gen(0))
    for w, layer, y in zip(weights, layers, both(x), strict=True):
        assert gap(y, x @ w.dequantize().T) < 1e-5 and gap(layer(x), x @ w.dequantize().T) < 1e-5
        assert all(torch.equal(t, w.pack()[k]) for k, t in layer.tensors.items())
    whole_words = both.operand.planar.words.untyped_storage().data_ptr()
    assert all(layer.tensors["codes"].untyped_storage().data_ptr() == whole_words for layer in layers)
    assert gap(both.operand.dequantize(), torch.cat([w.dequantize() for w in weights])) == 0


def test_layers_that_are_fused_already_share_what_they_have():
    layers = [PackedLinear.of(affine(4, 96, 32, seed)) for seed in range(3)]
    both = fuse(layers)
    assert fuse(layers) is both
    for others in (layers[:2], layers[::-1], [*layers[:2], PackedLinear.of(affine(4, 96, 32, 2))]):
        assert fuse(others) is not both
    x = torch.randn(1, 96, generator=gen(0))
    assert all(gap(layer(x), x @ layer.dequantize().T) < 1e-5 for layer in layers)


def test_a_fused_layer_sees_a_changed_input():
    weights = [affine(4, 96, 32, seed) for seed in range(2)]
    layers = [PackedLinear.of(w) for w in weights]
    fuse(layers)
    x = torch.randn(1, 96, generator=gen(0))
    layers[0](x)
    x.mul_(-3)
    assert gap(layers[1](x), x @ weights[1].dequantize().T) < 1e-5
    again = [layers[0](x), layers[0](x), layers[1](x)]
    assert torch.equal(again[0], again[1]) and gap(again[2], x @ weights[1].dequantize().T) < 1e-5
    with torch.inference_mode():
        y = torch.randn(1, 96, generator=gen(1))
        assert gap(layers[1](y), y @ weights[1].dequantize().T) < 1e-5


def test_unlike_layers_are_not_fused():
    a = PackedLinear.of(affine(4, 96, 32, 0))
    for other in (affine(4, 96, 48, 0), affine(4, 96, 32, 0, bits=3), affine(4, 96, 32, 0, permuted=True), sign(4, 96, 32, 0)):
        assert fuse([a, PackedLinear.of(other)]) is None
    order = [PackedLinear.of(affine(4, 96, 32, 1, permuted=True)) for _ in range(2)]
    assert fuse(order) is not None


# What is refused


def test_bad_input_is_refused():
    layer = PackedLinear.of(affine(4, 96, 32, 0))
    with pytest.raises(ValueError, match=r"x has shape \[2, 95\].*takes \[..., 96\] floats"):
        layer(torch.zeros(2, 95))
    with pytest.raises(ValueError, match="torch.int64"):
        layer(torch.zeros(2, 96, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"bias has shape \[3\]; the weight has d_out=4 rows"):
        PackedLinear.of(affine(4, 96, 32, 0), torch.zeros(3))
    with pytest.raises(ValueError, match="stored form 'lattice' has no packed product; there are affine"):
        PackedLinear(affine(4, 96, 32, 0).pack(), affine(4, 96, 32, 0).meta() | {"form": "lattice"})(torch.zeros(1, 96))


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match="the subject has no layer .*another model"):
        packed.pack_model(whole(), tiny.subject("llama"))
    with pytest.raises(ValueError, match="in the subject and .* in the stored weights"):
        packed.pack_model(whole(), subject(intermediate_size=32))


# On a GPU


ON_GPU = ("affine 2", "affine 3", "affine, symmetric", "affine, own order", "corrected", "sign", "mixed", "binary", "partial",
          "vector", "across")  # every combination of type, width and rows is a kernel to compile


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_on_a_gpu_the_packed_product_is_the_dequantized_product(name):
    for shape in ((256, 1024, 128), (5, 300, None)):
        compare(MAKERS[name](*shape, 7), "cuda", 1e-5, rows=(1, 5, 17))
    compare(MAKERS[name](256, 1024, 128, 7), "cuda", 1e-2, torch.float16, rows=(1, 8, 17))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_a_product_can_be_captured(name):
    layer = PackedLinear.of(MAKERS[name](256, 1024, 128, 5)).to("cuda")
    for rows in (1, 17):
        x = torch.randn(rows, 1024, generator=gen(rows)).to("cuda", torch.float16)
        wanted = layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        y.zero_()
        graph.replay()
        assert gap(y.cpu(), wanted.cpu()) < 1e-3
