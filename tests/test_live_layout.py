"""The layout explorer: its tables free the codes that the package packs, as the kernel does; lanes are the tensor core's."""

from __future__ import annotations

import ast
import base64
import re
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch

from lowbit_nb import live, packing
from lowbit_nb.live import lanes
from lowbit_nb.live.lanes import BITS, FP16, INT8, NUMBERS, ORDERS, PLANE, ROWS

UNPACKING = Path(packing.__file__).parent / "kernels" / "unpacking.py"
EACH = [(bits, number) for bits in BITS for number in NUMBERS.values()]


def kernel() -> dict:
    """The plain Python of `kernels.unpacking`, which itself needs Triton: its tables and how it writes its assembly."""
    tree, wanted = ast.parse(UNPACKING.read_text(encoding="utf-8")), ("position", "_turn", "_ands", "assembly")
    keep = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("PAIRS", "SQUARE")]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            node.decorator_list = []
            keep.append(node)
    assert len(keep) == 6
    scope: dict = {}
    exec(compile(ast.Module(keep, []), str(UNPACKING), "exec"), scope)
    return scope


def instructions(bits: int, half: int) -> list[list[str]]:
    """The kernel's assembly for four words of each kind: [operation, operands...]."""
    text = kernel()["assembly"](bits, half)[0].strip("{} ")
    return [re.split(r"[ ,]+", line.strip()) for line in text.split(";") if line.strip() and ".reg" not in line]


DOES = {"shr.b32": lambda a, b: a >> b, "shl.b32": lambda a, b: a << b & 0xFFFFFFFF, "and.b32": lambda a, b: a & b,
        "xor.b32": lambda a, b: a ^ b, "lop3.b32": lambda a, b, c, table: {0xEA: a & b | c}[table]}


def run(code: list[list[str]], words: list[int], planes: int) -> list[int]:
    """Carry assembly out; the registers $0 ... of the planes at its end."""
    at = {f"${planes + i}": word for i, word in enumerate(words)}
    for operation, out, *operands in code:
        a, *more = [at[name] if name in at else int(name, 0) for name in operands]
        if operation == "prmt.b32":
            every = a.to_bytes(4, "little") + more[0].to_bytes(4, "little")
            at[out] = int.from_bytes(bytes(every[more[1] >> (4 * i) & 7] for i in range(4)), "little")
        else:
            at[out] = DOES[operation](a, *more)
    return [at[f"${j}"] for j in range(planes)]


def freed(bits: int, number: lanes.Number, words: torch.Tensor) -> torch.Tensor:
    """What the table makes of `words` [blocks * 64]: [planes, 64] integers that stand for the numbers in the registers."""
    out = []
    for plane in range(lanes.n_planes(bits)):
        pattern = torch.full((PLANE,), number.one.get(bits, 0))
        for p in lanes.pieces(bits, plane, number):
            part = words[p.block * PLANE : (p.block + 1) * PLANE] >> (p.part * number.size) & (2**number.size - 1)
            pattern ^= (part << p.shift if p.shift > 0 else part >> -p.shift) & p.mask
        out.append(pattern)
    return torch.stack(out)


