"""The walk: block by block over a model, resumable, with at most one block's worth of extra weights in memory.

    streams -> [ method rounds block 0 ] -> streams advance -> [ block 1 ] -> ...

A method sees one block and the two streams that flow into it and returns stored weights.  The walk does the rest: it keeps
the streams, the record, the time left, and, in a work folder, every finished block.  Killed at any moment and started
again, it reads the finished blocks back and goes on; the integers are the same.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lowbit_nb import checkpoint
from lowbit_nb.activations import Activations, as_quantized
from lowbit_nb.blocks import Block, catch, resident
from lowbit_nb.record import Quantized
from lowbit_nb.spill import Room
from lowbit_nb.stored import StoredWeight
from lowbit_nb.streams import Streams
from lowbit_nb.subject import Subject
from lowbit_nb.text import Windows

CARRIED = "carried:"  # tensors of a work folder that are no parameters


@dataclass
class BlockResult:
    """What a method gives back for one block.

    weights  a stored weight a linear layer                        trace  its story in plain numbers
    params   other parameters that a transform has edited (norms, biases), as they are stored
    aims     the weights that were rounded, where a transform has changed them: for whoever goes on from here, never stored

    Source: this project. Differs: no difference.
    """

    weights: dict[str, StoredWeight]
    trace: dict = field(default_factory=dict)
    params: dict[str, Tensor] = field(default_factory=dict)
    aims: dict[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """A way to quantize one block; a frozen dataclass whose fields are its settings.

    streams  which of "full" and "quant" it wants to see, and "loss" if it asks the end loss; () if it looks at weights only

    A method with a field `activations` has them rounded behind it, in every stream and record.  One with `windows` looks at
    several blocks at a time (`crossblock.Window`): `windows(n)` are (first, how many are left hard, how many are seen), and
    `quantize_window(blocks, n_left, streams, carried)` gives the results of those and what the next window should know.

    Source: this project. Differs: no difference.
    """

    streams: tuple[str, ...]

    def quantize_block(self, block: Block, streams: Streams) -> BlockResult: ...


def quantize(subject: Subject, method: Method, windows: Windows | None = None, workdir: str | Path | None = None,
             progress: bool = True, batch: int = 4, where: str | None = None) -> Quantized:
    """Quantize every linear layer of every decoder block.  The subject itself is not changed.

    where  the streams lie: "device" (beside the model), "memory" (of the computer) or "disk" (in the work folder, or among
           temporary files); None: "device", and with a blockwise subject "memory", unless they are too large for it

    With a blockwise subject and a work folder, the record's weights stay in the folder's files too.

    Shapes:  windows.ids [n, length]; n and length are the caller's choice (128 x 2048 in most papers).
    Units:   none.
    Raises:  ValueError if the method needs calibration windows and none are given or they do not fit the context, if a
             work folder belongs to another run (message names what differs), if activations are not finite, or if the method
             asks the end loss and the subject is a blockwise one.
    Source:  the block-sequential schedule of GPTQ, Sec. 4.
    Differs: resumable; layers outside the decoder blocks (embedding, head, norms) keep their precision.
    """
    if method.streams and windows is None:
        raise ValueError(f"{type(method).__name__} looks at activations: give it calibration windows "
                         "(windows=lb.text.calibration(subject.tokenizer))")
    if method.streams:
        subject.check_fits(windows.ids.shape[1])
    if "loss" in method.streams and subject.blockwise:
        raise ValueError(f"{_name(method)} asks the end loss, and its gradient needs the whole model in memory: load the "
                         "subject without blockwise=True (dtype=torch.bfloat16 halves it), or take a method that looks at its "
                         "blocks one by one")
    settings = describe(subject, method, windows) | {"batch": batch}
    room = _room(subject, where, workdir)
    blocks, X = _enter(subject, method, windows, batch, room)
    store = checkpoint.WorkFolder(workdir, settings)
    record = Quantized(checkpoint.Shards() if subject.blockwise and workdir else {}, settings, [], {})
    streams = Streams.start(X, method.streams)
    if "loss" in method.streams:
        streams.loss = method.view(subject.model, windows.ids.to(subject.device), blocks)
    carried: dict[str, Tensor] = {}
    with tqdm(blocks, desc=_name(method), unit="block", file=sys.stdout, leave=False, disable=not progress, ncols=80) as bar:
        for first, left, seen in method.windows(len(blocks)) if hasattr(method, "windows") else _one_by_one(len(blocks)):
            here, known = blocks[first : first + seen], _read(store, first, left)
            with resident([] if known and X is None else [block.module for block in here]):
                known = known or _do(method, here, left, streams, store, carried)
                carried = _settle(method, here, known, streams, store, record)
            bar.update(left)
    return record


def describe(subject: Subject, method: Method, windows: Windows | None) -> dict:
    """Every setting that decides the integers, as plain JSON values.

    Shapes:  a dict of strings and numbers.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    data = {"sha256": windows.sha256, "protocol": windows.protocol, "shape": list(windows.ids.shape)} if windows else None
    return {"method": _name(method), "settings": _plain(method), "subject": subject.name, "fingerprint": subject.fingerprint(),
            "windows": data if method.streams else None}


