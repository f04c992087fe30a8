"""Leaving the kit: folders that other libraries read, read back; what a layout cannot hold is refused."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from lowbit_nb import export
from lowbit_nb.activations import Activations
from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.codebooks.vptq_files import load_vptq
from lowbit_nb.grid import Grid
from lowbit_nb.methods.awq import AWQ
from lowbit_nb.methods.gptq import GPTQ
from lowbit_nb.methods.omniquant import OmniQuant
from lowbit_nb.methods.rtn import RTN
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.quantize import quantize
from lowbit_nb.reconstruct import Budget
from lowbit_nb.record import Quantized
from lowbit_nb.stored import AffineWeight
from lowbit_nb.subject import Subject, load
from tests import tiny

try:
    import compressed_tensors  # noqa: F401
except ImportError:
    warnings.warn("compressed-tensors is not installed: the exports to it are NOT read back by the real library; "
                  "pip install compressed-tensors", stacklevel=1)
    compressed_tensors = None
real_library = pytest.mark.skipif(compressed_tensors is None, reason="compressed-tensors is NOT installed")

SHORT = {"num_hidden_layers": 2}
SYMMETRIC = Grid(4, group=16, symmetric=True)
IDS = tiny.windows().ids


def subject_of(kind: str = "llama", **changes: object) -> Subject:
    return tiny.subject(kind, **(SHORT | changes))


def wide(dtype: torch.dtype = torch.float32) -> Subject:
    """One whose layers are all multiples of 32 wide."""
    return subject_of(num_key_value_heads=4, dtype=dtype)


def record(subject: Subject, method: object) -> Quantized:
    return quantize(subject, method, tiny.windows())


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def opened(folder: object, **settings: object) -> transformers.PreTrainedModel:
    """What transformers makes of a folder; nothing may be missing, left over or of another shape."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    assert not any(report.values()), report
    return model.eval()


def config_of(folder: object) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


# compressed-tensors, read back by transformers with the real package


GRIDS = [
    Grid(4, group=16), SYMMETRIC, Grid(4, group=32), Grid(4), Grid(8, group=16), Grid(8, symmetric=True), Grid(3, group=16),
    Grid(2, group=16), Grid(1, group=16), Grid(5, group=32, symmetric=True), Grid(4, group=16, scale_dtype="float32"),
]


@real_library
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_transformers_computes_the_same_logits(grid, tmp_path):
    subject = subject_of()
    quantized = record(subject, RTN(grid))
    model = opened(export.compressed_tensors(quantized, subject, tmp_path))
    assert torch.equal(logits(model), logits(quantized.apply(subject).model))  # steps and products are exact in float32
    for name, weight in quantized.weights.items():
        assert torch.equal(model.get_submodule(name).weight, weight.dequantize())


@real_library
@pytest.mark.parametrize("method", [GPTQ(Grid(4, group=16)), GPTQ(Grid(4, group=16), order="act", groups="static"),
                                    GPTQ(Grid(3), order="act"), AWQ(Grid(4, group=16))],
                         ids=["gar", "static", "one group", "awq"])
def test_methods_with_an_order_and_edited_norms(method, tmp_path):
    subject = subject_of()
    quantized = record(subject, method)
    assert bool(quantized.params) == isinstance(method, AWQ)
    model = opened(export.compressed_tensors(quantized, subject, tmp_path))
    assert torch.equal(logits(model), logits(quantized.apply(subject).model))


@real_library
def test_biases_that_the_architecture_has_are_written(tmp_path):
    subject = subject_of("opt")
    quantized = record(subject, OmniQuant(Grid(4, group=16), Budget(rounds=1, steps=2), scaling=True, shifts=True))
    assert any(name.endswith("q_proj.bias") for name in quantized.params)
    model = opened(export.compressed_tensors(quantized, subject, tmp_path))
    assert torch.equal(logits(model), logits(quantized.apply(subject).model))


@real_library
@pytest.mark.parametrize("kind", [kind for kind in tiny.ARCHITECTURES if kind != "llama"])
def test_any_decoder(kind, tmp_path):
    subject = subject_of(kind, tie_word_embeddings=kind in ("qwen2", "gemma2", "opt"))
    quantized = record(subject, RTN(SYMMETRIC))
    model = opened(export.compressed_tensors(quantized, subject, tmp_path))
    assert torch.equal(logits(model), logits(quantized.apply(subject).model))


