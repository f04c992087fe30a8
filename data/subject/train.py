"""Trains the bundled subject anew: a small Llama on the Python source that this interpreter carries.

    python3 data/subject/train.py --out new_subject             one GPU, under ten minutes
    python3 data/subject/train.py --out trial --device cpu --steps 3 --files 40 --batch 2 --length 64

The corpus is every .py file of the standard library and of site-packages, less held_out.json and near-copies
of it (rules in lowbit_nb/corpus.py). The shipped tokenizer is kept, so that losses of checkpoints compare;
--new-tokenizer trains another. --out becomes a Hugging Face folder with card.json and log.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import platform
import random
import shutil
import site
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
BEGAN = time.time()
END = "<|end|>"
# Newlines with the indent after them, words, single digits and runs of signs, each with the blank before it.
PIECES = r"\n+ *| ?[A-Za-z_]+| ?\d| ?[^\sA-Za-z_\d]+| +(?=\S)|\s+"
WARM_UP, DECAY_FROM = 300, 0.6  # steps to the full learning rate; share of the run after which it falls to 0
SHIPPED = ("config.json", "generation_config.json", "held_out.json", "model.safetensors", "tokenizer.json",
           "tokenizer_config.json")


def load_corpus_rules() -> Any:
    """lowbit_nb/corpus.py by its path: a training machine need not have all that the package imports."""
    spec = importlib.util.spec_from_file_location("corpus", HERE.parents[1] / "lowbit_nb" / "corpus.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


corpus = load_corpus_rules()


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    p.add_argument("--minutes", type=float, default=7.3, help="training time; the learning rate follows it")
    p.add_argument("--within", type=float, default=9.2, help="minutes for everything; training gives way")
    p.add_argument("--steps", type=int, help="train this many steps instead of --minutes")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--files", type=int, help="use only this many files, for a quick try")
    p.add_argument("--batch", type=int, default=256, help="windows a step")
    p.add_argument("--length", type=int, default=512, help="tokens a window, and the model's context")
    p.add_argument("--held", type=int, default=512, help="held-out windows to measure on")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--new-tokenizer", action="store_true", help="train a new vocabulary")
    for name, size in {"width": 256, "blocks": 8, "ffn": 768, "vocabulary": 4096}.items():
        p.add_argument(f"--{name}", type=int, default=size)
    return p.parse_args()


class Log:
    """Prints with the seconds since the start, and keeps the lines in a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")

    def __call__(self, text: str) -> None:
        line = f"[{time.time() - BEGAN:6.1f} s] {text}"
        print(line, flush=True)
        print(line, file=self.file, flush=True)


# The corpus

def source_files() -> list[Path]:
    """All .py files of this interpreter's library folders, in a fixed order, each once."""
    roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    roots = sorted(os.path.realpath(root) for root in roots | set(site.getsitepackages()))
    found = {os.path.realpath(Path(folder, name)) for root in roots for folder, _, names in os.walk(root)
             for name in names if name.endswith(".py")}
    return [Path(name) for name in sorted(found)]


def may_train(path: Path, held: set[str]) -> bool:
    """Whether the path is neither held out nor one of the standard library's tables."""
    root = Path(os.path.realpath(corpus.library()))
    if not path.is_relative_to(root) or {"site-packages", "dist-packages"} & set(path.parts):
        return True
    name = path.relative_to(root).as_posix()
    return name not in held and not name.startswith(("encodings/", "pydoc_data/"))


def read_texts(limit: int | None, log: Log) -> list[str]:
    """The training texts: readable, distinct, not held out and no near-copy of what is."""
    names, held = set(corpus.held_out_names()), corpus.HeldOut.read()
    paths = [path for path in source_files() if may_train(path, names)]
    if limit:
        paths = random.Random(0).sample(paths, min(limit, len(paths)))
    texts = dict.fromkeys(text for text in map(read, paths) if text is not None)  # keeps the first of equals
    kept = [text for text in texts if not held.is_near_copy(text)]
    log(f"{len(paths)} files, {len(texts)} distinct, {len(texts) - len(kept)} near-copies dropped")
    return kept


def read(path: Path) -> str | None:
    try:
        return corpus.readable(path.read_bytes())
    except OSError:
        return None


# Tokens

def shipped_or_new_tokenizer(texts: list[str], new: bool, vocabulary: int) -> Tokenizer:
    shipped = HERE / "tokenizer.json"
    if shipped.is_file() and not new:
        return Tokenizer.from_file(str(shipped))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    sample = random.Random(0).sample(texts, min(len(texts), 9000))
    tokenizer.train_from_iterator(sample, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts one after the other, each begun with the end token: int32, 1-D."""
    end, parts = tokenizer.token_to_id(END), []
    for i in range(0, len(texts), 200):  # in portions, for Python's lists of integers are large
        ids = [j for e in tokenizer.encode_batch(texts[i : i + 200]) for j in (end, *e.ids)]
        parts.append(torch.tensor(ids, dtype=torch.int32))
    return torch.cat(parts)


# The model and its training

def new_model(a: argparse.Namespace, vocabulary: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=a.width, intermediate_size=a.ffn, num_hidden_layers=a.blocks,
        num_attention_heads=a.width // 64, num_key_value_heads=max(1, a.width // 128),
        max_position_embeddings=a.length, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    return LlamaForCausalLM(config).to(a.device)


def make_loss(model: nn.Module, device: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(compiled, for training; only its blocks compiled, for the odd sizes of evaluation)."""
    gpu = device.startswith("cuda")
    core = torch.compile(model.model) if gpu else model.model
    head = model.lm_head.weight

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            logits = F.linear(core(input_ids=x, use_cache=False).last_hidden_state, head)
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())

    return (torch.compile(loss) if gpu else loss), loss


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def make_batches(ids: Tensor, a: argparse.Namespace) -> Callable[[], tuple[Tensor, Tensor]]:
    """Random windows of the stream and the same shifted by one token."""
    data, generator = ids.to(a.device), torch.Generator(a.device).manual_seed(0)
    along = torch.arange(a.length + 1, device=a.device)

    def batch() -> tuple[Tensor, Tensor]:
        start = torch.randint(0, len(data) - a.length - 1, (a.batch, 1), device=a.device, generator=generator)
        windows = data[start + along].long()  # [batch, length + 1]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    return batch


