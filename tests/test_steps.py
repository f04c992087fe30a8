"""One optimiser step, again and again: plain Adam; the captured step does the same; compiled arithmetic equals the written."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from lowbit_nb import fused, rounding, steps
from lowbit_nb.blocks import catch
from lowbit_nb.clipping import LearnedClip
from lowbit_nb.grid import Grid, fit
from lowbit_nb.methods import AWQ, OmniQuant, TesseraQ
from lowbit_nb.reconstruct import Budget
from lowbit_nb.rounding import SoftRounding
from lowbit_nb.steps import CapturedSteps, Steps
from lowbit_nb.streams import Streams
from tests import tiny

RATES = {"a": 0.05, "b": 0.01}
GRID = Grid(2, 16)


class Problem:
    """Least squares with two groups of variables, one with decay; windows are rows of data."""

    def __init__(self, device: str = "cpu") -> None:
        draw = torch.Generator().manual_seed(0)
        self.X, self.Y = (torch.randn(12, 5, generator=draw).to(device) for _ in range(2))
        self.a = torch.randn(5, 5, generator=draw).to(device).requires_grad_()
        self.b = torch.randn(5, generator=draw).to(device).requires_grad_()
        self.groups = [{"params": [self.a], "role": "a"}, {"params": [self.b], "role": "b", "weight_decay": 0.1}]
        self.picks = torch.stack([torch.randperm(12, generator=draw)[:4] for _ in range(12)]).to(device)

    def loss(self, pick: Tensor) -> Tensor:
        return (self.X[pick] @ self.a + self.b - self.Y[pick]).square().mean()

    def state(self) -> list[Tensor]:
        return [self.a.detach().clone(), self.b.detach().clone()]


def by_hand(problem: Problem, picks: Tensor, speed: float = 1.0) -> list[float]:
    """Adam from its formulas, in float64: fresh moments, decay as part of the gradient."""
    told, variables = [], (problem.a, problem.b)
    moments = [(torch.zeros_like(p, dtype=torch.float64), torch.zeros_like(p, dtype=torch.float64)) for p in variables]
    for t, pick in enumerate(picks, 1):
        loss = problem.loss(pick)
        told.append(float(loss))
        for p, (m, v), rate, decay, g in zip(variables, moments, (0.05, 0.01), (0.0, 0.1), torch.autograd.grad(loss, variables),
                                             strict=True):
            g = g.double() + decay * p.detach().double()
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            step = speed * rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            with torch.no_grad():
                p.sub_(step.float())
    return told


def close(a: list, b: list, tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(torch.as_tensor(x).cpu(), torch.as_tensor(y).cpu(), rtol=tolerance, atol=tolerance)
               for x, y in zip(a, b, strict=True))


# --- plain steps ------------------------------------------------------------------------------------------------------


def test_losses_and_variables_are_those_of_plain_adam() -> None:
    ours, plain = Problem(), Problem()
    step = steps.steps(ours.loss, ours.groups, RATES, ours.picks[0])
    assert type(step) is Steps
    step.restart()
    assert close([step.take(pick) for pick in ours.picks], by_hand(plain, plain.picks))
    assert close(ours.state(), plain.state())
    assert not close(ours.state(), Problem().state(), 1e-2)


@pytest.mark.parametrize("speed", [1.0, 0.25])
def test_a_restart_forgets_the_moments_and_sets_the_speed(speed: float) -> None:
    ours, plain = Problem(), Problem()
    step = Steps(ours.loss, ours.groups, RATES)
    for picks, v in ((ours.picks[:6], 1.0), (ours.picks[6:], speed)):
        step.restart(v)
        told = [step.take(pick) for pick in picks]
        assert close(told, by_hand(plain, picks, v))  # whose moments begin at zero in every call
    assert close(ours.state(), plain.state())
    kept = Problem()
    by_hand(kept, kept.picks)  # in one go, moments kept
    assert not close(ours.state(), kept.state(), 1e-3)


def test_the_loss_told_is_the_one_before_the_step_and_holds_no_graph() -> None:
    problem = Problem()
    step = Steps(problem.loss, problem.groups, RATES)
    step.restart()
    before = problem.loss(problem.picks[0])
    told = step.take(problem.picks[0])
    assert torch.equal(told, before.detach()) and not told.requires_grad
    assert problem.loss(problem.picks[0]) < before


def test_gradients_do_not_pile_up() -> None:
    problem = Problem()
    step = Steps(problem.loss, problem.groups, RATES)
    step.restart()
    for pick in problem.picks[:3]:
        want = torch.autograd.grad(problem.loss(pick), problem.b)[0]
        step.take(pick)
        assert torch.allclose(problem.b.grad, want, rtol=1e-5, atol=1e-7)


def test_an_unknown_role_is_an_error_and_not_a_default_rate() -> None:
    problem = Problem()
    with pytest.raises(KeyError, match="b"):
        Steps(problem.loss, problem.groups, {"a": 0.1}).restart()


# --- the choice, without a GPU ----------------------------------------------------------------------------------------


class OnGpu(Tensor):
    """A minibatch that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("error", [RuntimeError("not permitted when stream is capturing"), torch.OutOfMemoryError("full")])
