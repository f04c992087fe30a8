"""The roofline explorer: its bytes are those of the stored forms, its limits worked out by hand; what is told and refused."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowbit_nb import live
from lowbit_nb.grid import Grid
from lowbit_nb.live.roofline_model import KERNELS, MACHINES, OWN, WIDTHS, Machine, Roofline, charge
from lowbit_nb.onebit.channels import salient_count
from lowbit_nb.onebit.mixed import MixedWeight
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.stored import AffineWeight

ROOT = Path(__file__).parents[1]
POINTS = [
    {"d_out": 4096, "d_in": 4096, "bits": bits, "batch": 1, "us": us, "name": name}
    for name, times in {"library": {16: 14.0}, "a kernel": {4: 5.4, 1: 4.9}, "another": {4: 8.0, 2: 8.3}}.items()
    for bits, us in times.items()
]
PLAIN, TENSOR = KERNELS["plain unpacking"], KERNELS["tensor cores"]
SLOTS = {8: 2.0, 4: 1.5, 3: 1.4, 2: 1.2, 1: 1.0}


def size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("d_in", "group"), [(256, 64), (384, 128), (200, 0)])
def test_bytes_are_those_of_the_stored_form(bits, d_in, group):
    g = group or d_in
    W = torch.randn(48, d_in, generator=torch.Generator().manual_seed(0))
    made = AffineWeight.nearest(W, Grid(bits, g, zero_inside=False))
    packed = made.pack()
    r = Roofline(48, d_in, bits, group, zeros=True)
    parts = ("codes", "scales", "zeros")
    assert [r.bytes[k] for k in parts] == [size({k: packed[k]}) for k in parts]
    assert r.stored == pytest.approx(made.bits().per_weight)
    assert replace(r, zeros=False).bytes == {**r.bytes, "zeros": 0}


@pytest.mark.parametrize("d_in", [256, 512, 4096])
def test_bytes_of_the_mixed_form_are_those_of_the_stored_form(d_in):
    rows, salient = 16, torch.arange(d_in) < salient_count(d_in, 0.2)
    W = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(1))
    high = AffineWeight.nearest(W[:, salient], Grid(4, zero_inside=False))
    low = SignWeight.nearest(W[:, ~salient])
    made = MixedWeight.of(salient, high, SignWeight.of(low.sign, low.a, low.mu, torch.ones(low.shape[1])))
    r = Roofline(rows, d_in, 1.61)
    assert sum(r.bytes.values()) - r.bytes["vectors"] == size(made.pack())
    assert r.stored == pytest.approx(made.bits().per_weight) and r.salient == int(salient.sum())


def test_a_setting_worked_out_by_hand():
    r = Roofline(1024, 2048, 2, 128, batch=4, kernel=OWN, own=3.0, bandwidth=2.0, rate=10.0, launch=1.5)
    assert r.bytes == {"codes": 524288, "scales": 32768, "zeros": 0, "vectors": 24576}
    assert r.stored == 2.125 and r.floor == pytest.approx(581632 / 2e6)
    assert r.issue == pytest.approx(2097152 * 3 / 1e7) and r.time == pytest.approx(1.5 + r.issue) and r.binds == "instructions"
    assert r.budget == pytest.approx(581632 / 2e12 * 10e12 / 2097152)
    assert replace(r, own=0.01).binds == "memory" and replace(r, own=0.01).time == pytest.approx(1.5 + r.floor)
    assert Roofline(64, 200, 2, 128, zeros=True).bytes == {"codes": 64 * 13 * 4, "scales": 256, "zeros": 256, "vectors": 528}
    assert Roofline(1024, 2048, 16).bytes == {"codes": 4194304, "scales": 0, "zeros": 0, "vectors": 6144}


def test_passes_and_the_half_rate_unit():
    counts = ((2, 1.0, 0.9), (8, 2.0, 0.5))
    wanted = {1: 1.8, 2: 1.8, 3: 2.0, 8: 2.0, 9: 3.8, 11: 4.0, 16: 4.0, 64: 16.0}
    assert {batch: charge(counts, batch) for batch in wanted} == pytest.approx(wanted)
    r = Roofline(8192, 28672, 1.61, batch=1)
    share = r.salient / r.d_in
    assert r.slots == pytest.approx(share * charge(TENSOR[4], 1) + (1 - share) * charge(TENSOR[1], 1))
    assert {k: set(t) for k, t in KERNELS.items()} == {k: set(WIDTHS) for k in KERNELS} and PLAIN[1][0][1] > 2 * TENSOR[1][0][1]


def test_the_lines_cross_where_both_limits_are_equal():
    """With one count for all widths the crossing is where the bytes take as long; x and y are a rounding error."""
    for own in (1.3, 2.0, 3.5, 7.0):
        r = Roofline(8192, 28672, 2, kernel=OWN, own=own)
        exact = own / r.rate * r.bandwidth * 8
        assert r.crossings == pytest.approx([exact], rel=2e-3)
        words = "stored bits a weight this kernel is limited by instructions, not by memory"
        assert r.verdict == f"below {r.crossings[0]:.2f} {words}"
        assert [r.at(b).binds for b in WIDTHS] == ["memory" if r.at(b).stored > exact else "instructions" for b in WIDTHS]
    assert Roofline(8192, 28672, 2, kernel=OWN, own=0.5).verdict == "memory limits this kernel at every width"
    assert Roofline(8192, 28672, 2, kernel=OWN, own=20).verdict == "instructions limit this kernel at every width"
    odd = {b: ((8, 50.0 if b == 4 else 0.1, 0.0),) for b in WIDTHS}
    r = Roofline(8192, 28672, 2, kernel="odd", kernels={"odd": odd})
    assert r.verdict == "instructions limit this kernel at 4 bits, memory at the other widths" and len(r.crossings) == 2


def test_why_one_bit_is_not_four_times_as_fast():
    plain = Roofline(8192, 28672, 1, kernel="plain unpacking")
    f = plain.faster
    assert f["bits"] == 4 > f["bytes"] > 3.6 > 1.2 > f["limits"] > f["time"] > 1
    assert f["time"] == pytest.approx(plain.at(4).time / plain.time)
    assert Roofline(8192, 28672, 1).faster["time"] > 2.5
    assert set(plain.at(4).faster.values()) == {1.0}


def test_the_sentence_holds_the_numbers():
    explorer = live.roofline_explorer(POINTS, shape=(4096, 4096), name="one card")
    r = explorer.model
    for words in ("one card: 5 measured points. 4096 by 4096, 1 bit (groups of 128: 1.125 stored bits a weight)", "1: 2.38 MB",
                  f"take {r.floor:.3f} µs at 4.27 TB/s", "plain unpacking with 8.66 issue slots", r.verdict,
                  "Against 4 bits: 4.00 times fewer bits", "Measured: a kernel 4.90 µs, 8.81 times the floor."):
        assert words in explorer.alt
    bare = live.roofline_explorer(bits=16, group=None).alt
    assert "Measured" not in bare and "16 bits (16 bits a weight: 16.00 stored" in bare and "fp16 with 1.08" in bare
    assert "1.61 bits (its own scales: 1.60" in live.roofline_explorer(bits=1.61).alt
    assert "2 bits (a scale a row:" in live.roofline_explorer(bits=2, group=None).alt


@pytest.mark.parametrize("given", [{"points": POINTS, "shape": (4096, 4096)}, {}, {"bits": 16, "batch": 64},
                                   {"machine": "NVIDIA RTX 4090", "kernel": "tensor cores", "bits": 1.61}])
def test_stored_pictures_are_small_and_told_in_words(given):
    explorer = live.roofline_explorer(**given)
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert len(images) == 4 == len({alt for alt, _ in images})
    assert all(len(base64.b64decode(code)) <= 40_000 for _, code in images)
    r, told = explorer.model, [alt for alt, _ in images]
    assert told[0].startswith(f"{r.d_out} × {r.d_in}, batch {r.batch}, {r.kernel}: {r.verdict}. 16 bits: floor ")
    assert told[-1].endswith("measured: a kernel 1.10.") == ("points" in given)
    assert ("Measured: library, 16 bits: 14.0 µs; a kernel, 4 bits: 5.40 µs" in told[0]) == ("points" in given)


def test_machines_and_kernels_of_ones_own():
    mine = Machine("my card", 0.5, 20.0, 3.0, "measured here")
    explorer = live.roofline_explorer(machine=mine, kernels={"my kernel": SLOTS}, kernel="my kernel", bits=2, batch=9)
    assert explorer.machine == "my card" and explorer.model.rate == 20 and explorer.bandwidth == 0.5 and explorer.launch == 3
    assert explorer.model.slots == 2.4  # two passes of 8 rows
    assert [m["name"] for m in explorer.machines] == [*(m.name for m in MACHINES), "my card"]
    h200 = live.roofline_explorer()
    assert h200.model == Roofline(8192, 28672, 1, kernel="plain unpacking", kernels=h200.model.kernels)
    assert h200.model.issue == pytest.approx(Roofline(8192, 28672, 1, kernel="plain unpacking").issue)
    assert h200.model.rate == pytest.approx(33.45, rel=1e-3)


def test_counts_are_those_of_the_recorded_bill():
    rows = json.loads((ROOT / "data/benchmarks/kernel_bill.json").read_text())["rows"]
    counted = {(r["kernel"].split()[0], r["bits"], r["slots"], r["half_rate"]) for r in rows}
    shown = {(kernel.split()[0], bits, *slots) for kernel, counts in KERNELS.items() for bits, all_rows in counts.items()
             for _, *slots in all_rows}
    assert shown == counted and len(shown) == 30


def test_counts_are_those_of_the_bill():
    """Slots of the tensor-core kernel, counted again from machine code made here."""
    pytest.importorskip("triton")
    from lowbit_nb.kernels import bill

    if bill.tool() is None:
        pytest.skip("no cuobjdump beside Triton")
    for bits, batch, which in ((1, 1, 0), (4, 8, 1)):
        made = bill.bill(bits, 8192, 28672, batch)
        assert TENSOR[bits][which][1] == pytest.approx(made.slots, rel=0.15)
        assert TENSOR[bits][which][2] == pytest.approx(made.alu, rel=0.15)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": [{"d_out": 4096, "d_in": 4096, "bits": 2, "batch": 1}]}, "needs d_out, d_in, bits, batch, us"),
        ({"points": [{**POINTS[0], "us": 0.0}]}, "above 0"),
        ({"points": [{**POINTS[0], "us": float("nan")}]}, "finite"),
        ({"points": [{**POINTS[0], "bits": 0.25}]}, "use 0.5 to 16"),
        ({"points": [{**POINTS[0], "name": str(i)} for i in range(9)]}, "at most 8"),
        ({"machine": "a toaster"}, "not known; use NVIDIA H200"),
        ({"machine": Machine("x", 0.0, 1.0, 1.0, "")}, "rates above 0"),
        ({"machine": Machine("x", 1.0, 1.0, float("inf"), "")}, "finite rates"),
        ({"shape": (4096, 32)}, "from 64 to 65536"),
        ({"shape": (4096,)}, "from 64 to 65536"),
        ({"bits": 5}, "use bits of"),
        ({"batch": 65}, "a batch of 1 to 64"),
        ({"group": 100}, "a group of 32, 64, 128, 256 or None"),
        ({"kernel": "none such"}, "not counted"),
        ({"kernels": {"a": {8: 1.0, 4: 1.0}}}, "for 8, 4, 3, 2 and 1 bits"),
        ({"kernels": {"tensor cores": SLOTS}}, "a new name"),
        ({"kernels": {"a": {**SLOTS, 1: 0.0}}}, "slots a weight"),
    ],
)
def test_what_cannot_be_shown_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        live.roofline_explorer(**given)
