"""The engine: nothing learned changes nothing, the best is kept, bad losses are survived, the block is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowbit_nb import grid as grids
from lowbit_nb.blocks import Block, catch
from lowbit_nb.clipping import LearnedClip
from lowbit_nb.grid import Grid
from lowbit_nb.methods import AWQ
from lowbit_nb.objectives import mse
from lowbit_nb.reconstruct import BUDGETS, MAX_RETRIES, Budget, budget, hard_loss, reconstruct
from lowbit_nb.record import Phases
from lowbit_nb.rounding import SoftRounding, schedule
from lowbit_nb.scaling import LearnedScaling, Settled
from lowbit_nb.sites import sites
from lowbit_nb.stored import AffineWeight
from lowbit_nb.transforms import current, norms
from tests import tiny

GRID = Grid(2, 16)
SHORT = Budget(4, 6, 2)
RATES = {"rounding": 3e-2, "scale": 1e-2, "clip": 1e-2}


def setting(kind: str = "llama", grid: Grid = GRID) -> tuple[Block, Tensor, Tensor, Settled, dict[str, SoftRounding]]:
    """A block, its inputs and outputs, AWQ's edits and roundings that begin at AWQ's rulers."""
    blocks, X = catch(tiny.model(kind), tiny.windows(8, 16).ids)
    block = blocks[1]
    Y = block.run(X)
    params, rulers = AWQ(grid).begin(block, X, None, Phases())
    fixed = Settled(norms(block, params))
    return block, X, Y, fixed, {name: SoftRounding(current(block, params, name), *rulers[name], grid) for name in rulers}


def run(learn: dict, block: Block, X: Tensor, Y: Tensor, fixed: Settled, seed: int = 0, **changes: object) -> tuple[dict, dict]:
    settings = {"soft": schedule(rounds=SHORT.rounds), "budget": SHORT, "rates": RATES} | changes
    weights, _, story = reconstruct(block, learn, fixed, X, Y, generator=torch.Generator().manual_seed(seed), **settings)
    return weights, story


def same(a: dict[str, AffineWeight], b: dict[str, AffineWeight]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[n].q, b[n].q) and torch.equal(a[n].s, b[n].s) and torch.equal(a[n].zero, b[n].zero) for n in a)


@pytest.mark.parametrize("name", ["handcrafted", "linear", "one_shot"])
def test_rate_zero_gives_the_start(name: str) -> None:
    block, X, Y, fixed, learn = setting()
    start = {n: p.finish() for n, p in learn.items()}
    nearest = {n: grids.quantize(p.weight().detach(), p.s[..., 0], p.z[..., 0], GRID) for n, p in learn.items()}
    weights, story = run(learn, block, X, Y, fixed, soft=schedule(name, SHORT.rounds), rates=dict.fromkeys(RATES, 0.0))
    assert same(weights, start) and all(torch.equal(weights[n].q, nearest[n]) for n in nearest)
    assert story["end"] == pytest.approx(story["start"])


def test_no_steps_and_everything_hard_at_once_gives_the_start() -> None:
    block, X, Y, fixed, learn = setting()
    start = {n: p.finish() for n, p in learn.items()}
    weights, story = run(learn, block, X, Y, fixed, soft=(0.0,), budget=Budget(1, 0, 2))
    assert same(weights, start) and story["rounds"][0]["soft_loss"] == 0.0


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma2", "phi3"])
def test_the_hard_loss_never_ends_above_the_start(kind: str) -> None:
    block, X, Y, fixed, learn = setting(kind)
    weights, story = run(learn, block, X, Y, fixed)
    assert story["end"] <= story["start"]
    assert story["end"] == min([story["start"]] + [r["hard_loss"] for r in story["rounds"]])
    assert story["end"] == pytest.approx(hard_loss(block, weights, fixed.finish(), X, Y))  # eight windows: all are checked


def test_a_rate_that_ruins_everything_keeps_the_best_state() -> None:
    block, X, Y, fixed, learn = setting()
    start = {n: p.finish() for n, p in learn.items()}
    weights, story = run(learn, block, X, Y, fixed, rates={"rounding": 1e3, "scale": 1e2})
    assert story["end"] <= story["start"]
    if story["end"] == story["start"]:
        assert same(weights, start)


def test_learning_lowers_the_block_loss_at_two_bits() -> None:
    """Hard against hard: TesseraQ's roundings against the clipped start they began at."""
    block, X, Y, fixed, learn = setting()
    _, story = run(learn, block, X, Y, fixed, soft=schedule(rounds=8), budget=Budget(8, 15, 4))
    assert story["end"] < 0.8 * story["start"]