@real_library
def test_in_half_precision_the_weights_are_the_rounded_products(tmp_path):
    subject = subject_of()
    quantized = record(subject, RTN(Grid(4, group=16)))
    model = opened(export.compressed_tensors(quantized, subject, tmp_path / "packed", dtype=torch.float16))
    assert model.dtype == torch.float16 and config_of(tmp_path / "packed")["dtype"] == "float16"
    quantized.apply(subject).model.save_pretrained(tmp_path / "plain")
    assert torch.equal(logits(model), logits(opened(tmp_path / "plain", dtype=torch.float16)))
    for name, weight in quantized.weights.items():
        assert torch.equal(model.get_submodule(name).weight, weight.dequantize(torch.float16))


@real_library
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("skip", [(), ("model.layers.0",)], ids=["all blocks", "one block left"])
def test_activations_are_rounded_alike(bits, skip, tmp_path):
    subject = subject_of()
    plain = record(subject, RTN(Grid(4, group=16)))
    quantized = plain.with_activations(Activations(bits, qkv=False, skip=skip))
    model = opened(export.compressed_tensors(quantized, subject, tmp_path))
    ours, theirs = logits(quantized.apply(subject).model), logits(model)
    assert torch.allclose(ours, theirs, atol=1e-5)  # a number halfway between two marks could go the other way; none does
    assert not torch.allclose(ours, logits(plain.apply(subject).model), atol=1e-3)


@real_library
def test_layers_on_different_grids_get_a_group_each(tmp_path):
    subject = subject_of()
    fine, coarse = record(subject, RTN(Grid(8, group=16))), record(subject, RTN(Grid(4, group=32, symmetric=True)))
    mixed = {name: (fine if "mlp" in name else coarse).weights[name] for name in fine.weights}
    quantized = Quantized(mixed, fine.settings, fine.trace)
    model = opened(export.compressed_tensors(quantized, subject, tmp_path))
    assert len(config_of(tmp_path)["quantization_config"]["config_groups"]) == 2
    assert torch.equal(logits(model), logits(quantized.apply(subject).model))


@real_library
def test_layers_that_are_not_quantized_are_named(tmp_path):
    subject = subject_of()
    whole = record(subject, RTN(SYMMETRIC))
    some = {name: w for name, w in whole.weights.items() if "down_proj" not in name}
    quantized = Quantized(some, whole.settings, whole.trace)
    model = opened(export.compressed_tensors(quantized, subject, tmp_path))
    assert "model.layers.1.mlp.down_proj" in config_of(tmp_path)["quantization_config"]["ignore"]
    assert torch.equal(logits(model), logits(quantized.apply(subject).model))


@real_library
def test_the_bundled_model_keeps_its_tokenizer(tmp_path):
    subject = load()
    quantized = record_rtn(subject)
    folder = export.compressed_tensors(quantized, subject, tmp_path)
    text = "def area(width, height):"
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    assert torch.equal(ids, subject.tokenizer(text, return_tensors="pt").input_ids)
    with torch.no_grad():
        assert torch.equal(opened(folder)(ids).logits, quantized.apply(subject).model(ids).logits)


def record_rtn(subject: Subject) -> Quantized:
    """Nearest marks need no calibration."""
    linears = {name: m for name, m in subject.model.named_modules() if isinstance(m, torch.nn.Linear) and "layers." in name}
    weights = {name: AffineWeight.nearest(m.weight, Grid(4, group=32)) for name, m in linears.items()}
    return Quantized(weights, {"method": "rtn", "settings": {}}, [])