def test_when_capturing_fails_variables_are_as_before(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory is an error; anything else that capturing trips over is only slower, and says so."""
    problem = Problem()
    before = problem.state()

    def failing(loss: Callable, groups: list[dict], rates: dict, pick: Tensor) -> Steps:
        with torch.no_grad():
            for g in groups:  # as warming up does
                for p in g["params"]:
                    p.add_(1.0)
        raise error

    monkeypatch.setattr(steps, "CapturedSteps", failing)
    example = problem.picks[0].as_subclass(OnGpu)
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            steps.steps(problem.loss, problem.groups, RATES, example)
    else:
        with pytest.warns(UserWarning, match="cannot be captured and runs slower.*not permitted"):
            step = steps.steps(problem.loss, problem.groups, RATES, example)
        assert type(step) is Steps
    assert all(torch.equal(a, b) for a, b in zip(problem.state(), before, strict=True))


def test_an_error_of_the_device_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()

    def failing(*_: object) -> Steps:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(steps, "CapturedSteps", failing)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        steps.steps(problem.loss, problem.groups, RATES, problem.picks[0].as_subclass(OnGpu))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_collected_while_a_step_is_captured(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, back = [], []

    @contextmanager
    def graph(_: object) -> Iterator[None]:
        seen.append(gc.isenabled())
        yield
        if fails:
            raise RuntimeError("capture_end")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the one before")
    monkeypatch.setattr(torch.cuda, "set_stream", back.append)
    with pytest.raises(RuntimeError, match="capture_end") if fails else nullcontext(), steps._capturing(None):
        pass
    assert seen == [False] and gc.isenabled() and back == ["the one before"] * fails


def test_what_warming_up_moved_is_moved_back(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    before = problem.state()

    def warmed(loss: Callable, groups: list[dict], rates: dict, pick: Tensor) -> str:
        with torch.no_grad():
            problem.a.mul_(3.0)
        return "captured"

    monkeypatch.setattr(steps, "CapturedSteps", warmed)
    assert steps.steps(problem.loss, problem.groups, RATES, problem.picks[0].as_subclass(OnGpu)) == "captured"
    assert all(torch.equal(a, b) for a, b in zip(problem.state(), before, strict=True))
    assert problem.a.requires_grad and problem.a.is_leaf


# --- compiled arithmetic ----------------------------------------------------------------------------------------------


def test_on_the_cpu_a_function_runs_as_it_is_written() -> None:
    calls = []

    @fused.fused
    def double(x: Tensor) -> Tensor:
        """Twice."""
        calls.append(x)
        return 2 * x

    x = torch.randn(3)
    assert torch.equal(double(x), 2 * x) and len(calls) == 1 and calls[0] is x
    assert double.__name__ == "double" and double.__doc__ == "Twice."


def test_the_fused_functions_are_the_ones_that_rounding_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the comparison on a GPU below is about what runs."""
    seen: list[str] = []
    for name in ("_dequantized", "_gradients"):
        own = getattr(rounding, name)
        monkeypatch.setattr(rounding, name, lambda *args, own=own, name=name: (seen.append(name), own(*args))[1])
    soft(torch.device("cpu")).weight().sum().backward()
    assert seen == ["_dequantized", "_gradients"]


def soft(device: torch.device, bits: int = 2) -> SoftRounding:
    """Roundings in every state: soft, hard, dead, beyond the ends of h, with steps that were tuned."""
    draw, grid = torch.Generator().manual_seed(0), Grid(bits, 16)
    W = torch.randn(24, 64, generator=draw)
    s, z = fit(0.6 * W, grid)
    p = SoftRounding(W.to(device), s.to(device), z.to(device), grid)
    with torch.no_grad():
        p.nu += 1.5 * torch.randn(p.nu.shape, generator=draw).to(device)
        p.v += torch.randn(p.v.shape, generator=draw).to(device)
    p.harden(0.5)
    return p


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fused_functions_equal_the_written_ones(gpu: torch.device, bits: int) -> None:
    p = soft(gpu, bits)
    step = (p.s * p.multiplier()).detach()
    G = torch.randn(p.nu.shape).to(gpu)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        args = (p.nu.detach(), p.base, p.z, step, p.grid.q_max, dtype)
        ours, written = rounding._dequantized(*args), rounding._dequantized.__wrapped__(*args)
        assert ours.dtype == written.dtype == dtype
        assert torch.allclose(ours, written, rtol=tolerance, atol=tolerance * float(step.max()))
    args = (G, p.nu.detach(), p.base, p.z, step, p.grid.q_max)
    for ours, written in zip(rounding._gradients(*args), rounding._gradients.__wrapped__(*args), strict=True):
        assert ours.shape == written.shape
        assert torch.allclose(ours, written, rtol=1e-4, atol=1e-5 * float(written.abs().max()))


@pytest.mark.gpu
def test_soft_weights_and_gradients_are_those_of_the_cpu(gpu: torch.device) -> None:
    results = []
    for device in (torch.device("cpu"), gpu):
        p = soft(device)
        W_hat = p.weight()
        grads = torch.autograd.grad((W_hat * torch.linspace(-1, 1, W_hat.numel(), device=device).reshape(W_hat.shape)).sum(),
                                    (p.nu, p.v))
        results.append([t.detach().cpu() for t in (W_hat, *grads, p.codes(), p.hard)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_hardening_with_ties_picks_the_same_on_both(gpu: torch.device) -> None:
    chosen = []
    for device in (torch.device("cpu"), gpu):
        p = soft(device)
        with torch.no_grad():
            p.nu.copy_((p.nu * 2).round() / 2)  # many ties
        p.harden(0.2)
        chosen.append((p.hard.cpu(), p.codes().cpu()))
    assert torch.equal(chosen[0][0], chosen[1][0]) and torch.equal(chosen[0][1], chosen[1][1])


@pytest.mark.gpu
def test_captured_steps_equal_plain_ones(gpu: torch.device) -> None:
    ours, plain = Problem("cuda"), Problem("cuda")
    before = ours.state()
    step = steps.steps(ours.loss, ours.groups, RATES, ours.picks[0])
    assert type(step) is CapturedSteps
    assert all(torch.equal(a, b) for a, b in zip(ours.state(), before, strict=True))  # as they were at capture
    written = Steps(plain.loss, plain.groups, RATES)
    for picks, speed in ((ours.picks[:6], 1.0), (ours.picks[6:], 0.25), (ours.picks[:3], 0.5)):  # restarted, at other rates
        step.restart(speed)
        written.restart(speed)
        told = [step.take(pick) for pick in picks]
        assert close(told, [written.take(pick) for pick in picks], 1e-4)
        assert len({float(x) for x in told}) == len(told)  # not one tensor that every replay overwrites
        assert close(ours.state(), plain.state(), 1e-4)


@pytest.mark.gpu
def test_captured_steps_see_what_is_changed_in_between(gpu: torch.device) -> None:
    """Rounds take variables back, and harden them, in place."""
    ours, plain = Problem("cuda"), Problem("cuda")
    step = steps.steps(ours.loss, ours.groups, RATES, ours.picks[0])
    with torch.no_grad():
        for p in (ours.a, ours.b, plain.a, plain.b):
            p.mul_(0.5)
    step.restart()
    written = Steps(plain.loss, plain.groups, RATES)
    written.restart()
    assert close([step.take(k) for k in ours.picks], [written.take(k) for k in plain.picks], 1e-4)
    assert close(ours.state(), plain.state(), 1e-4)


@pytest.mark.gpu
def test_captured_hardening_leaves_hard_variables(gpu: torch.device) -> None:
    p = soft(gpu)
    target = torch.randn(p.shape).to(gpu)
    step = steps.steps(lambda pick: (p.weight() - target).square().sum() * pick.sum(), p.parameters(),
                       {"rounding": 0.1, "scale": 0.01}, torch.ones(1, dtype=torch.int64, device=gpu))
    assert type(step) is CapturedSteps
    for share in (0.4, 0.2):
        p.harden(share)  # after the capture
        kept = p.nu.detach().clone()
        step.restart()
        for _ in range(4):
            step.take(torch.ones(1, dtype=torch.int64, device=gpu))
        now = p.nu.detach()
        assert torch.equal(now[p.hard], kept[p.hard]) and (now != kept)[~p.hard].float().mean() > 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt"])
def test_block_reconstruction_on_a_gpu_is_close_to_the_cpu(gpu: torch.device, kind: str) -> None:
    """Half-precision steps on one, full ones on the other, and other best rounds: most integers agree, and the losses."""
    for method in (TesseraQ(AWQ(GRID), Budget(4, 6, 4)), OmniQuant(GRID, Budget(4, 6, 4), scaling=True, reach=1.0)):
        results = []
        for device in ("cpu", "cuda"):
            blocks, X = catch(tiny.model(kind).to(device), tiny.windows(8, 24).ids.to(device))
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="a step of this block cannot be captured")
                results.append(method.quantize_block(blocks[1], Streams(X.clone(), X.clone())))
        cpu, cuda = results
        assert cuda.trace["start"] == pytest.approx(cpu.trace["start"], rel=0.05)
        assert cuda.trace["end"] == pytest.approx(cpu.trace["end"], rel=0.25) and cuda.trace["end"] <= cuda.trace["start"]
        agree = [float((cuda.weights[n].q.cpu() == w.q).float().mean()) for n, w in cpu.weights.items()]
        assert sum(agree) / len(agree) > 0.8, agree


@pytest.mark.gpu
def test_learned_clip_on_a_gpu_is_that_of_the_cpu(gpu: torch.device) -> None:
    W = torch.randn(8, 64)
    own, other = LearnedClip(W, GRID, 0.8), LearnedClip(W.cuda(), GRID, 0.8)
    a, b = own.finish(), other.finish()
    assert float((a.q == b.q.cpu()).float().mean()) > 0.999 and torch.allclose(a.s.float(), b.s.float().cpu(), rtol=1e-3)
    assert torch.allclose(own.weight().detach(), other.weight().detach().cpu(), atol=1e-4) or (a.q != b.q.cpu()).any()


@pytest.mark.gpu
def test_a_step_that_waits_for_the_gpu_falls_back(gpu: torch.device) -> None:
    ours, plain = Problem("cuda"), Problem("cuda")
    before = ours.state()

    def waiting(pick: Tensor) -> Tensor:
        loss = ours.loss(pick)
        return loss * (1.0 if loss.item() > -1 else 2.0)

    with pytest.warns(UserWarning, match="cannot be captured and runs slower"):
        step = steps.steps(waiting, ours.groups, RATES, ours.picks[0])
    assert type(step) is Steps
    assert all(torch.equal(a, b) for a, b in zip(ours.state(), before, strict=True))
    step.restart()
    written = Steps(plain.loss, plain.groups, RATES)
    written.restart()
    assert close([step.take(k) for k in ours.picks], [written.take(k) for k in plain.picks])
    assert torch.isfinite(torch.zeros(1, device=gpu) + 1).all()  # the device is not left in a failed state