def test_learned_clip_lowers_the_block_loss_too() -> None:
    block, X, Y, _, _ = setting()
    learn = {name: LearnedClip(block.weight(name), GRID) for name in block.linears}
    weights, story = run(learn, block, X, Y, Settled(), soft=(1.0,) * 4, budget=Budget(4, 15, 4), rates={"clip": 3e-2})
    assert story["end"] < 0.95 * story["start"] and set(weights) == set(block.linears)


def test_one_seed_one_result() -> None:
    results = [run(s[4], *s[:4], seed=seed) for s, seed in ((setting(), 3), (setting(), 3), (setting(), 4))]
    assert same(results[0][0], results[1][0]) and results[0][1]["rounds"] == results[1][1]["rounds"]
    assert results[0][1]["rounds"] != results[2][1]["rounds"]


def test_the_global_random_state_plays_no_part() -> None:
    block, X, Y, fixed, learn = setting()
    first = run(learn, block, X, Y, fixed)
    learn = setting()[4]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = run(learn, block, X, Y, fixed)
    assert same(first[0], second[0]) and torch.equal(torch.get_rng_state(), before)


def test_the_block_is_untouched() -> None:
    block, X, Y, fixed, learn = setting()
    before, hooks = tiny.state(block.module), tiny.n_hooks(block.module)
    inputs, edits = X.clone(), {n: t.clone() for n, t in fixed.finish().items()}
    run(learn, block, X, Y, fixed)
    assert tiny.unchanged(block.module, before) and tiny.n_hooks(block.module) == hooks
    assert torch.equal(X, inputs) and all(torch.equal(fixed.finish()[n], edits[n]) for n in edits)
    assert all(p.grad is None and not p.requires_grad for p in block.module.parameters())


def test_minibatches_are_drawn_without_replacement_by_the_generator() -> None:
    """Targets carry the number of their window; what the objective is handed is what was drawn."""
    block, X, Y, fixed, learn = setting()
    marked, seen = torch.arange(8.0).reshape(-1, 1, 1).expand_as(Y).contiguous(), []

    def spy(y: Tensor, target: Tensor) -> Tensor:
        if y.requires_grad:
            seen.append(target[:, 0, 0].int().tolist())
        return mse(y, target)

    run(learn, block, X, marked, fixed, seed=7, objective=spy, budget=Budget(3, 5, 3), soft=(0.6, 0.3, 0.1))
    draw = torch.Generator().manual_seed(7)
    assert seen == [torch.randperm(8, generator=draw)[:3].tolist() for _ in range(15)]
    assert all(len(set(pick)) == 3 for pick in seen) and len({w for pick in seen for w in pick}) == 8


def test_a_batch_larger_than_the_windows_takes_them_all() -> None:
    block, X, Y, fixed, learn = setting()
    _, story = run(learn, block, X[:3], Y[:3], fixed, budget=Budget(4, 3, 50))
    assert story["end"] <= story["start"]


class Failing:
    """An objective that gives NaN in some of the training steps."""

    def __init__(self, bad: set[int] | None) -> None:
        self.bad, self.calls, self.rates = bad, 0, []

    def __call__(self, y: Tensor, target: Tensor) -> Tensor:
        loss = mse(y, target)
        if not y.requires_grad:
            return loss
        self.calls += 1
        return loss * math.nan if self.bad is None or self.calls - 1 in self.bad else loss


