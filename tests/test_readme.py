"""The README's lines for a model of one's own work as they stand, on a folder that the kit has never seen."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
import transformers

import lowbit_nb as lb
from tests.layers import ROOT


def snippet() -> str:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own model")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def unfamiliar(folder: Path) -> None:
    """A random Qwen3 of two blocks, saved by transformers alone, with a tokenizer and a text beside it."""
    tokenizer = lb.load().tokenizer
    torch.manual_seed(0)  # transformers draws from the global generator
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "my.txt").write_text(Path(argparse.__file__).read_text(encoding="utf-8"), encoding="utf-8")


def test_a_model_of_one_s_own_in_under_ten_lines(tmp_path, monkeypatch, capsys):
    unfamiliar(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = snippet()
    assert sum(bool(line.strip()) for line in code.splitlines()) < 10
    names: dict[str, object] = {}
    exec(code.replace("path/to/folder", "model"), names)
    assert re.search(r"Score\(perplexity=\d", capsys.readouterr().out)
    again = lb.load_quantized("runs/mine_3bit")
    assert again.bits().bytes == names["quantized"].bits().bytes
    ids = names["text"].ids[:2, :32]
    for subject in (again.apply(names["subject"]), lb.pack_model(again, names["subject"])):
        torch.testing.assert_close(subject.model(ids).logits, names["quantized"].apply(names["subject"]).model(ids).logits,
                                   atol=1e-4, rtol=0)
