"""Tiny random decoders, made in a second, and a subject around each that needs no tokenizer."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor

from lowbit_nb.subject import Subject
from lowbit_nb.text import Windows

VOCAB, WIDTH, BLOCKS, CONTEXT = 64, 32, 3, 48
_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", _LLAMA | {"head_dim": 8}),
    "mistral": ("MistralConfig", _LLAMA | {"sliding_window": 8}),
    "gemma2": ("Gemma2Config", _LLAMA | {"head_dim": 8, "sliding_window": 8}),
    "phi": ("PhiConfig", _LLAMA | {"num_key_value_heads": 4}),
    "phi3": ("Phi3Config", _LLAMA | {"pad_token_id": 0}),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": WIDTH,
            "ffn_dim": 2 * WIDTH,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": WIDTH,
        },
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
    ),
}

# Mixtures of experts, four of which every token meets two; `subject` unfolds them, `model` does not.
MIXTURES: dict[str, tuple[str, dict]] = {
    "mixtral": ("MixtralConfig", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        _LLAMA | {"head_dim": 8, "moe_intermediate_size": WIDTH, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        _LLAMA
        | {
            "moe_intermediate_size": WIDTH,
            "shared_expert_intermediate_size": WIDTH,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}


def model(
    kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> transformers.PreTrainedModel:
    """A random decoder of that architecture, in evaluation mode."""
    name, settings = (ARCHITECTURES | MIXTURES)[kind]
    settings = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2} | settings | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
        for p in made.parameters():  # random scales and biases too: blocks that do something
            p.data += 0.05 * torch.randn_like(p)
    return made.to(dtype).eval().requires_grad_(False)


def subject(kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> Subject:
    return Subject(model(kind, seed, dtype, **changes), None, f"tiny {kind}")


def windows(n: int = 6, length: int = 24, seed: int = 0, vocab: int = VOCAB) -> Windows:
    ids = torch.randint(3, vocab, (n, length), generator=torch.Generator().manual_seed(seed))
    return Windows(ids, f"random ids, seed {seed}")


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def unchanged(module: torch.nn.Module, before: dict[str, Tensor]) -> bool:
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], t) for name, t in before.items())


def n_hooks(module: torch.nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules())
