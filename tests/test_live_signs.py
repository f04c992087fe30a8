"""The sign-and-scale explorer: its codes are those of the package; angles, thresholds, what is stored and refused."""

from __future__ import annotations

import base64
import itertools
import math
import re

import numpy as np
import pytest
import torch

from lowbit_nb import live
from lowbit_nb.live import signs as explorers
from lowbit_nb.live.base import percent
from lowbit_nb.onebit import signs
from lowbit_nb.onebit.regions import planes
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.show import digits


def weights(rows: int = 24, d: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(rows, d, generator=generator) * torch.linspace(0.5, 2, d)
    return W * torch.rand(rows, 1, generator=generator).add(0.2) + 0.05


@pytest.fixture(scope="module")
def explorer() -> live.SignExplorer:
    return live.sign_explorer(weights(), name="test layer")


def test_one_sign_has_the_angle_of_the_formula(explorer):
    W, one = weights().double(), explorer.rows.coded("one")
    cosine = W.abs().sum(1) / (math.sqrt(96) * W.norm(dim=1))
    assert torch.allclose(one.cosine, cosine) and torch.allclose(one.error, 1 - cosine**2)
    assert torch.allclose(one.angle, torch.arccos(cosine) * 180 / math.pi)


def test_codes_are_those_of_the_package(explorer):
    W = weights()
    near = dict(rtol=0, atol=2e-3)  # stored forms keep their scales in half precision
    torch.testing.assert_close(explorer.rows.coded("mean").W_hat.float(), SignWeight.nearest(W).dequantize(), **near)
    u, v = signs.rank_one(W.abs().double())
    columns = explorer.rows.coded("columns").W_hat
    torch.testing.assert_close(columns, u[:, None] * v * signs.sgn(W.double()), rtol=1e-5, atol=1e-6)
    best = torch.linalg.svd(W.abs().double()).S[1:].square().sum()  # without a mask it is the best rank-one fit of |W|
    assert float((W - columns).square().sum()) == pytest.approx(float(best), rel=1e-9)
    for code, salient in (("two", True), ("split", False)):
        found = explorer.rows.coded(code)
        far = torch.zeros_like(W, dtype=torch.bool) if salient else found.second
        block = planes(W, torch.full((96,), salient), far)
        torch.testing.assert_close(found.W_hat.float(), block.dequantize(), **near)
        assert torch.equal(block.seconds, found.second)


def test_the_best_split_is_the_packages(explorer):
    W = weights()
    far = explorer.rows.far()
    for i in range(len(W)):
        wanted = signs.split_threshold(W[i : i + 1])
        at = explorer.rows.thresholds[i]
        errors = signs.split_errors(W[i : i + 1].double(), torch.stack([wanted, at[explorer.best[i]]]).double())
        assert float(errors[0]) == pytest.approx(float(errors[1]), rel=1e-6)
        assert torch.equal(far[i], W[i].abs() >= at[explorer.best[i]])
    tried = torch.stack([explorer.rows.coded("split", k).error for k in range(81)])
    assert torch.equal(tried.argmin(0), explorer.rows.best) and torch.equal(tried.amin(0), explorer.rows.coded("split").error)


def test_four_free_levels_beat_every_split_and_no_four_are_better():
    W = weights(6, 9)
    rows = explorers.Rows.of(W, torch.ones(9))
    found = rows.coded("levels")
    assert (found.error <= rows.coded("split").error + 1e-12).all()
    for i in range(6):
        x = W[i].double().sort().values
        cuts = [(0, *c, 9) for c in itertools.combinations(range(1, 9), 3)]
        cost = [sum(float((x[a:b] - x[a:b].mean()).square().sum()) for a, b in itertools.pairwise(c)) for c in cuts]
        assert float(found.error[i]) >= min(cost) / float(x.square().sum()) - 1e-12
        assert len(found.W_hat[i].unique()) <= 4


def test_a_gaussian_row_meets_the_known_values():
    row = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))
    rows = explorers.Rows.of(row, torch.ones(50_000))
    split = rows.coded("split")
    assert float(rows.coded("one").error) == pytest.approx(1 - 2 / math.pi, abs=0.01)
    assert float(split.error) == pytest.approx(0.1175, abs=0.004) and split.share(0) == pytest.approx(0.326, abs=0.03)
    assert float(rows.coded("levels").error) == pytest.approx(0.1175, abs=0.003)
    assert explorers.entropy(split.share(0)) == pytest.approx(0.911, abs=0.02)


def test_bits_are_those_on_disk():
    W = weights(8, 128)
    assert sum(explorers.bits_of("mean", 8, 128)) == SignWeight.nearest(W).bits().per_weight
    mu, a = signs.one_plane(W, centred=False)
    factored = SignWeight.of(W >= 0, a[:, None], mu[:, None], torch.ones(128)).bits()
    means = next(i.bits for i in factored.items if i.name == "means")  # one without a mean need not store it
    assert sum(explorers.bits_of("columns", 8, 128)) == (factored.bits - means) / 1024
    assert explorers.bits_of("one", 8, 128) == (1, 16 / 128)
    assert explorers.bits_of("split", 8, 128) == explorers.bits_of("levels", 8, 128) == (2, 64 / 128)
    assert explorers.entropy(0.5) == 1 and explorers.entropy(0) == explorers.entropy(1) == 0


def test_rows_can_be_chosen_and_zeros_are_left_out():
    W = weights(50)
    W[3] = 0
    some = live.sign_explorer(W, rows=[7, 2, 40])
    assert some.names == [7, 2, 40] and some.about == "a layer: 3 of 50 rows, 96 inputs" and some.shape == [3, 96, 50, 96]
    assert np.array_equal(np.frombuffer(some.weights, "<f4").reshape(3, 96), W[[7, 2, 40]])
    every = live.sign_explorer(W)
    assert len(every.names) == 32 and 3 not in every.names and (every.names[0], every.names[-1]) == (0, 49)
    wide = live.sign_explorer(weights(2, 1100))
    assert wide.about == "a layer: 2 rows, 1024 of 1100 inputs" and wide.shape == [2, 1024, 2, 1100]


def test_the_sentence_and_the_pictures_hold_the_numbers(explorer):
    assert explorer.alt.startswith("Sign-and-scale explorer, test layer: 24 rows, 96 inputs. Row 0")
    for code in explorers.CODES:
        found = explorer.rows.coded(code)
        told = f"{digits(float(found.angle[0]))} degrees, error {percent(found.error[0])}"
        assert told in explorer.alt
    assert f"holds {digits(explorers.entropy(explorer.rows.coded('split').share(0)))} bits a weight" in explorer.alt
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert len(images) == 5
    for (alt, code), name in zip(images, ("one", "columns", "two", "split", "levels"), strict=True):
        assert explorer.words(name, 0) in alt and len(base64.b64decode(code)) <= 40_000
    assert explorer.fallback == live.sign_explorer(weights(), name="test layer").fallback
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == explorer.alt and data["text/html"] == explorer.fallback


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": torch.ones(4)}, r"W must be \[d_out, d_in\]"),
        ({"W": torch.ones(4, 3)}, "at least 4 inputs"),
        ({"W": torch.full((2, 8), float("nan"))}, "and finite"),
        ({"W": torch.zeros(2, 8)}, "that are not zero"),
        ({"rows": [24]}, r"0 to 23 that are not zero; got \[24\]"),
        ({"rows": []}, r"got \[\]"),
        ({"rows": list(range(24)) * 2}, "1 to 32"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        live.sign_explorer(**({"W": weights()} | change))
