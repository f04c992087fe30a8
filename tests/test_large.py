"""Models larger than memory: the same integers from blocks on disk, one of which is in memory at a time."""

from __future__ import annotations

import gc
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lowbit_nb as lb
from lowbit_nb import spill
from lowbit_nb.blocks import catch, layers, resident
from lowbit_nb.blocks.shelf import CheckpointShelf
from lowbit_nb.checkpoint import Shards
from lowbit_nb.onepass import behind, one_pass
from lowbit_nb.reconstruct import Budget
from lowbit_nb.subject import BUNDLED
from tests import tiny
from tests.walks import equal

BLOCKS = 3
SHORT = Budget(1, 2, 2)
GRID = lb.Grid(3, 16)
METHODS = {
    "RTN": lb.RTN(GRID),
    "GPTQ": lb.GPTQ(GRID, sequential=True),
    "GPTQ, shifted": lb.GPTQ(GRID, shift=True),
    "AWQ": lb.AWQ(GRID),
    "TesseraQ": lb.TesseraQ(lb.AWQ(GRID), budget=SHORT),
    "OmniQuant W3A4": lb.OmniQuant(GRID, budget=SHORT, activations=lb.Activations(4)),
    "VPTQ": lb.VPTQ(lb.Codebook(4, 16), tune=SHORT, iterations=3),
    "PTQ161": lb.PTQ161(align=8, budget=SHORT),
    "CBQ": lb.CBQ(GRID, budget=SHORT),
}


