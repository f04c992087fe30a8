"""The mask explorer: its masks, bits and errors are those of the package's own parts; what is sent, stored and refused."""

from __future__ import annotations

import base64
import math
import re

import numpy as np
import pytest
import torch

from lowbit_nb import live
from lowbit_nb.grid import Grid, fit, quantize
from lowbit_nb.hessian import Hessian, condition, error_share, factor
from lowbit_nb.live import masks
from lowbit_nb.live.base import percent
from lowbit_nb.onebit.channels import channel_scores, salient_channels
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.partial import PartialWeight
from lowbit_nb.onebit.signs import one_plane
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.show import digits
from lowbit_nb.stored import AffineWeight


def seen(d: int = 64) -> Hessian:
    """What a layer saw: correlated inputs of uneven size, one of them far larger, one always zero."""
    X = torch.randn(400, d, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.3, 2, d)
    X = X + 0.5 * X.roll(1, 1)
    X[:, 7] *= 6
    X[:, 9] = 0
    found = Hessian(d)
    found.add(X)
    return found


def weights(rows: int = 32, d: int = 64) -> torch.Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def explorer() -> live.MaskExplorer:
    h = seen()
    return live.mask_explorer(weights(), h.H, h.peak, name="test layer", span=16)


@pytest.mark.parametrize("metric", ["absmax", "rms", "output", "obs"])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_channel_masks_are_those_of_ptq161(explorer, metric, share):
    count = max(1, math.floor(share * 64 + 0.5))
    wanted = salient_channels(channel_scores(seen(), weights(), metric), count)
    assert torch.equal(explorer.survey.mask("channel", metric, share), wanted.expand(32, 64))


@pytest.mark.parametrize("share", masks.SHARES)
def test_masks_hold_the_largest_and_no_more(explorer, share):
    cost = factor(condition(seen().H)[0])[1]
    score = weights().double().square() * cost
    mask = explorer.survey.mask("element", "obs", share)
    assert int(mask.sum()) == math.floor(share * 2048 + 0.5)
    if 0 < share < 1:
        assert float(score[mask].min()) >= float(score[~mask].max())
    blocks = explorer.survey.mask("column", "obs", share)[0].reshape(4, 16)
    assert set(blocks.sum(1).tolist()) == {masks.count_of(share, 16)}
    for block, of in zip(blocks, score.sum(0).reshape(4, 16), strict=True):
        assert not 0 < share < 1 or float(of[block].min()) >= float(of[~block].max())


