"""Greedy decoding with a static cache: transformers' own tokens, without asking the device anything between two steps."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lowbit_nb as lb
from lowbit_nb.evaluate import PROMPTS, generate
from lowbit_nb.grid import Grid
from lowbit_nb.methods import RTN
from lowbit_nb.packed import PackedLinear, pack_model
from lowbit_nb.packed.cache import SlotCache
from lowbit_nb.packed.decoder import RUN, Decoder, most_likely
from lowbit_nb.packed.head import head_of, quantize_head
from lowbit_nb.packed.slim import Plain, joint
from tests import tiny

LLAMA_SHAPED = ("llama", "qwen2")
N, NEW = 6, 30


def prompts(batch: int = 2, n: int = N) -> torch.Tensor:
    return torch.randint(3, tiny.VOCAB, (batch, n), generator=torch.Generator().manual_seed(1))


def padded(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return mask


def expected(model, ids, mask=None, end=None, n=NEW) -> torch.Tensor:
    """transformers' own greedy tokens."""
    out = model.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, max_new_tokens=n, do_sample=False,
                         eos_token_id=end, pad_token_id=0 if end is None else end)
    return out[:, ids.shape[1]:]


@pytest.mark.parametrize("slim", [False, None], ids=["own", "slim if it can"])
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_tokens_are_those_of_generate(kind, slim):
    model, ids = tiny.model(kind), prompts()
    decoder = Decoder(model, N + NEW, batch=2, slim=slim)
    assert decoder.slim == (slim is None and kind in LLAMA_SHAPED), decoder.why
    for mask in (None, padded(ids), None):  # a decoder forgets what it wrote before
        wanted = expected(model, ids, mask)
        assert len(wanted.unique()) > 1
        assert torch.equal(decoder.generate(ids, NEW, mask), wanted)


@pytest.mark.parametrize("slim", [False, True])
def test_a_sequence_ends_where_it_should(slim):
    model, ids = tiny.model(), prompts()
    free = expected(model, ids)
    decoder = Decoder(model, N + NEW, batch=2, slim=slim)
    for end in free.unique().tolist():  # some end one sequence, some both, at any step
        assert torch.equal(decoder.generate(ids, NEW, end=end), expected(model, ids, end=end))
    assert torch.equal(decoder.generate(ids, NEW, end=[tiny.VOCAB - 1, int(free[0, 4])])[0, :5], free[0, :5])


def test_a_long_text_stops_soon_after_its_end():
    model, ids = tiny.model(max_position_embeddings=256), prompts(1)
    end, steps = int(expected(model, ids, n=1)), []
    decoder = Decoder(model, 200)
    one, decoder.step = decoder.step, lambda: (steps.append(1), one())
    assert decoder.generate(ids, 150, end=end).tolist() == [[end]]
    assert len(steps) < 40


