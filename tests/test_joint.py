"""Joint: all blocks at once, held against what the model predicts."""

from __future__ import annotations

import pytest
import torch

from lowbit_nb.activations import Activations
from lowbit_nb.blocks import catch
from lowbit_nb.crossblock import EveryOutput, Window, predictions
from lowbit_nb.evaluate import compare
from lowbit_nb.grid import Grid
from lowbit_nb.methods import AWQ, CBQ, GPTQ, OAC, VPTQ, Joint, OmniQuant, TesseraQ
from lowbit_nb.onepass import behind
from lowbit_nb.quantize import Method, quantize
from lowbit_nb.reconstruct import Budget
from tests import tiny

GRID = Grid(2, 16)
SHORT = Budget(3, 4, 2)
STILL = Budget(1, 0, 2)  # no steps
BLOCKWISE = TesseraQ(AWQ(GRID), SHORT)


def run(method: Method, kind: str = "llama") -> object:
    return quantize(tiny.subject(kind), method, tiny.windows(), progress=False)


def test_a_start_that_cannot_be_learned_again_is_refused_at_the_first_block(monkeypatch) -> None:
    seen, plain = [], GPTQ.quantize_block
    monkeypatch.setattr(GPTQ, "quantize_block", lambda self, block, given: seen.append(block) or plain(self, block, given))
    with pytest.raises(ValueError, match="affine marks in natural order"):
        run(Joint(GPTQ(GRID, order="act"), STILL))
    assert len(seen) == 1


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_what_lies_behind_the_last_block_gives_the_models_logits(kind: str) -> None:
    model, ids = tiny.model(kind), tiny.windows(3, 24).ids
    blocks, X = catch(model, ids)
    outputs = EveryOutput(blocks).run(X)
    with torch.no_grad():
        wanted = model(ids).logits
        torch.testing.assert_close(behind(model, outputs[:, -1], ids), wanted)
        torch.testing.assert_close(behind(model, outputs[:, -1]), wanted)
        assert torch.equal(model(ids).logits, wanted)  # the blocks are back
    x = X
    for k, block in enumerate(blocks):
        x = block.run(x)
        torch.testing.assert_close(outputs[:, k], x)
    torch.testing.assert_close(Window(blocks).run(X), x)


def test_predictions_count_both_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    y, t = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(2))
    head = torch.randn(4, 7, generator=generator)
    logits = lambda x: x @ head  # noqa: E731
    assert predictions(logits, 2.0)(t, t) == 0
    p, q = (logits(x[:, -1]).softmax(-1) for x in (t, y))
    nats = (p * (p / q).log()).sum(-1).mean()
    shares = torch.stack([(y[:, k] - t[:, k]).square().sum() / t[:, k].square().sum() for k in range(3)])
    torch.testing.assert_close(predictions(logits)(y, t), nats)
    torch.testing.assert_close(predictions(logits, 2.0)(y, t), nats + 2 * shares.mean())


@pytest.mark.parametrize("start", (BLOCKWISE, TesseraQ(OmniQuant(GRID, SHORT, scaling=True), SHORT), GPTQ(GRID),
                                   OAC(GPTQ(GRID))), ids=("awq", "omniquant", "gptq", "oac"))
def test_without_a_step_it_is_its_start(start: Method) -> None:
    before, after = run(start), run(Joint(start, STILL, pull=1.0))
    for name, weight in before.weights.items():
        torch.testing.assert_close(after.weights[name].dequantize(), weight.dequantize())
    assert before.params.keys() == after.params.keys()
    assert after.bits().bytes == before.bits().bytes


def test_it_learns_and_repeats() -> None:
    """Longer than the start, on the loss that counts: predictions come closer; the same call gives the same integers."""
    subject, windows = tiny.subject(), tiny.windows()
    joint = Joint(BLOCKWISE, Budget(6, 20, 8))
    once, again = run(joint), run(joint)
    assert all(torch.equal(once.weights[n].q, again.weights[n].q) for n in once.weights)
    assert compare(subject, once.apply(subject), windows).kl < compare(subject, run(BLOCKWISE).apply(subject), windows).kl
    trace = once.trace[0]
    assert trace["end"] <= trace["start"] and {"begun", "phases", "rounds"} <= trace.keys()
    assert set(trace["rounds"][0]["layers"]) == {n.split(".", 3)[3] for n in once.weights if ".layers.0." in n}


def test_activations_are_rounded_while_it_learns() -> None:
    rounded = Activations(4)
    start = TesseraQ(OmniQuant(GRID, SHORT, scaling=True, activations=rounded), SHORT, activations=rounded)
    assert run(Joint(start, SHORT, activations=rounded)).activations == rounded
    with pytest.raises(ValueError, match="give both the same"):
        Joint(start, SHORT)


def test_rulers_stay() -> None:
    """However far back the weights begin again, the start's steps and zero points are kept until something is learned."""
    before, after = run(BLOCKWISE), run(Joint(BLOCKWISE, STILL, pull=0.0))
    for name, weight in before.weights.items():
        torch.testing.assert_close(after.weights[name].s, weight.s)
        assert torch.equal(after.weights[name].zero, weight.zero)


def test_bad_settings_are_refused_before_anything_is_spent() -> None:
    for wrong, said in (({"pull": 2.0}, "pull=2.0"), ({"blocks": -1.0}, "blocks=-1.0"), ({"budget": "long"}, "budget='long'"),
                        ({"start": CBQ(GRID)}, "block by block")):
        with pytest.raises(ValueError, match=said):
            Joint(**{"start": BLOCKWISE} | wrong)


@pytest.mark.parametrize(("start", "said"), ((AWQ(GRID), "does not say what it rounded"), (VPTQ(), "affine marks"),
                                             (GPTQ(GRID, order="act"), "affine marks")))
def test_a_start_that_it_cannot_go_on_from_is_named(start: Method, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(Joint(start, STILL))