def watch_rates(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    rates: list[list[float]] = []
    adam = torch.optim.Adam

    def spying(groups: list[dict], **settings: object) -> torch.optim.Adam:
        rates.append(sorted({g["lr"] for g in groups}))
        return adam(groups, **settings)

    monkeypatch.setattr(torch.optim, "Adam", spying)
    return rates


def test_a_non_finite_loss_is_done_again_at_half_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    block, X, Y, fixed, learn = setting()
    rates = watch_rates(monkeypatch)
    _, story = run(learn, block, X, Y, fixed, objective=Failing({8}))  # a step of the second of four rounds
    assert story["retries"] == 1 and len(story["rounds"]) == 4
    assert all(math.isfinite(r["soft_loss"]) and math.isfinite(r["hard_loss"]) for r in story["rounds"])
    assert all(torch.isfinite(p.nu).all() and torch.isfinite(p.v).all() for p in learn.values())
    assert rates == [[1e-2, 3e-2]] * 2 + [[5e-3, 1.5e-2]] * 3
    assert story["end"] <= story["start"]


def test_a_loss_that_never_becomes_finite_is_a_clear_error() -> None:
    block, X, Y, fixed, learn = setting()
    objective = Failing(None)
    with pytest.raises(ValueError, match=rf"{block.name}.*not finite.*1/{2**MAX_RETRIES}"):
        run(learn, block, X, Y, fixed, objective=objective)
    assert objective.calls <= (MAX_RETRIES + 1) * SHORT.steps


def test_a_non_finite_hard_loss_is_never_the_best() -> None:
    block, X, Y, fixed, learn = setting()
    checks = []

    def objective(y: Tensor, target: Tensor) -> Tensor:
        if not y.requires_grad:
            checks.append(1)
        return mse(y, target) * (math.nan if not y.requires_grad and len(checks) > 6 else 1.0)  # two batches a check

    _, story = run(learn, block, X, Y, fixed, objective=objective)
    assert math.isnan(story["rounds"][-1]["hard_loss"]) and math.isfinite(story["end"])
    assert story["end"] <= story["start"]


class BadGradient(torch.autograd.Function):
    """The identity with a NaN gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad * math.nan


def test_a_non_finite_gradient_in_a_rounds_last_step_is_caught() -> None:
    block, X, Y, fixed, learn = setting()
    calls = []

    def objective(y: Tensor, target: Tensor) -> Tensor:
        loss = mse(y, target)
        if not y.requires_grad:
            return loss
        calls.append(1)
        return BadGradient.apply(loss) if len(calls) == SHORT.steps else loss

    _, story = run(learn, block, X, Y, fixed, objective=objective)
    assert story["retries"] == 1
    assert all(torch.isfinite(p.nu).all() and torch.isfinite(p.v).all() for p in learn.values())


def test_the_story_has_a_line_a_round() -> None:
    block, X, Y, fixed, learn = setting()
    soft = schedule(rounds=SHORT.rounds)
    _, story = run(learn, block, X, Y, fixed)
    assert [r["share"] for r in story["rounds"]] == list(soft) and story["retries"] == 0
    for r in story["rounds"]:
        assert set(r["layers"]) == set(learn)
        assert all(told["soft"] <= r["share"] + 1e-3 for told in r["layers"].values())


def test_optimisers_start_anew_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = watch_rates(monkeypatch)
    block, X, Y, fixed, learn = setting()
    run(learn, block, X, Y, fixed)
    assert len(rates) == SHORT.rounds


def test_the_order_of_windows_is_only_the_order_of_draws() -> None:
    """Windows permuted, and drawn by the same permutation (all in each batch): the same integers."""
    block, X, Y, fixed, learn = setting()
    perm = torch.randperm(8)
    whole = Budget(4, 6, 8)
    a, _ = run(learn, block, X, Y, fixed, budget=whole)
    b, _ = run(setting()[4], block, X[perm], Y[perm], fixed, budget=whole)
    agree = [float((a[n].q == b[n].q).float().mean()) for n in a]
    assert min(agree) > 0.97  # sums in another order differ in the last bits


def test_budgets_by_name() -> None:
    assert budget("paper") == Budget(20, 250, 4, tokens=8192) and set(BUDGETS) == {"demo", "fast", "paper"}
    own = Budget(2, 3, 1)
    assert budget(own) is own
    with pytest.raises(ValueError, match="demo, fast, paper"):
        budget("endless")


@pytest.mark.parametrize("batch, tokens, n, length, want", [
    (4, 0, 512, 256, 4),
    (4, 0, 3, 256, 3),  # all there are
    (4, 8192, 512, 2048, 4),
    (4, 8192, 512, 256, 32),
    (4, 8192, 512, 300, 27),  # 27 * 300 <= 8192: a whole number of windows, not more tokens
    (4, 8192, 512, 4096, 4),  # never fewer than the batch
    (4, 8192, 20, 256, 20),
])
def test_short_windows_come_in_larger_minibatches(batch: int, tokens: int, n: int, length: int, want: int) -> None:
    assert Budget(1, 1, batch, tokens).windows(n, length) == want


def test_a_budget_of_tokens_draws_more_windows_a_step() -> None:
    block, X, Y, fixed, learn = setting()
    drawn = []

    def spy(y: Tensor, target: Tensor) -> Tensor:
        if y.requires_grad:
            drawn.append(len(y))
        return mse(y, target)

    run(learn, block, X, Y, fixed, objective=spy, budget=Budget(4, 2, 2, tokens=5 * 16))
    assert drawn == [5] * 8  # windows of 16 tokens


def scaling_setting() -> tuple[Block, Tensor, Tensor, LearnedScaling, dict[str, LearnedClip]]:
    block, X, Y, _, _ = setting()
    edits = LearnedScaling(block, sites(block, X[:1]))
    return block, X, Y, edits, {n: LearnedClip(block.weight(n), GRID) for n in block.linears}


def test_the_best_moment_keeps_its_own_edits() -> None:
    """Weights and edits come back from the same moment, though the variables have moved on."""
    block, X, Y, edits, learn = scaling_setting()
    weights, params, story = reconstruct(block, learn, edits, X, Y, soft=(1.0,) * 6, budget=Budget(6, 8, 4),
                                         rates={"clip": 0.3, "scaling": 0.15}, generator=torch.Generator().manual_seed(0))
    hard = [r["hard_loss"] for r in story["rounds"]]
    assert min(hard) == story["end"] < hard[-1]  # the last moment is not the best here
    assert hard_loss(block, weights, norms(block, params), X, Y) == pytest.approx(story["end"], rel=1e-5)
    for n, w in weights.items():  # the integers are those of the edited weights
        assert torch.equal(w.q, grids.quantize(current(block, params, n), w.s.float(), w.zero, GRID)), n
    late = hard_loss(block, weights, norms(block, edits.finish()), X, Y)
    assert late > 1.05 * story["end"]  # those weights with the edits of the end
    assert any((params[n] != t).any() for n, t in edits.finish().items())


def test_a_bad_round_takes_edits_back_too() -> None:
    block, X, Y, edits, learn = scaling_setting()
    seen: list[Tensor] = []

    def watching(y: Tensor, target: Tensor) -> Tensor:
        if y.requires_grad:
            seen.append(edits.log_s[0].detach().clone())
        return mse(y, target) * (math.nan if y.requires_grad and len(seen) == 9 else 1.0)

    _, _, story = reconstruct(block, learn, edits, X, Y, soft=(1.0,) * 3, budget=Budget(3, 6, 4), objective=watching,
                              rates={"clip": 0.1, "scaling": 0.05}, generator=torch.Generator().manual_seed(0))
    assert story["retries"] == 1 and len(seen) == 24
    assert torch.equal(seen[12], seen[6]) and not torch.equal(seen[7], seen[6])  # the second round's first step, done again


def test_half_precision_steps_give_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the forward pass in bfloat16, variables in float32."""
    block, X, Y, fixed, learn = setting()
    own, dtypes = torch.autocast, set()

    def half_precision(on: bool) -> None:
        monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled, **rest: own(device, dtype, enabled=on, **rest))

    half_precision(False)
    full, told = run(learn, block, X, Y, fixed)
    half_precision(True)

    def watching(y: Tensor, target: Tensor) -> Tensor:
        dtypes.add(torch.is_autocast_enabled("cpu"))
        return mse(y, target)

    half_learn = setting()[4]
    half, told_half = run(half_learn, block, X, Y, fixed, objective=watching)
    assert dtypes == {True, False} and all(p.nu.dtype == torch.float32 for p in half_learn.values())
    agree = [float((full[n].q == half[n].q).float().mean()) for n in full]
    assert min(agree) > 0.93 and sum(agree) / len(agree) > 0.97
    assert told_half["end"] == pytest.approx(told["end"], rel=0.05)
    assert told_half["rounds"][0]["soft_loss"] != told["rounds"][0]["soft_loss"]