class NoReading(TorchDispatchMode):
    """Fails where a number is taken out of a tensor, or a result's size depends on numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(word in name for word in ("local_scalar", "nonzero", "masked_select", "unique")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "slim"), [("llama", False), ("llama", True), ("qwen3", False), ("opt", False),
                                            ("phi", False)])
def test_a_step_reads_nothing_back(kind, slim):
    decoder = Decoder(tiny.model(kind), N + NEW, batch=2, slim=slim)
    decoder.prefill(prompts())
    with NoReading():
        decoder.step()
        decoder.step()
    with pytest.raises(AssertionError, match="local_scalar"), NoReading():
        int(decoder.slot)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_the_cache_holds_what_a_growing_cache_would(kind):
    model, ids = tiny.model(kind), prompts()
    decoder = Decoder(model, N + NEW, batch=2)
    new = decoder.generate(ids, 9)
    grown = model(torch.cat([ids, new[:, :-1]], 1), use_cache=True).past_key_values
    for ours, theirs in zip(decoder.cache.layers, grown.layers, strict=True):
        torch.testing.assert_close(ours.keys[:, :, : N + 8], theirs.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.values[:, :, : N + 8], theirs.values, atol=1e-5, rtol=1e-4)
        assert not ours.keys[:, :, N + 8:].any()
    assert decoder.cache.bytes == 2 * tiny.BLOCKS * ours.keys.numel() * 4


def test_text_is_that_of_evaluate():
    subject, starts = lb.load(), PROMPTS[:3]
    longest = max(len(subject.tokenizer(p, add_special_tokens=False)["input_ids"]) for p in starts)
    decoder = Decoder(subject, longest + 16, batch=3)
    assert decoder.text(starts, 16) == generate(subject, starts, 16)
    with pytest.raises(ValueError, match="a prompt is empty"):
        decoder.text(["", "a", "b"], 3)
    with pytest.raises(ValueError, match="made from a subject with a tokenizer"):
        Decoder(tiny.model(), 9).text(["a"], 3)


@pytest.mark.parametrize("vocabulary", [RUN - 1, RUN, 5 * RUN])
def test_the_most_likely_token_is_the_first_largest(vocabulary):
    logits = torch.randint(-9, 9, (7, vocabulary), generator=torch.Generator().manual_seed(0)).half()  # many are alike
    wanted = (logits == logits.amax(1, keepdim=True)).long().argmax(1, keepdim=True)
    assert torch.equal(most_likely(logits), wanted)


def test_an_unused_cache_has_no_bytes():
    assert SlotCache(3, 10).bytes == 0 and SlotCache(3, 10).get_max_length() == 10


@pytest.mark.parametrize("kind", LLAMA_SHAPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slim_logits_are_the_models_own(kind, dtype):
    decoder = Decoder(tiny.model(kind, dtype=dtype), N + NEW, batch=2, slim=True)
    decoder.prefill(prompts(), padded(prompts()))
    for _ in range(12):
        own, slim = decoder._own_logits(), decoder._slim_logits()
        assert (own - slim).abs().max() <= (1e-5 if dtype == torch.float32 else 3e-2) * own.abs().max()
        decoder.step()


def test_joining_layers_keeps_their_numbers_and_holds_them_once():
    model = tiny.model("qwen2")
    before, attention = tiny.state(model), model.model.layers[0].self_attn
    x = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], -1)
    torch.testing.assert_close(joint([attention.q_proj, attention.k_proj, attention.v_proj])(x), wanted)
    assert tiny.unchanged(model, before)
    storages = {m.weight.untyped_storage().data_ptr() for m in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(storages) == 1


def test_a_model_that_is_not_slim_says_why():
    reasons = {kind: Decoder(tiny.model(kind), 20).why for kind in ("qwen3", "mistral", "phi3", "opt")}
    assert "logits" in reasons["qwen3"] and "window" in reasons["mistral"]
    assert "q_proj" in reasons["phi3"] and "silu" in reasons["opt"]
    with pytest.raises(ValueError, match="cannot be slim: its logits would be off .* leave slim=None"):
        Decoder(tiny.model("qwen3"), 20, slim=True)
    subject = tiny.subject("llama")
    record = lb.quantize(subject, RTN(Grid(4, 16)), progress=False).with_activations(lb.Activations(8))
    rounded = pack_model(record, subject).model.to(torch.bfloat16)  # in which eight bits are too fine for a trial of logits
    assert "rounded activations" in Decoder(rounded, 20).why
    watched = tiny.model()
    watched.lm_head.register_forward_hook(lambda *_: None)
    assert "hooks" in Decoder(watched, 20).why
    stretched = tiny.model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert "length" in Decoder(stretched, 20).why


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("slim", [False, True])
def test_a_packed_subject_writes_what_the_dequantized_one_writes(fused, slim):
    subject, ids = tiny.subject("llama"), prompts()
    record = quantize_head(lb.quantize(subject, RTN(Grid(4, 16)), progress=False), subject, Grid(8, 16))
    packed = pack_model(record, subject, fused=fused)
    assert isinstance(packed.model.lm_head, PackedLinear)
    decoder = Decoder(packed, N + NEW, batch=2, slim=slim)
    assert decoder.slim is slim
    assert torch.equal(decoder.generate(ids, NEW), expected(record.apply(subject).model, ids))


def test_layers_packed_in_different_ways_are_called_one_by_one():
    subject, ids = tiny.subject("llama"), prompts()
    a, b = (lb.quantize(subject, RTN(Grid(bits, 16)), progress=False) for bits in (4, 3))
    some = {name: (b if "k_proj" in name or "up_proj" in name else a).weights[name] for name in a.weights}
    mixed = dataclasses.replace(a, weights=some)
    decoder = Decoder(pack_model(mixed, subject), N + NEW, batch=2, slim=True)
    assert torch.equal(decoder.generate(ids, NEW), expected(mixed.apply(subject).model, ids))


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_a_layer_of_the_record(tied):
    subject = tiny.subject("llama", tie_word_embeddings=tied)
    before = tiny.state(subject.model)
    plain = lb.quantize(subject, RTN(Grid(3, 16)), progress=False)
    record = quantize_head(plain, subject, Grid(4, 16))
    name, head = head_of(subject)
    assert name == "lm_head" and record.settings["head"]["tied"] is tied
    assert record.bits().bits == plain.bits().bits + record.weights[name].bits().bits
    assert record.bits().n_weights == plain.bits().n_weights + head.weight.numel()
    for other in (record.apply(subject).model, pack_model(record, subject).model):
        assert torch.equal(other.get_input_embeddings().weight, before["model.embed_tokens.weight"])
    x = torch.randn(2, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    wanted = x @ record.weights[name].dequantize().T
    torch.testing.assert_close(pack_model(record, subject).model.lm_head(x), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(record.apply(subject).model.lm_head(x), wanted)
    assert tiny.unchanged(subject.model, before)
    with pytest.raises(ValueError, match="in the record already"):
        quantize_head(record, subject)
    with pytest.raises(ValueError, match="not a multiple of g=24"):
        quantize_head(plain, subject, Grid(4, 24))
    with pytest.raises(ValueError, match="rounds activations"):
        quantize_head(plain.with_activations(lb.Activations(8)), subject, Grid(4, 16))


@pytest.mark.parametrize(("make", "message"), [
    (dict(max_length=tiny.CONTEXT + 1), "model's context of 48"),
    (dict(max_length=1), "at least 2 slots"),
    (dict(max_length=9, batch=0), "1 sequence"),
    (dict(max_length=9, graph="fast"), "use one of eager, compiled, captured"),
    (dict(max_length=9, graph="captured"), "cannot be captured on cpu"),
])
def test_a_decoder_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        Decoder(tiny.model(), **make)


@pytest.mark.parametrize(("ids", "n", "mask", "message"), [
    (prompts(3), 4, None, "make one with batch=3"),
    (prompts()[0], 4, None, r"this decoder takes \[2, n\]"),
    (prompts()[:, :0], 4, None, "n of at least 1"),
    (prompts(), 15, None, "write 14 at most, or make a decoder with max_length=21"),
    (prompts(), 0, None, "do not fit"),
    (prompts(), 4, torch.ones(2, 5), "in the shape of ids"),
    (prompts(), 4, padded(prompts()).flip(1), "stands on the left"),
])
def test_a_prompt_that_does_not_fit(ids, n, mask, message):
    with pytest.raises(ValueError, match=message):
        Decoder(tiny.model(), 20, batch=2).generate(ids, n, mask)


SHAPES = [(1, 32, 8, 128, 300, 200), (3, 4, 4, 64, 100, 64), (2, 6, 2, 32, 40, 0), (1, 12, 2, 32, 500, 499)]
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def compare(device: str, dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> None:
    """The three kernels against plain torch; run in this process."""
    from lowbit_nb.kernels import between

    g, bound = torch.Generator(device).manual_seed(0), BOUND[dtype]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=g).to(dtype)

    for batch, heads, n_kv, width, length, slot in shapes:
        qkv, cos, sin = draw(batch, (heads + 2 * n_kv) * width), draw(length, width), draw(length, width)
        cache = draw(batch, n_kv, length, width), draw(batch, n_kv, length, width)
        twins, at = tuple(t.clone() for t in cache), torch.tensor([slot], device=device)
        pads = torch.arange(batch, device=device).clamp(max=slot)
        y = between.attend(qkv, cos, sin, *cache, at, pads, width**-0.5)
        wanted = Plain.attend(qkv, cos, sin, *twins, at, pads, width**-0.5)
        assert (y - wanted).abs().max() <= bound * wanted.abs().max()
        torch.testing.assert_close(cache[0], twins[0], atol=bound, rtol=bound)
        assert torch.equal(cache[1], twins[1])
    h, delta, weight = draw(3, 4000), draw(3, 4000), draw(4000)
    for d in (delta, None):
        (total, y), wanted = between.add_norm(h, d, weight, 1e-6), Plain.add_norm(h, d, weight, 1e-6)
        torch.testing.assert_close(y, wanted[1], atol=bound, rtol=bound)
        assert torch.equal(total, wanted[0])
    both = draw(2, 2 * 3001)
    torch.testing.assert_close(between.gate(both), Plain.gate(both), atol=bound, rtol=bound)


def compare_bytes(device: str, asm: bool) -> None:
    """A product from bytes that the kernel before it has written gives the very numbers of one that makes them itself."""
    from lowbit_nb.kernels import between, tensorcore
    from tests.test_kernels_product import weight

    def operand(d_out: int, d_in: int, b: int) -> tensorcore.Operand:
        words, s, z, _ = weight(d_out, d_in, b, 64, True, True)
        return tensorcore.operand(words.to(device), b, d_in, s.to(device), z.to(device), 64)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(device, torch.float16)

    product, g = partial(tensorcore.product, asm=asm), torch.Generator().manual_seed(0)
    for b, rows, d, inner in [(b, 1 + b % 3, 320, 576) for b in (1, 2, 3, 4, 8)]:
        up, down = operand(2 * inner, d, b), operand(d, inner, b)
        h, delta, norm = draw(rows, d), draw(rows, d), 0.1 * draw(d)
        for some in (None, delta):
            (total, x), (same, y) = (between.add_norm(h, some, norm, 1e-6, into) for into in (up, None))
            mine, wanted = product(x, up), product(y, up)
            gated = product(between.gate(wanted, down), down), product(between.gate(wanted), down)
            assert isinstance(x, tensorcore.Bytes) and torch.isfinite(gated[1]).all() and gated[1].unique().numel() > 100
            assert torch.equal(total, same) and torch.equal(mine, wanted) and torch.equal(*gated), b


def loops() -> None:
    """Let the interpreter's loops end at a loaded number with NumPy 2.4 too, which makes no int of an array of one number."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def test_in_the_interpreter_kernels_equal_their_twins():
    pytest.importorskip("triton", reason="Triton is optional; without it the twins are all there is")
    code = "import torch; from tests import test_decoder as t; t.loops(); t.compare('cpu', torch.float32, t.SHAPES[1:]); "
    code += "t.compare_bytes('cpu', False)"
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_on_a_gpu_kernels_equal_their_twins(dtype):
    compare("cuda", dtype, SHAPES)


