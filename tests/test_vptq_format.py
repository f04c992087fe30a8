"""VPTQ's checkpoint layout: streams of bits against Python integers, tensors and configuration key by key, folders."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.codebooks.vector import VectorWeight
from lowbit_nb.codebooks.vptq_files import load_vptq, save_vptq
from lowbit_nb.codebooks.vptq_format import layer_config, layer_tensors, pack_stream, read_layer, unpack_stream
from lowbit_nb.methods.gptq import GPTQ
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.quantize import quantize
from tests import tiny
from tests.test_codebook import SWITCHES, vector_weight

WIDTHS = [(4, 0), (8, 0), (8, 8), (10, 0), (12, 0), (12, 4), (12, 12), (13, 0), (15, 15), (16, 0), (16, 8), (16, 10), (16, 16)]


def indices(n: int, b: int, b_res: int) -> tuple[Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(n)
    idx = torch.randint(0, 2**b, (2, 3, n), generator=g)
    idx[0, 0], idx[1, 2] = 2**b - 1, 0
    return idx, torch.randint(0, 2**b_res, (2, 3, n), generator=g) if b_res else None


def power_of_two(switches: tuple) -> VectorWeight:
    """A vector weight whose codebooks all have sizes that this format knows."""
    w = vector_weight(*switches)
    small = {name: dataclasses.replace(s, C=s.C[:, :4], idx=s.idx % 4) for name, s in
             (("residual", w.residual), ("outlier", w.outlier)) if s}
    return dataclasses.replace(w, **small)


# Streams of bits


@pytest.mark.parametrize("b, b_res", [*WIDTHS, (3, 9), (1, 31)])
@pytest.mark.parametrize("n", [1, 7, 64, 4096, 5120])
def test_streams_are_read_back_and_take_the_words_they_need(b, b_res, n):
    idx, res = indices(n, b, b_res)
    words = pack_stream(idx, b, res, b_res)
    assert words.dtype == torch.int32 and words.shape == (2, 3, -(-n * (b + b_res) // 32))
    back = unpack_stream(words, n, b, b_res)
    assert torch.equal(back[0].long(), idx) and (back[1] is None if res is None else torch.equal(back[1].long(), res))


@pytest.mark.parametrize("b, b_res", WIDTHS)
def test_streams_are_one_long_number_a_row(b, b_res):
    idx, res = indices(37, b, b_res)
    number = 0
    for t, (i, r) in enumerate(zip(idx[1, 1].tolist(), (res if res is not None else 0 * idx)[1, 1].tolist(), strict=True)):
        number |= (i | r << b) << t * (b + b_res)
    words = [w % 2**32 for w in pack_stream(idx, b, res, b_res)[1, 1].tolist()]
    assert sum(w << 32 * i for i, w in enumerate(words)) == number


def test_golden_vectors():
    assert pack_stream(torch.tensor([1, 2, 3]), 12).tolist() == [0x03002001, 0]
    words = pack_stream(torch.tensor([5, 4095, 0, 17]), 12, torch.tensor([7, 255, 1, 128]), 8)
    assert words.tolist() == [-1019899, 269484287, 32769]
    assert [hex(w % 2**32) for w in words.tolist()] == ["0xfff07005", "0x101000ff", "0x8001"]


def test_a_residual_wider_than_the_index_is_not_cut():
    idx, res = torch.tensor([1, 3]), torch.tensor([200, 255])
    back = unpack_stream(pack_stream(idx, 2, res, 8), 2, 2, 8)
    assert back[1].tolist() == [200, 255]
    assert (back[1] & 3).tolist() != [200, 255]  # what masking with the index's own width would give


def test_streams_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="b=20 and b_res=13"):
        pack_stream(torch.tensor([1]), 20, torch.tensor([1]), 13)
    with pytest.raises(ValueError, match="indices run from 4 to 4; 2 bits hold 0 to 3"):
        pack_stream(torch.tensor([4]), 2)
    with pytest.raises(ValueError, match="2 words a row do not hold 3 indices of 8 bits; 1 do"):
        unpack_stream(torch.zeros(2, dtype=torch.int32), 3, 8)


# One layer


def by_the_layout(t: dict[str, Tensor], c: dict) -> Tensor:
    """The weight that the published reconstruction makes of a layer's tensors; bits are read one index at a time."""
    d_out, d_in, n_out, G, n = (c[k] for k in ("out_features", "in_features", "outlier_size", "group_num", "group_size"))
    (v0, v), (k0, k), kr = c["vector_lens"], c["num_centroids"], c["num_res_centroids"][1]
    b, b_res = k.bit_length() - 1, kr.bit_length() - 1 if kr > 0 else 0
    Wp = torch.zeros(d_out + 16, d_in)
    for g in range(G):
        C = t["centroids.weight"].view(G, k, v)[g].float()
        for r in range(-(-d_out // v)):
            stream = sum((w % 2**32) << 32 * i for i, w in enumerate(t["indices"][g, r].tolist()))
            for j in range(n):
                code = stream >> j * (b + b_res)
                piece = C[code % k]
                if b_res:
                    piece = piece + t["res_centroids.weight"].view(G, kr, v)[g, (code >> b) % kr].float()
                Wp[r * v : r * v + v, n_out + g * n + j] = piece
    for r in range(-(-d_out // v0) if n_out else 0):
        for j in range(n_out):
            at = int(t["outlier_indices"][0, r, j]) % 2**16
            Wp[r * v0 : r * v0 + v0, j] = t["outlier_centroids.weight"].view(k0, v0)[at].float()
    perm = [p % 2**16 for p in t["perm"].tolist()] if c["enable_perm"] else list(range(d_in))
    inverse = [perm.index(j) for j in range(d_in)]
    return t["weight_scale"].float() * Wp[:d_out, inverse] + t["weight_bias"].float()


@pytest.mark.parametrize("switches", SWITCHES)
def test_a_layer_means_the_same_in_the_layout_and_is_read_back_exactly(switches):
    w = power_of_two(switches)
    tensors, config = layer_tensors(w), json.loads(json.dumps(layer_config(w)))
    assert torch.equal(by_the_layout(tensors, config), w.dequantize())
    back = read_layer(tensors, config)
    assert back.pack().keys() == w.pack().keys()
    assert all(torch.equal(t, w.pack()[name]) for name, t in back.pack().items())
    assert torch.equal(back.dequantize(), w.dequantize())


def test_layout_key_by_key():
    w = power_of_two((True, True, True, True, True))  # 23 x 20, pieces of 6, 5 groups of 3, 5 outlier columns in pieces of 4
    tensors, config = layer_tensors(w), layer_config(w, bias=True)
    expected = {
        "centroids.weight": ((5, 16 * 6), torch.float16),
        "res_centroids.weight": ((5, 4 * 6), torch.float16),
        "indices": ((5, 4, 1), torch.int32),  # 3 columns of 4 + 2 bits
        "outlier_centroids.weight": ((1, 4 * 4), torch.float16),
        "outlier_indices": ((1, 6, 5), torch.int16),
        "perm": ((20,), torch.int16),
        "weight_scale": ((20,), torch.float16),
        "weight_bias": ((20,), torch.float16),
    }
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == expected
    assert all(t.is_contiguous() for t in tensors.values())
    assert config == {
        "in_features": 20, "out_features": 23, "vector_lens": [4, 6], "num_centroids": [4, 16], "num_res_centroids": [-1, 4],
        "group_num": 5, "group_size": 3, "outlier_size": 5, "enable_norm": True, "enable_perm": True,
        "is_indice_packed": True, "indices_as_float": False, "bias": True,
    }
    plain = power_of_two((False, False, False, False, False))
    assert set(layer_tensors(plain)) == {"centroids.weight", "indices", "weight_scale", "weight_bias"}
    assert layer_tensors(plain)["weight_scale"].unique().tolist() == [1.0]
    assert layer_config(plain)["num_centroids"] == [-1, 16] and layer_config(plain)["outlier_size"] == 0


def test_a_permutation_is_absorbed_where_that_is_exact_and_kept_where_it_is_not():
    w = power_of_two((False, False, True, True, False))
    perm = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    moved = dataclasses.replace(w, s=None, m=None, **{n: dataclasses.replace(getattr(w, n), idx=getattr(w, n).idx[:, perm])
                                                      for n in ("main", "residual")})
    tensors = layer_tensors(moved) | {n: layer_tensors(w)[n] for n in ("weight_scale", "weight_bias")}
    tensors["perm"] = perm.to(torch.int16)
    config = layer_config(w) | {"enable_perm": True}
    read = read_layer(tensors, config)
    assert torch.equal(by_the_layout(tensors, config), w.dequantize())
    assert torch.equal(read.dequantize(), w.dequantize()) and read.label is None
    assert layer_config(read)["enable_perm"] is False and "perm" not in layer_tensors(read)
    for parts in ((True, False), (False, True)):
        kept = power_of_two((*parts, False, False, False))
        assert layer_config(kept)["enable_perm"] is True and "perm" in layer_tensors(kept)


def test_large_unsigned_numbers_survive_sixteen_bits():
    g = torch.Generator().manual_seed(0)
    w = power_of_two((False, True, False, False, False))
    C = torch.randn(1, 65536, 4, generator=g).half()
    big = dataclasses.replace(w, outlier=dataclasses.replace(w.outlier, C=C, idx=w.outlier.idx + 65530))
    tensors = layer_tensors(big)
    assert int(tensors["outlier_indices"].max()) < 0
    assert torch.equal(read_layer(tensors, layer_config(big)).dequantize(), big.dequantize())


def test_unknown_keys_are_left_alone_and_missing_ones_have_defaults():
    w = power_of_two((False, False, False, True, False))
    config = layer_config(w) | {"norm_dim": 0, "enable_proxy_error": False, "invented": [1]}
    short = {k: config[k] for k in ("in_features", "out_features", "vector_lens", "num_centroids")}
    for c in (config, short):
        assert torch.equal(read_layer(layer_tensors(w) | {"extra": torch.zeros(1)}, c).dequantize(), w.dequantize())


@pytest.mark.parametrize("name", ["centroids.weight", "indices", "perm", "weight_scale", "outlier_indices",
                                  "res_centroids.weight"])
def test_a_tensor_of_another_size_is_refused(name):
    w = power_of_two((True, True, True, True, True))
    tensors = layer_tensors(w)
    with pytest.raises(ValueError, match=f"{name} is .* and should be"):
        read_layer(tensors | {name: tensors[name][..., :-1]}, layer_config(w))
    with pytest.raises(ValueError, match=f"{name} is missing and should be"):
        read_layer({n: t for n, t in tensors.items() if n != name}, layer_config(w))


def test_legacy_layouts_and_odd_codebooks_are_refused():
    w = power_of_two((False, False, False, True, False))
    for change in ({"is_indice_packed": False}, {"indices_as_float": True}):
        with pytest.raises(ValueError, match="legacy layout"):
            read_layer(layer_tensors(w), layer_config(w) | change)
    with pytest.raises(ValueError, match="residual codebook has 5 vectors; this format needs a power of two"):
        layer_tensors(vector_weight(False, False, True, False, False))


def test_groups_of_unequal_size_are_refused():
    w = power_of_two((True, False, False, False, False))
    label = w.label.clone()
    label[(label == 1).nonzero()[0]] = 2
    with pytest.raises(ValueError, match="groups of 3 to 5 columns; this format needs equal ones"):
        layer_tensors(dataclasses.replace(w, label=label))


def test_lost_permutation_of_groups_is_refused():
    w = power_of_two((True, False, False, False, False))
    tensors = layer_tensors(w)
    del tensors["perm"]
    with pytest.raises(ValueError, match="perm is missing"):
        read_layer(tensors, layer_config(w))


# Folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    subject = tiny.subject()
    method = VPTQ(Codebook(4, 16, k_res=8, groups=2, outliers=0.1, k_out=16), norm="minmax", iterations=3, refine=0)
    quantized = quantize(subject, method, tiny.windows(), progress=False)
    return subject, quantized, save_vptq(quantized, subject, tmp_path_factory.mktemp("vptq"))


def test_a_folder_is_read_back_exactly(saved):
    subject, quantized, folder = saved
    weights, rest, config = load_vptq(folder)
    assert weights.keys() == quantized.weights.keys()
    assert all(torch.equal(w.dequantize(), quantized.weights[n].dequantize()) for n, w in weights.items())
    assert all(torch.equal(w.pack()[t], quantized.weights[n].pack()[t]) for n, w in weights.items() for t in w.pack())
    own = subject.model.state_dict()
    assert {n for n in own if n.removesuffix(".weight") not in weights} == set(rest)
    assert config["model_type"] == "llama" and config["hidden_size"] == tiny.WIDTH


def test_the_model_computes_the_same(saved):
    subject, quantized, folder = saved
    weights, rest, _ = load_vptq(folder)
    model = tiny.model(seed=5)  # other weights: everything must come from the folder
    state = {n: t.float() for n, t in rest.items()} | {f"{n}.weight": w.dequantize() for n, w in weights.items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    ids = tiny.windows().ids
    expected = quantized.apply(subject).model(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-2)


def test_the_configuration_is_what_readers_expect(saved):
    _, quantized, folder = saved
    about = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert set(about) == {"quant_method", "config_for_layers", "shared_layer_config", "modules_to_not_convert",
                          "enable_proxy_error"}
    assert about["quant_method"] == "vptq" and about["enable_proxy_error"] is False and about["modules_to_not_convert"] is None
    assert about["config_for_layers"].keys() == quantized.weights.keys()
    names = set(load_file(folder / "model.safetensors"))
    assert not {f"{layer}.weight" for layer in quantized.weights} & names


def test_several_files_shared_settings_and_unknown_keys(saved, tmp_path):
    _, quantized, folder = saved
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, tmp_path / f"model-{i}.safetensors")
    config = json.loads((folder / "config.json").read_text())
    about = config["quantization_config"]
    shared = {n.rpartition(".")[2]: c | {"norm_dim": 0} for n, c in about.pop("config_for_layers").items()}
    about |= {"shared_layer_config": shared, "config_for_layers": {}, "future": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights, _, _ = load_vptq(tmp_path)
    assert all(torch.equal(w.dequantize(), quantized.weights[n].dequantize()) for n, w in weights.items())
    about["shared_layer_config"].pop("q_proj")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="q_proj has codebooks but no entry"):
        load_vptq(tmp_path)


def test_other_folders_and_other_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_vptq(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a VPTQ checkpoint: its quantization_config says None"):
        load_vptq(tmp_path)
    import lowbit_nb as lb

    subject = tiny.subject()
    affine = quantize(subject, GPTQ(lb.Grid(3, 16)), tiny.windows(), progress=False)
    with pytest.raises(ValueError, match="is not a vector weight"):
        save_vptq(affine, subject, tmp_path)