def _room(subject: Subject, where: str | None, workdir: str | Path | None) -> Room | None:
    """Where streams lie; None: beside the model."""
    if where not in (known := (None, "device", "memory", "disk")):
        raise ValueError(f"where={where!r} is unknown; use one of {', '.join(map(repr, known))}")
    if where == "device" or (where is None and not subject.blockwise):
        return None
    return Room(subject.device, None if where is None else where == "disk", workdir)


def _enter(subject: Subject, method: Method, windows: Windows | None, batch: int,
           room: Room | None) -> tuple[list[Block], Tensor | None]:
    """The blocks, and the first stream if the method wants one (a one-token pass is enough to find the blocks)."""
    ids = windows.ids if method.streams else torch.zeros(1, 1, dtype=torch.long)
    blocks, X = catch(subject.model, ids.to(subject.device), batch, room)
    return blocks, X if method.streams else None


def _one_by_one(n: int) -> list[tuple[int, int, int]]:
    return [(i, 1, 1) for i in range(n)]


def _read(store: checkpoint.WorkFolder, first: int, left: int) -> list | None:
    """The finished blocks of a window, if all of them are there."""
    results = [store.read(first + i) for i in range(left)]
    return results if all(results) else None


def _do(method: Method, blocks: list[Block], left: int, streams: Streams, store: checkpoint.WorkFolder,
        carried: dict[str, Tensor]) -> list[BlockResult]:
    """Let the method round one block, or the first blocks of a window; time it, and keep them before going on."""
    on_gpu = next(blocks[0].module.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with streams.at_hand() if "full" in method.streams else nullcontext():
        results = _ask(method, blocks, left, streams, carried)
    seconds = time.perf_counter() - start
    for block, result in zip(blocks, results, strict=False):
        result.trace = {"block": block.index, "seconds": seconds / len(results)} | result.trace
        if block.few_tokens:
            result.trace["few_tokens"] = dict(block.few_tokens)
        if on_gpu:
            result.trace["peak_bytes"] = torch.cuda.max_memory_allocated()
        store.write(block.index, result)
    return results


def _ask(method: Method, blocks: list[Block], left: int, streams: Streams, carried: dict[str, Tensor]) -> list[BlockResult]:
    if not hasattr(method, "quantize_window"):
        return [method.quantize_block(blocks[0], streams)]
    results, carried = method.quantize_window(blocks, left, streams, carried)
    results[-1].params |= {f"{CARRIED}{name}": t for name, t in carried.items()}
    return results


def _settle(method: Method, blocks: list[Block], results: list, streams: Streams, store: checkpoint.WorkFolder,
            record: Quantized) -> dict[str, Tensor]:
    """Carry the streams through finished blocks and enter those into the record; returns what the next window should know."""
    carried: dict[str, Tensor] = {}
    for block, result in zip(blocks, results, strict=False):
        carried = _take_carried(result)
        advance(result, block, streams, getattr(method, "activations", None))
        if isinstance(record.weights, checkpoint.Shards):
            record.weights.put(block.name, store.path(block.index), result.weights)
        else:
            record.weights.update({f"{block.name}.{name}": w for name, w in result.weights.items()})
        record.params.update({f"{block.name}.{name}": t for name, t in result.params.items()})
        record.trace.append(result.trace)
    return carried


def _take_carried(result: BlockResult) -> dict[str, Tensor]:
    """What a window left for the next one: kept in the work folder with its last block, never in the record."""
    names = [name for name in result.params if name.startswith(CARRIED)]
    return {name.removeprefix(CARRIED): result.params.pop(name) for name in names}


@torch.no_grad()
def advance(result: BlockResult, block: Block, streams: Streams, activations: Activations | None) -> None:
    """Carry the streams through a finished block, `quant` with what is stored now; not behind the last one.

    Shapes:  see `Streams.advance`.
    Units:   none.
    Raises:  ValueError if an output is not finite.
    Source:  this project.
    Differs: no difference.
    """
    if block.last or (streams.full is None and streams.quant is None):
        return
    own = next(block.module.parameters())  # blocks read back from a work folder are on the CPU
    exchanged = {name: w.dequantize() for name, w in result.weights.items()} | result.params
    through = as_quantized(block, activations, result.params)
    streams.advance(through, {name: t.to(own.device, own.dtype) for name, t in exchanged.items()})


def _plain(method: Method) -> dict:
    """The fields of a method; one that holds another method (its start) names that too."""
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return {name: {"method": _name(value)} | _plain(value) if hasattr(value, "quantize_block") else
            asdict(value) if dataclasses.is_dataclass(value) else value for name, value in fields.items()}


def _name(method: Method) -> str:
    return type(method).__name__
