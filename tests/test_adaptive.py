"""The output-adaptive Hessian against weight gradients that autograd made itself, and the walk that uses it."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lowbit_nb as lb
from lowbit_nb.adaptive import LossMetric, LossView
from lowbit_nb.blocks import catch
from lowbit_nb.layerwise import layer_by_layer
from lowbit_nb.methods import GPTQ, OAC
from lowbit_nb.quantize import quantize
from lowbit_nb.record import Phases, Quantized
from lowbit_nb.targets import mismatch, shifted
from tests import tiny
from tests.walks import equal

IDS = tiny.windows(5, 12).ids
EXACT = ("auto", "direct", "gram")
BACKEND = GPTQ(lb.Grid(2, 16), damp=0.1)


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer in the decoder's blocks, by full name."""
    return {f"{b.name}.{name}": m for b in catch(model, IDS[:1])[0] for name, m in b.linears.items()}


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def gradients(model: nn.Module, names: list[str], ids: Tensor) -> list[dict[str, Tensor]]:
    """G of every layer, one dict a sequence, by plain autograd in float64."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    weights = [model.get_submodule(name).weight for name in names]
    return [dict(zip(names, torch.autograd.grad(loss_of(model, one[None]), weights), strict=True)) for one in ids]


def brute_force(model: nn.Module, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Mean of G.T @ G over sequences, one matrix at a time."""
    seen = gradients(model, names, ids)
    return {name: sum(G[name].T @ G[name] for G in seen) / len(seen) for name in names}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name, H in found.items():
        assert off(H, expected[name]) < rtol, f"{name} is off by {off(H, expected[name]):.2g}"


def off(H: Tensor, expected: Tensor) -> float:
    return float((H.double() - expected.double()).norm() / expected.double().norm())


class Softmax(nn.Module):
    """Two tables and nothing between: the loss is that of a linear softmax classifier."""

    def __init__(self, vocab: int = 5, width: int = 3) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embed(ids)))


# What it is


@pytest.mark.parametrize("form", EXACT)
def test_in_float64_it_is_brute_force_to_the_ninth_digit(form):
    """OPT computes in the type of its weights; norms of Llama's kind go through float32."""
    model = tiny.model("opt", dtype=torch.float64)
    layers = linears_of(model)
    found = LossMetric(form).hessians(model, IDS, layers)
    assert all(H.dtype == torch.float64 for H in found.values())
    close(found, brute_force(model, list(layers), IDS), rtol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "gemma2", "gpt_neox", "phi"])
@pytest.mark.parametrize("form", EXACT)
def test_it_is_the_mean_square_of_weight_gradients(kind, form):
    model = tiny.model(kind)
    layers = linears_of(model)
    found = LossMetric(form).hessians(model, IDS, layers)
    close(found, brute_force(model, list(layers), IDS))
    for name, H in found.items():
        assert H.dtype == torch.float32 and H.shape == (layers[name].in_features,) * 2
        assert torch.linalg.eigvalsh(H.double()).min() > -1e-6 * H.trace()
        torch.testing.assert_close(H, H.T, rtol=1e-4, atol=1e-6 * float(H.abs().max()))


def test_tokens_keep_their_own_square_and_lose_the_products_between_them():
    """X.T @ diag(|a_t|**2) @ X, with a caught by hooks of the test."""
    model = tiny.model(dtype=torch.float64)
    layers = linears_of(model)
    found = LossMetric("tokens").hessians(model, IDS, layers)
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str):
        def hook(_: nn.Module, args: tuple, y: Tensor) -> None:
            y.retain_grad()
            seen[name] = [args[0], y]

        return hook

    copied = copy.deepcopy(model).requires_grad_(True)
    for name in layers:
        copied.get_submodule(name).register_forward_hook(keep(name))
    loss_of(copied, IDS).backward()
    expected = {}
    for name, (x, y) in seen.items():
        x, a = x.detach().flatten(0, 1), y.grad.flatten(0, 1)
        expected[name] = sum(a[t].dot(a[t]) * torch.outer(x[t], x[t]) for t in range(len(x))) / len(IDS)
    close(found, expected)
    whole = LossMetric("direct").hessians(model, IDS, layers)
    assert min(off(found[name], whole[name]) for name in layers) > 0.01


def test_with_one_label_there_are_no_products_between_tokens():
    model = tiny.model()
    layers = linears_of(model)
    close(LossMetric("tokens").hessians(model, IDS[:, :2], layers), LossMetric("direct").hessians(model, IDS[:, :2], layers))


