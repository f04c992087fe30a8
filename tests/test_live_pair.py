"""The Hessian explorer with two metrics: what it compares, stores and refuses; with one it is as before."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import torch

from lowbit_nb import live
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import condition, error_share
from lowbit_nb.live.base import percent
from lowbit_nb.live.pairs import MetricPair, picks, scaled
from lowbit_nb.methods.gptq import GPTQ
from lowbit_nb.show import digits


def metrics(d: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two metrics of the same inputs, the second with other tokens and columns in front."""
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(300, d, generator=generator) * torch.linspace(0.5, 2, d)
    X = X + 0.5 * X.roll(1, 1)
    dear = torch.rand(300, 1, generator=generator) ** 3
    Y = X * dear
    Y[:, 3] *= 4
    return X.T @ X / 300, Y.T @ Y / 300


def weights(rows: int = 12, d: int = 64) -> torch.Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def pair() -> MetricPair:
    H, other = metrics()
    return live.hessian_explorer(H, weights(), name="test layer", group=16, other=other, labels=("input", "tokens"))


def test_each_metric_is_scaled_to_a_mean_diagonal_of_one(pair):
    sent = np.frombuffer(pair.hessians, "<f4").reshape(2, 64, 64)
    for H, ours in zip(metrics(), sent, strict=True):
        assert np.allclose(ours, H / H.diagonal().mean(), rtol=1e-5) and ours.diagonal().mean() == pytest.approx(1, rel=1e-6)
    one, two = (torch.tensor(H) for H in sent)
    assert pair.distance == pytest.approx(float((one - two).norm() / one.norm()), rel=1e-6)
    H, other = metrics()
    far = live.hessian_explorer(1000 * H, other=other / 7)
    assert np.allclose(np.frombuffer(far.hessians, "<f4"), sent.flatten(), rtol=1e-5)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.2, 0.5, 1.0])
def test_groups_are_the_largest_of_each(pair, share):
    found, n = pair.groups(share), max(1, int(share * 64 + 0.5))
    one, two = (set(np.argsort(-H.diagonal().numpy(), kind="stable")[:n].tolist()) for H in metrics())
    assert {k: set(v) for k, v in found.items()} == {"both": one & two, "first": one - two, "second": two - one}
    assert len(found["first"]) == len(found["second"]) == n - len(found["both"])


def test_ties_are_picked_in_natural_order():
    assert picks(torch.eye(10), 0.3) == {0, 1, 2}


def test_errors_are_those_of_the_package(pair):
    W, (H, other) = weights()[:8], metrics()
    rounded = [GPTQ(Grid(2, 16), order="natural", groups="static", clip="minmax").quantize_layer(W, M)[0].dequantize()
               for M in (torch.diag(condition(H)[0].diagonal()), H, other)]
    wanted = [[error_share(W, W_hat, M) for M in (H, other)] for W_hat in rounded]
    assert np.allclose(pair.errors(2), wanted, rtol=2e-3)


def test_the_sentence_and_the_pictures_hold_the_numbers(pair):
    found = pair.groups(0.05)
    for text in (f"difference has {percent(pair.distance)}", f"{len(found['both'])} are picked by both",
                 f"{len(found['first'])} only by input", f"{len(found['second'])} only by tokens"):
        assert text in pair.alt
    assert pair.alt.startswith("Hessian explorer, test layer: 64 inputs. Two metrics") and pair.alt.endswith(".")
    for H in metrics():
        eig = torch.linalg.eigvalsh(condition(H.double())[0])
        assert f"condition number {digits(float(eig[-1] / eig[0]))}" in pair.alt
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', pair.fallback)
    assert len(images) == 5
    for alt, code in images:
        assert re.search(r"\d", alt) and len(base64.b64decode(code)) <= 40_000
    H, other = metrics()
    again = live.hessian_explorer(H, weights(), name="test layer", group=16, other=other, labels=("input", "tokens"))
    assert again.fallback == pair.fallback
    data, _ = pair._repr_mimebundle_()
    assert data["text/plain"] == pair.alt and data["text/html"] == pair.fallback


def test_pictures_of_many_noisy_columns_are_small():
    X, Y = (torch.randn(300, 256, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    noisy = live.hessian_explorer(X.T @ X / 300, other=Y.T @ Y / 300)
    assert all(len(base64.b64decode(code)) <= 40_000 for code in re.findall(r'base64,([^"]+)"', noisy.fallback))


def test_columns_above_256_are_thinned_out_alike():
    H, other = metrics(300)
    thin = live.hessian_explorer(H, other=other)
    keep = torch.linspace(0, 299, 256).round().long()
    assert thin.d == 256 and "256 of 300 inputs" in thin.about and thin.names[-1] == "input 299"
    assert np.allclose(np.frombuffer(thin.hessians, "<f4").reshape(2, 256, 256)[1], scaled(other[keep][:, keep]))


def test_without_other_nothing_changes():
    H, other = metrics()
    one = live.hessian_explorer(H, weights(), group=16)
    assert isinstance(one, live.HessianExplorer) and one.metric_names == ["input"]
    assert np.array_equal(np.frombuffer(one.hessians, "<f4").reshape(64, 64), (H + H.T) / 2)
    assert isinstance(live.hessian_explorer({"input": H, "loss": other}), live.HessianExplorer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": torch.eye(63)}, "same 64 columns"),
        ({"other": torch.full((64, 64), float("nan"))}, r"H \(loss\) must be square and finite"),
        ({"other": torch.ones(64, 64).triu()}, r"H \(loss\) must be symmetric"),
        ({"other": torch.zeros(64, 64)}, "mean of the diagonal is 0"),
        ({"labels": ("loss", "loss")}, "two different labels"),
        ({"H": {"a": torch.eye(64)}}, "one matrix as H"),
        ({"W": torch.ones(2, 5)}, "same 64 columns"),
    ],
)
def test_bad_input_is_named(change, message):
    H, other = metrics()
    with pytest.raises(ValueError, match=message):
        live.hessian_explorer(**({"H": H, "other": other} | change))
