"""Stopped anywhere, killed for real, started again: identical integers, no block twice, no foreign block."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lowbit_nb as lb
from lowbit_nb.methods import GPTQ, RTN
from lowbit_nb.quantize import quantize
from lowbit_nb.record import Quantized
from tests import tiny
from tests.layers import ROOT
from tests.walks import BLOCKS, METHOD, equal, walk, whole


@pytest.fixture(scope="module")
def once() -> Quantized:
    return whole()


@pytest.fixture
def blocks_done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that a method was given, in order."""
    done: list[int] = []
    for kind in (GPTQ, RTN):
        original = kind.quantize_block

        def counted(self, block, streams, original=original):
            done.append(block.index)
            return original(self, block, streams)

        monkeypatch.setattr(kind, "quantize_block", counted)
    return done


def test_a_work_folder_changes_nothing_and_is_read_back_without_work(once, tmp_path, blocks_done):
    first = walk(tmp_path)
    assert equal(first, once) and blocks_done == list(range(BLOCKS))
    again = walk(tmp_path)
    assert (
        equal(again, once)
        and blocks_done == list(range(BLOCKS))
        and again.trace == first.trace
        and again.settings == first.settings
    )


@pytest.mark.parametrize(
    "method",
    [
        METHOD,
        GPTQ(lb.Grid(2, 16), order="act"),
        GPTQ(lb.Grid(2, 16, zero_inside=False)),
        GPTQ(lb.Grid(4, 8, symmetric=True), groups="static"),
    ],
)
@pytest.mark.parametrize("k", [0, 1, BLOCKS - 1])
def test_stopped_after_k_blocks_it_goes_on_to_identical_integers(tmp_path, blocks_done, k, method):
    whole = walk(tmp_path, method)
    for path in sorted(tmp_path.glob("block_*"))[k:]:
        path.unlink()
    blocks_done.clear()
    assert equal(walk(tmp_path, method), whole) and blocks_done == list(range(k, BLOCKS))


def run_and_die(workdir: str, block: int, where: str) -> None:
    """In a process of its own: the walk, killed in the middle of a block's work, or half-way through writing it."""
    if where == "work":
        original = GPTQ.quantize_layer

        def deadly(self, W, H):
            if len(list(Path(workdir).glob("block_*.safetensors"))) == block:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, W, H)

        GPTQ.quantize_layer = deadly
    else:
        real = os.fsync

        def torn(descriptor):
            if len(list(Path(workdir).glob("block_*.safetensors"))) == block:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        os.fsync = torn
    torch.set_num_threads(1)
    walk(Path(workdir))


@pytest.mark.parametrize("where", ["work", "write"])
def test_killed_for_real_and_started_again_it_ends_with_identical_integers(once, tmp_path, blocks_done, where):
    block = random.SystemRandom().randrange(1, BLOCKS)  # any block must do; it is named when one does not
    call = f"from tests.test_resume import run_and_die; run_and_die({str(tmp_path)!r}, {block}, {where!r})"
    ended = subprocess.run(
        [sys.executable, "-c", call],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    finished = sorted(p.name for p in tmp_path.glob("block_*.safetensors"))
    assert len(finished) == block and (where == "work" or len(list(tmp_path.glob("*.part"))) == 1)
    assert equal(walk(tmp_path), once), f"killed at block {block}"
    assert blocks_done == list(range(block, BLOCKS)), f"killed at block {block}"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.gpu
@pytest.mark.parametrize("method", [METHOD, RTN(lb.Grid(3, 16))])
def test_on_a_gpu_it_also_goes_on(tmp_path, method):
    """What was read back from disk joins the model wherever the model is."""
    on_gpu = lb.Subject(tiny.model("llama", num_hidden_layers=BLOCKS).cuda(), None, "tiny llama")
    whole = quantize(on_gpu, method, tiny.windows(), tmp_path, progress=False)
    for path in sorted(tmp_path.glob("block_*"))[3:]:
        path.unlink()
    again = quantize(on_gpu, method, tiny.windows(), tmp_path, progress=False)
    assert all(torch.equal(again.weights[k].dequantize().cpu(), w.dequantize().cpu()) for k, w in whole.weights.items())
    assert again.apply(on_gpu).device == whole.apply(on_gpu).device == on_gpu.device


@pytest.mark.parametrize("name", ["block_000.safetensors.part", "block_003.safetensors.part"])
def test_half_written_files_are_ignored(once, tmp_path, name):
    tmp_path.joinpath(name).write_bytes(b"half of some")
    assert equal(walk(tmp_path), once)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"method": GPTQ(lb.Grid(2, 16))}, "settings"),
        ({"method": GPTQ(lb.Grid(3, 16), damp=0.1)}, "settings"),
        ({"method": RTN(lb.Grid(3, 16))}, "method"),
        ({"seed": 1}, "fingerprint"),
        ({"windows": tiny.windows(seed=3)}, "windows"),
    ],
)
def test_the_work_folder_of_another_run_is_refused_and_left_alone(tmp_path, changes, key):
    walk(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"holds another run: .*{key}.* differ .*folder of its own, or delete that one"):
        walk(tmp_path, **changes)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_one_foreign_block_is_not_taken_over(tmp_path):
    """Whatever else is in the folder: a block of another run must not become part of this one."""
    walk(tmp_path, GPTQ(lb.Grid(2, 16)))
    for path in tmp_path.iterdir():
        if path.name != "block_003.safetensors":
            path.unlink()
    with pytest.raises(ValueError, match="holds another run"):
        walk(tmp_path)


def test_a_damaged_block_is_refused_with_its_name(tmp_path):
    walk(tmp_path)
    path = tmp_path / "block_002.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"block_002\.safetensors.*delete it and make it again"):
        walk(tmp_path)


def test_a_method_that_fails_leaves_the_finished_blocks(once, tmp_path, monkeypatch):
    original = GPTQ.quantize_block

    def failing(self, block, streams):
        if block.index == 2:
            raise KeyboardInterrupt
        return original(self, block, streams)

    monkeypatch.setattr(GPTQ, "quantize_block", failing)
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "block_000.safetensors",
        "block_001.safetensors",
    ]
    assert equal(walk(tmp_path), once)


def test_a_refused_run_does_not_keep_the_folder_for_itself(tmp_path, once):
    """The first try fails on its settings; the corrected call must not be 'another run'."""
    with pytest.raises(ValueError):
        walk(tmp_path, GPTQ(lb.Grid(3, 24)))
    assert equal(walk(tmp_path), once)
