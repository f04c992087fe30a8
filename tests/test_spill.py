"""Streams on disk: ordinary numbers in a file without a name, and the same integers."""

from __future__ import annotations

import errno
import os

import pytest
import torch

import lowbit_nb as lb
from lowbit_nb import spill
from lowbit_nb.blocks import catch
from lowbit_nb.reconstruct import Budget
from lowbit_nb.spill import Room, Spilled
from lowbit_nb.streams import Streams
from tests import tiny
from tests.walks import equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_it_holds_what_is_written_and_leaves_no_file(dtype, tmp_path, generator):
    numbers = torch.randint(-100, 100, (5, 3, 4), generator=generator).to(dtype)
    X = Room(disk=True, folder=tmp_path / "new").empty((5, 3, 4), dtype)
    for i in range(5):
        X[i] = numbers[i]
        spill.forget(X)
    assert X.shape == numbers.shape and X.dtype == dtype and len(X) == 5 and not list((tmp_path / "new").iterdir())
    assert torch.equal(X, numbers) and torch.equal(spill.at_home(X), numbers)
    assert torch.equal(X[torch.tensor([3, 1])], numbers[[3, 1]]) and torch.equal(X[1:4], numbers[1:4])


def test_what_is_taken_out_or_computed_is_an_ordinary_tensor():
    X = Room(disk=True).empty((4, 2), torch.float32)
    X.copy_(torch.arange(8.0).view(4, 2))
    for t in (X[0], X[1:], X + 1, torch.stack([X, X]), X.clone(), X.to(torch.float64), X.reshape(-1)):
        assert type(t) is torch.Tensor
    assert spill.home(X) == torch.device("cpu") == spill.home(X[0])


def test_what_lies_beside_a_spilled_stream_is_spilled_too(generator):
    numbers = torch.randn(5, 2, generator=generator)
    X = Room(disk=True).empty((5, 2), torch.float32)
    X.copy_(numbers)
    again = spill.copied(X)
    assert isinstance(again, Spilled) and isinstance(spill.like(X), Spilled) and not isinstance(spill.like(numbers), Spilled)
    X.zero_()
    assert torch.equal(again, numbers) and torch.equal(spill.copied(numbers), numbers)
    assert torch.equal(spill.copied(numbers, X), numbers) and torch.equal(X, numbers)
    spill.forget(numbers, X)  # ordinary tensors are left alone
    assert torch.equal(X, numbers)


def test_small_streams_stay_in_memory_and_large_ones_do_not(monkeypatch):
    monkeypatch.setattr(spill, "_memory", lambda: 800.0)
    for disk, numbers, mapped in [(None, 25, False), (None, 26, True), (True, 1, True), (False, 1000, False)]:
        X = Room(disk=disk).empty((numbers,), torch.float32)
        assert isinstance(X, Spilled) and (X.pages is not None) == mapped
        assert (spill.like(X).pages is not None) == mapped


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="where='attic' is unknown; use one of None, 'device', 'memory', 'disk'"):
        lb.quantize(tiny.subject(), lb.RTN(lb.Grid(3, 16)), progress=False, where="attic")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="only where a file's room can be taken at once")
def test_a_full_disk_is_an_error_before_anything_is_computed(monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        lb.quantize(tiny.subject(), lb.GPTQ(lb.Grid(3, 16)), tiny.windows(), progress=False, where="disk")


def test_a_block_runs_from_file_to_file():
    model, ids = tiny.model("llama"), tiny.windows(5).ids
    blocks, X = catch(model, ids, 2)
    _, on_disk = catch(model, ids, 2, Room(disk=True))
    assert isinstance(on_disk, Spilled) and torch.equal(on_disk, X)
    Y = blocks[0].run(on_disk)
    assert isinstance(Y, Spilled) and torch.equal(Y, blocks[0].run(X)) and torch.equal(on_disk, X)
    assert blocks[0].run(on_disk, out=on_disk) is on_disk and torch.equal(on_disk, Y)


@pytest.mark.parametrize("wanted", [("full",), ("quant",), ("full", "quant")])
def test_streams_stay_where_they_begin(wanted):
    blocks, X = catch(tiny.model("llama"), tiny.windows(5).ids, 2, Room(disk=True))
    streams = Streams.start(X, wanted)
    weights = {"mlp.up_proj": torch.zeros_like(blocks[0].weight("mlp.up_proj"))}
    with streams.at_hand():  # nothing to bring where the blocks are
        expected = {"full": blocks[0].run(X), "quant": blocks[0].run(X, weights)}
        if "full" in wanted:
            assert torch.equal(streams.targets(blocks[0]), expected["full"])
    streams.advance(blocks[0], weights)
    for name in ("full", "quant"):
        stream = getattr(streams, name)
        assert (stream is None) == (name not in wanted)
        assert stream is None or (isinstance(stream, Spilled) and torch.equal(stream, expected[name]))


@pytest.mark.parametrize("method", [lb.GPTQ(lb.Grid(3, 16)), lb.TesseraQ(lb.AWQ(lb.Grid(3, 16)), budget=Budget(1, 2, 2))])
def test_an_ordinary_subject_may_spill_its_streams(method, tmp_path):
    windows = tiny.windows(4, 16)
    kept, spilled = (lb.quantize(tiny.subject(), method, windows, tmp_path, progress=False, where=w) for w in (None, "disk"))
    assert equal(kept, spilled)
    for path in tmp_path.iterdir():
        path.unlink()
    assert equal(kept, lb.quantize(tiny.subject(), method, windows, tmp_path, progress=False, where="disk"))