def test_the_objective_is_summed_over_the_hidden_dimension() -> None:
    y, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert float(mse(y, t)) == pytest.approx(float(((y - t) ** 2).sum()) / 6)
    assert mse(y.half(), t.half()).dtype == torch.float32
    assert torch.isfinite(mse(300 * torch.ones(1, 1, 64).half(), torch.zeros(1, 1, 64).half()))  # would overflow in float16


def test_hard_loss_is_the_mean_over_windows_whatever_the_batch() -> None:
    block, X, Y, fixed, learn = setting()
    weights = {n: p.finish() for n, p in learn.items()}
    losses = []
    for block.batch in (1, 3, 8):
        losses.append(hard_loss(block, weights, fixed.finish(), X, Y))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    dequantized = fixed.finish() | {n: w.dequantize() for n, w in weights.items()}
    assert losses[0] == pytest.approx(float(mse(block.run(X, dequantized), Y)), rel=1e-5)


def test_without_quantization_edits_alone_have_no_loss() -> None:
    block, X, Y, _, _ = setting()
    params, _ = AWQ(GRID).begin(block, X, None, Phases())
    exact = {name: t.float() for name, t in params.items()}
    assert float(mse(block.run(X, exact), Y)) < 1e-8 * float(mse(Y, torch.zeros_like(Y)))
