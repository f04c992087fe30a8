"""The rounding player: what a layer tells, the numbers and pictures that are stored, and what is refused."""

from __future__ import annotations

import base64
import json
import re

import pytest
import torch

from lowbit_nb import live
from lowbit_nb.grid import Grid, fit
from lowbit_nb.live import roundings
from lowbit_nb.rounding import SoftRounding
from tests import players


def learnable(shape: tuple[int, int] = (8, 64), shrink: float = 0.7) -> SoftRounding:
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    s, z = fit(W, Grid(2, 32))
    return SoftRounding(W, s * shrink, z, Grid(2, 32))  # a shrunken ruler clips, so some weights cannot matter


@pytest.mark.parametrize("share", [0.7, 0.3, 0.05, 0.0])
def test_what_a_layer_tells_adds_up(share):
    soft = learnable()
    before = soft.nearest.clone()
    soft.harden(share)
    told = soft.tell()
    n = sum(told["histogram"]) + sum(told["hard"]) + told["dead"]
    assert n == 8 * 64 and told["dead"] == int(soft.dead.sum()) > 0
    assert sum(told["histogram"]) == round(told["soft"] * n) == round(share * n)
    assert len(told["strip"]) == len(told["state"]) == len(told["nearest"]) == 48
    for i in range(48):
        state = "d" if soft.dead.flatten()[i] else "h" if soft.hard.flatten()[i] else "s"
        assert told["state"][i] == state
        if state != "d":
            assert int(told["nearest"][i]) == int(before.flatten()[i] - soft.base.flatten()[i])
        if state == "h":
            assert told["strip"][i] in (0.0, 1.0)
    assert told["flips"] == 0.0  # nothing has moved yet


def test_flips_of_the_strip_are_those_of_the_layer():
    moved = learnable((1, 64))
    with torch.no_grad():
        moved.nu.add_(torch.randn(moved.nu.shape, generator=torch.Generator().manual_seed(5)))
    moved.harden(0.5)
    told = moved.tell()
    away = roundings.Moment(1, told, 0.0, 0.0).away
    theirs = (moved.codes() != moved.nearest).flatten()[:48].tolist()
    assert away == theirs and sum(away) > 0


def test_the_record_of_a_whole_block_is_small():
    text = json.dumps(players.trace(20)["rounds"])
    assert len(text) < 150_000


def test_moments_are_those_of_the_trace():
    trace = players.trace()
    player = live.rounding_player(trace)
    for layer in trace["rounds"][0]["layers"]:
        for r, one in enumerate(trace["rounds"], 1):
            now = roundings.moment(player.record, layer, r)
            assert (now.soft_loss, now.hard_loss) == (one["soft_loss"], one["hard_loss"])
            assert now.cost == one["hard_loss"] - one["soft_loss"]
            assert now.told["soft"] == pytest.approx(sum(now.told["histogram"]) / now.n_weights, abs=1e-6)


def test_a_decision_is_final():
    trace = players.trace()
    for layer in trace["rounds"][0]["layers"]:
        when = roundings.decided(trace, layer)
        for r, one in enumerate(trace["rounds"], 1):
            states = one["layers"][layer]["state"]
            for i, first in enumerate(when):
                wanted = "d" if first == 0 else "h" if first is not None and first <= r else "s"
                assert states[i] == wanted
        until = roundings.decided(trace, layer, 3)
        assert until == [w if w is not None and w <= 3 else None for w in when]


def test_fallback_has_four_small_pictures_with_numbers():
    player = live.rounding_player(players.trace(), "mlp.down_proj", name="block 2")
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', player.fallback)
    assert len(images) == 4
    for (alt, code), r in zip(images, (1, 3, 4, 6), strict=True):
        now = roundings.moment(player.record, "mlp.down_proj", r)
        assert alt.startswith(f"After round {r} of 6") and f"{now.told['hard'][0]} are hard below" in alt
        assert len(base64.b64decode(code)) <= 40_000


def test_the_sentence_names_block_layer_and_losses():
    trace = players.trace()
    alt = live.rounding_player(trace, "mlp.up_proj", name="block 2").alt
    assert "block 2: 7 linear layers, 6 rounds" in alt and "mlp.up_proj, 2048 weights" in alt
    for loss in (trace["start"], trace["end"], trace["rounds"][0]["hard_loss"], trace["rounds"][-1]["soft_loss"]):
        assert roundings.show.digits(loss) in alt
    assert live.rounding_player(trace).about.startswith("block 0")  # the trace's own number, if no name is given


def test_one_round_is_enough():
    player = live.rounding_player(players.trace(1))
    assert player.fallback.count("<details") == 1 and "round 1 of 1" in player.alt


@pytest.mark.parametrize(
    ("change", "layer", "message"),
    [
        ({"rounds": []}, None, "no rounds of adaptive rounding"),
        ({"rounds": [{"soft_loss": 1.0, "hard_loss": 1.0, "layers": {"a": {"low": 1.0}}}]}, None, "TesseraQ"),
        ({"start": float("nan")}, None, "not finite"),
        ({}, "mlp.gone", "use one of self_attn.q_proj"),
    ],
)
def test_bad_traces_are_named(change, layer, message):
    with pytest.raises(ValueError, match=message):
        live.rounding_player(players.trace() | change, layer)