def test_ties_are_picked_in_natural_order():
    even = torch.ones(2, 8).double()
    assert masks.mask_of(even, "element", 0.25, 4).flatten().nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert masks.mask_of(even, "column", 0.5, 4)[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert masks.mask_of(even, "channel", 0.5, 4)[1].nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_activations_alone_make_an_element_mask_of_columns(explorer):
    mask = explorer.survey.mask("element", "absmax", 0.5)
    assert torch.equal(mask, explorer.survey.mask("channel", "absmax", 0.5))


@pytest.mark.parametrize("bits", [2, 4])
def test_channels_are_coded_as_a_mixed_weight(explorer, bits):
    W, k = weights(), masks.SHARES.index(0.5)
    mask = explorer.survey.mask("channel", "rms", 0.5)
    high, low = AffineWeight.nearest(W[:, mask[0]], Grid(bits)), SignWeight.nearest(W[:, ~mask[0]])
    mixed = MixedWeight.of(mask[0], high, low)
    torch.testing.assert_close(masks.coded(W, mask, bits), mixed.dequantize(), rtol=0, atol=1e-3)  # scales in half precision
    share, total, error = explorer.survey.told("channel", "rms", k, bits)
    assert share == 0.5 and error == pytest.approx(error_share(W, mixed.dequantize(), seen().H), rel=2e-3)
    assert total == pytest.approx(sum(i.count * i.each for i in mixed.bits().items) / W.numel(), rel=1e-12)
    assert masks.total_bits("channel", 0.5, bits, 16, 32, 64)[0] == mixed.bits().nominal


def test_elements_cost_what_a_partial_weight_stores(explorer):
    W, mask = weights(), explorer.survey.mask("element", "obs", 0.1)
    s, z = fit(W * mask, Grid(8))
    mu, a = one_plane(W, ~mask)
    q = quantize(W * mask, s, z, Grid(8))[mask]
    stored = PartialWeight(mask, q, s.half(), z.to(torch.uint8), W >= mu[:, None], a[:, None].half(), mu[:, None].half())
    torch.testing.assert_close(masks.coded(W, mask, 8), stored.dequantize(), rtol=0, atol=1e-3)
    total = sum(masks.total_bits("element", float(mask.double().mean()), 8, 16, 32, 64))
    assert total == pytest.approx(sum(i.count * i.each for i in stored.bits().items) / W.numel(), rel=1e-12)


@pytest.mark.parametrize("kind", list(masks.KINDS))
def test_errors_and_ends(explorer, kind):
    W, H, found = weights(), seen().H, explorer.survey
    for metric, k, bits in (("weight", 4, 2), ("obs", 8, 4), ("output", 13, 8)):
        mask = found.mask(kind, metric, masks.SHARES[k])
        assert found.told(kind, metric, k, bits)[2] == pytest.approx(error_share(W, masks.coded(W, mask, bits), H), rel=1e-4)
    plain, full = found.told(kind, "rms", 0, 4), found.told(kind, "rms", len(masks.SHARES) - 1, 4)
    assert plain[:2] == (0.0, 1 + 32 / 64) and full[:2] == (1.0, 4 + 20 / 64)
    assert full[2] == pytest.approx(error_share(W, AffineWeight.nearest(W, Grid(4)).dequantize(), H), rel=1e-4)


def test_what_a_mask_costs():
    of = masks.mask_bits("element", 0.1, 128, 4096, 4096)
    assert of["map"] == 1 and of["list"] == pytest.approx(1.2)
    assert of["least"] == pytest.approx(-0.1 * math.log2(0.1) - 0.9 * math.log2(0.9), abs=1e-5)
    of = masks.mask_bits("channel", 0.5, 128, 4, 8)
    assert of == pytest.approx({"map": 1 / 4, "list": 3 / 4, "least": math.log2(math.comb(8, 4)) / 32})
    of = masks.mask_bits("column", 0.25, 4, 2, 8)
    assert of == pytest.approx({"map": 1 / 2, "list": 1 / 4, "least": 2 * math.log2(4) / 16})
    for share in (0.0, 1.0):
        assert set(masks.mask_bits("element", share, 4, 8, 8).values()) == {0.0}


def test_overlaps(explorer):
    shared = explorer.survey.overlap("channel", 0.2)
    one, two = (explorer.survey.mask("channel", m, 0.2)[0] for m in ("weight", "obs"))
    assert shared.shape == (5, 5) and torch.equal(shared.diagonal(), torch.ones(5).double())
    assert float(shared[0, 4]) == int((one & two).sum()) / int(one.sum()) and torch.allclose(shared, shared.T)


def test_what_is_sent_holds_the_layer(explorer):
    H = np.zeros((64, 64), "f4")
    H[np.triu_indices(64)] = np.frombuffer(explorer.hessian, "<f4")
    assert np.allclose(H + np.triu(H, 1).T, seen().H, rtol=1e-6) and explorer.shape == [32, 64, 32, 64]
    assert np.array_equal(np.frombuffer(explorer.weights, "<f4").reshape(32, 64), weights())
    assert np.array_equal(np.frombuffer(explorer.errors, "<f4"), explorer.survey.errors.astype("f4").flatten())
    sent = np.frombuffer(explorer.inputs, "<f4").reshape(5, 64)
    assert explorer.metrics == ["weight", "absmax", "rms", "output", "obs"] and (sent[0] == 1).all()
    assert np.array_equal(sent[1], seen().peak) and np.allclose(sent[2] ** 2, sent[3], rtol=1e-5)


def test_without_data_the_error_is_that_of_the_weight():
    W = weights()
    alone = live.mask_explorer(W)
    assert alone.metrics == ["weight"] and alone.hessian == b"" and "weight error" in alone.alt
    mask = alone.survey.mask("element", "weight", 0.2)
    wanted = (W - masks.coded(W, mask, 4)).square().sum() / W.square().sum()
    assert alone.survey.told("element", "weight", 8, 4)[2] == pytest.approx(float(wanted), rel=1e-4)
    assert live.mask_explorer(W, x_max=seen().peak).metrics == ["weight", "absmax"]
    assert live.mask_explorer(W, seen().H).metric == "rms" and len(re.findall("<img", alone.fallback)) == 4


def test_a_large_layer_is_thinned_out_and_its_bits_are_whole():
    d = 320
    large = live.mask_explorer(weights(100, d), seen(d).H, bits=3)
    assert large.about == "a layer: 64 of 100 rows, 256 of 320 inputs in whole blocks, the others left out"
    assert large.shape == [64, 256, 100, d] and large.names[127:129] == [127, 192] and large.widths == [2, 3, 4, 8]
    _, total, _ = large.survey.told("channel", "rms", 0, 3)
    assert total == 1 + 32 / d


def test_the_sentence_and_the_pictures_hold_the_numbers(explorer):
    assert explorer.alt.startswith("Mask explorer, test layer: 32 rows, 64 inputs. No mask") and explorer.alt.endswith(".")
    for kind, metric in (("element", "obs"), ("column", "obs"), ("channel", "absmax")):
        _, bits, error = explorer.survey.told(kind, metric, 8, 4)
        assert f"{digits(bits)} bits a weight, output error {percent(error)}" in explorer.alt
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert len(images) == 4
    for alt, code in images:
        assert re.search(r"\d", alt) and len(base64.b64decode(code)) <= 40_000
    h = seen()
    assert explorer.fallback == live.mask_explorer(weights(), h.H, h.peak, name="test layer", span=16).fallback
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == explorer.alt and data["text/html"] == explorer.fallback


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": torch.ones(4)}, r"W must be \[d_out, d_in\]"),
        ({"H": torch.eye(63)}, r"got \[\[32, 64\], \[63, 63\]"),
        ({"x_max": torch.ones(3)}, r"\[3\]\]"),
        ({"W": torch.full((2, 64), float("nan"))}, "must be finite"),
        ({"W": torch.zeros(2, 64)}, "output is zero"),
        ({"bits": 9}, "1 to 8 bits"),
        ({"span": 0}, "blocks of 1 to 256 columns"),
    ],
)
def test_bad_input_is_named(change, message):
    h = seen()
    with pytest.raises(ValueError, match=message):
        live.mask_explorer(**({"W": weights(), "H": h.H, "x_max": h.peak} | change))
