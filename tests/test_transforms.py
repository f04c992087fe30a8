"""Scalings must not change the function: every site of every architecture, alone and all together, in float64."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit_nb.blocks import Block, catch
from lowbit_nb.sites import query_key_site, sites
from lowbit_nb.transforms import (
    Site,
    channels,
    current,
    norms,
    salience,
    scale,
    scaled,
    smoothing,
)
from tests import tiny

NORMS_LLAMA = ["input_layernorm", "post_attention_layernorm"]
LINEAR = ["self_attn.v_proj", "mlp.up_proj"]
EXPECTED = {
    "llama": NORMS_LLAMA + LINEAR,
    "mistral": NORMS_LLAMA + LINEAR,
    "qwen2": NORMS_LLAMA + LINEAR,
    "qwen3": NORMS_LLAMA + LINEAR,
    "gemma2": ["input_layernorm", "pre_feedforward_layernorm"] + LINEAR,
    "gemma3": ["input_layernorm", "pre_feedforward_layernorm"] + LINEAR,
    "phi3": NORMS_LLAMA,
    "opt": ["self_attn_layer_norm", "final_layer_norm", "self_attn.v_proj"],
}
# Blocks whose modules have familiar names in other places: what looks like a site is none.
MISLEADING = {
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),  # attention and MLP read one norm
    "cohere": ("CohereConfig", {}),  # the same
    "olmo2": ("Olmo2Config", {}),  # post_attention_layernorm is behind the attention, not before the MLP
    "nemotron": ("NemotronConfig", {}),  # gain 1 + weight; no gate between up and down
    "arcee": ("ArceeConfig", {}),  # no gate
}


def decoder(kind: str) -> torch.nn.Module:
    if kind in tiny.ARCHITECTURES:
        return tiny.model(kind, dtype=torch.float64)
    name, extra = MISLEADING.get(kind, ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 8}))
    settings = {"vocab_size": tiny.VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | tiny._LLAMA | extra
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    for p in made.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return made.double().eval().requires_grad_(False)


def entrance(kind: str) -> tuple[Block, Tensor]:
    blocks, X = catch(decoder(kind), tiny.windows(2, 12).ids)
    return blocks[1], X


def factors(block: Block, site: Site, spread: float = 0.5) -> Tensor:
    d = block.weight(site.source).shape[0] if site.kind == "linear" else block.weight(site.targets[0]).shape[1]
    return torch.exp(spread * torch.randn(d, dtype=torch.float64))


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_site_and_all_together_preserve_the_function(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, X = entrance(kind)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # Gemma's norms go through .float() on purpose
    before, Y = tiny.state(block.module), block.run(X)
    params: dict[str, Tensor] = {}
    for site in sites(block, X[:1]):
        s = factors(block, site)
        alone = scale(block, site, s, {})
        assert torch.allclose(block.run(X, alone), Y, rtol=0, atol=1e-10), site
        assert set(site.targets) <= set(alone)
        params = scale(block, site, s, params)
    assert torch.allclose(block.run(X, params), Y, rtol=0, atol=1e-10)
    assert (current(block, params, sites(block, X[:1])[0].targets[0]) != block.weight(sites(block, X[:1])[0].targets[0])).any()
    assert tiny.unchanged(block.module, before)


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_sites_of_an_architecture(kind: str) -> None:
    block, X = entrance(kind)
    assert [s.source for s in sites(block, X[:1])] == EXPECTED[kind]
    kinds = {s.kind for s in sites(block, X[:1]) if s.source not in LINEAR}
    assert kinds == {"unit_norm" if kind.startswith("gemma") else "norm"}
    targets = [t for s in sites(block, X[:1]) for t in s.targets]
    assert len(targets) == len(set(targets))  # no layer's columns belong to two sites


@pytest.mark.parametrize("kind", MISLEADING)
def test_a_norm_that_feeds_something_else_too_is_no_site(kind: str) -> None:
    block, X = entrance(kind)
    Y = block.run(X)
    for site in sites(block, X[:1]):
        changed = (block.run(X, scale(block, site, factors(block, site), {})) - Y).abs().max() / Y.abs().max()
        assert changed < 1e-6, f"{kind}: {site.source} -> {site.targets}: the output changes by {changed:.2g}"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_of_a_norm_is_what_the_weights_were_scaled_by(kind: str, dtype: torch.dtype) -> None:
    """Rounding the gain would cost percents where 1 + weight is near 0; the columns follow the rounded gain instead."""
    blocks, X = catch(tiny.model(kind, dtype=dtype), tiny.windows(2, 12).ids)
    block = blocks[1]
    for site in sites(block, X[:1]):
        if site.kind == "linear":
            continue
        one = 1.0 if site.kind == "unit_norm" else 0.0
        s = torch.logspace(-1, 2, tiny.WIDTH)
        params = scale(block, site, s, {})
        name = f"{site.source}.weight"
        stored = norms(block, params)[name]
        assert torch.equal(stored.to(params[name].dtype), params[name])
        own = block.module.get_parameter(name).double() + one
        for target in site.targets:
            product = params[target].double() * (stored.double() + one)  # gain times column
            assert torch.allclose(product, block.weight(target).double() * own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gain_too_small_to_store_does_not_lose_its_channel(dtype: torch.dtype) -> None:
    """1 + weight = 0.001 is 0 in bfloat16; such a channel is better left alone than silenced."""
    blocks, X = catch(tiny.model("gemma2", dtype=dtype), tiny.windows(2, 12).ids)
    block = blocks[1]
    site = sites(block, X[:1])[0]
    params = scale(block, site, torch.full((tiny.WIDTH,), 4000.0), {})
    name = f"{site.source}.weight"
    own, stored = block.module.get_parameter(name).double() + 1, norms(block, params)[name].double() + 1
    for target in site.targets:
        product = params[target].double() * stored
        assert torch.allclose(product, block.weight(target).double() * own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt", "phi3"])
def test_the_sites_do_not_depend_on_the_number_type(kind: str, dtype: torch.dtype) -> None:
    blocks, X = catch(tiny.model(kind, dtype=dtype), tiny.windows(2, 12).ids)
    assert [[s.source for s in sites(b, X[:1])] for b in blocks[:2]] == [EXPECTED[kind]] * 2


@pytest.mark.parametrize("kind", ["llama", "gemma2", "opt"])
def test_scaled_is_scale_without_the_checks(kind: str) -> None:
    block, X = entrance(kind)
    for site in [*sites(block, X[:1]), query_key_site(block, X[:1])]:
        s = torch.exp(0.5 * torch.randn(channels(block, site), dtype=torch.float64))
        checked, plain = scale(block, site, s, {}), scaled(block, site, s, {})
        assert checked.keys() == plain.keys() and all(torch.equal(checked[n], t) for n, t in plain.items())
        made = scaled(block, site, s.requires_grad_(), {})
        assert all(t.requires_grad for t in made.values())


@pytest.mark.parametrize("kind", EXPECTED)
def test_how_many_factors_a_site_has(kind: str) -> None:
    block, X = entrance(kind)
    for site in sites(block, X[:1]):
        assert site.expand(torch.ones(channels(block, site))).shape == (block.weight(site.targets[0]).shape[1],)
        assert channels(block, site) == len(factors(block, site))


def test_a_norm_divided_by_too_little_is_refused() -> None:
    block, X = entrance("llama")
    site = sites(block, X[:1])[0]
    with pytest.raises(ValueError, match=r"input_layernorm divided by factors down to 1e-06 does not fit its type"):
        scale(block, site, torch.full((tiny.WIDTH,), 1e-6), {})
    assert not torch.isfinite(scaled(block, site, torch.full((tiny.WIDTH,), 1e-6), {})["input_layernorm.weight"]).all()


def test_half_a_transform_does_change_the_function() -> None:
    """The preservation tests could see a mistake."""
    block, X = entrance("llama")
    for site in sites(block, X[:1]):
        edited = scale(block, site, factors(block, site), {})
        dropped = edited.pop(site.targets[-1])
        assert dropped is not None and (block.run(X, edited) - block.run(X)).abs().max() > 1e-3


def test_biases_of_the_source_are_scaled_too() -> None:
    block, X = entrance("qwen2")
    site = next(s for s in sites(block, X[:1]) if s.source == "self_attn.v_proj")
    s = factors(block, site)
    edited = scale(block, site, s, {})
    bias = block.module.get_parameter("self_attn.v_proj.bias")
    assert torch.equal(edited["self_attn.v_proj.bias"], bias / s)
    assert list(norms(block, edited)) == ["self_attn.v_proj.bias"]
    assert norms(block, edited)["self_attn.v_proj.bias"].dtype == torch.float32


def test_grouped_queries_share_the_scale_of_their_head() -> None:
    site = Site("v", ("o",), "linear", repeat=2, head_dim=3)
    s = torch.tensor([1.0, 2, 3, 4, 5, 6])
    assert site.expand(s).tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert torch.equal(site.gather(site.expand(s)), s)
    assert site.gather(torch.tensor([9.0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 0, 0])).tolist() == [9, 1, 1, 3, 2, 2]
    block, X = entrance("llama")
    own = next(s for s in sites(block, X[:1]) if s.source == "self_attn.v_proj")
    assert (own.repeat, own.head_dim) == (2, 8)


def test_edits_add_up_without_touching_the_ones_before() -> None:
    block, X = entrance("llama")
    first, second = sites(block, X[:1])[0], sites(block, X[:1])[2]
    a = scale(block, first, factors(block, first), {})
    kept = {name: t.clone() for name, t in a.items()}
    b = scale(block, second, factors(block, second), a)
    assert all(torch.equal(a[name], kept[name]) for name in kept) and set(b) > set(a)
    assert b["self_attn.v_proj"].ne(a["self_attn.v_proj"]).any()  # its columns by the first, its rows by the second


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_factors_must_be_positive_and_finite(bad: float) -> None:
    block, X = entrance("llama")
    site = sites(block, X[:1])[0]
    s = torch.ones(tiny.WIDTH)
    s[3] = bad
    with pytest.raises(ValueError, match="finite positive"):
        scale(block, site, s, {})


@given(st.integers(0, 10**6))
def test_smoothing_at_one_half_balances_and_is_idempotent(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, w = (torch.exp(2 * torch.randn(9, generator=draw, dtype=torch.float64)) for _ in range(2))
    s = smoothing(a, w, 0.5)
    assert torch.allclose(a / s, w * s)  # both maxima are equal afterwards
    assert torch.allclose(smoothing(a / s, w * s, 0.5), torch.ones_like(s))


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_smoothing_leaves_the_predicted_maxima(seed: int, alpha: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, w = (torch.exp(2 * torch.randn(9, generator=draw, dtype=torch.float64)) for _ in range(2))
    s = smoothing(a, w, alpha)
    assert torch.allclose(a / s, a ** (1 - alpha) * w ** (1 - alpha))
    assert torch.allclose(w * s, a**alpha * w**alpha)


def test_smoothing_more_moves_more_of_large_channels() -> None:
    a, w = torch.tensor([50.0, 3.0]), torch.tensor([2.0, 0.5])
    smoothed = [a / smoothing(a, w, alpha) for alpha in (0.25, 0.5, 0.75)]
    assert (smoothed[0] > smoothed[1]).all() and (smoothed[1] > smoothed[2]).all()


def test_smoothing_survives_silent_channels() -> None:
    s = smoothing(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert torch.isfinite(s).all() and (s > 0).all()


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_salience_is_centred(seed: int, ratio: float) -> None:
    size = torch.exp(torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    s = salience(size, ratio)
    assert abs(float(s.max() * s.min()) - 1) < 1e-9
    assert (s.argsort() == size.argsort()).all() or ratio < 1e-6


def test_salience_edges() -> None:
    assert torch.equal(salience(torch.tensor([0.0, 3.0, 100.0]), 0.0), torch.ones(3))
    for size in (torch.zeros(4), torch.tensor([0.0, 0.0, 5.0])):
        s = salience(size, 0.95)
        assert torch.isfinite(s).all() and (s > 0).all()
    size = torch.tensor([1.0, 2.0, 8.0])
    assert torch.allclose(salience(size * 7, 0.5), salience(size, 0.5))  # the unit of the activations does not matter