def test_a_sketch_is_right_on_average():
    model = tiny.model(num_hidden_layers=1)
    layers = linears_of(model)
    exact = LossMetric("direct").hessians(model, IDS, layers)
    metric, n = LossMetric("sketch"), 150
    draws = [metric.hessians(model, IDS, layers) for _ in range(n)]
    for name, H in exact.items():
        alone = sum(off(draw[name], H) for draw in draws) / n
        together = off(sum(draw[name] for draw in draws) / n, H)
        assert 0.02 < alone < 0.5 and together < 2 * alone / n**0.5


def test_gradients_of_a_batch_must_not_be_added_before_they_are_squared():
    """The wrong formula, (mean G).T @ (mean G), is far away from what is found with any batch."""
    model = tiny.model()
    layers = linears_of(model)
    seen = gradients(model, list(layers), IDS)
    found = LossMetric("direct", batch=5).hessians(model, IDS, layers)
    for name, H in found.items():
        G = sum(one[name] for one in seen) / len(seen)
        assert off(H, G.T @ G) > 0.5 and float((G.T @ G).trace()) < 0.8 * float(H.trace())


@pytest.mark.parametrize("form", ["direct", "gram", "tokens"])
def test_the_batch_size_changes_nothing(form):
    model = tiny.model("qwen3")
    layers = linears_of(model)
    runs = [LossMetric(form, batch=batch).hessians(model, IDS, layers) for batch in (1, 2, 3, 5, 50)]
    for run in runs[1:]:
        close(run, runs[0], 1e-5)


@pytest.mark.parametrize("form", [*EXACT, "tokens"])
def test_some_layers_are_what_all_layers_are(form):
    model = tiny.model()
    layers = linears_of(model)
    some = {name: layers[name] for name in list(layers)[3::5]}
    whole = LossMetric(form).hessians(model, IDS, layers)
    close(LossMetric(form).hessians(model, IDS, some), {name: whole[name] for name in some}, 1e-6)


# Labels


