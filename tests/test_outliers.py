"""Bilevel grids, corrections and the weights that leave the grid, against loops that share no code with them."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import lowbit_nb as lb
from lowbit_nb import outliers, stored
from lowbit_nb.bilevel import BilevelWeight, Coded, Second
from lowbit_nb.feedback import ORDERS, feedback, order
from lowbit_nb.grid import Grid
from lowbit_nb.hessian import factor
from lowbit_nb.methods import GPTQ, OAC, SpQR
from lowbit_nb.outliers import BilevelRounder, leave_one_out
from lowbit_nb.quantize import quantize
from lowbit_nb.sparse import CorrectedWeight
from lowbit_nb.stored import AffineWeight
from tests import tiny
from tests.reference import current_values, problem
from tests.walks import equal

HALF = 2.0**-11  # relative rounding of float16


def real(bits: int, group: int | None) -> Grid:
    return Grid(bits, group, zero_inside=False)


def ruler(w: list[float], q_max: int) -> tuple[float, float]:
    """Step and real zero point from the smallest to the largest number."""
    s = (max(w) - min(w)) / q_max if max(w) > min(w) else 1.0
    return s, -min(w) / s


def squared_errors(w: list[float], cost: list[float], q_max: int) -> list[float]:
    if not w:
        return []
    s, z = ruler(w, q_max)
    q = [min(max(round(v / s + z), 0), q_max) for v in w]
    return [c * (s * (k - z) - v) ** 2 for v, k, c in zip(w, q, cost, strict=True)]


def refitted(w: list[float], cost: list[float], q_max: int) -> list[float]:
    """What leaving each one out gains, by laying the grid of all the others."""
    whole = sum(squared_errors(w, cost, q_max))
    return [whole - sum(squared_errors(w[:i] + w[i + 1 :], cost[:i] + cost[i + 1 :], q_max)) for i in range(len(w))]


def naive(W: Tensor, H: Tensor, bits: int, g: int, second: Second, threshold: float, refit: bool) -> tuple:
    """SpQR one column at a time in natural order, every current value solved from scratch; W_hat, codes, corrections."""
    d_out, d_in = W.shape
    D = [1 / float(torch.linalg.inv(H[j:, j:])[0, 0]) for j in range(d_in)]
    tau = threshold * sum(float(W[:, j].var()) * D[j] for j in range(d_in)) / d_in
    Q, codes, kept = torch.zeros_like(W), torch.zeros(W.shape, dtype=torch.uint8), torch.zeros_like(W)
    for j in range(d_in):
        now = current_values(W, Q, H, list(range(j)), list(range(j, d_in)))
        if j % g == 0:
            rulers = []
            for row in now[:, :g].tolist():
                if refit:
                    out = [gain > tau for gain in refitted(row, D[j : j + g], 2**bits - 1)]
                    row = [v for v, o in zip(row, out, strict=True) if not o] or [0.0]
                rulers.append((*ruler(row, 2**bits - 1), None if max(row) > min(row) else row[0]))
            rulers = beside(rulers, second.rows, 2**bits - 1)
            s = coded([r[0] for r in rulers], second.scale_bits, second.rows)
            z = coded([r[1] for r in rulers], second.zero_bits, second.rows)
        for i in range(d_out):
            t, step = float(now[i, 0]), s[i] if s[i] > 0 else 1.0
            codes[i, j] = q = min(max(round(t / step + z[i]), 0), 2**bits - 1)
            dense = s[i] * (q - z[i])
            if (t - dense) ** 2 * D[j] > tau:
                kept[i, j] = float(torch.tensor(t - dense).half())
            Q[i, j] = dense + kept[i, j]
    return Q, codes, kept


def beside(rulers: list[tuple], rows: int, q_max: int) -> list[tuple]:
    """Rulers of no length (third entry: the number they stand at) take after those that share their second-level grid."""
    out = []
    for i in range(0, len(rulers), rows):
        part = rulers[i : i + rows]
        live = [r for r in part if r[2] is None]
        s_mean, z_mean = (sum(r[k] for r in live) / len(live) if live else 1.0 - k for k in (0, 1))
        for s, z, at in part:
            q = None if at is None else min(max(round(at / s_mean + z_mean), 0), q_max)
            out.append((s, z) if at is None else (s_mean, q - at / s_mean))
    return out


def like_neighbours(own: tuple, shared: list[tuple], q_max: int) -> tuple[float, float]:
    """A row of one value takes the mean step of those it shares a grid with, and the zero point nearest their mean that holds
    the value."""
    s, z, value, flat = own
    if not flat:
        return s, z
    live = [r for r in shared if not r[3]]
    s = sum(r[0] for r in live) / len(live) if live else 1.0
    z = sum(r[1] for r in live) / len(live) if live else 0.0
    return s, min(max(round(value / s + z), 0), q_max) - value / s


def coded(x: list[float], bits: int, rows: int) -> list[float]:
    out = []
    for i in range(0, len(x), rows):
        part = x[i : i + rows]
        lo = float(torch.tensor(min(part)).half())
        step = float(torch.tensor(max(max(part) - lo, 0) / (2**bits - 1)).half())
        out += [lo + step * min(max(round((v - lo) / (step or 1.0)), 0), 2**bits - 1) for v in part]
    return out


class Watched(BilevelRounder):
    """Remembers what each column was before it was rounded."""

    def prepare(self, Wt: Tensor, D: Tensor) -> None:
        super().prepare(Wt, D)
        self.t, self.hat = torch.empty_like(Wt), torch.empty_like(Wt)

    def round(self, j: int, t: Tensor) -> Tensor:
        self.t[j] = t
        self.hat[j] = super().round(j, t)
        return self.hat[j]


def watched(W: Tensor, H: Tensor, name: str = "natural", g: int = 8, threshold: float = 0.2, refit: bool = True) -> tuple:
    perm = order(H, name, g)
    rounder = Watched(real(3, g), Second(3, 3, 4), perm, len(W), threshold, refit)
    return rounder, feedback(W, H, rounder, perm), perm


# Leaving one out


@given(
    st.integers(1, 9),
    st.sampled_from([1, 3, 7]),
    st.lists(st.sampled_from([-9.0, -2.0, -1.0, 0.0, 0.5, 1.0, 1.25, 3.0, 40.0]), min_size=9, max_size=9),
    st.lists(st.floats(0.1, 10), min_size=9, max_size=9),
)
def test_leaving_one_out_is_refitting_without_it(g, q_max, w, cost):
    """Few different numbers: smallest and largest are often tied, groups are often constant."""
    found = leave_one_out(torch.tensor([w[:g]], dtype=torch.float64), torch.tensor(cost[:g], dtype=torch.float64), q_max)
    assert found[0].tolist() == pytest.approx(refitted(w[:g], cost[:g], q_max), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("g", [3, 4, 16])
def test_leaving_one_out_of_random_groups(generator, g):
    G = torch.randn(20, g, generator=generator, dtype=torch.float64)
    cost = torch.rand(g, generator=generator, dtype=torch.float64)
    found = leave_one_out(G, cost, 7)
    for row, w in zip(found.tolist(), G.tolist(), strict=True):
        assert row == pytest.approx(refitted(w, cost.tolist(), 7), rel=1e-9, abs=1e-12)
    inner = (G > G.amin(1, keepdim=True)) & (G < G.amax(1, keepdim=True))
    assert (found[inner] >= 0).all() and (found[~inner] > found[inner].mean()).any()


def test_the_one_that_stretches_the_grid_gains_most():
    G = torch.tensor([[0.1, 0.25, 0.33, 0.4, 9.0, 0.0, 0.17, 0.3]])
    assert leave_one_out(G, torch.ones(8), 3).argmax() == 4


# Coded steps and zero points


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("at, spread", [(0.0, 1.0), (100.0, 3.0), (0.02, 1e-3), (-5.0, 0.0), (3e-6, 1e-6)])
def test_coded_numbers_are_off_by_half_a_step_at_most(generator, bits, rows, at, spread):
    x = at + spread * torch.randn(32, 5, generator=generator)
    found = Coded.of(x, bits, rows)
    assert found.code.dtype == torch.uint8 and int(found.code.max()) < 2**bits
    assert found.lo.dtype == found.step.dtype == torch.float16 and found.lo.shape == found.step.shape == (32 // rows, 5)
    x_g = x.reshape(-1, rows, 5)
    span = (x_g.amax(1) - x_g.amin(1)).repeat_interleave(rows, 0)
    bound = span / (2**bits - 1) / 2 + HALF * (x.abs().amax() + 2 * span) + 2**bits * 2.0**-24  # and what float16 cannot hold
    assert ((found.value() - x).abs() <= bound).all()
    for i in range(32):
        lo, step = found.lo[i // rows].float(), found.step[i // rows].float()
        assert torch.equal(found.value()[i], lo + step * found.code[i].float())


def test_the_ends_of_coded_numbers_are_exact_where_float16_holds_them():
    x = torch.tensor([[1.0], [2.75], [8.0], [4.5]])
    assert Coded.of(x, 3, 4).value().flatten().tolist() == [1.0, 3.0, 8.0, 5.0]  # half to even: 3.5 -> 4


@pytest.mark.parametrize("x, rows, words", [(torch.zeros(6, 2), 4, "d_out=6 is not a multiple of the 4 rows"),
                                            (torch.full((4, 1), 1e6), 4, "does not fit float16"),
                                            (torch.tensor([[-6e4], [6e4]]).repeat(2, 1) * 2, 4, "does not fit float16"),
                                            (torch.full((4, 1), float("nan")), 4, "does not fit float16")])
def test_numbers_that_cannot_be_coded_are_refused(x, rows, words):
    with pytest.raises(ValueError, match=words):
        Coded.of(x, 3, rows)


# Stored forms


def bilevel(seed: int, d_out: int, d_in: int, grid: Grid, second: Second, permuted: bool) -> BilevelWeight:
    generator = torch.Generator().manual_seed(seed)
    n = grid.n_groups(d_in)
    q = torch.randint(0, grid.levels, (d_out, d_in), generator=generator, dtype=torch.uint8)
    scale = Coded.of(0.01 + torch.rand(d_out, n, generator=generator), second.scale_bits, second.rows)
    zero = Coded.of(4 * torch.randn(d_out, n, generator=generator), second.zero_bits, second.rows)
    return BilevelWeight(q, scale, zero, grid, second, torch.randperm(d_in, generator=generator) if permuted else None)


def corrected(base: object, seed: int = 0, share: float = 0.05) -> CorrectedWeight:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(base.shape, generator=generator) < share
    return CorrectedWeight.of(base, torch.where(keep, torch.randn(base.shape, generator=generator), 0.0))


def affine(grid: Grid, permuted: bool = False) -> AffineWeight:
    w = AffineWeight.nearest(torch.randn(16, 48), grid)
    return AffineWeight(w.q, w.s, w.z, grid, torch.randperm(48) if permuted else None)


FORMS = {
    "integer zeros": lambda: affine(Grid(3, 8)),
    "symmetric": lambda: affine(Grid(2, symmetric=True)),
    "real zeros, scattered": lambda: affine(real(4, 16), True),
    "bilevel": lambda: bilevel(1, 16, 48, real(3, 8), Second(3, 4, 8), False),
    "bilevel, scattered": lambda: bilevel(2, 16, 48, real(5, 16), Second(2, 8, 1), True),
    "corrected bilevel": lambda: corrected(bilevel(3, 16, 48, real(3, 16), Second(), True)),
    "corrected affine": lambda: corrected(affine(Grid(2, 16), True), 1, 0.5),
    "nothing corrected": lambda: corrected(affine(Grid(2, 16)), 1, 0.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_product_from_the_parts_is_the_product(form):
    w = FORMS[form]()
    for x in (torch.randn(48), torch.randn(48).half(), torch.randn(48).bfloat16(), torch.zeros(48)):
        y = w.matvec(x)
        assert y.dtype == torch.float32 and y.shape == (16,)
        expected = w.dequantize().double() @ x.double()
        bound = 1e-5 * (w.dequantize().abs().double() @ x.double().abs()).max() + 1e-5 * x.double().abs().max() * 100
        assert float((y - expected).abs().max()) <= float(bound)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_back_is_what_was_written_and_counted(tmp_path, form):
    w = FORMS[form]()
    save_file(w.pack(), tmp_path / "one.safetensors")
    data = (tmp_path / "one.safetensors").read_bytes()
    assert w.bits().bits == 8 * (len(data) - 8 - struct.unpack("<Q", data[:8])[0]) and w.bits().n_weights == 16 * 48
    assert all(i.padding >= 0 for i in w.bits().items) and w.bits().bits == sum(i.bits for i in w.bits().items)
    back = stored.unpack(load_file(tmp_path / "one.safetensors"), json.loads(json.dumps(w.meta())))
    assert type(back) is type(w) and back.shape == w.shape and back.meta() == w.meta()
    assert torch.equal(back.dequantize(), w.dequantize()) and stored.checksum(back) == stored.checksum(w)
    ours, theirs = w.pack(), back.pack()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[n]) and t.dtype == theirs[n].dtype and t.is_contiguous() for n, t in ours.items())
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(w.dequantize(dtype), w.dequantize().to(dtype))


@pytest.mark.parametrize("permuted", [False, True])
def test_a_bilevel_weight_is_its_formula(permuted):
    w = bilevel(5, 8, 12, real(3, 4), Second(2, 3, 4), permuted)
    expected = torch.empty(8, 12)
    for i in range(8):
        for c in range(12):
            s = float(w.scale.lo[i // 4, c // 4]) + float(w.scale.step[i // 4, c // 4]) * int(w.scale.code[i, c // 4])
            z = float(w.zero.lo[i // 4, c // 4]) + float(w.zero.step[i // 4, c // 4]) * int(w.zero.code[i, c // 4])
            expected[i, int(w.perm[c]) if permuted else c] = s * (int(w.q[i, c]) - z)
    torch.testing.assert_close(w.dequantize(), expected, rtol=1e-5, atol=1e-6)


def test_corrections_are_added_and_do_not_replace():
    base = affine(Grid(2, 16))
    C = torch.zeros(16, 48)
    C[3, 7], C[3, 2], C[15, 47], C[0, 0] = 0.5, -0.25, 2.0, 1e-12  # the last one is nothing in float16
    w = CorrectedWeight.of(base, C)
    C[0, 0] = 0
    assert torch.equal(w.dequantize(), base.dequantize() + C)
    assert w.ptr.tolist() == [0, 0, 0, 0] + [2] * 12 + [3] and w.cols.tolist() == [2, 7, 47]
    assert w.rows.tolist() == [3, 3, 15] and w.values.tolist() == [-0.25, 0.5, 2.0]
    assert torch.equal(base.dequantize(), w.base.dequantize())
    with pytest.raises(ValueError, match="a correction of 7e.04 does not fit float16"):
        CorrectedWeight.of(base, torch.full((16, 48), 7e4))


@pytest.mark.parametrize("seed", range(3))
def test_bits_are_the_formula_and_what_the_formula_leaves_out(seed):
    """b + (b_s + b_z) / g + 2 (16 + 16) / (g rows) + 32 o, then row pointers and padding."""
    w = corrected(bilevel(seed, 32, 96, real(3, 16), Second(3, 3, 16), False), seed, 0.01)
    o = len(w.values) / (32 * 96)
    told = {i.name: i.count * i.each for i in w.bits().items}
    rows = told.pop("outlier rows")
    assert rows == 32 * 33 and sum(told.values()) / (32 * 96) == pytest.approx(3 + 6 / 16 + 64 / 256 + 32 * o)
    assert w.bits().nominal == 3
    assert w.bits().bits == sum(told.values()) + rows + sum(i.padding for i in w.bits().items)


def test_the_numbers_of_the_paper():
    """3 bits, groups of 16, 3 and 3 bits, 16 rows: 3.625, on a size without padding."""
    assert bilevel(0, 64, 1024, real(3, 16), Second(), False).bits().per_weight == 3.625


TENSORS = ("codes", "scale_codes", "scale_lo", "scale_step", "zero_codes", "zero_lo", "zero_step")


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("how", ["missing", "a row too few", "a column too few"])
def test_a_bilevel_weight_with_a_part_missing_is_refused(name, how):
    w = bilevel(0, 32, 96, real(3, 8), Second(3, 3, 16), False)
    tensors = w.pack()
    if how == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1] if "row" in how else tensors[name][:, :-1]
    with pytest.raises(ValueError):
        stored.unpack(tensors, w.meta())


def cut(name: str) -> object:
    return lambda t: t.update({f"outlier_{name}": t[f"outlier_{name}"][:-1]})


def put(name: str, place: int, value: int) -> object:
    return lambda t: t[f"outlier_{name}"].__setitem__(place, value)


@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(lambda t, n=n: t.pop(f"outlier_{n}"), id=f"no {n}") for n in ("ptr", "cols", "values")),
        *(pytest.param(cut(n), id=f"{n} cut") for n in ("ptr", "cols", "values")),
        pytest.param(put("ptr", -1, 1), id="too few told"),
        pytest.param(put("cols", 0, 96), id="column beyond the last"),
        pytest.param(put("cols", 0, -1), id="negative column"),
        pytest.param(put("ptr", 3, 1000), id="falling rows"),
        pytest.param(put("ptr", 0, 2), id="rows begin late"),
        pytest.param(lambda t: t.pop("base.codes"), id="no base"),
    ],
)
def test_corrections_that_do_not_fit_are_refused(change):
    w = corrected(bilevel(0, 32, 96, real(3, 8), Second(3, 3, 16), False))
    tensors = {name: t.clone() for name, t in w.pack().items()}
    change(tensors)
    with pytest.raises(ValueError):
        stored.unpack(tensors, w.meta())


# While a layer is rounded


@pytest.mark.parametrize("threshold, refit", [(0.2, True), (0.2, False), (0.02, True), (float("inf"), True)])
@pytest.mark.parametrize("bits, g, second", [(3, 8, Second(3, 3, 4)), (2, 4, Second(8, 8, 1)), (2, 24, Second(4, 2, 8))])
def test_it_is_spqr_done_slowly(generator, threshold, refit, bits, g, second):
    W, H = problem(8, 24, generator)
    rounder = BilevelRounder(real(bits, g), second, torch.arange(24), 8, threshold, refit)
    feedback(W, H, rounder)
    found = rounder.result()
    Q, codes, kept = naive(W, H, bits, g, second, threshold, refit and threshold < float("inf"))
    assert torch.equal(found.base.q, codes)
    torch.testing.assert_close(found.dequantize().double(), Q, rtol=1e-4, atol=1e-5)
    dense = torch.zeros(8, 24)
    dense[found.rows, found.cols.long()] = found.values.float()
    assert torch.equal(dense != 0, kept != 0) and (len(found.values) == 0) == (threshold == float("inf"))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("threshold", [0.05, float("inf")])
def test_the_stored_form_is_what_was_propagated(generator, name, threshold):
    W, H = problem(8, 48, generator)
    rounder, result, perm = watched(W, H, name, threshold=threshold)
    found = rounder.result()
    torch.testing.assert_close(found.dequantize().double(), result.W_hat, rtol=1e-5, atol=1e-6)
    assert torch.equal(rounder.hat, result.W_hat.T[perm])
    assert (found.base.perm is None) == (name in ("natural", "gar"))


@pytest.mark.parametrize("name", ["natural", "act"])
def test_what_stays_outside_costs_nothing_and_what_is_inside_costs_less_than_the_threshold(generator, name):
    W, H = problem(8, 48, generator)
    rounder, _, perm = watched(W, H, name, threshold=0.05)
    out = rounder.kept != 0
    assert 0 < int(out.sum()) < out.numel() // 2
    off = (rounder.t - rounder.hat).abs()
    assert (off[out] <= HALF * rounder.kept[out].double().abs() + 2.0**-24).all()
    cost = off.square() * factor(H[perm][:, perm])[1][:, None]
    assert (cost[~out] <= rounder.tau).all() and rounder.tau > 0
    places = torch.zeros(8, 48, dtype=torch.bool)
    places[(found := rounder.result()).rows, found.cols.long()] = True
    assert torch.equal(places[:, perm].T, out)


def test_a_smaller_threshold_keeps_more_and_errs_less(generator):
    W, H = problem(32, 96, generator)
    runs = [SpQR(real(2, 16), Second(3, 3, 16), threshold).quantize_layer(W.float(), H.float())
            for threshold in (float("inf"), 3.0, 0.5, 0.1, 0.02, 0.004)]
    kept, shares = [len(w.values) for w, _ in runs], [share for _, share in runs]
    assert kept[0] == 0 and kept == sorted(kept) and kept[-1] > 10 * kept[2] > 0
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.1 * shares[0]


def test_with_no_threshold_to_speak_of_nothing_is_lost(generator):
    W, H = problem(16, 48, generator)
    found, share = SpQR(threshold=1e-12).quantize_layer(W.float(), H.float())
    assert share < 1e-6 and float((found.dequantize() - W).abs().max()) < 0.01


def test_a_searched_grid_is_the_best_of_the_shorter_ones(generator):
    G, cost = torch.randn(6, 16, generator=generator).pow(3), torch.rand(16, generator=generator) + 0.1
    lo, hi = outliers._shorter(G, G.amin(1), G.amax(1), cost, 7)
    for row, least in enumerate(outliers._errors(G, *outliers._lay(lo, hi, 7), cost, 7).sum(1)):
        middle, half = (G[row].max() + G[row].min()) / 2, (G[row].max() - G[row].min()) / 2
        tried = []
        for i in range(33):
            s = 2 * half * (1 - i / 40) / 7
            q = ((G[row] - middle + half * (1 - i / 40)) / s).round().clamp(0, 7)
            tried.append(float(((q * s + middle - half * (1 - i / 40) - G[row]).square() * cost).sum()))
        assert float(least) == pytest.approx(min(tried), rel=1e-4)
    W, H = torch.randn(16, 32, generator=generator).pow(3), torch.eye(32)
    errors = [lb.SpQR(threshold=float("inf"), clip=clip).quantize_layer(W, H)[1] for clip in ("minmax", "mse")]
    assert errors[1] < errors[0]


def test_infinity_keeps_nothing_and_the_refit_is_of_no_concern(generator):
    W, H = problem(32, 64, generator)
    one, other = (SpQR(threshold=float("inf"), refit=refit).quantize_layer(W.float(), H.float())[0] for refit in (True, False))
    assert len(one.values) == 0 and equal_packed(one, other)


def equal_packed(a: CorrectedWeight, b: CorrectedWeight) -> bool:
    x, y = a.pack(), b.pack()
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def test_without_outliers_and_second_level_it_is_gptq(generator):
    """Steps and zero points in float16, as GPTQ keeps those of a grid with real zeros."""
    W, H = problem(16, 64, generator)
    W = W.float()
    for metric, least in ((torch.diag(H.diagonal()).float(), 0.99), (H.float(), 0.95)):
        found, share = SpQR(real(3, 16), Second(8, 8, 1), float("inf")).quantize_layer(W, metric)
        expected, other = GPTQ(real(3, 16), clip="minmax").quantize_layer(W, metric)
        near = (found.base.scale.value() - expected.s.float()).abs() <= 2e-3 * expected.s.float()
        assert near.float().mean() >= least - 0.1 and (found.base.q == expected.q).float().mean() > least
        assert share == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize("c, r", [(2.0**-30, 1.0), (2.0**20, 1.0), (1.0, 2.0), (1.0, 0.25)])
def test_outliers_do_not_depend_on_units(generator, c, r):
    W, H = problem(16, 48, generator)
    one, other = SpQR().quantize_layer(W, H)[0], SpQR().quantize_layer(r * W, c * H)[0]
    assert torch.equal(one.base.q, other.base.q) and torch.equal(one.ptr, other.ptr) and torch.equal(one.cols, other.cols)
    assert len(one.values) and torch.equal(one.dequantize() * r, other.dequantize())


def test_one_wild_weight_in_each_group_is_what_stays_outside(generator):
    W = torch.randn(16, 64, generator=generator)
    wild = torch.randint(0, 16, (16, 4), generator=generator) + torch.arange(0, 64, 16)
    W.scatter_(1, wild, 30.0)
    found, _ = SpQR(threshold=0.2).quantize_layer(W, torch.eye(64))
    kept = torch.zeros(16, 64, dtype=torch.bool)
    kept[found.rows, found.cols.long()] = True
    assert kept.gather(1, wild).all() and int(kept.sum()) == 64
    assert float((found.dequantize().gather(1, wild) - 30).abs().max()) < 0.03
    blind, _ = SpQR(threshold=0.2, refit=False).quantize_layer(W, torch.eye(64))
    errs = [float((w.dequantize() - W).square().mean()) for w in (found, blind)]
    assert errs[0] < 0.2 and errs[0] < 0.5 * errs[1]


def test_a_row_of_zeros_does_not_spoil_its_neighbours(generator):
    """Its step could be anything; the grid that 16 rows share must not be stretched for it."""
    W = 0.02 * torch.randn(16, 32, generator=generator)
    W[5] = 0
    rest = torch.arange(16) != 5
    found, _ = SpQR(threshold=float("inf")).quantize_layer(W, torch.eye(32))
    filled = W.clone()
    filled[5] = W[6]
    other, _ = SpQR(threshold=float("inf")).quantize_layer(filled, torch.eye(32))
    errs = [float((w.dequantize() - W)[rest].square().sum()) for w in (found, other)]
    assert errs[0] < 2 * errs[1]


def test_dead_columns_are_zero_or_harmless(generator):
    W, H = problem(16, 48, generator)
    W, H = W.float(), H.float()
    H[:, :20] = H[:20] = 0
    found, share = SpQR().quantize_layer(W, H)
    assert torch.isfinite(found.dequantize()).all() and share < 0.1


def test_a_layer_of_one_row_has_a_threshold_too(generator):
    """No variance can be estimated from one row; weights must not silently all stay inside."""
    W, H = problem(1, 32, generator)
    found, _ = SpQR(real(2, 16), Second(8, 8, 1), threshold=1e-9).quantize_layer(W.float(), H.float())
    assert len(found.values) > 0


# On a model


@pytest.fixture(scope="module")
def walked() -> lb.Quantized:
    return quantize(tiny.subject(), SpQR(), tiny.windows(), progress=False)


def test_spqr_rounds_a_model(walked, tmp_path):
    subject = tiny.subject()
    before = tiny.state(subject.model)
    again = quantize(subject, SpQR(), tiny.windows(), progress=False)
    assert equal(again, walked) and tiny.unchanged(subject.model, before) and tiny.n_hooks(subject.model) == 0
    for name, w in walked.weights.items():
        told = walked.trace[int(name.split(".")[2])]
        layer = ".".join(name.split(".")[3:])
        assert told["outliers"][layer] == len(w.values) / (w.shape[0] * w.shape[1]) and told["error_share"][layer] < 0.05
    lb.save_quantized(walked, tmp_path)
    back = lb.load_quantized(tmp_path)
    assert equal(back, walked) and back.bits().bits == walked.bits().bits and back.settings == walked.settings
    ids = tiny.windows().ids
    assert torch.equal(back.apply(subject).model(ids).logits, walked.apply(subject).model(ids).logits)
    assert walked.title == "SpQR W3 g16" and walked.bits().nominal == 3


def test_outliers_and_small_groups_serve_a_model(walked):
    subject, ids = tiny.subject(), tiny.windows(8, seed=9).ids
    full = subject.model(ids).logits.log_softmax(-1)

    def kl(found: lb.Quantized) -> float:
        return float((full.exp() * (full - found.apply(subject).model(ids).logits.log_softmax(-1))).sum(-1).mean())

    none = quantize(subject, SpQR(threshold=float("inf")), tiny.windows(), progress=False)
    plain = quantize(subject, GPTQ(lb.Grid(3, 32)), tiny.windows(), progress=False)
    assert kl(walked) < min(kl(none), kl(plain))


@pytest.mark.parametrize("method", [SpQR(order="act", threshold=0.05), SpQR(shift=True), OAC(SpQR()), OAC(SpQR(), False)])
def test_a_stopped_run_goes_on_and_is_read_back(tmp_path, method):
    once = quantize(tiny.subject("qwen2"), method, tiny.windows(), tmp_path, progress=False)
    for late in sorted(tmp_path.glob("block_*"))[1:]:
        late.unlink()
    again = quantize(tiny.subject("qwen2"), method, tiny.windows(), tmp_path, progress=False)
    assert equal(again, once) and again.trace[0] == once.trace[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", [SpQR(), SpQR(shift=True), OAC(SpQR()), OAC(GPTQ(Grid(3, 16)), False)])
def test_other_precisions_of_the_subject(dtype, method):
    subject = tiny.subject(dtype=dtype)
    found = quantize(subject, method, tiny.windows(), progress=False)
    single = quantize(tiny.subject(), method, tiny.windows(), progress=False)
    for a, b in zip(found.trace, single.trace, strict=True):
        assert all(a["error_share"][n] == pytest.approx(b["error_share"][n], rel=0.5) for n in b["error_share"])
    assert torch.isfinite(found.apply(subject).model(tiny.windows().ids).logits).all()


# What is refused


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SpQR(Grid(3, 16)), "SpQR codes real zero points: use a grid with zero_inside=False"),
        (lambda: SpQR(Grid(3, 16, symmetric=True)), "SpQR codes real zero points"),
        (lambda: SpQR(threshold=0.0), "threshold=0.0 must be positive"),
        (lambda: SpQR(threshold=float("nan")), "threshold=nan must be positive"),
        (lambda: SpQR(order="random"), "order='random' is unknown"),
        (lambda: SpQR(clip="huber"), "clip=.huber. is unknown"),
        (lambda: SpQR(damp=-1.0), "damp=-1.0 must be at least 0"),
        (lambda: Second(0), "need 1 to 8 bits"),
        (lambda: Second(3, 9), "need 1 to 8 bits"),
        (lambda: Second(rows=0), "at least one row"),
        (lambda: BilevelRounder(Grid(3), Second(), torch.arange(4), 16), "coded zero points are real numbers"),
        (lambda: SpQR().quantize_layer(torch.randn(24, 32), torch.eye(32)), "d_out=24 is not a multiple of the 16 rows"),
        pytest.param(lambda: SpQR().quantize_layer(torch.zeros(24, 32), torch.eye(32)), "d_out=24 is not a multiple of the 16",
                     id="a constant row"),
        (lambda: SpQR().quantize_layer(torch.randn(16, 40), torch.eye(40)), "d_in=40 is not a multiple of g=16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
