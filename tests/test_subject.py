"""The bundled model is the one its card describes; loading says clearly what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit_nb import subject as room
from lowbit_nb.subject import BUNDLED, load
from tests import tiny
from tests.layers import ROOT

CARD = json.loads((BUNDLED / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundled():
    return load(device="cpu")


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    return folder


@pytest.mark.parametrize("file", sorted(CARD["sha256"]))
def test_shipped_files_match_the_card(file):
    assert hashlib.sha256((BUNDLED / file).read_bytes()).hexdigest() == CARD["sha256"][file]
    assert CARD["sha256"][file] in (BUNDLED / "README.md").read_text(encoding="utf-8")


def test_bundled_model_is_what_the_card_says(bundled):
    assert bundled.n_parameters == CARD["parameters"] == 7_344_384
    assert bundled.source == "bundled" and bundled.device.type == "cpu" and not bundled.model.training
    assert {p.dtype for p in bundled.model.parameters()} == {torch.float32}
    assert "7,344,384" in repr(bundled)


def test_tokenizer_round_trip(bundled):
    text = "def f(x):\n    return {'a': x + 10}  # ünï\n\n\n"
    ids = bundled.tokenizer(text)["input_ids"]
    assert bundled.tokenizer.decode(ids) == text and bundled.tokenizer.eos_token_id == 0


def test_generation_is_silent_and_greedy(bundled, recwarn, capfd):
    ids = torch.tensor([bundled.tokenizer("import ")["input_ids"]])
    out = [bundled.model.generate(ids, max_new_tokens=4) for _ in range(2)]
    assert torch.equal(*out) and not recwarn.list and capfd.readouterr().err == ""


def test_folder_gives_the_same_fingerprint_and_one_weight_changes_it(bundled, copy):
    again = load(copy, device="cpu")
    assert again.source == "folder" and again.name == "model"
    assert again.fingerprint() == bundled.fingerprint()
    with torch.no_grad():
        again.model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert again.fingerprint() != bundled.fingerprint()
    assert load(copy, dtype=torch.bfloat16, device="cpu").fingerprint() != bundled.fingerprint()


def test_bundled_model_that_was_edited(copy, monkeypatch):
    monkeypatch.setattr(room, "BUNDLED", copy)
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("1e-06", "1e-05"))
    with pytest.raises(ValueError, match="does not match its card.*git checkout"):
        load()
    (copy / "card.json").unlink()
    with pytest.raises(FileNotFoundError, match="bundled model is looked for in"):
        load()


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_non_finite_weight_is_named(copy):
    edit(copy, lambda t: t["model.layers.3.mlp.down_proj.weight"][0, :2].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"model\.layers\.3\.mlp\.down_proj\.weight holds 2 of 196608"):
        load(copy, device="cpu")


def test_missing_tensor_is_an_error_and_not_random_numbers(copy):
    edit(copy, lambda t: t.pop("model.layers.7.self_attn.q_proj.weight"))
    with pytest.raises(ValueError, match=r"1 tensors are missing.*layers\.7\.self_attn\.q_proj"):
        load(copy, device="cpu")


def test_truncated_file(copy):
    raw = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load(copy, device="cpu")


@pytest.mark.parametrize("kind", ["qwen3", "opt"])  # transformers would give these an empty tokenizer
@pytest.mark.parametrize("blockwise", [False, True])
def test_a_folder_without_a_tokenizer(tmp_path, kind, blockwise):
    tiny.model(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer in .*vocab\.json.*beside the weights"):
        load(tmp_path, blockwise=blockwise)


def test_folder_without_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no config\.json.*notes\.txt"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["nobody-here/no-such-model", "./no/such/folder"])
def test_a_name_that_nothing_answers_to(name):
    with pytest.raises(FileNotFoundError, match="no such folder.*load()") as error:
        load(name)
    assert name in str(error.value)


def test_training_script_runs_end_to_end(tmp_path):
    tiny = "--device cpu --steps 3 --files 20 --batch 2 --length 64 --held 4 --width 64 --blocks 2 --ffn 64"
    command = [sys.executable, str(BUNDLED / "train.py"), "--out", str(tmp_path), *tiny.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["steps"] == 3 and card["sha256"]["tokenizer.json"] == CARD["sha256"]["tokenizer.json"]
    assert "step 3, 100%" in (tmp_path / "log.txt").read_text()
    assert load(tmp_path, device="cpu").n_parameters == card["parameters"]