def test_codes_of_compressed_tensors_lie_in_streams(tmp_path):
    """Bit by bit, without the package: element i of a row takes bits i b to (i + 1) b, zero points down the columns."""
    subject = subject_of()
    quantized = record(subject, RTN(Grid(3, group=16)))
    tensors = load_file(export.compressed_tensors(quantized, subject, tmp_path) / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj"
    weight = quantized.weights[name]
    assert bits_of(tensors[f"{name}.weight_packed"][5], 3, 32) == weight.q[5].tolist()
    assert bits_of(tensors[f"{name}.weight_zero_point"][:, 1], 3, 16) == weight.z[:, 1].tolist()
    assert tensors[f"{name}.weight_shape"].tolist() == list(weight.shape)
    assert torch.equal(tensors[f"{name}.weight_scale"], weight.s) and tensors[f"{name}.weight_scale"].dtype == torch.float16


def bits_of(words: Tensor, b: int, n: int) -> list[int]:
    """n numbers of b bits from 32-bit words, one bit after the other."""
    stream = [(int(word) >> i) & 1 for word in words for i in range(32)]
    return [sum(stream[k * b + i] << i for i in range(b)) for k in range(n)]


# GPTQ's layout, read back by a loop over bits written from its description


def read_gptq(parts: dict[str, Tensor], bits: int, plus: int) -> Tensor:
    """W_hat[o, i] = scales[g, o] (q[i, o] - (stored zero + plus)[g, o]) with g = g_idx[i]; [d_out, d_in]."""
    d_in, d_out = len(parts["g_idx"]), parts["qweight"].shape[1]
    q = torch.tensor([bits_of(parts["qweight"][:, o], bits, d_in) for o in range(d_out)])
    z = torch.tensor([bits_of(row, bits, d_out) for row in parts["qzeros"]]) + plus
    W_hat = torch.empty(d_out, d_in)
    for i, g in enumerate(parts["g_idx"].tolist()):
        W_hat[:, i] = parts["scales"][g].float() * (q[:, i] - z[g])
    return W_hat


GPTQS = [
    (RTN(SYMMETRIC), "gptq", False),
    (RTN(Grid(4, group=32)), "gptq_v2", False),
    (RTN(Grid(8, group=16, symmetric=True)), "gptq", False),
    (GPTQ(Grid(3, group=32)), "gptq_v2", False),
    (GPTQ(SYMMETRIC, order="act"), "gptq", True),
    (GPTQ(Grid(2, symmetric=True), order="act"), "gptq", False),
]


@pytest.mark.parametrize("method, form, scattered", GPTQS)
def test_gptq_layout_holds_the_same_weights(method, form, scattered, tmp_path):
    subject = wide()
    quantized = record(subject, method)
    folder = export.gptq(quantized, subject, tmp_path, checkpoint_format=form)
    said, tensors, bits = config_of(folder)["quantization_config"], load_file(folder / "model.safetensors"), method.grid.bits
    assert said["quant_method"] == "gptq" and said["bits"] == bits and said["sym"] == method.grid.symmetric
    assert said["group_size"] == (method.grid.group or -1) and said["desc_act"] is scattered
    read = {}
    for name, weight in quantized.weights.items():
        parts = {part: tensors.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")}
        assert parts["qweight"].shape == (weight.shape[1] * bits // 32, weight.shape[0])
        assert parts["qzeros"].shape == (weight.s.shape[1], weight.shape[0] * bits // 32)
        read[f"{name}.weight"] = read_gptq(parts, bits, plus=1 if form == "gptq" else 0)
        assert torch.equal(read[f"{name}.weight"], weight.dequantize())
    model = transformers.AutoModelForCausalLM.from_config(subject.model.config).eval()
    model.load_state_dict(tensors | read)
    assert torch.equal(logits(model), logits(quantized.apply(subject).model))


def test_the_first_gptq_format_stores_one_less(tmp_path):
    subject = wide()
    quantized = record(subject, RTN(SYMMETRIC))
    zeros = [load_file(export.gptq(quantized, subject, tmp_path, checkpoint_format=form) / "model.safetensors")
             ["model.layers.0.mlp.up_proj.qzeros"].unique().tolist() for form in ("gptq", "gptq_v2")]
    assert zeros == [[0x77777777], [-0x77777778]]  # eight fields of 7, eight fields of 8


# VPTQ's layout: the kit's own reader (the real package needs a GPU)


def test_vptq_is_read_back(tmp_path):
    subject = subject_of()
    quantized = record(subject, VPTQ(Codebook(k=16, v=4)))
    folder = export.vptq(quantized, subject, tmp_path)
    weights, others, said = load_vptq(folder)
    assert said["quantization_config"]["quant_method"] == "vptq" and said["dtype"] == "float16"
    assert "model.norm.weight" in others
    for name, weight in quantized.weights.items():
        assert torch.equal(weights[name].dequantize(torch.float16), weight.dequantize(torch.float16))


# What cannot be held


def test_bad_records_are_refused(tmp_path):
    subject, small = wide(), subject_of()
    rtn, real = record(subject, RTN(SYMMETRIC)), record(subject, RTN(Grid(4, group=16, zero_inside=False)))
    books, act = record(subject, VPTQ(Codebook(k=16, v=4))), record(subject, GPTQ(Grid(4, group=16), order="act"))
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    clip = {"model.layers.0.mlp.up_proj.input_clip": torch.ones(())}
    part = Quantized(dict(list(rtn.weights.items())[:-1]), rtn.settings, [])
    both = Quantized(rtn.weights | dict([list(record(subject, RTN(Grid(8))).weights.items())[0]]), rtn.settings, [])
    zero = Quantized({name: type(w)(w.q, w.s, torch.zeros_like(w.s, dtype=torch.uint8), Grid(4, group=16))
                      for name, w in rtn.weights.items()}, rtn.settings, [])

    def rounded(**settings: object) -> Quantized:
        return rtn.with_activations(Activations(**settings))

    def extra(params: dict) -> Quantized:
        return Quantized(rtn.weights, rtn.settings, [], params)

    ct, gptq = export.compressed_tensors, export.gptq
    cases = [
        (ct, books, subject, {}, "affine grids only"), (gptq, books, subject, {}, "affine grids only"),
        (ct, real, subject, {}, "zero_inside=True"), (gptq, real, subject, {}, "zero_inside=True"),
        (ct, act, subject, {}, "not neighbours"),
        (ct, extra(bias), subject, {}, "q_proj.bias was added"), (gptq, extra(clip), subject, {}, "input_clip was added"),
        (ct, rtn, small, {}, "in the record"), (gptq, rtn, small, {}, "in the record"),
        (ct, rtn, subject, {"dtype": torch.bfloat16}, "dtype=torch.float16"),
        (ct, rounded(bits=8, qkv=False, symmetric=True), subject, {}, "symmetric=False"),
        (ct, rounded(bits=4), subject, {}, "qkv=False"), (gptq, rounded(bits=4, qkv=False), subject, {}, "cannot say"),
        (gptq, record(small, RTN(SYMMETRIC)), small, {}, "multiples of 32"),
        (gptq, record(subject, RTN(Grid(5))), subject, {}, "2, 3, 4, 8 bits"),
        (gptq, part, subject, {}, "is not quantized"), (gptq, both, subject, {}, "one grid for all"),
        (gptq, zero, subject, {}, "gptq_v2"), (gptq, rtn, subject, {"checkpoint_format": "v3"}, "'v3' is unknown"),
        (export.vptq, rtn, subject, {}, "not a vector weight"), (export.vptq, rounded(bits=4), subject, {}, "cannot say"),
    ]
    for i, (write, quantized, whose, settings, words) in enumerate(cases):
        with pytest.raises(ValueError, match=words):
            write(quantized, whose, tmp_path / str(i), **settings)
        assert not (tmp_path / str(i) / "config.json").exists()
    ct(rounded(bits=16), subject, tmp_path)  # 16 bits: left as they are


def test_numbers_too_large_for_the_type_are_refused(tmp_path):
    subject = subject_of()
    quantized = record(subject, RTN(SYMMETRIC))
    quantized.params["model.norm.weight"] = torch.full((32,), 1e5)
    with pytest.raises(ValueError, match="model.norm.weight reaches 1e\\+05, more than float16"):
        export.compressed_tensors(quantized, subject, tmp_path, dtype=torch.float16)


def test_rulers_over_several_tokens_are_refused(tmp_path):
    """OPT hands its fully connected layers tokens without a batch axis; the package then lays one ruler over all of them."""
    subject = subject_of("opt")
    quantized = record(subject, RTN(SYMMETRIC)).with_activations(Activations(8, qkv=False))
    with pytest.raises(ValueError, match="layers.0.fc1 is handed tokens without a batch axis"):
        export.compressed_tensors(quantized, subject, tmp_path)
    skip = tuple(f"model.decoder.layers.{i}" for i in range(2))
    export.compressed_tensors(quantized.with_activations(Activations(8, qkv=False, skip=skip)), subject, tmp_path)


def test_mixtures_of_experts_are_refused(tmp_path):
    subject = subject_of("mixtral")
    with pytest.raises(ValueError, match="one expert of several"):
        export.compressed_tensors(record_rtn(subject), subject, tmp_path)