@torch.no_grad()
def held_out_loss(loss: Callable[..., Tensor], ids: Tensor, a: argparse.Namespace, most: int) -> float:
    """Mean loss over the first non-overlapping windows of the held-out modules, in nats a token."""
    n = min((len(ids) - 1) // a.length, most)
    x = ids[: n * a.length].view(n, a.length).long().to(a.device)
    y = ids[1 : n * a.length + 1].view(n, a.length).long().to(a.device)
    return sum(loss(x[i : i + 64], y[i : i + 64]).item() * len(x[i : i + 64]) for i in range(0, n, 64)) / n


def train(model: nn.Module, ids: Tensor, held: Tensor, a: argparse.Namespace, log: Log) -> tuple[float, int]:
    """Trains in place; returns the held-out loss and the number of steps."""
    fast, plain = make_loss(model, a.device)
    optimizer, batch = make_optimizer(model, a.lr), make_batches(ids, a)
    fast(*batch()).backward()  # compiles before the clock starts
    optimizer.zero_grad(set_to_none=True)
    held_out_loss(plain, held, a, a.held)
    began = time.time()
    seconds = min(60 * a.minutes, 60 * (a.within - 0.25) - (began - BEGAN))
    log(f"training for {a.steps} steps" if a.steps else f"training for {seconds:.0f} s")
    step, done, told = 0, 0.0, 0
    while done < 1:
        set_rate(optimizer, a.lr, step, done)
        value = fast(*batch())
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        done = step / a.steps if a.steps else (time.time() - began) / seconds
        if done * 12 >= told + 1:
            told += 1
            now = held_out_loss(plain, held, a, min(64, a.held))
            log(f"step {step}, {done:4.0%}: loss {checked(value):.4f}, held out {now:.4f}")
    return held_out_loss(plain, held, a, a.held), step


def set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, done: float) -> None:
    """Up over 300 steps, flat, then straight down to zero over the last 40 % of the run."""
    rate = lr * min(1, (step + 1) / WARM_UP) * min(1, max(0, 1 - done) / (1 - DECAY_FROM))
    for group in optimizer.param_groups:
        group["lr"] = rate


def checked(value: Tensor) -> float:
    if not math.isfinite(value.item()):
        raise RuntimeError(f"the training loss is {value.item()}: use a smaller --lr")
    return value.item()


# What is written

def save(model: nn.Module, tokenizer: Tokenizer, out: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    for name in ("held_out.json", "tokenizer_config.json"):
        if out.resolve() != HERE:
            shutil.copyfile(HERE / name, out / name)
    (out / "model.safetensors").chmod(0o644)  # it is written readable by its owner only


def card(model: nn.Module, a: argparse.Namespace, loss: float, steps: int,
         counts: dict[str, int]) -> dict[str, Any]:
    tokens, ratio = steps * a.batch * a.length, counts["held_bytes"] / counts["held_tokens"]
    device = torch.cuda.get_device_name() if a.device.startswith("cuda") else "CPU"
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "held_loss_nats_per_token": loss,
        "held_perplexity": math.exp(loss), "held_bits_per_byte": loss / math.log(2) / ratio,
        "bytes_per_token": ratio,
        "window": a.length, "steps": steps, "tokens": tokens, "corpus_tokens": counts["tokens"],
        "passes": tokens / counts["tokens"], "files": counts["files"], "minutes": (time.time() - BEGAN) / 60,
        "device": device, "python": platform.python_version(), "torch": torch.__version__,
        "sha256": {name: hashlib.sha256((a.out / name).read_bytes()).hexdigest() for name in SHIPPED}}


def main() -> None:
    a = options()
    a.out.mkdir(parents=True, exist_ok=True)
    log = Log(a.out / "log.txt")
    torch.set_float32_matmul_precision("high")
    texts, held = read_texts(a.files, log), corpus.HeldOut.read()
    tokenizer = shipped_or_new_tokenizer(texts, a.new_tokenizer, a.vocabulary)
    random.Random(0).shuffle(texts)
    ids, held_ids = token_stream(tokenizer, texts), token_stream(tokenizer, list(held.texts))
    log(f"{len(ids)} tokens to train on, {len(held_ids)} held out")
    model = new_model(a, tokenizer.get_vocab_size())
    loss, steps = train(model, ids, held_ids, a, log)
    save(model, tokenizer, a.out)
    counts = {"tokens": len(ids), "files": len(texts), "held_tokens": len(held_ids),
              "held_bytes": sum(len(text.encode()) for text in held.texts)}
    record = card(model, a, loss, steps, counts)
    (a.out / "card.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    log(f"held-out loss {loss:.4f} nats a token (perplexity {math.exp(loss):.3f}) after {steps} steps")


if __name__ == "__main__":
    main()