def row_sum_of_the_hessian(model: Softmax, ids: Tensor) -> Tensor:
    """Sum over rows i of d2 loss / dw_i dw_i.T, by central differences of the gradient, a mean over sequences."""
    model = copy.deepcopy(model).double()
    W, h = model.head.weight.detach().clone(), 1e-4

    def gradient(W: Tensor) -> Tensor:
        W = W.clone().requires_grad_(True)
        logits = (model.embed(ids) @ W.T)[:, :-1].flatten(0, 1)
        return torch.autograd.grad(cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum"), W)[0]

    total = torch.zeros(W.shape[1], W.shape[1], dtype=W.dtype)
    for i in range(W.shape[0]):
        for k in range(W.shape[1]):
            step = torch.zeros_like(W)
            step[i, k] = h
            total[k] += (gradient(W + step) - gradient(W - step))[i] / (2 * h)
    return total / len(ids)


def test_labels_from_the_model_give_the_curvature_of_the_loss():
    """For a softmax that is linear in W the Fisher matrix is the Hessian, whatever the labels: Monte-Carlo against
    finite differences and against sum_t (1 - |p_t|**2) x_t x_t.T."""
    model, ids = Softmax(), torch.tensor([[0, 3, 1, 4, 2, 2]])
    curvature = row_sum_of_the_hessian(model, ids)
    x = model.embed(ids)[0, :-1].double()
    p = (x @ model.head.weight.double().T).softmax(-1)
    torch.testing.assert_close(curvature, (x * (1 - p.square().sum(-1, keepdim=True))).T @ x, rtol=1e-6, atol=1e-7)
    many = ids.expand(20_000, -1)
    found = LossMetric("direct", labels="sampled", batch=5000).hessians(model, many, {"head": model.head})["head"]
    assert off(found, curvature) < 0.02
    data = LossMetric("direct", labels="data").hessians(model, ids, {"head": model.head})["head"]
    assert off(data, curvature) > 0.1  # one text is not its expectation


def test_drawn_labels_depend_on_the_seed_and_nothing_else():
    model = tiny.model()
    layers = linears_of(model)

    def run(seed: int, labels: str = "sampled") -> dict[str, Tensor]:
        metric = LossMetric("direct", labels)
        metric.generator.manual_seed(seed)
        torch.rand(7)  # the global generator is of no concern
        return metric.hessians(model, IDS, layers)

    one, again, other, data = run(3), run(3), run(4), run(3, "data")
    assert all(torch.equal(one[name], again[name]) for name in layers)
    assert all(off(one[name], other[name]) > 0.05 and off(one[name], data[name]) > 0.05 for name in layers)


# Entering at a block


def test_entered_with_the_model_s_own_stream_it_is_the_plain_pass():
    model = tiny.model()
    layers = linears_of(model)
    plain = LossMetric("gram").hessians(model, IDS, layers)
    blocks, X = catch(model, IDS)
    for block in blocks:
        mine = {name: m for name, m in layers.items() if name.startswith(f"{block.name}.")}
        found = LossMetric("gram", batch=2).hessians(model, IDS, mine, block, X)
        close(found, {name: plain[name] for name in mine}, 1e-5)
        X = block.run(X)


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma2", "gpt_neox"])
def test_entered_behind_rounded_blocks_it_is_the_model_with_those_blocks_rounded(kind):
    subject = tiny.subject(kind)
    found = quantize(subject, GPTQ(lb.Grid(2, 16)), tiny.windows(), progress=False)
    blocks, X = catch(subject.model, IDS)
    for block in blocks[:2]:
        X = block.run(X, {name: found.weights[f"{block.name}.{name}"].dequantize() for name in block.linears})
    early = {name: w for name, w in found.weights.items() if not name.startswith(blocks[2].name)}
    mixed = Quantized(early, found.settings, [], {}).apply(subject).model
    mine = {f"{blocks[2].name}.{name}": m for name, m in blocks[2].linears.items()}
    close(LossMetric("direct").hessians(subject.model, IDS, mine, blocks[2], X), brute_force(mixed, list(mine), IDS))


def test_layers_before_the_entrance_are_refused_by_name():
    model = tiny.model()
    blocks, X = catch(model, IDS)
    with pytest.raises(ValueError, match=r"does not reach model.layers.0.mlp.up_proj; ask for layers behind the entrance"):
        LossMetric().hessians(model, IDS, {"model.layers.0.mlp.up_proj": blocks[0].linears["mlp.up_proj"]}, blocks[1], X)
    assert tiny.n_hooks(model) == 0


# Scale and precision


@pytest.mark.parametrize("form", [*EXACT, "tokens", "sketch"])
def test_the_scale_of_the_loss_changes_nothing(form):
    model = tiny.model()
    layers = linears_of(model)
    runs = [LossMetric(form, scale=scale).hessians(model, IDS, layers) for scale in (1.0, 2.0**-6, 2.0**8, 2.0**12)]
    for run in runs[1:]:
        close(run, runs[0], 1e-6)


def test_half_precision_gradients_that_would_vanish_survive_with_a_scale():
    model = tiny.model(dtype=torch.float16)
    model.lm_head.weight.data *= 2.0**-17  # a loss that hardly depends on anything
    layers = linears_of(model)
    expected = brute_force(model, list(layers), IDS)
    lost = LossMetric("direct").hessians(model, IDS, layers)
    kept = LossMetric("direct", scale=2.0**12).hessians(model, IDS, layers)
    assert max(off(kept[name], H) for name, H in expected.items()) < 0.05
    assert max(off(lost[name], H) for name, H in expected.items()) > 0.2


@pytest.mark.parametrize("dtype, scale", [(torch.float16, 2.0**40), (torch.float32, 2.0**127 * 1.5)])
def test_a_gradient_that_is_not_finite_is_refused_by_name(dtype, scale):
    model = tiny.model(dtype=dtype)
    before = tiny.state(model)
    with pytest.raises(ValueError, match=r"model.layers.2.mlp.down_proj: the gradient at its output is not finite; lower sc"):
        LossMetric(scale=scale).hessians(model, IDS, linears_of(model))
    assert tiny.unchanged(model, before) and tiny.n_hooks(model) == 0
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


# The model is left alone


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("entered", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_model_is_left_as_it_was(trainable, entered, grad):
    model = tiny.model().requires_grad_(trainable)
    before = tiny.state(model)
    blocks, X = catch(model, IDS)
    mine = {name: m for name, m in linears_of(model).items() if name.startswith(blocks[0].name)}
    with torch.set_grad_enabled(grad):
        LossMetric().hessians(model, IDS, mine, *((blocks[0], X) if entered else ()))
    assert tiny.unchanged(model, before) and tiny.n_hooks(model) == 0 and not model.training
    assert not X.requires_grad and X.grad is None
    assert all(p.requires_grad == trainable for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_an_error_inside_the_model_leaves_no_hook(monkeypatch):
    model = tiny.model()
    layers = linears_of(model)
    with pytest.raises(IndexError):
        LossMetric().hessians(model, IDS + tiny.VOCAB, layers)
    assert tiny.n_hooks(model) == 0


# The walk


@pytest.fixture(scope="module")
def sequential() -> Quantized:
    return quantize(tiny.subject(), OAC(BACKEND), tiny.windows(), progress=False)


def test_the_sequential_walk_asks_the_model_with_its_blocks_rounded_so_far(sequential):
    subject, windows = tiny.subject(), tiny.windows()
    done: dict = {}
    for block in catch(subject.model, windows.ids)[0]:
        now = Quantized(dict(done), sequential.settings, [], {}).apply(subject).model
        mine = [f"{block.name}.{name}" for name in block.linears]
        metrics = LossMetric().hessians(now, windows.ids, {name: now.get_submodule(name) for name in mine})
        done |= {name: BACKEND.quantize_layer(subject.model.get_submodule(name).weight, metrics[name])[0] for name in mine}
    for name, expected in done.items():
        same = (sequential.weights[name].q == expected.q).float().mean()
        assert same > 0.99, f"{name}: {float(same):.1%} of the codes"
    assert list(done) == list(sequential.weights)


def test_the_single_pass_asks_the_original_model_once(monkeypatch, sequential):
    subject, windows, calls = tiny.subject(), tiny.windows(), []
    original = LossMetric.hessians
    monkeypatch.setattr(LossMetric, "hessians", lambda self, *args: calls.append(len(args[2])) or original(self, *args))
    found = quantize(subject, OAC(BACKEND, sequential=False), windows, progress=False)
    assert calls == [len(found.weights)]
    metrics = LossMetric().hessians(subject.model, windows.ids, linears_of(subject.model))
    for name, w in found.weights.items():
        expected, share = BACKEND.quantize_layer(subject.model.get_submodule(name).weight, metrics[name])
        assert torch.equal(w.q, expected.q) and torch.equal(w.s, expected.s)
        index, local = int(name.split(".")[2]), ".".join(name.split(".")[3:])
        assert found.trace[index]["error_share"][local] == pytest.approx(share)
    first = [name for name in found.weights if ".layers.0." in name]
    assert all((found.weights[n].q == sequential.weights[n].q).float().mean() > 0.99 for n in first)
    assert any(not torch.equal(found.weights[n].q, sequential.weights[n].q) for n in found.weights if n not in first)


@pytest.mark.parametrize("kind", ["qwen2", "opt", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("in_turn", [True, False])
def test_the_walk_rounds_every_layer_and_leaves_the_subject_alone(kind, in_turn):
    subject = tiny.subject(kind)
    before = tiny.state(subject.model)
    found = quantize(subject, OAC(BACKEND, in_turn, "tokens"), tiny.windows(), progress=False)
    assert set(found.weights) == set(linears_of(subject.model))
    assert tiny.unchanged(subject.model, before) and tiny.n_hooks(subject.model) == 0
    assert all(p.grad is None and not p.requires_grad for p in subject.model.parameters())
    assert all({"loss hessian", "solve"} <= set(t["phases"]) and len(t["error_share"]) for t in found.trace)
    assert torch.isfinite(found.apply(subject).model(IDS).logits).all() and found.title == "OAC W2 g16"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sequential": False},
        {"sequential": False, "form": "sketch"},
        {"sequential": False, "form": "sketch", "at_once": 2},
        {"sequential": False, "labels": "sampled"},
        {"form": "sketch"},
        {"labels": "sampled"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_a_run_that_was_stopped_goes_on_to_the_same_integers(tmp_path, settings):
    method = OAC(BACKEND, **settings)
    once = quantize(tiny.subject(), method, tiny.windows(), tmp_path, progress=False)
    for late in sorted(tmp_path.glob("block_*"))[1:]:
        late.unlink()
    assert equal(quantize(tiny.subject(), method, tiny.windows(), tmp_path, progress=False), once)


@pytest.mark.parametrize("sequential", [False, True])
def test_the_shifted_target_is_that_of_the_inputs_rounded_under_the_loss(sequential):
    block, X = (found := catch(tiny.model(), tiny.windows().ids))[0][0], found[1]
    wrong = X + 0.1 * torch.randn(X.shape)
    metrics = {name: torch.diag(torch.rand(block.weight(name).shape[1]) + 0.1) for name in block.linears}
    view = SimpleNamespace(quant=wrong, full=X, loss=lambda block, X: metrics)
    method = OAC(GPTQ(lb.Grid(4, 16), shift=True), sequential)
    assert method.streams == ("full", "quant", "loss")
    result = method.quantize_block(block, view)
    first = block.shared_inputs(X[:1])[0]
    for name in first:
        target, strength = shifted(block.weight(name).float(), mismatch(block, X, wrong, first[0]))
        assert strength > 0 and result.trace["shift"][name] == strength
        assert torch.equal(result.weights[name].q, method.backend.quantize_layer(target, metrics[name])[0].q)


@pytest.mark.parametrize("labels", ["data", "sampled"])
def test_hessians_of_a_few_blocks_at_once_are_those_of_all(labels):
    subject, windows = tiny.subject(), tiny.windows()
    whole = quantize(subject, OAC(BACKEND, False, labels=labels), windows, progress=False)
    assert len(whole.trace) > 1
    assert equal(quantize(subject, OAC(BACKEND, False, labels=labels, at_once=1), windows, progress=False), whole)


@pytest.mark.parametrize("form", ["direct", "gram", "tokens"])
def test_orthonormal_gradients_give_the_input_hessian_back(form):
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    a = torch.linalg.qr(torch.randn(2, 7, 5, dtype=torch.float64)).Q.mT  # [2, 5, 7]: A @ A.T is the identity
    assert torch.allclose(LossMetric(form)._product(x, a), torch.einsum("bti,btj->ij", x, x), atol=1e-12)


def test_under_the_input_hessian_it_is_gptq():
    block, X = (found := catch(tiny.model(), tiny.windows().ids))[0][0], found[1]
    shared = block.shared_inputs(X[:1])
    metrics = {name: h.H for names, h in zip(shared, block.hessians(X, shared), strict=True) for name in names}
    view = SimpleNamespace(quant=X, full=None, loss=lambda block, X: metrics)
    oac, plain = OAC(GPTQ(lb.Grid(2, 16))).quantize_block(block, view), GPTQ(lb.Grid(2, 16)).quantize_block(block, view)
    assert list(oac.weights) == list(plain.weights)
    for name, w in plain.weights.items():
        assert torch.equal(oac.weights[name].q, w.q) and torch.equal(oac.weights[name].s, w.s)
    alone = layer_by_layer(block, view, BACKEND.quantize_layer, Phases(), metrics=metrics)[1]["error_share"]
    assert alone == layer_by_layer(block, view, BACKEND.quantize_layer, Phases())[1]["error_share"]


def test_rounding_under_the_loss_serves_the_loss():
    """Under a metric of its own making the backend beats itself under another one."""
    model = tiny.model()
    layers = linears_of(model)
    metrics = LossMetric("direct").hessians(model, tiny.windows(24).ids, layers)
    wins = 0
    for name, linear in layers.items():
        W, H = linear.weight, metrics[name]
        other = BACKEND.quantize_layer(W, torch.eye(len(H)))[0].dequantize() - W
        wins += BACKEND.quantize_layer(W, H)[1] < float(((other @ H) * other).sum() / ((W @ H) * W).sum())
    assert wins == len(layers)


def test_a_view_forgets_what_it_has_told():
    model = tiny.model()
    blocks, _ = catch(model, IDS)
    view = LossView(LossMetric(), model, IDS, blocks)
    for block in blocks:
        assert list(view(block, None)) == list(block.linears)
    assert not view.known


# What is refused


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"form": "exact"}, "form='exact' is unknown; use one of auto, direct, gram, sketch, tokens"),
        ({"labels": "text"}, "labels='text' is unknown; use one of data, sampled"),
        ({"batch": 0}, "batch=0 and scale=1.0 must be positive"),
        ({"scale": 0.0}, "batch=4 and scale=0.0 must be positive"),
        ({"scale": float("nan")}, "must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_any_work(settings, words):
    for make in (LossMetric, lambda **s: OAC(BACKEND, **s)):
        with pytest.raises(ValueError, match=words):
            make(**settings)


@pytest.mark.parametrize("settings", [dict(at_once=0, sequential=False), dict(at_once=2)])
def test_blocks_at_once_belong_to_the_single_pass(settings):
    with pytest.raises(ValueError, match="needs sequential=False"):
        OAC(BACKEND, **settings)


@pytest.mark.parametrize("setting", ["sequential"])
def test_a_backend_s_setting_that_would_be_ignored_is_refused(setting):
    with pytest.raises(ValueError, match=setting):
        OAC(GPTQ(lb.Grid(2, 16), **{setting: True}))
