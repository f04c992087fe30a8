"""The shifted target against least squares, its strength against a search, and what it buys behind rounded blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lowbit_nb as lb
from lowbit_nb.blocks import Block, catch
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.methods import GPTQ, SpQR
from lowbit_nb.quantize import quantize
from lowbit_nb.record import Phases
from lowbit_nb.streams import Streams
from lowbit_nb.targets import Mismatch, mismatch, shifted
from tests import tiny
from tests.reference import correlated


def inputs(generator: torch.Generator, n: int = 400, d: int = 12, by: float = 0.3) -> tuple[Tensor, Tensor]:
    """What a layer was handed once and what it is handed now: a systematic part and noise."""
    X = correlated(n, d, generator)
    mix = torch.randn(d, d, generator=generator, dtype=X.dtype) / d**0.5
    return X, X + by * X @ mix + 0.3 * by * torch.randn(n, d, generator=generator, dtype=X.dtype)


def pair_of(X: Tensor, X_hat: Tensor, same: bool = False) -> Mismatch:
    """Two halves of the tokens, or one and the same twice."""
    halves = [(X, X_hat)] * 2 if same else list(zip(X.chunk(2), X_hat.chunk(2), strict=True))
    return Mismatch(torch.stack([h.T @ h / len(h) for _, h in halves]),
                    torch.stack([(x - h).T @ h / len(h) for x, h in halves]))


def misfit(X: Tensor, W: Tensor, X_hat: Tensor, W_hat: Tensor) -> float:
    return float((X @ W.T - X_hat @ W_hat.T).square().sum())


# The target


def test_the_whole_shift_is_least_squares(generator):
    X, X_hat = inputs(generator)
    W = torch.randn(5, 12, generator=generator, dtype=X.dtype)
    found, strength = shifted(W, pair_of(X, X_hat, same=True), damp=0.0)
    assert strength == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(found, torch.linalg.lstsq(X_hat, X @ W.T).solution.T, rtol=1e-9, atol=1e-10)
    assert misfit(X, W, X_hat, found) < 0.3 * misfit(X, W, X_hat, W)


def test_rounding_under_the_mismatch_is_rounding_of_the_target(generator):
    """|X W.T - Xh Q.T|**2 and tr((Q - W*) H (Q - W*).T) differ by a number that does not depend on Q."""
    X, X_hat = inputs(generator)
    W = torch.randn(5, 12, generator=generator, dtype=X.dtype)
    target, _ = shifted(W, pair_of(X, X_hat, same=True), damp=0.0)
    H = X_hat.T @ X_hat
    gaps = []
    for _ in range(5):
        E = (Q := torch.randn(5, 12, generator=generator, dtype=X.dtype)) - target
        gaps.append(misfit(X, W, X_hat, Q) - float(((E @ H) * E).sum()))
    assert gaps == pytest.approx([misfit(X, W, X_hat, target)] * 5, rel=1e-8)


def test_without_mismatch_nothing_moves(generator):
    X = correlated(300, 12, generator)
    W = torch.randn(5, 12, generator=generator, dtype=X.dtype)
    found, strength = shifted(W, pair_of(X, X))
    assert strength == 0.0 and torch.equal(found, W)


@pytest.mark.parametrize("n", [30, 60, 2000])
@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_the_strength_is_the_best_one_for_the_other_half(generator, n, damp):
    """One coefficient for both directions, by a search over the misfit of the half that did not choose the shift."""
    X, X_hat = inputs(generator, n)
    W = torch.randn(5, 12, generator=generator, dtype=X.dtype)
    halves = list(zip(X.chunk(2), X_hat.chunk(2), strict=True))

    def moved(x: Tensor, h: Tensor) -> Tensor:
        H = h.T @ h / len(h)
        H = H + damp * H.diagonal().mean() * torch.eye(12, dtype=H.dtype)
        return W @ ((x - h).T @ h / len(h)) @ torch.linalg.inv(H)

    def over(a: float) -> float:
        return sum(misfit(X, W, X_hat, W + a * moved(*halves[1 - i])) for i, (X, X_hat) in enumerate(halves))

    found, strength = shifted(W, pair_of(X, X_hat), damp)
    assert 0 < strength <= 1
    for a in (0.0, strength - 0.02, min(1.0, strength + 0.02), 1.0):
        assert over(strength) <= over(a) + 1e-9 * over(0.0)
    H = X_hat.T @ X_hat / n + damp * (X_hat.square().mean()) * torch.eye(12, dtype=X.dtype)
    whole = W @ ((X - X_hat).T @ X_hat / n) @ torch.linalg.inv(H)
    torch.testing.assert_close(found, W + strength * whole, rtol=1e-8, atol=1e-9)


def test_fewer_tokens_are_trusted_less(generator):
    strengths = []
    for n in (30, 100, 5000):
        X, X_hat = inputs(generator, n, by=0.2)
        X_hat = X_hat + torch.randn(X.shape, generator=generator, dtype=X.dtype)
        strengths.append(shifted(torch.randn(5, 12, generator=generator, dtype=X.dtype), pair_of(X, X_hat))[1])
    assert strengths == sorted(strengths) and strengths[0] < 0.9 < strengths[-1] <= 1


def test_halves_that_contradict_each_other_move_nothing(generator):
    H = torch.eye(6).repeat(2, 1, 1)
    C = torch.randn(6, 6, generator=generator)
    W = torch.randn(3, 6, generator=generator)
    found, strength = shifted(W, Mismatch(H, torch.stack([C, -C])))
    assert strength == 0.0 and torch.equal(found, W)


def test_dead_inputs_are_not_moved(generator):
    X, X_hat = inputs(generator)
    X_hat[:, 4] = 0
    W = torch.randn(5, 12, generator=generator, dtype=X.dtype)
    found, strength = shifted(W, pair_of(X, X_hat))
    assert torch.isfinite(found).all() and torch.equal(found[:, 4], W[:, 4]) and strength > 0


# Measured on a block


@pytest.fixture(scope="module")
def streams() -> tuple[Block, Tensor, Tensor]:
    """The second block, what flowed into it and what flows into it behind a block rounded to 2 bits."""
    blocks, X = catch(tiny.model(), tiny.windows(12).ids)
    W = {name: blocks[0].weight(name) for name in blocks[0].linears}
    rounded = {name: lb.stored.AffineWeight.nearest(w, lb.Grid(2, 16)).dequantize() for name, w in W.items()}
    return blocks[1], blocks[0].run(X), blocks[0].run(X, rounded)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_moments_are_those_of_both_streams(streams, name, n):
    block, full, quant = streams
    found = mismatch(block, full[:n], quant[:n], name)
    for half in range(2):
        X = torch.cat([block.inputs(x[None], name) for x in full[:n][half::2]]).double()
        X_hat = torch.cat([block.inputs(x[None], name) for x in quant[:n][half::2]]).double()
        torch.testing.assert_close(found.H_half[half].double(), X_hat.T @ X_hat / len(X), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.C_half[half].double(), (X - X_hat).T @ X_hat / len(X), rtol=1e-4, atol=1e-6)
    assert torch.equal(found.H, (found.H_half[0] + found.H_half[1]) / 2)
    assert tiny.n_hooks(block.module) == 0


def test_weights_are_exchanged_on_the_rounded_side_only(streams):
    block, full, _ = streams
    nothing = mismatch(block, full, full, "mlp.down_proj")
    assert float(nothing.C.abs().max()) == 0
    swapped = {"mlp.up_proj": torch.zeros_like(block.weight("mlp.up_proj"))}
    found = mismatch(block, full, full, "mlp.down_proj", swapped)
    assert float(found.H.abs().max()) == 0 and float(found.C.abs().max()) == 0  # nothing arrives: X_hat is zero
    half = {"mlp.up_proj": block.weight("mlp.up_proj") / 2}
    found = mismatch(block, full, full, "mlp.down_proj", half)
    torch.testing.assert_close(found.H, nothing.H / 4, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.C, nothing.H / 4, rtol=1e-5, atol=1e-8)  # X - X_hat = X_hat


def test_one_window_cannot_be_cross_validated(streams):
    block, full, quant = streams
    with pytest.raises(ValueError, match="cross-validated and needs at least two calibration windows"):
        mismatch(block, full[:1], quant[:1], "mlp.down_proj")
    with pytest.raises(ValueError, match="at least two calibration windows"):
        quantize(tiny.subject(), GPTQ(lb.Grid(3, 16), shift=True), tiny.windows(1), progress=False)


@pytest.mark.parametrize("method", [GPTQ(lb.Grid(3, 16)), GPTQ(lb.Grid(3, 16), sequential=True), SpQR()])
def test_the_shift_gives_back_more_of_the_original_output(streams, method):
    block, full, quant = streams
    both = Streams(full, quant)

    def misfits(shift: bool) -> dict[str, float]:
        sequential = getattr(method, "sequential", False)
        weights, story = layer_by_layer(block, both, method.quantize_layer, Phases(), None, sequential, shift)
        assert ("shift" in story) == shift and all(0 <= a <= 1 for a in story.get("shift", {}).values())
        out = {}
        for names in block.shared_inputs(quant[:1]):
            before = {n: weights[n].dequantize() for n in weights if n not in names} if sequential else {}
            for name in names:
                X, X_hat = block.inputs(full, name), block.inputs(quant, name, before)
                out[name] = misfit(X, block.weight(name), X_hat, weights[name].dequantize())
        return out

    plain, moved = misfits(False), misfits(True)
    assert sum(moved.values()) < 0.9 * sum(plain.values())
    assert all(moved[name] < 1.02 * plain[name] for name in plain)


# The walk


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "gemma2"])
@pytest.mark.parametrize("sequential", [False, True])
def test_the_walk_shifts_behind_the_first_block(kind, sequential):
    subject = tiny.subject(kind)
    before = tiny.state(subject.model)
    method = GPTQ(lb.Grid(3, 16), shift=True, sequential=sequential)
    found = quantize(subject, method, tiny.windows(), progress=False)
    assert tiny.unchanged(subject.model, before) and tiny.n_hooks(subject.model) == 0
    told = [t["shift"] for t in found.trace]
    first = list(told[0].values())
    assert (max(first) > 0) == sequential and first[0] == 0.0  # nothing is rounded before the first layers
    assert all(0 <= a <= 1 for t in told for a in t.values()) and max(told[1].values()) > 0
    assert torch.isfinite(found.apply(subject).model(tiny.windows().ids).logits).all()


def test_without_rounding_errors_the_shift_is_plain_gptq():
    """8 bits throughout: hardly any mismatch, hardly any shift."""
    kinds = [GPTQ(lb.Grid(8, 16), shift=shift) for shift in (False, True)]
    plain, moved = (quantize(tiny.subject(), kind, tiny.windows(), progress=False) for kind in kinds)
    for name, w in plain.weights.items():
        torch.testing.assert_close(moved.weights[name].dequantize(), w.dequantize(), rtol=0, atol=0.01)


def test_the_shift_serves_the_model():
    """What flows into the last block, behind shifted ones, is nearer to the original."""
    subject = tiny.subject()
    windows = tiny.windows(24)

    def states(subject: lb.Subject) -> Tensor:
        return subject.model(windows.ids, output_hidden_states=True).hidden_states[-2]

    def drift(shift: bool) -> float:
        found = quantize(subject, GPTQ(lb.Grid(2, 16), sequential=True, shift=shift), windows, progress=False)
        return float((states(found.apply(subject)) - states(subject)).square().mean())

    assert drift(True) < drift(False)
