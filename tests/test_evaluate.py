"""Perplexity, divergence and generation against computations by hand; what parses as Python."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from lowbit_nb.evaluate import PROMPTS, compare, generate, parse_rate, parses, perplexity
from lowbit_nb.subject import Subject
from lowbit_nb.text import Windows
from tests import tiny


class Letters:
    """A tokenizer of one character a token: chr(i + 32) is token i; token 2 ends."""

    eos_token_id = 2

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict:
        return {"input_ids": [(ord(c) - 32) % tiny.VOCAB for c in text]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(i + 32) for i in ids if not (skip_special_tokens and i == 2))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.model("llama"), Letters(), "tiny llama")


@pytest.fixture(scope="module")
def other() -> Subject:
    return Subject(tiny.model("llama", seed=1), Letters(), "another tiny llama")


def log_probabilities(subject: Subject, ids: torch.Tensor) -> torch.Tensor:
    """[length - 1, vocab] float64, one window at a time, no batch."""
    with torch.no_grad():
        logits = subject.model(ids[None]).logits[0, :-1].double()
    return logits - logits.exp().sum(-1, keepdim=True).log()


def by_hand(subject: Subject, windows: Windows) -> float:
    nats = [
        -float(row[token]) for ids in windows.ids for row, token in zip(log_probabilities(subject, ids), ids[1:], strict=True)
    ]
    return math.exp(sum(nats) / len(nats))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_perplexity_is_exp_of_the_mean_cross_entropy_of_predicted_tokens(subject, batch):
    windows = tiny.windows(7, 19)
    assert perplexity(subject, windows, batch) == pytest.approx(by_hand(subject, windows), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(subject):
    model = tiny.model("llama")
    model.lm_head.weight.data.zero_()
    assert perplexity(Subject(model, None, "blind"), tiny.windows()) == pytest.approx(tiny.VOCAB, rel=1e-6)


def test_divergence_and_agreement_by_hand(subject, other):
    windows = tiny.windows(5, 13)
    kl, same, n = 0.0, 0, 0
    for ids in windows.ids:
        a, b = log_probabilities(subject, ids), log_probabilities(other, ids)
        kl += float((a.exp() * (a - b)).sum())
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        n += len(a)
    score = compare(subject, other, windows, batch=2)
    assert score.n_tokens == n == 5 * 12
    assert score.kl == pytest.approx(kl / n, rel=1e-4) and score.top1 == pytest.approx(same / n, abs=1e-12)
    assert score.perplexity == pytest.approx(by_hand(other, windows), rel=1e-5)
    assert compare(other, subject, windows).kl != pytest.approx(score.kl, rel=1e-3)  # KL has a direction


def test_a_model_does_not_diverge_from_itself(subject):
    windows = tiny.windows()
    score = compare(subject, subject, windows)
    assert score.kl == 0.0 and score.top1 == 1.0
    assert score.perplexity == pytest.approx(perplexity(subject, windows), rel=1e-9)


def test_numbers_do_not_depend_on_the_batch_and_leave_no_gradients(subject, other):
    windows = tiny.windows(9)
    scores = [compare(subject, other, windows, batch) for batch in (1, 4, 100)]
    for score in scores[1:]:
        assert score.kl == pytest.approx(scores[0].kl, rel=1e-4) and score.top1 == scores[0].top1
    assert torch.is_grad_enabled()


def test_windows_longer_than_the_context_are_refused(subject, other):
    long = tiny.windows(2, tiny.CONTEXT + 1)
    for call in (lambda: perplexity(subject, long), lambda: compare(subject, other, long)):
        with pytest.raises(
            ValueError,
            match=rf"{tiny.CONTEXT + 1} tokens.*model's context of {tiny.CONTEXT}; use .*length={tiny.CONTEXT}",
        ):
            call()
    perplexity(subject, tiny.windows(2, tiny.CONTEXT))


def test_models_of_two_vocabularies_are_refused(subject):
    with pytest.raises(ValueError, match="vocabularies differ: 64 and 80 tokens"):
        compare(subject, Subject(tiny.model("llama", vocab_size=80), None, "wide"), tiny.windows())


# Generation


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "gpt_neox"])
def test_prompts_of_different_lengths_do_not_disturb_each_other(kind):
    """Left padding is masked and does not shift positions: one batch equals one prompt each, and a loop by hand."""
    subject = Subject(tiny.model(kind), Letters(), kind)
    prompts = ["A", "HELLO WORLD", "DEF", "/+-=*"]
    together = generate(subject, prompts, 9)
    assert together == [generate(subject, [p], 9)[0] for p in prompts] == [loop_by_hand(subject, p, 9) for p in prompts]
    assert len(set(together)) > 1


def loop_by_hand(subject: Subject, prompt: str, n: int) -> str:
    ids = subject.tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + n and (len(ids) == start or ids[-1] != 2):
            ids = [*ids, int(subject.model(torch.tensor([ids])).logits[0, -1].argmax())]
    return subject.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_an_end_token_stops_a_continuation_and_no_other():
    model = tiny.model("llama")
    subject = Subject(model, Letters(), "stops")
    free = generate(subject, ["HELLO", "A"], 6)
    token = ord(free[0][2]) - 32  # what the first prompt says third
    model.generation_config.eos_token_id = token
    stopped = generate(subject, ["HELLO", "A"], 6)
    assert stopped[0].startswith(free[0][:2]) and len(stopped[0]) <= 3 + 3
    if chr(token + 32) not in free[1]:
        assert stopped[1] == free[1]


def test_an_empty_prompt_is_refused(subject):
    with pytest.raises(ValueError, match="a prompt is empty"):
        generate(subject, ["A", ""])


def test_a_lone_string_is_one_prompt_or_refused(subject):
    """Not one prompt a character."""
    try:
        found = generate(subject, "HELLO", 3)
    except (TypeError, ValueError):
        return
    assert found == generate(subject, ["HELLO"], 3)


# What parses


@pytest.mark.parametrize(
    "prompt, continuation, expected",
    [
        ("def f():\n", "    return 1\n", True),
        ("def f():\n", "    return 1\n    x = (", True),  # the last line is cut off
        (
            "def f():\n",
            "    return 1\n    x = [1,\n        2",
            False,
        ),  # half of what it wrote does not hold together
        (
            "def f():\n",
            "    a = 1\n    b = 2\n    c = 3\n    d = [1,\n    e",
            True,
        ),  # three of five lines stay
        ("def f():\n", "return return\nreturn return", False),
        ("def f(", "", False),
        ("x = 1\n", "", True),
        ("def f():\n", "", False),
        ("x = ", "1", True),
        ("x = ", "'never closed", False),
        ("x = 1", "\x00", False),
        ("if x:\n", "\tpass\n        pass", True),
        ("print", " 'python two'", False),
    ],
)
def test_what_parses(prompt, continuation, expected):
    assert parses(prompt, continuation) == expected


@pytest.mark.parametrize(
    "text", ["-" * 3000 + "1", "~" * 100_000 + "1", "(" * 5000, "[" * 300 + "]" * 300, "\ud800", "9" * 5000]
)
def test_no_text_is_too_strange_to_judge(text):
    """Greedy decoding of a broken model repeats itself; the parser's own limits are not the reader's problem."""
    parses("x = ", text)


def test_judging_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parses("x = ", "'\\d'") and parses("y = ", "1 if 1is 1 else 2")


def test_parse_rate_counts_prompts(monkeypatch):
    prompts = ["x = ", "def f():\n", "y = ", "class A:\n"]
    said = dict(zip(prompts, ["1", "    pass", ")", "nothing here"], strict=True))
    monkeypatch.setattr("lowbit_nb.evaluate.generate", lambda subject, prompts, n: [said[p] for p in prompts])
    assert parse_rate(SimpleNamespace(), prompts) == 0.5
    assert parse_rate(SimpleNamespace(), iter(prompts)) == 0.5


def test_prompts_of_the_kit_can_become_python():
    for prompt in PROMPTS:
        last = prompt.rstrip("\n").rsplit("\n", 1)[-1]
        body = " " * (len(last) - len(last.lstrip()) + 4) + "pass\n"
        assert parses(prompt, body if prompt.endswith("\n") else f"):\n{body}"), prompt
