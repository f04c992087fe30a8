"""Blocks of real architectures, tiny and random: found, run one by one, watched, exchanged, and left as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lowbit_nb.blocks import Block, catch, layers
from lowbit_nb.streams import Streams
from tests import tiny

KINDS = sorted(tiny.ARCHITECTURES)
SHARED = {
    "llama": [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ],
    "opt": [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.out_proj"],
        ["fc1"],
        ["fc2"],
    ],
    "phi": [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"],
        ["self_attn.dense"],
        ["mlp.fc2"],
    ],
    "phi3": [["self_attn.qkv_proj"], ["self_attn.o_proj"], ["mlp.gate_up_proj"], ["mlp.down_proj"]],
    "gpt_neox": [
        ["attention.query_key_value"],
        ["attention.dense"],
        ["mlp.dense_h_to_4h"],
        ["mlp.dense_4h_to_h"],
    ],
}


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, list[Block], torch.Tensor]:
    model = tiny.model("llama")
    blocks, X = catch(model, tiny.windows().ids, batch=4)
    return model, blocks, X


def whole_model(model: nn.Module, ids: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs and outputs of every block when the model runs by itself."""
    inputs, outputs, handles = [], [], []
    for module in layers(model)[1]:
        handles.append(
            module.register_forward_pre_hook(
                lambda m, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
        )
        handles.append(
            module.register_forward_hook(lambda m, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        )
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs, outputs


@pytest.mark.parametrize("kind", KINDS)
def test_block_by_block_equals_the_whole_model(kind):
    """Also with a last batch that is smaller, and for blocks that differ in mask (gemma2: every second one slides)."""
    model, ids = tiny.model(kind), tiny.windows(7).ids
    name, modules = layers(model)
    assert len(modules) == tiny.BLOCKS and model.get_submodule(name) is modules
    inputs, outputs = whole_model(model, ids)
    blocks, X = catch(model, ids, batch=4)
    torch.testing.assert_close(X, inputs[0], rtol=0, atol=1e-6)
    for block, Y in zip(blocks, outputs, strict=True):
        assert model.get_submodule(block.name) is block.module
        X = block.run(X)
        torch.testing.assert_close(X, Y, rtol=1e-5, atol=1e-5)
    assert tiny.n_hooks(model) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_share_an_input_are_found(kind):
    model = tiny.model(kind)
    blocks, X = catch(model, tiny.windows(2).ids)
    for block in blocks:
        shared = block.shared_inputs(X[:1])
        assert shared == SHARED.get(kind, SHARED["llama"])
        assert sorted(name for names in shared for name in names) == sorted(block.linears)
    assert tiny.n_hooks(model) == 0


def test_weights_are_exchanged_without_touching_the_model(llama):
    model, blocks, X = llama
    block, before = blocks[1], tiny.state(model)
    new = {name: torch.randn_like(block.weight(name)) for name in ("self_attn.v_proj", "mlp.down_proj")}
    own, exchanged = block.run(X), block.run(X, new)
    assert not torch.allclose(own, exchanged) and tiny.unchanged(model, before)
    edited = tiny.model("llama")
    for name, W in new.items():
        layers(edited)[1][1].get_submodule(name).weight.data.copy_(W)
    by_hand, _ = catch(edited, tiny.windows().ids, batch=4)
    torch.testing.assert_close(exchanged, by_hand[1].run(X), rtol=1e-6, atol=1e-6)
    assert torch.equal(block.run(X), own)


def test_a_block_is_differentiable_in_the_exchanged_weights(llama):
    _, blocks, X = llama
    W = blocks[0].weight("mlp.up_proj").clone().requires_grad_()
    blocks[0].forward(X[:2], {"mlp.up_proj": W}).square().sum().backward()
    assert float(W.grad.abs().sum()) > 0
    assert all(p.grad is None for p in blocks[0].module.parameters())


def test_the_output_may_overwrite_the_input(llama):
    _, blocks, X = llama
    fresh, mine = blocks[0].run(X), X.clone()
    assert blocks[0].run(mine, out=mine) is mine and torch.equal(mine, fresh)


def test_batches_change_nothing(llama):
    _, blocks, X = llama
    for batch in (1, 2, 5, 100):
        other = replace(blocks[2], batch=batch)
        torch.testing.assert_close(other.run(X), blocks[2].run(X), rtol=1e-6, atol=1e-6)


def test_hessians_are_those_of_what_the_layers_are_handed(llama):
    """In float64 by hand, with earlier layers exchanged, for a part of the groups, and without running the rest."""
    _, blocks, X = llama
    block = blocks[0]
    shared = block.shared_inputs(X[:1])
    new = {"self_attn.v_proj": torch.randn_like(block.weight("self_attn.v_proj"))}
    for weights in (None, new):
        seen = inputs_by_hand(block, X, weights)
        for some in (shared, shared[1:2], shared[:1], shared[2:]):
            for names, h in zip(some, block.hessians(X, some, weights), strict=True):
                x = seen[names[0]].flatten(0, -2).double()
                assert h.n == len(x) == X.shape[0] * X.shape[1]
                torch.testing.assert_close(h.H.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    calls = []
    handle = block.linears["mlp.down_proj"].register_forward_hook(lambda *_: calls.append(1))
    block.hessians(X, shared[:1])
    handle.remove()
    assert not calls


def inputs_by_hand(block: Block, X: torch.Tensor, weights: dict | None) -> dict[str, torch.Tensor]:
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in block.linears}
    handles = [
        m.register_forward_hook(lambda mod, args, out, name=name: seen[name].append(args[0]))
        for name, m in block.linears.items()
    ]
    block.run(X, weights)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_hooks_are_gone_after_an_error(llama):
    model, blocks, X = llama
    shared = blocks[0].shared_inputs(X[:1])
    poisoned = X.clone()
    poisoned[3, 5, 2] = torch.inf
    before = tiny.state(model)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj: .*layer inputs are not finite"):
        blocks[0].hessians(poisoned, shared)
    with pytest.raises(ValueError, match=r"model\.layers\.0 gives non-finite outputs"):
        blocks[0].run(poisoned)
    with pytest.raises(RuntimeError):
        blocks[0].hessians(X[..., :-1], shared)
    with pytest.raises(IndexError):
        catch(model, torch.full((2, 4), tiny.VOCAB + 5))
    assert tiny.n_hooks(model) == 0 and tiny.unchanged(model, before)


def test_streams_start_alike_and_part_ways(llama):
    _, blocks, X = llama
    W = {"mlp.down_proj": torch.zeros_like(blocks[0].weight("mlp.down_proj"))}
    full, quant = blocks[0].run(X), blocks[0].run(X, W)
    for wanted in ((), ("full",), ("quant",), ("full", "quant")):
        streams = Streams.start(X.clone(), wanted)
        assert (streams.full is not None, streams.quant is not None) == ("full" in wanted, "quant" in wanted)
        streams.advance(blocks[0], W)
        assert streams.full is None or torch.equal(streams.full, full)
        assert streams.quant is None or torch.equal(streams.quant, quant)


def test_two_streams_do_not_share_memory(llama):
    streams = Streams.start(llama[2].clone(), ("full", "quant"))
    assert streams.full.data_ptr() != streams.quant.data_ptr()


class Named(nn.Module):
    """A decoder that hands hidden_states by keyword and more arguments by position, as some families do."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, hidden_states: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
            return self.linear(hidden_states) * (1.0 if scale is None else scale)

    def __init__(self, by_name: bool) -> None:
        super().__init__()
        self.embed, self.by_name = nn.Embedding(8, 4), by_name
        self.blocks = nn.ModuleList([self.Layer(), self.Layer()])

    def forward(self, ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(hidden_states=x, scale=torch.tensor(3.0)) if self.by_name else block(x, torch.tensor(3.0))
        return x


@pytest.mark.parametrize("by_name", [True, False])
def test_arguments_by_name_and_by_position_reach_the_block(by_name):
    model, ids = Named(by_name), torch.arange(8).reshape(2, 4)
    blocks, X = catch(model, ids, batch=1)
    for block in blocks:
        X = block.run(X)
    torch.testing.assert_close(X, model(ids).detach())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Sequential has no list of equal blocks"):
        layers(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="no list of equal blocks"):
        layers(nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])}))


def test_the_longest_list_of_equal_modules_is_taken():
    model = nn.ModuleDict(
        {
            "short": nn.ModuleList([nn.Linear(2, 2)]),
            "long": nn.ModuleList([nn.Linear(2, 2) for _ in range(4)]),
            "mixed": nn.ModuleList([nn.ReLU(), *(nn.Linear(2, 2) for _ in range(9))]),
        }
    )
    assert layers(model)[0] == "long"
