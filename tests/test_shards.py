"""A result in one file a block: verified, replaced as a whole, and never mixed with another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lowbit_nb as lb
from lowbit_nb.checkpoint import FILE, Shards
from lowbit_nb.checkpoint.shards import INDEX
from lowbit_nb.quantize import quantize
from lowbit_nb.record import Quantized
from tests import tiny
from tests.walks import equal

METHOD = lb.SmoothQuant(lb.Grid(3, 16))  # edits norms


def sharded(workdir: Path, method: object = METHOD) -> Quantized:
    """The record of an ordinary run, with its weights left in the work folder."""
    made, shards = quantize(tiny.subject(), method, tiny.windows(2, 16), workdir, progress=False), Shards()
    for i in range(tiny.BLOCKS):
        block = f"model.layers.{i}"
        names = [name.removeprefix(f"{block}.") for name in made.weights if name.startswith(f"{block}.")]
        shards.put(block, workdir / f"block_{i:03d}.safetensors", names)
    assert list(shards) == list(made.weights) and len(shards) == len(made.weights)
    return Quantized(shards, made.settings, made.trace, made.params)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    return sharded(tmp_path_factory.mktemp("work"))


@pytest.fixture
def saved(made, tmp_path) -> Path:
    lb.save_quantized(made, tmp_path)
    return tmp_path


def test_it_comes_back_as_it_was(made, saved):
    back = lb.load_quantized(saved)
    assert equal(back, made) and back.settings == json.loads(json.dumps(made.settings)) and back.trace == made.trace
    assert back.params.keys() == made.params.keys() != set()
    assert all(torch.equal(back.params[name], t) for name, t in made.params.items())
    assert back.bits() == made.bits() == Quantized(dict(made.weights), {}, [], made.params).bits()
    assert len(list(saved.iterdir())) == tiny.BLOCKS + 2


def test_one_block_is_held_at_a_time(made):
    first, *_, last = made.weights
    held = made.weights[first]
    assert made.weights[first] is held
    made.weights[last]
    assert made.weights[first] is not held


def test_a_setting_added_afterwards_is_kept(made, tmp_path):
    lb.save_quantized(made.with_activations(lb.Activations(4)), tmp_path)
    assert lb.load_quantized(tmp_path).activations == lb.Activations(4)


def test_a_later_result_takes_the_place_of_an_earlier_one(made, saved, tmp_path_factory):
    foreign = saved / "model-00001-of-00002.safetensors"
    foreign.write_bytes(b"somebody else's")
    other = sharded(tmp_path_factory.mktemp("other"), lb.RTN(lb.Grid(2, 16)))
    lb.save_quantized(other, saved)
    assert equal(lb.load_quantized(saved), other) and foreign.exists()
    assert len(list(saved.glob("block*"))) == tiny.BLOCKS
    whole = Quantized(dict(made.weights), made.settings, made.trace, made.params)
    lb.save_quantized(whole, saved)
    assert isinstance(lb.load_quantized(saved).weights, dict) and equal(lb.load_quantized(saved), made)
    lb.save_quantized(other, saved)
    assert equal(lb.load_quantized(saved), other) and not (saved / FILE).exists()


def test_an_earlier_result_survives_a_save_that_fails(made, saved, monkeypatch, tmp_path_factory):
    other = sharded(tmp_path_factory.mktemp("other"), lb.RTN(lb.Grid(2, 16)))
    next(iter(other.weights.files.values())).with_name("block_002.safetensors").unlink()
    with pytest.raises(ValueError, match="block_002.safetensors is gone.*keep the work folder"):
        lb.save_quantized(other, saved)
    assert equal(lb.load_quantized(saved), made)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()  # it may be linked to the work folder's
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("which", "damage", "said"),
    [
        ("block_001", flip, "edited"),
        ("params", flip, "edited"),
        ("block_001", Path.unlink, "is missing"),
        ("quantized.json", cut, "edited or cut off"),
    ],
)
def test_damage_is_refused_with_a_name(saved, which, damage, said):
    (path,) = saved.glob(f"{which}*")
    damage(path)
    with pytest.raises(ValueError, match=rf"{path.name}.*{said}"):
        lb.load_quantized(saved)


def test_files_of_two_results_are_not_mixed(saved, tmp_path_factory):
    (mine,) = saved.glob("block_001-*")
    theirs = next(iter(sharded(tmp_path_factory.mktemp("other"), lb.RTN(lb.Grid(2, 16))).weights.files.values()))
    mine.unlink()
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(ValueError, match="not the file that the index names"):
        lb.load_quantized(saved)
    (saved / INDEX).write_text(json.dumps({"notes": "{}", "sha256": "0"}))
    with pytest.raises(ValueError, match="edited or cut off"):
        lb.load_quantized(saved)
