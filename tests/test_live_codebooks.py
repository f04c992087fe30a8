"""The codebook explorer: its vectors, codebooks, errors and bits; what is sent, stored and refused."""

from __future__ import annotations

import base64
import math
import re

import numpy as np
import pytest
import torch

from lowbit_nb import live
from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.codebooks.kmeans import kmeans
from lowbit_nb.live.base import percent
from lowbit_nb.live.cuts import Cut, cut
from lowbit_nb.show import digits


def layer(rows: int = 32, d: int = 96, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with some large ones; importance of uneven size, one input dead."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, d, generator=generator) * 0.02
    W[torch.rand(rows, d, generator=generator) < 0.01] *= 4
    h = torch.rand(d, generator=generator) ** 4 + 0.01
    h[9] = 0
    return W, h


@pytest.fixture(scope="module")
def explorer() -> live.CodebookExplorer:
    return live.codebook_explorer(*layer(), residual=16, name="test layer")


def cut_of(W: torch.Tensor, h: torch.Tensor | None = None, v: int = 2) -> Cut:
    return cut(W, h, v, torch.Generator().manual_seed(0))


def plain_lloyd(x: np.ndarray, w: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Weighted k-means with all distances and loops, until nothing changes much; no vector may lose all its points."""
    before = None
    for step in range(21):
        far = ((x[:, None] - C[None]) ** 2).sum(-1)
        idx, cost = far.argmin(1), float((far.min(1) * w).sum())
        if step == 20 or (before is not None and before - cost <= 1e-4 * before):
            return C
        before = cost
        assert all(w[idx == i].sum() > 0 for i in range(len(C)))
        C = np.stack([(x[idx == i] * w[idx == i, None]).sum(0) / w[idx == i].sum() for i in range(len(C))])
    raise AssertionError


@pytest.mark.parametrize("v", [2, 3, 5])
def test_vectors_are_rows_of_one_column(v):
    W, h = layer()
    found = cut_of(W, h, v)
    assert len(found.mine.x) == 32 // v * 96 and not len(found.others.x)
    for point, (row, column) in zip(found.mine.x, found.mine.places.tolist(), strict=True):
        assert torch.equal(point.float(), W[row : row + v, column]) and row % v == 0
    used = h[found.mine.places[:, 1]]
    assert torch.allclose(found.mine.weight, (used / used.mean()).double(), rtol=1e-6)
    assert len({tuple(p) for p in found.mine.places.tolist()}) == len(found.mine.x)


def test_a_large_layer_is_drawn_from_and_tried_on_others():
    W, h = layer(128, 96)
    found = cut_of(W, h)
    assert len(found.mine.x) == len(found.others.x) == 2000
    here, there = ({tuple(p) for p in part.places.tolist()} for part in (found.mine, found.others))
    assert len(here) == len(there) == 2000 and not here & there
    again, other = cut_of(W, h), cut(W, h, 2, torch.Generator().manual_seed(1))
    assert torch.equal(again.mine.x, found.mine.x) and not torch.equal(other.mine.x, found.mine.x)
    assert live.codebook_explorer(W, h).about == "a layer: 2000 of 6144 vectors of 2 rows of a column"


@pytest.mark.parametrize("weighted", [False, True])
def test_codebooks_are_those_of_k_means(weighted):
    W, h = layer()
    found = cut_of(W, h)
    x, w = found.mine.x, found.mine.weight if weighted else torch.ones(len(found.mine.x)).double()
    order = [p for p in found.order.tolist() if w[p] > 0]
    assert torch.equal(found.learn(x, 16, weighted, 0), x[order[:16]])
    wanted = plain_lloyd(x.numpy(), w.numpy(), x[order[:16]].numpy())
    assert np.allclose(found.learn(x, 16, weighted), wanted, rtol=0, atol=1e-12)
    one = found.outcome(16, 4, weighted)
    assert torch.equal(one.books[0], torch.tensor(wanted).half().double())  # as stored
    left = x - one.books[0][one.encode(x)[0][0]]
    again = kmeans(left, w, 4, generator=torch.Generator(), start=found.distinct(left, w, 4)).C
    assert torch.equal(one.books[1], again.half().double())


def test_errors_entropy_and_bits_are_counted_plainly(explorer):
    for one in explorer.settings:
        x, w, left = explorer.cut.mine.x, explorer.cut.mine.weight, explorer.cut.mine.x
        for C, idx, h in zip(one.books, one.encode(x)[0], one.entropy, strict=True):
            assert torch.equal(idx, torch.cdist(left, C).argmin(1))
            shares = torch.bincount(idx, minlength=len(C)).double() / len(x)
            assert h == pytest.approx(sum(-p * math.log2(p) for p in shares.tolist() if p))
            left = left - C[idx]
        assert one.mse() == pytest.approx((float(left.square().mean()), float(left.square().sum() / x.square().sum())))
        weighted = float((w[:, None] * left.square()).sum() / w.sum() / 2)
        assert one.mse(True) == pytest.approx((weighted, weighted / float((w[:, None] * x.square()).sum() / w.sum() / 2)))
        indices = math.log2(one.k) + (math.log2(one.second) if one.second else 0)
        for shape in ((32, 96), (4096, 4096)):
            books = 16 * 2 * (one.k + one.second)
            assert one.bits(shape) == pytest.approx(indices / 2 + books / math.prod(shape))
            assert one.bits(shape) == Codebook(2, one.k, one.second).size(*shape).per_weight
        assert one.bits() == one.bits((32, 96))


def test_importance_and_a_second_codebook_do_what_they_are_for(explorer):
    alike, by_importance, both, single = explorer.settings
    assert by_importance.mse(True)[0] < alike.mse(True)[0] and by_importance.mse()[0] > alike.mse()[0]
    assert both.mse(True)[0] < by_importance.mse(True)[0]
    assert (both.k, both.second, single.k, single.second) == (16, 16, 256, 0)
    assert both.bits() < single.bits() and both.bits((10**5, 10**5)) == pytest.approx(single.bits((10**5, 10**5)), abs=1e-5)


def test_the_vectors_learned_from_flatter_a_large_codebook():
    found = cut_of(*layer(128, 96))
    ratios = []
    for k in (4, 256):
        one = found.outcome(k, weighted=True)
        ratios.append(one.mse(True, "others")[1] / one.mse(True)[1])
    assert ratios[0] < 1.1 and ratios[1] > 1.5


def test_dead_inputs_start_no_codebook():
    W, h = layer()
    h[: 96 // 2] = 0
    found = cut_of(W, h)
    start = {tuple(c) for c in found.learn(found.mine.x, 64, True, 0).tolist()}
    live_points = {tuple(p) for p, w in zip(found.mine.x.tolist(), found.mine.weight, strict=True) if w > 0}
    assert start <= live_points and len(start) == 64


def test_a_layer_of_few_values_offers_smaller_codebooks():
    W = torch.randint(0, 5, (32, 96), generator=torch.Generator().manual_seed(0)).float()
    few = live.codebook_explorer(W, k=8, residual=4)
    assert few.sizes == [4, 8, 16]  # 25 different vectors
    assert few.settings[1].mse()[0] >= 0 and "8 + 4 vectors" in few.alt
    with pytest.raises(ValueError, match=r"with 25 different vectors of weight, use sizes of \[4, 8, 16\]"):
        live.codebook_explorer(W, k=32)


def test_what_is_sent_holds_the_pieces(explorer):
    W, h = layer()
    x = np.frombuffer(explorer.points, "<f4").reshape(-1, 2)
    rows, columns = np.frombuffer(explorer.places, "<f4").reshape(-1, 2).astype(int).T
    assert np.array_equal(x, np.stack([W.numpy()[rows, columns], W.numpy()[rows + 1, columns]], 1))
    weights = np.frombuffer(explorer.weights, "<f4")
    assert np.allclose(weights, h.numpy()[columns] / h.numpy()[columns].mean(), rtol=1e-6)
    assert weights[explorer.chosen] == weights.max() and sorted(explorer.order) == list(range(len(x)))
    assert explorer.others == b"" == explorer.other_weights
    assert (explorer.k, explorer.second, explorer.weighted) == (16, 16, True)
    plain = live.codebook_explorer(*layer(256, 96)[:1], v=4)
    assert plain.weights == b"" == plain.other_weights and not plain.weighted and plain.second == 0
    assert len(plain.points) == len(plain.others) == 4 * 4 * 2000


def test_the_sentence_and_the_pictures_hold_the_numbers(explorer):
    assert explorer.alt.startswith("Codebook explorer, test layer: 1536 vectors of 2 rows of a column. Errors are shares ")
    for one in explorer.settings:
        assert one.words in explorer.alt and f"weighted {percent(one.mse(True)[1])}" in one.words
        assert f"{digits(one.bits())} bits a weight here and {digits(one.bits((4096, 4096)))} in a 4096 x 4096" in one.words
    assert explorer.alt.endswith(f"carries {digits(explorer.settings[0].entropy[0])} of 4.00 bits.")
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert len(images) == 5 and images[0][0].startswith("Before the first step: 16 vectors, by importance: error ")
    for (alt, _), one in zip(images[1:4], explorer.settings, strict=False):
        assert alt.startswith(one.words)
    assert all(len(base64.b64decode(code)) <= 40_000 for _, code in images)
    again = live.codebook_explorer(*layer(), residual=16, name="test layer")
    assert again.fallback == explorer.fallback and again.alt == explorer.alt
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == explorer.alt and data["text/html"] == explorer.fallback


def test_without_importance_nothing_is_said_of_it():
    plain = live.codebook_explorer(layer(200, 96)[0], v=4, k=64)
    assert "importance" not in plain.alt and "weighted" not in plain.alt and "of 2000 others" in plain.alt
    assert len(plain.frames()) == 4 and "weighted" not in plain.fallback


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": torch.ones(4)}, r"W must be \[d_out, d_in\]"),
        ({"W": torch.full((16, 96), float("nan"))}, "finite"),
        ({"v": 1}, "v=1 from 2 to 16"),
        ({"v": 17}, "v=17 from 2 to 16"),
        ({"W": torch.ones(3, 96), "v": 4}, r"to d_out; W is \[3, 96\]"),
        ({"importance": torch.ones(5)}, r"importance must be \[96\]"),
        ({"importance": -torch.ones(96)}, "not negative"),
        ({"importance": torch.full((96,), float("inf"))}, "finite"),
        ({"importance": torch.zeros(96)}, "importance is zero"),
        ({"k": 17}, r"use sizes of \[4, 8, 16"),
        ({"residual": 3}, "residual=3"),
        ({"W": torch.zeros(16, 96)}, "with 1 different vectors"),
    ],
)
def test_bad_input_is_named(change, message):
    W, h = layer()
    with pytest.raises(ValueError, match=message):
        live.codebook_explorer(**({"W": W, "importance": h} | change))