def valued(pattern: int, number: lanes.Number) -> float:
    """The number that these bits are."""
    return struct.unpack("<e" if number is FP16 else "<b", pattern.to_bytes(number.size // 8, "little"))[0]


@pytest.mark.parametrize(("bits", "number"), EACH)
def test_the_table_frees_the_codes_that_are_packed(bits, number):
    n = lanes.n_planes(bits)
    q = torch.randint(0, 2**bits, (1, n * PLANE), generator=torch.Generator().manual_seed(bits))
    patterns = freed(bits, number, packing.pack(q, bits)[0].to(torch.int64) & 0xFFFFFFFF)
    for plane in range(n):
        pos, bias = lanes.pieces(bits, plane, number)[0].pos, number.bias.get(bits, 0)
        for word in range(PLANE):
            code = int(q[0, lanes.column_of(bits, "planar", word, plane)])
            assert valued(int(patterns[plane, word]), number) == code * 2**pos + bias


@pytest.mark.parametrize("bits", BITS)
def test_positions_and_counts_are_those_of_the_kernel(bits):
    position, code = kernel()["position"], instructions(bits, 0) + instructions(bits, 1)
    for plane in range(lanes.n_planes(bits)):
        assert lanes.pieces(bits, plane, INT8)[0].pos == position(bits, plane)
    named = {"prmt": "join", "shr": "shift", "shl": "shift", "and": "mask", "lop3": "mask", "xor": "mask"}
    weights = 4 * lanes.n_planes(bits)
    theirs = {kind: n / weights for kind, n in Counter(named[line[0].removesuffix(".b32")] for line in code).items()}
    ours = {kind: n for kind, n in lanes.counted(bits, INT8)["together"]["kinds"].items() if n}
    assert ours == theirs


@pytest.mark.parametrize("bits", BITS)
def test_the_kernels_assembly_leaves_what_the_table_says(bits):
    n = lanes.n_planes(bits)
    words = torch.randint(0, 2**32, (PLANE * (3 if bits == 3 else 1),), generator=torch.Generator().manual_seed(bits))
    patterns = freed(bits, INT8, words)
    for first in (0, 20):
        for half in (0, 1):
            tiles = (half, 2) if bits == 3 else (0,)
            words_in = [int(words[PLANE * tile + first + i]) for tile in tiles for i in range(4)]
            for plane, register in enumerate(run(instructions(bits, half), words_in, n // 2), half * n // 2):
                assert register == int.from_bytes(bytes(patterns[plane, first : first + 4].tolist()), "little")


def test_counts_worked_out_by_hand():
    two = lanes.counted(2, FP16)  # two words, 32 weights: 2 joins, 2 shifts of each half, 16 masks
    assert {k: 32 * n for k, n in two["together"]["kinds"].items()} == {"join": 2, "shift": 4, "mask": 16}
    assert {k: 16 * n for k, n in two["single"]["kinds"].items()} == {"join": 8, "shift": 15, "mask": 15, "convert": 16}
    assert (two["together"]["sum"], two["single"]["sum"]) == ("0.688", "3.38")
    assert lanes.counted(2, INT8)["together"]["sum"] == "0.438"


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_lanes_are_those_of_the_fragment(number):
    """From a lane's side, as the manual states it: group lane / 4, thread lane % 4, element by element."""
    for lane in range(32):
        group, thread = divmod(lane, 4)
        for i in range(4 * number.pack):  # element a_i
            register, place = divmod(i, number.pack)
            row = group + 8 * (register % 2)
            k = thread * number.pack + place + (4 * number.pack if register >= 2 else 0)
            assert lanes.lane_of(row, k, number) == (lane, register, place)
    assert len({lanes.lane_of(r, k, number) for r in range(ROWS) for k in range(number.step)}) == ROWS * number.step


def test_a_lane_copies_16_bytes_and_a_warp_two_rows():
    for row in (0, 1, 14):
        copied = [lanes.copier_of(row + r, w) for r in (0, 1) for w in range(PLANE)]
        if row % 2 == 0:
            assert copied == [lane for lane in range(32) for _ in range(4)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_column_lies_in_one_place(bits, order):
    n = lanes.n_planes(bits)
    columns = [lanes.column_of(bits, order, w, j) for j in range(n) for w in range(PLANE)]
    assert sorted(columns) == list(range(n * PLANE))
    assert (columns == list(range(n * PLANE))) == (order == "planar")


@pytest.mark.parametrize(("bits", "number"), EACH)
def test_only_planar_codes_are_where_they_are_needed(bits, number):
    assert lanes.at_home(bits, "planar", number) == 1
    assert lanes.at_home(bits, "interleaved", number) == 0.25


def test_in_three_bits_the_high_bit_is_in_the_same_place_of_its_plane():
    low, high = lanes.pieces(3, 20)
    assert (low.width, low.block, low.bit, high.width, high.block, high.bit, high.pos) == (2, 1, 8, 1, 2, 20, low.pos + 2)


def test_the_sentence_holds_the_numbers():
    alt = live.layout_explorer(name="test codes").alt
    for words in ("Layout explorer, test codes. 2 bits, planar, int8: plane 1 of word 5 in row 0 is column 69; lane 1 copies",
                  "2 bits, interleaved, int8: plane 1 of word 5 in row 0 is column 81;", "lane 0 needs it; 25.0 % of the codes",
                  "2 bits int8 0.438 against 3.62 and fp16 0.688 against 3.38"):
        assert words in alt


def test_given_codes_are_the_ones_shown():
    q = torch.randint(0, 16, (20, 600), generator=torch.Generator().manual_seed(1))
    explorer = live.layout_explorer(q, bits=4, row=7, word=33, plane=6, name="layer 2")
    assert "layer 2: 4-bit codes of its first tile" in explorer.alt
    for order in ORDERS:
        at = explorer.at(4, order, "int8", 7, 33, 6)
        assert at.code == q[7, at.column] and f"unpacks the code to {at.value}" in at.words
    assert explorer.words["4"] == (packing.pack(q[:16, :512], 4).to(torch.int64) & 0xFFFFFFFF).tolist()


@pytest.mark.parametrize("given", [{}, {"bits": 3, "plane": 31, "order": "interleaved"},
                                   {"bits": 8, "plane": 3, "number": "fp16"}])
def test_stored_pictures_are_small_and_told_in_words(given):
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', live.layout_explorer(**given).fallback)
    assert len(images) == 4 and len({alt for alt, _ in images}) == 4
    assert all(len(base64.b64decode(code)) <= 40_000 and "lane" in alt and "column" in alt for alt, code in images)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"bits": 5}, r"bits=5.*use bits of \[1, 2, 3, 4, 8\]"), ({"order": "woven"}, "planar, interleaved"),
     ({"number": "bf16"}, "int8, fp16"), ({"row": 16}, "row=16.*use 0 to 15"), ({"word": 64}, "use 0 to 63"),
     ({"bits": 8, "plane": 4}, "use 0 to 3"), ({"q": torch.zeros(16, 1023).int()}, r"\[16, 1023\].*16 rows of 1024"),
     ({"q": torch.zeros(8, 2048).int()}, "at least 16 rows"), ({"q": torch.full((16, 1024), 4)}, "2 bits hold 0 to 3")])
def test_what_cannot_be_shown_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        live.layout_explorer(**given)
