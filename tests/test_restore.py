"""Restorative adaptation: what it may change, what it must not, and that it helps."""

from __future__ import annotations

import pytest
import torch

from lowbit_nb.evaluate import compare, perplexity
from lowbit_nb.grid import Grid
from lowbit_nb.methods import RTN
from lowbit_nb.onebit.restore import Restoration, restore, speed
from lowbit_nb.quantize import quantize
from tests import tiny

SETTINGS = Restoration(steps=30, batch=4, rank=4, rate=1e-2, dropout=0.0)


def test_the_pace():
    pace = [speed(k, 100, 0.1) for k in range(100)]
    assert pace[0] == pytest.approx(0.1) and pace[9] == pace[10] == 1 and 0 < pace[-1] < 0.001
    assert pace[:10] == sorted(pace[:10]) and pace[10:] == sorted(pace[10:], reverse=True)
    assert speed(0, 5, 0.0) == 1 and speed(4, 5, 1.0) == 1


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rank": 0}, {"rate": 0.0}, {"warmup": 2.0}, {"dropout": 1.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must be at least 1"):
        Restoration(**settings)


def test_only_low_rank_updates_of_the_named_layers():
    subject, windows = tiny.subject(), tiny.windows()
    before = tiny.state(subject.model)
    moved = restore(subject, windows, SETTINGS)
    assert tiny.unchanged(subject.model, before)
    assert type(moved.model) is type(subject.model) and not any(p.requires_grad for p in moved.model.parameters())
    after = tiny.state(moved.model)
    assert after.keys() == before.keys()
    for name, t in after.items():
        adapted = "proj" in name and "o_proj" not in name
        delta = (t - before[name]).double()
        assert bool(delta.any()) == adapted, name
        if adapted:
            assert int((torch.linalg.svdvals(delta) > 1e-5).sum()) <= SETTINGS.rank
    again = restore(subject, windows, SETTINGS)
    assert all(torch.equal(t, after[name]) for name, t in tiny.state(again.model).items())


def test_a_quantized_model_recovers_and_can_be_quantized_again():
    subject, windows = tiny.subject(), tiny.windows(12)
    method = RTN(Grid(2, 16))
    first = quantize(subject, method, progress=False).apply(subject)
    moved = restore(first, windows, SETTINGS)
    assert perplexity(moved, windows) < 0.9 * perplexity(first, windows)
    second = quantize(moved, method, progress=False)
    assert second.apply(moved).n_parameters == subject.n_parameters
    taught = restore(first, windows, SETTINGS, teacher=subject)
    assert compare(subject, taught, windows).kl < 0.9 * compare(subject, first, windows).kl


def test_nothing_left_to_adapt_is_refused():
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    with pytest.raises(ValueError, match="left to adapt without"):
        restore(tiny.subject(), tiny.windows(), Restoration(steps=1, without=names))
