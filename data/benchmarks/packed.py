"""Products with packed weights on a GPU, beside cuBLAS and whatever peers are installed, all in one run.

    python data/benchmarks/packed.py --out data/benchmarks/packed_h200.json
    python data/benchmarks/packed.py --out data/benchmarks/packed_h200.json --tune        measure the cuts of work first

Each row: median microseconds over replays of a captured graph that goes round 240 MB of weights or 64 copies; the bytes that a
product reads of the weight; the relative error against float64 on a layer of 512 x 4096. Peers are those of `packed_peers`; one
that is not there is named as absent.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import packed_peers
import torch
import triton

from lowbit_nb import packing
from lowbit_nb.kernels import gather, general, halves, tensorcore, tiles, tune

GROUP = 128
BOOKS = {  # v, bits of an index, bits of a second
    "v6 k4096": (6, 12, 0), "v8 k4096": (8, 12, 0), "v8 2x256": (8, 8, 8), "v8 k65536": (8, 16, 0)}
MIXED_BITS = 1.61
Product = Callable[[torch.Tensor], torch.Tensor]


def copies(nbytes: int) -> int:
    return max(4, min(64, -(-tune.ROTATE // nbytes)))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.float16)


def words(d_out: int, d_in: int, bits: int) -> torch.Tensor:
    made = torch.empty(d_out, packing.n_words(d_in, bits), dtype=torch.int32, device="cuda")
    return made.random_(-(2**31), 2**31 - 1)


def steps(d_out: int, d_in: int) -> torch.Tensor:
    return torch.rand(d_out, d_in // GROUP, device="cuda").half() / 64


def affine(d_out: int, d_in: int, bits: int) -> tuple[Product, int, Callable[[], torch.Tensor]]:
    """What a packed layer would take: a product, its bytes, and the weight it stands for."""
    q, s = words(d_out, d_in, bits), steps(d_out, d_in)
    many = tensorcore.operand(q, bits, d_in, s, None, GROUP)
    one = halves.operand(q, bits, d_in, s, None, GROUP) if tiles.plan(bits, d_out, d_in, 1).lane == "halves" else None

    def product(x: torch.Tensor) -> torch.Tensor:
        return halves.product(x, one) if one and len(x) == 1 else tensorcore.product(x, many)

    return product, many.nbytes, lambda: plain(q, bits, d_in, s)


def any_shape(d_out: int, d_in: int, bits: int) -> tuple[Product, int, Callable[[], torch.Tensor]]:
    """The general kernel."""
    q, s = words(d_out, d_in, bits), steps(d_out, d_in)
    made = general.operand(q, bits, s, None, GROUP, d_in)
    return lambda x: general.product(x, *made), 4 * q.numel() + 2 * s.numel(), lambda: plain(q, bits, d_in, s)


def mixed(d_out: int, d_in: int, bits: float) -> tuple[Product, int, Callable[[], torch.Tensor]]:
    """A fifth of the channels in four bits, the others in one, a scale a row: PTQ1.61 in one launch."""
    salient = torch.zeros(d_in, dtype=torch.bool, device="cuda")
    salient[torch.randperm(d_in, device="cuda")[: d_in // 5]] = True
    parts, widths, weights = [], (int(salient.sum()), int((~salient).sum())), []
    for columns, b in zip(widths, (4, 1), strict=True):
        q, s = words(d_out, columns, b), torch.rand(d_out, 1, device="cuda").half() / 64
        parts.append(tensorcore.operand(q, b, columns, s, None, None))
        weights.append((q, b, columns, s))
    made = tensorcore.mixed_operand(salient, *parts)

    def weight() -> torch.Tensor:
        out = torch.empty(d_out, d_in, dtype=torch.float64, device="cuda")
        for mask, part in zip((salient, ~salient), weights, strict=True):
            out[:, mask] = plain(*part)
        return out

    return partial(tensorcore.mixed_product, weight=made), sum(p.nbytes for p in parts) + d_in // 8, weight


def book(d_out: int, d_in: int, name: str) -> tuple[Product, int, Callable[[], torch.Tensor]]:
    """Codebooks."""
    v, bits, more = BOOKS[name]
    rows, parts = -(-d_out // v), {}
    widths = (8, bits - 8) if bits > 8 else (bits,)
    for i, width in enumerate(widths):
        parts[f"index_{i}"] = words(rows, d_in, width)
    parts |= {"codebook": numbers(1, 2**bits, v)}
    meta = {"d_out": d_out, "d_in": d_in, "main_shape": [1, 2**bits, v]}
    if more:
        parts |= {"residual_index_0": words(rows, d_in, more), "residual_codebook": numbers(1, 2**more, v)}
        meta["residual_shape"] = [1, 2**more, v]
    made = gather.operand(parts, meta)

    def weight() -> torch.Tensor:
        index = sum(packing.unpack(parts[f"index_{i}"], w, d_in).long() << (8 * i) for i, w in enumerate(widths))
        W = parts["codebook"][0].double()[index]
        if more:
            W = W + parts["residual_codebook"][0].double()[packing.unpack(parts["residual_index_0"], more, d_in).long()]
        return W.transpose(1, 2).reshape(-1, d_in)[:d_out]

    return lambda x: gather.product(x, made), sum(t.numel() * t.element_size() for t in parts.values()), weight


def cublas(d_out: int, d_in: int, bits: int) -> tuple[Product, int, Callable[[], torch.Tensor]]:
    W = numbers(d_out, d_in)
    return lambda x: torch.nn.functional.linear(x, W), 2 * W.numel(), W.double


def plain(q: torch.Tensor, bits: int, d_in: int, s: torch.Tensor) -> torch.Tensor:
    return (packing.unpack(q, bits, d_in).double() - 2 ** (bits - 1)) * s.double().repeat_interleave(d_in // s.shape[1], 1)


def kernels(absent: dict[str, str]) -> Iterator[tuple[str, float, Callable, tuple[int, ...]]]:
    """Name, bits, maker, and batches."""
    every = (1, 2, 4, 8, 16)
    yield "cuBLAS fp16", 16, cublas, every
    for bits in (4, 3, 2, 1, 8):
        yield "this kit", bits, affine, every
    yield "this kit", MIXED_BITS, mixed, every
    yield from packed_peers.kernels(absent)
    for bits in (4, 2):
        yield "this kit, any shape", bits, any_shape, (1,)
    for name, (v, bits, more) in BOOKS.items():
        yield f"this kit, codebooks {name}", (bits + more) / v, lambda o, i, b, name=name: book(o, i, name), (1, 8, 16)


def error_of(make: Callable, bits: float) -> float:
    """Relative error against float64 on 512 x 4096."""
    product, _, weight = make(512, 4096, bits)
    x = numbers(1, 4096)
    y = x.double() @ weight().t()
    return float((product(x).double() - y).norm() / y.norm())


def read_bandwidth() -> float:
    """TB a second of reading, by a sum over 1 GiB."""
    block = torch.ones(2**28, device="cuda")
    return 2**30 / tune.replay_us([block.sum] * 4) / 1e6


def rows(shapes: list[tuple[int, int]], peers: list[tuple[int, int]], absent: dict[str, str], only: str) -> Iterator[dict]:
    for name, bits, make, batches in kernels(absent):
        if not re.search(only, f"{name}, {bits:g} bits"):
            continue
        error = None
        for d_out, d_in in peers if name == "gemlite" else shapes:
            try:
                error = error_of(make, bits) if error is None else error
                first = make(d_out, d_in, bits)
                made = [first] + [make(d_out, d_in, bits) for _ in range(copies(first[1]) - 1)]
                for batch in batches:
                    x = numbers(batch, d_in)
                    us = tune.replay_us([partial(product, x) for product, _, _ in made], 15)
                    yield {"kernel": name, "d_out": d_out, "d_in": d_in, "bits": bits, "group": GROUP, "batch": batch,
                           "us": round(us, 2), "bytes": first[1], "error": error}
            except Exception as problem:  # a peer that breaks is named, and the run goes on
                absent[f"{name}, {bits:g} bits, {d_out} x {d_in}"] = f"{type(problem).__name__}: {str(problem)[:200]}"
            made = first = None
            torch.cuda.empty_cache()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--shapes", default=",".join(f"{o}x{i}" for o, i in tiles.SHAPES))
    p.add_argument("--peer-shapes", default="4096x4096,8192x28672", help="shapes for peers that tune themselves for long")
    p.add_argument("--only", default="", help='only kernels that match, such as "codebooks" or "2 bits"')
    p.add_argument("--tune", action="store_true", help="measure how work is cut first, and keep it")
    a = p.parse_args()
    shapes, peers = ([tuple(map(int, shape.split("x"))) for shape in text.split(",")] for text in (a.shapes, a.peer_shapes))
    torch.manual_seed(0)
    if a.tune:
        tune.tune(workers=8)
    table = {"what": "products with packed weights", "device": torch.cuda.get_device_name(), "torch": torch.__version__,
             "triton": triton.__version__, "python": platform.python_version(), "command": "python " + " ".join(sys.argv),
             "read_tb_s": read_bandwidth(), "rows": [], "absent": {}}
    for row in rows(shapes, peers, table["absent"], a.only):
        base = next((r["us"] for r in table["rows"] if r["kernel"] == "cuBLAS fp16" and
                     all(r[key] == row[key] for key in ("d_out", "d_in", "batch"))), row["us"])
        table["rows"].append(row | {"times_cublas": round(base / row["us"], 3)})
        print(table["rows"][-1], flush=True)
        a.out.write_text(json.dumps(table, indent=1) + "\n")
    print(table["absent"])
    a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
