"""Windows: no held-out text in calibration, the same every time, the published protocols, clear errors."""

from __future__ import annotations

import gzip
import hashlib
import json
import random

import datasets
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from lowbit_nb import corpus, text
from lowbit_nb.corpus import HeldOut

RUN = 64  # tokens in a row


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(text.DATA / "subject")


@pytest.fixture(scope="module")
def all_held_out(tokenizer):
    return text.evaluation(tokenizer, n=None)


def runs(ids):
    return {tuple(row[i : i + RUN]) for row in ids.tolist() for i in range(len(row) - RUN + 1)}


# No leak

@pytest.mark.parametrize("seed, n", [(0, 64), (1, 64), (2, 64), (3, 512)])
def test_no_held_out_text_in_calibration(tokenizer, all_held_out, seed, n):
    drawn = text.calibration(tokenizer, n=n, seed=seed)
    assert drawn.ids.shape == (n, 256) and not set(drawn.files) & set(corpus.held_out_names())
    assert set(all_held_out.files) <= set(corpus.held_out_names())
    assert not runs(drawn.ids) & runs(all_held_out.ids)


def test_every_module_that_calibration_may_use_is_far_from_held_out_ones():
    names = [name for name, _ in corpus.calibration_modules()]
    assert len(names) > 100 and not set(names) & set(corpus.held_out_names())
    assert not any(part in corpus.SKIP for name in names for part in name.split("/"))


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A held-out module, another one, and one whose every other line is a held-out one."""
    lines = [f"held_out_value_{i:04d} = {i:08d}  # note {i}" for i in range(300)]
    own = [f"another_value_{i:04d} = {i:09d} + {i}  # remark" for i in range(300)]
    new = [f"something_else_{i:04d}[{i:05d}] = {i} * {i}  # word" for i in range(300)]
    for name, content in {"bisect": lines, "honest": new,
                          "copied": [line for pair in zip(lines, own, strict=True) for line in pair]}.items():
        (tmp_path / f"{name}.py").write_text("\n".join(content))
    monkeypatch.setattr(corpus, "library", lambda: tmp_path)
    return tmp_path


def test_near_copies_are_kept_out_by_their_rule_alone(small_library, tokenizer, monkeypatch):
    assert text.calibration(tokenizer, n=20, length=64).files == ("honest.py",)
    monkeypatch.setattr(HeldOut, "is_near_copy", lambda self, content: False)  # the mutant
    assert "copied.py" in text.calibration(tokenizer, n=20, length=64).files


def test_shared_runs_are_kept_out_by_their_rule_alone(small_library, tokenizer, monkeypatch):
    held = (small_library / "bisect.py").read_text().splitlines()
    new = [f"yet_another_{i:05d} = [{i}, {i}, {i}]  # comment" for i in range(300)]
    (small_library / "honest.py").write_text("\n".join(new[:150] + held[:20] + new[150:]))  # only 6 %
    seen = runs(text.evaluation(tokenizer, n=None, length=64).ids)
    ids = torch.tensor([tokenizer("\n".join(held[:20]) + "\n")["input_ids"]])
    held_runs = runs(ids)
    assert not runs(text.calibration(tokenizer, n=40, length=64).ids) & (held_runs | seen)
    monkeypatch.setattr(HeldOut, "shares_run", lambda self, content: False)  # the mutant
    assert runs(text.calibration(tokenizer, n=40, length=128).ids) & held_runs


@pytest.mark.parametrize("copied, expected", [(2, False), (3, True), (20, True)])
def test_near_copy_is_fifteen_percent_of_long_lines(copied, expected):
    lines = [f"a line of some length, number {i}" for i in range(20)]
    held = HeldOut((), (), frozenset(lines[:copied]), torch.zeros(1).long())
    assert held.is_near_copy("\n".join("    " + line + "\nx = 1" for line in lines)) is expected


def test_shared_run_is_exactly_sixty_four_bytes(small_library):
    held = HeldOut.read(small_library)
    piece = held.texts[0][100:]
    assert held.shares_run("@" + piece[:64] + "@") and not held.shares_run("@" + piece[:63] + "@")
    assert not held.shares_run("") and not held.shares_run("short")


def test_parts_of_other_sources_do_not_meet(tokenizer, tmp_path):
    file = tmp_path / "prose.txt"
    file.write_text("\n".join(f"line {i} has the number {i * i} in it" for i in range(4000)))
    for source, n in ((file, 20), ("selfgenerated", 64)):
        a = text.calibration(tokenizer, n=n, source=source)
        b = text.evaluation(tokenizer, n=None, source=source)
        assert not runs(a.ids) & runs(b.ids), source


# The same every time

def test_windows_repeat_and_seeds_differ(tokenizer):
    first, again, other = (text.calibration(tokenizer, n=8, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.ids, again.ids) and first.sha256 == again.sha256 != other.sha256
    assert first.protocol == again.protocol and "seed 0" in first.protocol and "corpus" in first.protocol
    state = torch.random.get_rng_state()
    text.calibration(tokenizer, n=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_evaluation_is_evenly_spread_and_nested(tokenizer, all_held_out):
    some, more = text.evaluation(tokenizer, n=8), text.evaluation(tokenizer, n=16)
    assert torch.equal(some.ids, more.ids[::2]) and "8 of" in some.protocol
    assert torch.equal(some.ids[4], all_held_out.ids[len(all_held_out) // 2])
    assert all_held_out.ids[0, 0] == tokenizer.eos_token_id


def test_slices_and_moves_keep_the_record(tokenizer):
    w = text.evaluation(tokenizer, n=8)
    assert len(w[:3]) == 3 and len(w[-1]) == 1 and torch.equal(w[-1].ids[0], w.ids[7])
    assert w[:3].sha256 != w.sha256 and w.to("cpu").sha256 == w.sha256 and w.protocol in w[:3].protocol
    with pytest.raises(IndexError, match="there are 8"):
        w[8]
    with pytest.raises(ValueError, match=r"int64 ids \[n, length\]"):
        text.Windows(torch.zeros(3), "x")


# Data sets, from local files through the real loading code

@pytest.fixture
def local_sets(tmp_path, monkeypatch):
    pick = random.Random(5)
    words = [f"word{i}" for i in range(200)]
    for part in list(text.DATASETS):
        path = tmp_path / f"{part.replace(' ', '_')}.json.gz"
        rows = [" ".join(pick.choices(words, k=pick.choice((3, 150, 400)))) for _ in range(60)]
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps({"text": row}) + "\n" for row in rows)
        options = {"data_files": {"train": str(path)}, "split": "train", "cache_dir": str(tmp_path / "cache")}
        monkeypatch.setitem(text.DATASETS, part, ("json", options))
    datasets.disable_progress_bars()


def texts_of(part):
    name, options = text.DATASETS[part]
    return list(datasets.load_dataset(name, **options)["text"])


def test_wikitext_protocol(tokenizer, local_sets):
    test = tokenizer("\n\n".join(texts_of("wikitext2 test")), verbose=False)["input_ids"]
    w = text.evaluation(tokenizer, n=None, length=128, source="wikitext2")
    assert w.ids.flatten().tolist() == test[: len(test) // 128 * 128]
    train = tokenizer("\n\n".join(texts_of("wikitext2 train")), verbose=False)["input_ids"]
    pick, w = random.Random(2), text.calibration(tokenizer, n=5, length=128, source="wikitext2", seed=2)
    for row in w.ids.tolist():
        start = pick.randint(0, len(train) - 129)
        assert row == train[start : start + 128]


def test_c4_protocols(tokenizer, local_sets):
    w = text.calibration(tokenizer, n=4, length=300, source="c4", seed=0)
    documents, pick = [tokenizer(t)["input_ids"] for t in texts_of("c4 train")], random.Random(0)
    for row in w.ids.tolist():
        document = documents[pick.randint(0, 59)]
        while len(document) <= 300:
            document = documents[pick.randint(0, 59)]
        start = pick.randint(0, len(document) - 301)
        assert row == document[start : start + 300]
    assert text.evaluation(tokenizer, n=4, length=300, source="c4").files == ("c4 validation",)
    joined = tokenizer(" ".join(texts_of("c4 validation")), verbose=False)["input_ids"]
    new = text.evaluation(tokenizer, n=None, length=64, source="c4-new")
    assert new.ids.flatten().tolist() == joined[: min(256, len(joined) // 64) * 64]
    with pytest.raises(ValueError, match="longer than 100000"):
        text.calibration(tokenizer, n=1, length=100000, source="c4")


@pytest.mark.parametrize("source", ["wikitext2", "c4"])
def test_data_set_that_cannot_be_had(tokenizer, source):
    with pytest.raises(FileNotFoundError, match="neither in the cache .* nor could it be had.*source="):
        text.evaluation(tokenizer, source=source)


# Self-generated text

def test_selfgenerated_belongs_to_the_shipped_model():
    with safe_open(text.DATA / "text" / "selfgenerated.safetensors", "pt") as file:
        ids, made = file.get_tensor("ids"), file.metadata()
    weights = (text.DATA / "subject" / "model.safetensors").read_bytes()
    assert made["model_sha256"] == hashlib.sha256(weights).hexdigest() and made["temperature"] == "1.0"
    assert ids.shape == (192, 256) and (ids[:, 0] == 0).all() and 0 <= ids.min() and ids.max() < 4096


def test_selfgenerated_limits(tokenizer):
    assert text.evaluation(tokenizer, n=None, source="selfgenerated").ids.shape == (128, 256)
    assert text.evaluation(tokenizer, n=2, length=32, source="selfgenerated").ids.shape == (2, 32)
    with pytest.raises(ValueError, match="n <= 64 and length <= 256"):
        text.calibration(tokenizer, n=65, source="selfgenerated")

    class Other:
        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(ValueError, match=r"another vocabulary \(1 tokens, not 4096\)"):
        text.evaluation(Other(), source="selfgenerated")


# Errors

def test_text_files_that_are_empty_or_too_short(tokenizer, tmp_path):
    file = tmp_path / "short.txt"
    for content, counts in (("", "0 tokens make 0 windows"), ("x = 1\n" * 500, "use n <= ")):
        file.write_text(content)
        with pytest.raises(ValueError, match=counts):
            text.calibration(tokenizer, n=64, length=128, source=file)
        with pytest.raises(ValueError, match="64 asked for; use"):
            text.evaluation(tokenizer, n=64, length=128, source=file)


def test_unknown_source_and_bad_counts(tokenizer):
    with pytest.raises(ValueError, match="'wiki'.*stdlib, wikitext2, c4, c4-new, selfgenerated, or the path"):
        text.calibration(tokenizer, source="wiki")
    for n, length in ((0, 256), (4, 1)):
        with pytest.raises(ValueError, match="at least"):
            text.evaluation(tokenizer, n=n, length=length)
    with pytest.raises(ValueError, match="non-overlapping|use n <= "):
        text.evaluation(tokenizer, n=10**6)
