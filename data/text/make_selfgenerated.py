"""Samples the text that `source="selfgenerated"` reads from the bundled model, and writes it as integers.

    python3 data/text/make_selfgenerated.py

192 windows of 256 tokens, each begun with the end token (as every file of the training corpus is) and sampled
at temperature 1 from the whole distribution. Rows 0-127 are for evaluation, 128-191 for calibration. The
model knows some licence headers by heart and writes them again and again, so samples that share 64 tokens in
a row with an evaluation row are left out of the calibration rows. Shipped numbers do not depend on anybody's
Python version: KL and top-1 agreement on them repeat everywhere. Made anew on another machine they may
differ, for a last-bit difference in a probability changes all that follows.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

EVALUATION, CALIBRATION = 128, 64  # rows
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a clone, installed or not

from lowbit_nb.subject import BUNDLED, Subject, load  # noqa: E402


@torch.no_grad()
def sample(subject: Subject, n: int, length: int, temperature: float,
           generator: torch.Generator) -> torch.Tensor:
    """n sequences from the end token on: ids [n, length] int64."""
    ids = torch.full((n, length), subject.tokenizer.eos_token_id)
    cache = None
    for t in range(1, length):
        out = subject.model(ids[:, t - 1 : t], past_key_values=cache, use_cache=True)
        cache = out.past_key_values  # keys and values of all tokens so far: one new token a step is enough
        p = (out.logits[:, -1] / temperature).softmax(-1)
        ids[:, t] = torch.multinomial(p, 1, generator=generator)[:, 0]
    return ids


def runs(row: list[int], length: int = 64) -> set[tuple[int, ...]]:
    return {tuple(row[i : i + length]) for i in range(len(row) - length + 1)}


def keep_apart(ids: torch.Tensor) -> torch.Tensor:
    """The first 128 rows, and the first 64 of the others that share no 64 tokens in a row with them."""
    rows = ids.tolist()
    seen = set().union(*map(runs, rows[:EVALUATION]))
    apart = [row for row in rows[EVALUATION:] if seen.isdisjoint(runs(row))]
    if len(apart) < CALIBRATION:
        raise SystemExit(f"{len(apart)} samples are apart, {CALIBRATION} needed: use a larger --n")
    return torch.tensor(rows[:EVALUATION] + apart[:CALIBRATION])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "selfgenerated.safetensors")
    options.add_argument("--n", type=int, default=224, help="rows to sample, of which 192 are kept")
    options.add_argument("--length", type=int, default=256)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--temperature", type=float, default=1.0)
    a = options.parse_args()
    began = time.time()
    generator = torch.Generator().manual_seed(a.seed)
    ids = keep_apart(sample(load(device="cpu"), a.n, a.length, a.temperature, generator))
    weights = hashlib.sha256((BUNDLED / "model.safetensors").read_bytes()).hexdigest()
    made = {"model_sha256": weights, "seed": str(a.seed), "temperature": str(a.temperature),
            "torch": torch.__version__}
    part = a.out.with_suffix(".part")
    save_file({"ids": ids.to(torch.int16)}, part, metadata=made)  # the vocabulary has 4,096 entries
    part.chmod(0o644)  # it is written readable by its owner only
    os.replace(part, a.out)
    print(f"{a.out}: {list(ids.shape)} in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
