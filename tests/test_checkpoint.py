"""Saved models: the same model when read back, refused when damaged, never lost to a save that fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lowbit_nb as lb
from lowbit_nb import checkpoint
from lowbit_nb.methods import GPTQ, RTN
from lowbit_nb.record import Quantized
from lowbit_nb.stored import AffineWeight
from tests import tiny
from tests.walks import equal, subject, walk, whole


@pytest.fixture(scope="module")
def once() -> Quantized:
    return whole()


@pytest.mark.parametrize(
    "grid, order",
    [
        (lb.Grid(3, 16), "gar"),
        (lb.Grid(2, 8), "act"),
        (lb.Grid(1), "natural"),
        (lb.Grid(4, 16, symmetric=True), "act"),
        (lb.Grid(5, 16, zero_inside=False), "gar"),
    ],
)
def test_a_saved_model_is_the_same_model(tmp_path, grid, order):
    found = walk(method=GPTQ(grid, order=order))
    path = lb.save_quantized(found, tmp_path / "new" / "folder")
    back = lb.load_quantized(tmp_path / "new" / "folder")
    assert equal(back, found) and back.settings == found.settings and back.trace == found.trace
    assert all(a.grid == b.grid for a, b in zip(back.weights.values(), found.weights.values(), strict=True))
    ids = tiny.windows().ids
    assert torch.equal(back.apply(subject()).model(ids).logits, found.apply(subject()).model(ids).logits)
    with safe_open(path, framework="pt") as file:
        stored = sum(file.get_tensor(k).numel() * file.get_tensor(k).element_size() for k in file.keys())
    assert stored == found.bits().bytes and [p.name for p in path.parent.iterdir()] == [path.name]


class Full(OSError):
    """No space left on device."""


def test_an_earlier_result_survives_a_save_that_fails(once, tmp_path, monkeypatch):
    lb.save_quantized(once, tmp_path)
    other = walk(method=RTN(lb.Grid(2, 16)))
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, _no_space)
            with pytest.raises(Full):
                lb.save_quantized(other, tmp_path)
        assert equal(lb.load_quantized(tmp_path), once)
        assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE], f"{broken}: something half-written is left"
    lb.save_quantized(other, tmp_path)
    assert equal(lb.load_quantized(tmp_path), other)


def _no_space(*_: object) -> None:
    raise Full(28, "No space left on device")


@pytest.fixture
def saved(once, tmp_path) -> Path:
    return lb.save_quantized(once, tmp_path)


def damaged(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        lb.load_quantized(path.parent)
    assert path.name in str(caught.value) and "and make it again" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 500, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    damaged(saved, "truncated")


def test_any_changed_byte_is_noticed(saved):
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [header, header + 1, (header + len(data)) // 2, len(data) - 1]:
        saved.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        damaged(saved, "edited")


def edit(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Rewrite the file with changed tensors or notes, as an honest-looking safetensors file."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        notes = json.loads(header["lowbit_nb"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(tensors, notes)
    text = header["lowbit_nb"] if notes == json.loads(header["lowbit_nb"]) else json.dumps(notes)
    save_file(tensors, path, metadata=header | {"lowbit_nb": text})


LAYER = "model.layers.3.mlp.up_proj"  # not the layer whose dequantized values are hashed


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, notes: notes["settings"]["settings"]["grid"].update(bits=4),
        lambda tensors, notes: notes["settings"].update(method="RTN"),
        lambda tensors, notes: notes["trace"][0].update(seconds=0.0),
        lambda tensors, notes: notes["layers"][LAYER]["grid"].update(symmetric=True),
        lambda tensors, notes: notes["layers"][LAYER]["grid"].update(scale_dtype="bfloat16"),
        lambda tensors, notes: notes["layers"][LAYER]["grid"].update(depth=1),
        lambda tensors, notes: notes["layers"].pop(LAYER),
        lambda tensors, notes: notes["layers"][LAYER].pop("d_in"),
        lambda tensors, notes: notes.pop("dequantized_sha256"),
        lambda tensors, notes: notes.pop("settings"),
        lambda tensors, notes: tensors.pop(f"{LAYER}/scales"),
        lambda tensors, notes: tensors.update({f"{LAYER}/scales": tensors[f"{LAYER}/scales"] * 2}),
        lambda tensors, notes: tensors.update({f"{LAYER}/scales": tensors[f"{LAYER}/scales"].view(torch.bfloat16)}),
        lambda tensors, notes: tensors.update({f"{LAYER}/codes": tensors[f"{LAYER}/codes"].reshape(1, -1)}),
        lambda tensors, notes: tensors.update({f"{LAYER}/perm": torch.arange(32, dtype=torch.int16)}),
        lambda tensors, notes: notes.update(format="lowbit-nb 9"),
    ],
    ids=range(16),
)
def test_an_edited_file_is_refused(saved, change):
    edit(saved, change)
    damaged(saved, "make it again")


def test_a_file_that_decodes_to_other_weights_is_refused(saved, monkeypatch):
    """The hash of one dequantized layer a block catches a reader that errs, with every byte in place."""
    original = AffineWeight.dequantize
    monkeypatch.setattr(AffineWeight, "dequantize", lambda self, dtype=torch.float32: original(self, dtype).flip(1))
    damaged(saved, "decodes to another weight")


def test_other_files_and_no_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="save one with"):
        lb.load_quantized(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / checkpoint.FILE)
    damaged(tmp_path / checkpoint.FILE, "not written by this kit")
    (tmp_path / checkpoint.FILE).write_bytes(b"PK\x03\x04 a pickle perhaps" * 50)
    damaged(tmp_path / checkpoint.FILE, "truncated or not a safetensors file")
