"""The roofline explorer: bytes against instructions, and where a kernel was measured to be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import traitlets
from matplotlib.axes import Axes

from lowbit_nb import show
from lowbit_nb.live.base import Explorer, Frame, module, styles
from lowbit_nb.live.roofline_model import BITS, FULL, HALF, KERNELS, MACHINES, MIXED, OWN, SHARE, WIDTHS, Machine, Roofline

SHAPES = ((4096, 4096), (4096, 11008), (14336, 4096), (8192, 28672))
MOST_NAMES, MOST_BATCH, LARGEST = 8, 64, 65536
GROUPS = (32, 64, 128, 256, 0)
NEEDED = ("d_out", "d_in", "bits", "batch", "us")


class RooflineExplorer(Explorer):
    """A shape, a width, a machine; the browser works the limits out. Source, Differs: this project."""

    _esm = module("dom", "limits", "roofline")
    _css = styles("base", "roofline")
    heading = "Roofline explorer"
    d_out = traitlets.Int(8192).tag(sync=True)
    d_in = traitlets.Int(28672).tag(sync=True)
    bits = traitlets.Float(1.0).tag(sync=True)
    group = traitlets.Int(128).tag(sync=True)  # 0: a scale a row
    zeros = traitlets.Bool(False).tag(sync=True)
    batch = traitlets.Int(1).tag(sync=True)
    kernel = traitlets.Unicode("plain unpacking").tag(sync=True)
    own = traitlets.Float(2.0).tag(sync=True)
    machine = traitlets.Unicode("").tag(sync=True)
    bandwidth = traitlets.Float(0.0).tag(sync=True)
    launch = traitlets.Float(0.0).tag(sync=True)
    points = traitlets.List().tag(sync=True)  # {d_out, d_in, bits, batch, us, name}
    machines = traitlets.List().tag(sync=True)  # {name, bandwidth, slots, launch, source}
    shapes = traitlets.List().tag(sync=True)
    counts = traitlets.Dict().tag(sync=True)  # {kernel: {bits: (rows of x, slots, integer slots)}}
    constants = traitlets.Dict().tag(sync=True)

    @property
    def model(self) -> Roofline:
        rate = next(m["slots"] for m in self.machines if m["name"] == self.machine)
        counts = {name: {int(b): of for b, of in table.items()} for name, table in self.counts.items()}
        return Roofline(self.d_out, self.d_in, self.bits, self.group, self.zeros, self.batch, self.kernel, self.bandwidth, rate,
                        self.launch, self.own, counts)

    def here(self, batch: int | None = None) -> list[dict]:
        """Points of this shape and batch."""
        wanted = (self.d_out, self.d_in, batch or self.batch)
        return [p for p in self.points if (p["d_out"], p["d_in"], p["batch"]) == wanted]

    def sentence(self) -> str:
        r = self.model
        mine = [f"{p['name']} {show.digits(p['us'])} µs, {show.digits(p['us'] / r.floor)} times the floor" for p in self.here()
                if p["bits"] == self.bits]
        limits = f"The limit is {'memory' if r.binds == 'memory' else 'the number of instructions'}; {r.verdict}."
        return (f"Roofline explorer, {self.about}. {told(r)} {limits} {against_four(r)}"
                + (f" Measured: {'; '.join(mine)}." if mine else ""))

    def frames(self) -> list[Frame]:
        first = self.model
        other = replace(first, kernel=next(k for k in KERNELS if k != self.kernel))
        models = [first, other, replace(other, batch=8 if first.batch == 1 else 1)]
        return [*map(self._limits_frame, models), _steps_frame(first, self._measured_faster())]

    def _measured_faster(self) -> dict[str, float]:
        """Measured: how many times as fast as the same kernel at 4 bits, for kernels that have both."""
        us = {(p["name"], p["bits"]): p["us"] for p in self.here()}
        return {name: us[name, 4] / of for (name, bits), of in us.items() if bits == self.bits and (name, 4) in us}

    def _limits_frame(self, r: Roofline) -> Frame:
        fig, ax = show.subplots(8, 4.4)
        points = self.here(r.batch)
        _draw_limits(ax, r)
        for i, name in enumerate(dict.fromkeys(p["name"] for p in points)):
            at = [(r.at(p["bits"]).stored, p["us"]) for p in points if p["name"] == name]
            ax.scatter(*zip(*at, strict=True), label=f"measured: {name}", zorder=5, **show.dots((1, 2, 4, 5, 6)[i % 5]))
        _logarithmic(ax)
        fig.legend(*ax.get_legend_handles_labels(), fontsize=9, ncols=3, loc="outside lower center")
        title = f"{r.d_out} × {r.d_in}, batch {r.batch}, {r.kernel}: {r.verdict}"
        limits = "; ".join(f"{bit_count(e.bits)}: floor {show.digits(e.floor)}, instructions {show.digits(e.issue)} µs"
                           for e in map(r.at, BITS))
        told = "; ".join(f"{p['name']}, {bit_count(p['bits'])}: {show.digits(p['us'])} µs" for p in points)
        return Frame(title, f"{title}. {limits}." + (f" Measured: {told}." if told else ""), fig)


def _draw_limits(ax: Axes, r: Roofline) -> None:
    every, line, full = [r.at(b) for b in BITS], [r.at(b) for b in WIDTHS], r.at(FULL)
    ax.plot([e.stored for e in every], [e.floor for e in every], label="floor: bytes / bandwidth", **show.line(0))
    ax.plot([e.stored for e in line], [e.issue for e in line], label=f"instructions: {r.kernel}", **show.line(3))
    ax.plot([e.stored for e in line], [e.time for e in line], label="model: launch + the larger", **show.line(7))
    ax.plot([full.stored], [full.time], **show.line(7))
    if r.launch:
        ax.axhline(r.launch, color="#777777", lw=1, ls=":")
        ax.text(full.stored, r.launch, "launch", ha="right", va="bottom", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="stored bits a weight, scales included", ylabel="µs",
           title=f"{r.d_out} × {r.d_in}, batch {r.batch}: {r.kernel}")


def _logarithmic(ax: Axes) -> None:
    """Plain numbers at 1, 2, 5 and so on, instead of powers of ten."""
    low, high = ax.get_ylim()
    ax.set_yticks([t for e in range(-2, 7) for k in (1, 2, 5) if low <= (t := k * 10.0**e) <= high])
    ax.set_xticks([1, 2, 4, 8, 16])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()


def _steps_frame(r: Roofline, measured: Mapping[str, float]) -> Frame:
    """From 4 bits to this width: what each effect leaves of the gain."""
    rows = [(words, r.faster[key]) for key, words in EFFECTS.items()] + [(f"measured: {k}", v) for k, v in measured.items()]
    fig, ax = show.subplots(8, 1.1 + 0.42 * len(rows))
    looks = [show.bar(0)] * len(EFFECTS) + [show.bar(1)] * len(measured)
    for y, ((_, value), look) in enumerate(zip(rows, looks, strict=True)):
        ax.barh(y, value, height=0.62, **look)
        ax.text(value, y, f" {show.digits(value)}×", va="center", fontsize=9)
    ax.set_yticks(range(len(rows)), [words for words, _ in rows])
    ax.invert_yaxis()
    title = f"{bit_count(r.bits)} against 4 bits, {r.d_out} × {r.d_in}, batch {r.batch}, {r.kernel}"
    ax.set(title=title, xlabel="times as fast")
    ax.margins(x=0.12)
    return Frame(title, f"{title}, times as fast: {', '.join(f'{words} {show.digits(value)}' for words, value in rows)}.", fig)


EFFECTS = {"bits": "bits of the codes alone", "bytes": "all bytes that move", "limits": "and the instructions",
           "time": "and the launch"}


def bit_count(bits: float) -> str:
    return f"{bits:g} bit{'s' * (bits != 1)}"


def told(r: Roofline) -> str:
    """Bytes, floor and instruction bound of one setting."""
    scales = (f"groups of {r.group}" if r.group else "a scale a row") + (" with zero points" if r.zeros else "")
    group = {FULL: "16 bits a weight", MIXED: "its own scales"}.get(r.bits, scales)
    kernel = "fp16" if r.bits == FULL and r.kernel != OWN else r.kernel
    return (f"{r.d_out} by {r.d_in}, {bit_count(r.bits)} ({group}: {show.digits(r.stored, 4)} stored bits a weight), "
            f"batch {r.batch}: {show.digits(sum(r.bytes.values()) / 1e6)} MB take {show.digits(r.floor)} µs at "
            f"{show.digits(r.bandwidth)} TB/s; {kernel} with {show.digits(r.slots)} issue slots a weight takes "
            f"{show.digits(r.issue)} µs, launch {show.digits(r.launch)} µs.")


def against_four(r: Roofline) -> str:
    """What is left of the gain over 4 bits."""
    f = {key: show.digits(value) for key, value in r.faster.items()}
    return (f"Against 4 bits: {f['bits']} times fewer bits, {f['bytes']} times fewer bytes, {f['limits']} times as fast with "
            f"the instructions counted, {f['time']} with the launch.")


def roofline_explorer(points: Iterable[Mapping[str, Any]] | None = None, machine: str | Machine = "NVIDIA H200",
                      shape: tuple[int, int] = (8192, 28672), bits: float = 1, batch: int = 1, group: int | None = 128,
                      kernel: str = "plain unpacking", kernels: Mapping[str, Mapping[int, float]] | None = None,
                      name: str = "packed products") -> RooflineExplorer:
    """A widget that holds a packed product against its two limits; make it the last expression of a cell.

    Shapes:  points: dicts with d_out, d_in, bits, batch, us, and a name; shape (d_out, d_in); group None: a scale a row;
             kernels {name: {bits: slots a weight}} for 8, 4, 3, 2 and 1 bits adds kernels of your own.
    Units:   us microseconds; slots: issue slots a weight, for up to 8 rows of x.
    Raises:  ValueError for a point, shape, width, machine or kernel that cannot be shown.
    Source:  the roofline model; slots counted in machine code (`roofline_model`).
    Differs: the second limit is issue slots, not arithmetic.
    """
    known = {m.name: m for m in (*MACHINES, *([machine] if isinstance(machine, Machine) else []))}
    chosen = _machine(machine, known)
    kept = [_point(p) for p in points or ()]
    if len({p["name"] for p in kept}) > MOST_NAMES:
        raise ValueError(f"points of {len({p['name'] for p in kept})} names cannot be told apart; give at most {MOST_NAMES}")
    if len(shape) != 2 or min(shape) < 64 or max(shape) > LARGEST:
        raise ValueError(f"shape={tuple(shape)}: use (d_out, d_in), each from 64 to {LARGEST}")
    if bits not in BITS or not 1 <= batch <= MOST_BATCH or (group or 0) not in GROUPS:
        raise ValueError(f"bits={bits}, batch={batch}, group={group}: use bits of {BITS}, a batch of 1 to {MOST_BATCH}, a "
                         "group of 32, 64, 128, 256 or None")
    counts = {k: {str(b): [list(c) for c in of] for b, of in table.items()} for k, table in KERNELS.items()}
    counts |= _counts(kernels or {})
    if kernel not in (*counts, OWN):
        raise ValueError(f"kernel={kernel!r} is not counted; use {', '.join((*counts, OWN))}, or give its slots in kernels")
    shapes = [list(s) for s in dict.fromkeys((*SHAPES, tuple(shape), *((p["d_out"], p["d_in"]) for p in kept)))]
    about = f"{name}: {len(kept)} measured point{'s' * (len(kept) != 1)}" if kept else name
    return RooflineExplorer(
        d_out=shape[0], d_in=shape[1], bits=bits, batch=batch, group=group or 0, kernel=kernel, machine=chosen.name,
        bandwidth=chosen.bandwidth, launch=chosen.launch, points=kept, machines=[asdict(m) for m in known.values()],
        shapes=shapes, counts=counts, constants={"half": [list(c) for c in HALF], "share": SHARE, "own": OWN}, about=about)


def _machine(machine: str | Machine, known: Mapping[str, Machine]) -> Machine:
    chosen = known.get(machine.name if isinstance(machine, Machine) else machine)
    if chosen is None:
        raise ValueError(f"machine={machine!r} is not known; use {', '.join(known)}, or a Machine with your own numbers")
    rates = (chosen.bandwidth, chosen.slots)
    if not all(math.isfinite(v) for v in (*rates, chosen.launch)) or min(rates) <= 0 or chosen.launch < 0:
        raise ValueError(f"{chosen} cannot be: give finite rates above 0 and a launch of at least 0")
    return chosen


def _point(p: Mapping[str, Any]) -> dict:
    missing = [k for k in NEEDED if k not in p]
    if missing or not all(math.isfinite(p[k]) and p[k] > 0 for k in NEEDED):
        raise ValueError(f"the point {dict(p)} needs {', '.join(NEEDED)}, all finite and above 0")
    if not 0.5 <= p["bits"] <= FULL:
        raise ValueError(f"the point {dict(p)} has {p['bits']} bits a weight; use 0.5 to {FULL}")
    whole = {k: int(p[k]) for k in ("d_out", "d_in", "batch")}
    return {**whole, "bits": float(p["bits"]), "us": float(p["us"]), "name": str(p.get("name", "measured"))}


def _counts(kernels: Mapping[str, Mapping[int, float]]) -> dict:
    for name, table in kernels.items():
        complete = set(table) == set(WIDTHS) and all(math.isfinite(v) and v > 0 for v in table.values())
        if not complete or name in (*KERNELS, OWN):
            raise ValueError(f"kernel {name!r} has the counts {dict(table)}; give slots a weight for 8, 4, 3, 2 and 1 bits, "
                             "and a new name")
    return {name: {str(b): [[8, float(v), 0.0]] for b, v in table.items()} for name, table in kernels.items()}