def on_disk(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """A tiny random checkpoint in several files, with a tokenizer."""
    tiny.model(kind, dtype=dtype, **({"num_hidden_layers": BLOCKS} | changes)).save_pretrained(folder, max_shard_size="20KB")
    for file in BUNDLED.glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_disk(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the blocks that were read, in order."""
    seen: list[int] = []
    original = CheckpointShelf.read

    def noted(self: CheckpointShelf, block: str) -> dict[str, torch.Tensor]:
        seen.append(int(block.rpartition(".")[2]))
        return original(self, block)

    monkeypatch.setattr(CheckpointShelf, "read", noted)
    return seen


def empty(subject: lb.Subject) -> bool:
    """Whether no block is in memory."""
    return all(p.is_meta for p in layers(subject.model)[1].parameters())


@pytest.mark.parametrize("kind", [*sorted(tiny.ARCHITECTURES), *sorted(tiny.MIXTURES)])
def test_a_blockwise_subject_is_the_same_model(kind, tmp_path):
    folder, ids = on_disk(tmp_path, kind, num_hidden_layers=2), tiny.windows().ids
    whole, blockwise = (lb.load(folder, dtype=torch.bfloat16, blockwise=b) for b in (False, True))
    assert blockwise.blockwise and not whole.blockwise and empty(blockwise) and repr(blockwise) == repr(whole)
    assert blockwise.fingerprint() == whole.fingerprint() and empty(blockwise)
    with torch.no_grad():
        assert torch.equal(blockwise.model(ids).logits, whole.model(ids).logits) and empty(blockwise)
    assert list(blockwise.model.state_dict()) == list(whole.model.state_dict())
    said = [s.model.generate(ids[:1], max_new_tokens=3) for s in (blockwise, whole)]
    assert torch.equal(*said)


def same_record(folder: Path, method: object, workdir: Path) -> None:
    """Integers, settings, bits and logits; the record's weights stay in the work folder, saved and loaded too."""
    windows = tiny.windows(4, 16)
    whole, blockwise = (lb.load(folder, blockwise=b) for b in (False, True))
    expected = lb.quantize(whole, method, windows, progress=False)
    made = lb.quantize(blockwise, method, windows, workdir, progress=False)
    assert equal(made, expected) and empty(blockwise) and isinstance(made.weights, Shards)
    assert made.settings == expected.settings and repr(made) == repr(expected)
    lb.save_quantized(made, workdir / "saved")
    back = lb.load_quantized(workdir / "saved")
    assert equal(back, expected) and back.bits() == expected.bits() and len(back.trace) == len(expected.trace)
    with torch.no_grad():
        logits = expected.apply(whole).model(windows.ids).logits
        for record, subject in [(made, blockwise), (back, blockwise), (back, whole), (expected, blockwise)]:
            through = record.apply(subject)
            assert torch.equal(through.model(windows.ids).logits, logits) and through.blockwise == subject.blockwise
    assert empty(blockwise)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_integers(method, llama, tmp_path):
    same_record(llama, METHODS[method], tmp_path)


@pytest.mark.parametrize("method", ["GPTQ", "CBQ"])
def test_a_mixture_of_experts_too(method, tmp_path):
    same_record(on_disk(tmp_path / "model", "mixtral", num_hidden_layers=2), METHODS[method], tmp_path / "work")


def test_blocks_that_return_more_than_their_output(tmp_path):
    config = transformers.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for file in BUNDLED.glob("*token*"):
        shutil.copy(file, tmp_path)
    whole, blockwise = (lb.load(tmp_path, blockwise=b) for b in (False, True))
    runs = [lb.quantize(s, METHODS["GPTQ"], tiny.windows(), progress=False) for s in (whole, blockwise)]
    assert equal(*runs)
    assert lb.evaluate.perplexity(blockwise, tiny.windows()) == pytest.approx(lb.evaluate.perplexity(whole, tiny.windows()))
    for ids, logits in one_pass(blockwise, tiny.windows(), 3):
        torch.testing.assert_close(logits, whole.model(ids).logits)
        blocks, x = catch(whole.model, ids)
        for block in blocks:
            x = block.run(x)
        torch.testing.assert_close(behind(whole.model, x), whole.model(ids).logits)


# How much is in memory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[lb.Subject, lb.text.Windows, int]:
    """A subject of 6 blocks, windows whose stream is larger than all of them, and the bytes of a block."""
    folder = tmp_path_factory.mktemp("wide")
    on_disk(folder, dtype=torch.bfloat16, hidden_size=128, intermediate_size=256, num_hidden_layers=6)
    subject = lb.load(folder, blockwise=True)
    return subject, tiny.windows(200, 40), 4 * sum(p.numel() for p in layers(subject.model)[1][0].parameters())


def peak_bytes(call: object) -> int:
    """The most tensor bytes allocated at once during a call, beyond those before it; mapped files are not among them."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    now = peak = 0
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


LIMITS = [("RTN", "disk", 1, 3), ("GPTQ", "disk", 1, 7), ("GPTQ", "memory", 9, 16)]


@pytest.mark.parametrize(("method", "where", "least", "most"), LIMITS)
def test_memory_holds_a_block_and_no_stream(method, where, least, most, wide, tmp_path):
    """Peaks in blocks: GPTQ has Hessians and a few windows beside its own; a stream in memory is noticed."""
    subject, windows, block = wide
    settings = lb.RTN(GRID) if method == "RTN" else lb.GPTQ(lb.Grid(3, 128), clip="minmax")
    call = partial(lb.quantize, subject, settings, windows, tmp_path / "work", progress=False, batch=8, where=where)
    peak = peak_bytes(call) / block
    assert least <= peak < most


def test_logits_need_a_block_and_a_few_windows(wide, read, monkeypatch):
    subject, windows, block = wide
    monkeypatch.setattr(spill, "SHARE", 10**9)  # any stream is too large for memory
    peak = peak_bytes(lambda: [logits.sum() for _, logits in one_pass(subject, windows)]) / block
    assert 1 <= peak < 6 and read == [0, *range(6)]  # the first block once more, to see what it is handed


@pytest.mark.parametrize("method", ["GPTQ", "CBQ"])
def test_blocks_are_read_as_often_as_they_are_worked_with(method, llama, tmp_path, read):
    """Once for the fingerprint, the first for what blocks are handed, and once for each window that sees them."""
    subject = lb.load(llama, blockwise=True)
    lb.quantize(subject, METHODS[method], tiny.windows(4, 16), tmp_path, progress=False)
    assert read == [0, 1, 2, 0] + ([0, 1, 2] if method == "GPTQ" else [0, 1, 1, 2])


# Going on, and refusing


@pytest.mark.parametrize("method", ["RTN", "GPTQ", "CBQ"])
def test_it_goes_on_where_an_ordinary_run_stopped(method, llama, tmp_path):
    whole, blockwise = (lb.load(llama, blockwise=b) for b in (False, True))
    expected = lb.quantize(whole, METHODS[method], tiny.windows(4, 16), tmp_path, progress=False)
    for path in sorted(tmp_path.glob("block_*"))[2:]:
        path.unlink()
    assert equal(lb.quantize(blockwise, METHODS[method], tiny.windows(4, 16), tmp_path, progress=False), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"block_{i:03d}.safetensors" for i in range(BLOCKS)]


def test_methods_that_ask_the_end_loss_are_refused_at_once(llama, read):
    with pytest.raises(ValueError, match="OAC asks the end loss.*without blockwise=True"):
        lb.quantize(lb.load(llama, blockwise=True), lb.OAC(lb.GPTQ(GRID)), tiny.windows(), progress=False)
    assert not read


def test_weights_exchanged_while_a_block_is_away_are_refused(llama):
    """Else they would be lost without a word."""
    subject = lb.load(llama, blockwise=True)
    blocks, X = catch(subject.model, tiny.windows(2).ids)
    with resident([blocks[1].module]):
        W = 2 * blocks[1].weight("mlp.up_proj")
        exchanged = blocks[1].run(X, {"mlp.up_proj": W})
    assert not torch.equal(exchanged, blocks[1].run(X)) and empty(subject)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight was exchanged.*resident"):
        blocks[1].run(X, {"mlp.up_proj": W})


def test_a_record_applied_while_a_block_is_in_memory_is_the_same(llama):
    subject, windows = lb.load(llama, blockwise=True), tiny.windows(2, 16)
    record = lb.quantize(subject, lb.RTN(GRID), progress=False)
    with torch.no_grad():
        wanted = record.apply(subject).model(windows.ids).logits
        with resident([layers(subject.model)[1][1]]):
            other = record.apply(subject)
            assert torch.equal(other.model(windows.ids).logits, wanted)
        assert torch.equal(other.model(windows.ids).logits, wanted) and empty(subject) and empty(other)


def test_a_block_that_cannot_be_read_once_can_be_read_later(llama, monkeypatch):
    subject, ids, plain = lb.load(llama, blockwise=True), tiny.windows(2, 16).ids, CheckpointShelf.read
    with torch.no_grad():
        wanted = subject.model(ids).logits

    def short(self, block):
        found = plain(self, block)
        found.pop(next(reversed(found)))
        return found

    monkeypatch.setattr(CheckpointShelf, "read", short)
    with pytest.raises(ValueError, match="not in the checkpoint"), torch.no_grad():
        subject.model(ids)
    monkeypatch.setattr(CheckpointShelf, "read", plain)
    with torch.no_grad():
        assert torch.equal(subject.model(ids).logits, wanted)


def test_a_blockwise_subject_is_not_packed(llama):
    subject = lb.load(llama, blockwise=True)
    made = lb.quantize(subject, METHODS["RTN"], progress=False)
    with pytest.raises(ValueError, match="not for packing.*without blockwise=True"):
        lb.pack_model(made, subject).model(tiny.windows(1).ids)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["RTN", "GPTQ", "AWQ", "TesseraQ", "CBQ"])
def test_on_a_gpu_blocks_come_there_and_streams_stay_behind(method, llama, tmp_path):
    """Products on a GPU are not always the same to the last bit: equal where the ordinary run repeats itself."""
    whole, blockwise = (lb.load(llama, device="cuda", blockwise=b) for b in (False, True))
    windows = tiny.windows(4, 16)
    first, again = (lb.quantize(whole, METHODS[method], windows, progress=False) for _ in range(2))
    made = lb.quantize(blockwise, METHODS[method], windows, tmp_path, progress=False)
    assert empty(blockwise) and blockwise.device.type == "cuda"
    dense = [{name: w.dequantize().cpu() for name, w in r.weights.items()} for r in (first, again, made)]
    for name, W in dense[0].items():
        if torch.equal(W, dense[1][name]):
            assert torch.equal(W, dense[2][name]), name
    logits = [r.apply(s).model(windows.ids.cuda()).logits for r, s in ((first, whole), (made, blockwise))]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    for ids, here in one_pass(blockwise, windows, 2):
        torch.testing.assert_close(here, whole.model(ids).logits, rtol=1e-4, atol=1e-4)


def edit(folder: Path, name: str, change: object) -> None:
    index = folder / "model.safetensors.index.json"
    file = folder / json.loads(index.read_text())["weight_map"][name]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_damaged_checkpoints_are_refused_with_a_name(tmp_path):
    name = "model.layers.2.mlp.up_proj.weight"
    nan = on_disk(tmp_path / "nan")
    edit(nan, name, lambda t: t[name][0, :3].fill_(float("nan")))
    subject = lb.load(nan, blockwise=True)
    with pytest.raises(ValueError, match=r"nan: tensor model\.layers\.2\.mlp\.up_proj\.weight holds 3 of 2048"):
        subject.fingerprint()
    assert empty(subject)
    gone = on_disk(tmp_path / "gone")
    index = gone / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    del said["weight_map"][name]
    index.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"1 tensors are missing.*layers\.2\.mlp\.up_proj"):
        lb.load(gone, blockwise=True).fingerprint()
    for file in on_disk(tmp_path / "none").glob("model*"):
        file.unlink()
    with pytest.raises(ValueError, match="only safetensors can be read block by block"):
        lb.load(tmp_path / "none", blockwise=True)