@pytest.mark.gpu
def test_on_a_gpu_bytes_are_those_that_a_product_makes_itself():
    compare_bytes("cuda", True)


@pytest.mark.gpu
@pytest.mark.parametrize("slim", [False, None])
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_on_a_gpu_a_captured_step_writes_what_an_eager_one_writes(kind, slim):
    model, ids = tiny.model(kind, **({"head_dim": 32} if kind in LLAMA_SHAPED else {})).cuda(), prompts().cuda()
    eager, captured = (Decoder(model, N + NEW, 2, graph, slim) for graph in ("eager", "captured"))
    for mask in (None, padded(ids)):
        assert torch.equal(captured.generate(ids, NEW, mask), eager.generate(ids, NEW, mask))
    assert captured.slim == (slim is None and kind in LLAMA_SHAPED), captured.why


@pytest.mark.gpu
def test_on_a_gpu_a_packed_subject_is_captured():
    subject, ids = tiny.subject("llama", hidden_size=128, intermediate_size=256, head_dim=32), prompts().cuda()
    subject = dataclasses.replace(subject, model=subject.model.cuda().half())
    record = quantize_head(lb.quantize(subject, RTN(Grid(4, 64)), progress=False), subject, Grid(4, 64))
    packed = pack_model(record, subject)
    eager, captured = (Decoder(packed, N + NEW, 2, graph, True).generate(ids, NEW) for graph in ("eager", "captured"))
    assert torch.equal(eager, captured)
