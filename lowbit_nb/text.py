"""Windows of tokens: what the methods calibrate on, and what everything is measured on.

Every source has two parts that never meet, one for `calibration` and one for `evaluation`:

    stdlib         the standard library of this interpreter: modules that are not held out / held-out modules
    wikitext2      train split / test split                                    } loaded with `datasets`
    c4, c4-new     first shard of train / first shard of validation            }
    selfgenerated  text sampled from the bundled model, shipped as integers: rows 128-191 / rows 0-127
    a path         a text file: the first 90 % / the last 10 % of its characters

Windows carry the sentence that says how they were made (`protocol`); perplexities compare where it is equal.
"""

from __future__ import annotations

import json
import platform
import random
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lowbit_nb import corpus
from lowbit_nb.windows import Windows, at_random, encode, spaced, too_short

DATA = Path(__file__).resolve().parent.parent / "data"
SOURCES = ("stdlib", "wikitext2", "c4", "c4-new", "selfgenerated")
CHARS_PER_TOKEN = 6  # generous: source code has three to four
SELF_ROWS = {"evaluation": slice(0, 128), "calibration": slice(128, 192)}
C4_DOCUMENTS, C4_WINDOWS = 1100, 256  # what the papers take of the validation shard
ONE_SHARD = {"split": "train", "verification_mode": "no_checks"}  # less than promised
C4_TRAIN = {"train": "en/c4-train.00000-of-01024.json.gz"}
C4_VALIDATION = {"train": "en/c4-validation.00000-of-00008.json.gz"}  # the key names the split made of it
DATASETS: dict[str, tuple[str, dict[str, Any]]] = {
    "wikitext2 train": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "train"}),
    "wikitext2 test": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"}),
    "c4 train": ("allenai/c4", {"data_files": C4_TRAIN, **ONE_SHARD}),
    "c4 validation": ("allenai/c4", {"data_files": C4_VALIDATION, **ONE_SHARD}),
}


def calibration(tokenizer: Any, n: int = 64, length: int = 256, source: str | Path = "stdlib",
                seed: int = 0) -> Windows:
    """n random windows from the calibration part of a source.

    Shapes:  returns Windows with ids [n, length].
    Units:   length in tokens.
    Raises:  ValueError for an unknown source, n < 1, length < 2, or too little text (names the counts);
             FileNotFoundError if a data set is neither in the cache nor on the hub.
    Source:  wikitext2 and c4 as GPTQ draws them: random offsets into the joined train split; random documents
             longer than a window, a random crop of each, from the first train shard.
    Differs: the generator is made anew from the seed at every call, so the order of calls does not matter.
    """
    _check_counts(n, length)
    draw = {"stdlib": _stdlib_calibration, "selfgenerated": _self_calibration, "c4": _c4_calibration,
            "c4-new": _c4_calibration, "wikitext2": _wikitext_calibration}.get(str(source))
    if draw is not None:
        return draw(tokenizer, n, length, seed)
    text, part = _file_part(source, "calibration")
    return at_random(encode(tokenizer, text), n, length, seed, part)


def evaluation(tokenizer: Any, n: int | None = 64, length: int = 256,
               source: str | Path = "stdlib") -> Windows:
    """n non-overlapping windows, spread evenly over the evaluation part of a source; n=None takes all.

    Window k of n is window floor(k N / n) of the N that the text holds.

    Shapes:  returns Windows with ids [n, length].
    Units:   length in tokens.
    Raises:  as `calibration`.
    Source:  wikitext2: test split joined with blank lines; c4: 256 random crops of validation documents,
             seed 0; c4-new: the first 1100 validation documents joined with spaces, 256 windows of that.
    Differs: the papers use all windows (n=None, or n=256 for c4) at length 2048; fewer are a sample of them.
    """
    _check_counts(1 if n is None else n, length)
    draw = {"stdlib": _stdlib_evaluation, "selfgenerated": _self_evaluation, "c4": _c4_evaluation,
            "c4-new": _c4_new_evaluation, "wikitext2": _wikitext_evaluation}.get(str(source))
    if draw is not None:
        return draw(tokenizer, n, length)
    text, part = _file_part(source, "evaluation")
    return spaced(encode(tokenizer, text), n, length, part)


def _mark(texts: Iterable[str]) -> str:
    return corpus.sha256(texts)[:12]  # enough to tell two corpora apart


def _check_counts(n: int, length: int) -> None:
    if n < 1 or length < 2:
        raise ValueError(f"n={n} windows of length={length}: n must be at least 1, and length at least 2 "
                         "(one token to read and one to predict)")


# The standard library

def _stdlib_evaluation(tokenizer: Any, n: int | None, length: int) -> Windows:
    held = corpus.HeldOut.read()
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [i for text in held.texts for i in end + encode(tokenizer, text)]
    part = (f"stdlib, evaluation: the {len(held.names)} held-out modules of Python "
            f"{platform.python_version()}, joined with the end token, corpus {_mark(held.texts)}")
    return spaced(ids, n, length, part, held.names)


def _stdlib_calibration(tokenizer: Any, n: int, length: int, seed: int) -> Windows:
    """Windows that start at a random line of a random module (by size); only modules drawn are read."""
    names, sizes = zip(*corpus.calibration_modules(), strict=True)
    ends, generator = list(accumulate(sizes)), torch.Generator().manual_seed(seed)
    texts: dict[str, str | None] = {}
    rows: list[list[int]] = []
    used: set[str] = set()
    for _ in range(40 * n + 400):
        place = int(torch.randint(ends[-1], (), generator=generator))
        index = bisect_right(ends, place)
        name = names[index]
        if name not in texts:
            texts[name] = _allowed_text(name)
        ids = _window_at(tokenizer, texts[name], ends[index] - place, length)
        if ids:
            rows.append(ids)
            used.add(name)
        if len(rows) == n:
            return _stdlib_windows(rows, sorted(used), texts, seed)
    raise too_short("stdlib, calibration: what many draws found", len(rows) * length, n, length)


def _stdlib_windows(rows: list[list[int]], used: list[str], texts: dict[str, str | None],
                    seed: int) -> Windows:
    mark = _mark(f"{name}\n{texts[name]}" for name in used)
    protocol = (f"stdlib, calibration: {len(rows)} windows of {len(rows[0])} tokens at random lines, "
                f"seed {seed}, of {len(used)} modules of Python {platform.python_version()}, none held out, "
                f"corpus {mark}")
    return Windows(torch.tensor(rows), protocol, files=tuple(used))


def _allowed_text(name: str) -> str | None:
    """The text of a module, or None if it may not be used: data-like, or a near-copy of held-out modules."""
    text = corpus.readable((corpus.library() / name).read_bytes())
    return None if text is None or corpus.HeldOut.read().is_near_copy(text) else text


def _window_at(tokenizer: Any, text: str | None, from_end: int, length: int) -> list[int] | None:
    """The window at the next line; None if the text ends too early or shares a run with held-out text."""
    start = (text or "").find("\n", max(0, len(text or "") - from_end)) + 1
    piece = (text or "")[start : start + CHARS_PER_TOKEN * length] if start else ""
    if len(piece) < length or corpus.HeldOut.read().shares_run(piece):
        return None
    ids = encode(tokenizer, piece)
    return ids[:length] if len(ids) > length else None


# Text files

def _file_part(source: str | Path, part: str) -> tuple[str, str]:
    """The calibration (first 90 %) or evaluation (last 10 %) characters of a text file, cut at a line end."""
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"unknown source {str(source)!r}, and no file has that name: use one of "
                         f"{', '.join(SOURCES)}, or the path of a text file")
    text = corpus.decode(path.read_bytes())
    cut = text.rfind("\n", 0, len(text) * 9 // 10) + 1 or len(text) * 9 // 10
    kept, share = (text[:cut], "first 90 %") if part == "calibration" else (text[cut:], "last 10 %")
    return kept, f"{path.name}, {part}: {share} of {len(text)} characters, corpus {_mark([text])}"


# Data sets

def _rows(part: str) -> Any:
    """A split with a column "text": from the hub, or from the cache when the hub cannot be reached."""
    import datasets
    from huggingface_hub import HfApi, constants

    path, options = DATASETS[part]
    before = constants.HF_HUB_OFFLINE
    try:
        # Without this, `datasets` tries for half a minute before it looks into its cache.
        constants.HF_HUB_OFFLINE = before or not _reachable(HfApi(), path)
        return datasets.load_dataset(path, **options)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{part}: {path} is neither in the cache ({datasets.config.HF_DATASETS_CACHE}) nor could it "
            f"be had from the hub ({type(error).__name__}: {str(error)[:200]}); connect once to fill the "
            "cache, or use source='stdlib', 'selfgenerated' or a text file") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(api: Any, path: str) -> bool:
    try:
        return bool(api.dataset_info(path, timeout=10))
    except Exception:  # whatever the reason is, the cache is the next place to look
        return False


def _wikitext_calibration(tokenizer: Any, n: int, length: int, seed: int) -> Windows:
    text = "\n\n".join(_rows("wikitext2 train")["text"])
    ids = encode(tokenizer, text, special=True)
    return at_random(ids, n, length, seed, "wikitext2, train joined with blank lines")


def _wikitext_evaluation(tokenizer: Any, n: int | None, length: int) -> Windows:
    text = "\n\n".join(_rows("wikitext2 test")["text"])
    return spaced(encode(tokenizer, text, special=True), n, length, "wikitext2, test joined with blank lines")


def _c4_calibration(tokenizer: Any, n: int, length: int, seed: int) -> Windows:
    return _document_crops(tokenizer, "c4 train", n, length, seed)


def _c4_evaluation(tokenizer: Any, n: int | None, length: int) -> Windows:
    return _document_crops(tokenizer, "c4 validation", n or C4_WINDOWS, length, seed=0)


def _c4_new_evaluation(tokenizer: Any, n: int | None, length: int) -> Windows:
    rows = _rows("c4 validation")
    text = " ".join(rows[i]["text"] for i in range(min(C4_DOCUMENTS, len(rows))))
    ids = encode(tokenizer, text, special=True)[: C4_WINDOWS * length]
    return spaced(ids, n, length, f"c4-new, the first {C4_DOCUMENTS} validation documents joined with spaces")


def _document_crops(tokenizer: Any, part: str, n: int, length: int, seed: int) -> Windows:
    """A random crop of each of n random documents that are longer than a window."""
    rows, pick, crops, tries = _rows(part), random.Random(seed), [], 0
    while len(crops) < n:
        ids = encode(tokenizer, rows[pick.randint(0, len(rows) - 1)]["text"], special=True)
        tries += 1
        if len(ids) > length:
            start = pick.randint(0, len(ids) - length - 1)
            crops.append(ids[start : start + length])
        elif tries > 1000 * (len(crops) + 1):
            raise ValueError(f"{part}: of {tries} random documents {len(crops)} are longer than {length} "
                             f"tokens, {n} are needed; use a shorter length")
    protocol = f"{part}, first shard; {n} crops of {length} tokens of random longer documents, seed {seed}"
    return Windows(torch.tensor(crops), protocol, files=(part,))


# Text of the model's own making

def _self_calibration(tokenizer: Any, n: int, length: int, seed: int) -> Windows:
    return _self_windows(tokenizer, n, length, "calibration")  # random rows already: no seed


def _self_evaluation(tokenizer: Any, n: int | None, length: int) -> Windows:
    return _self_windows(tokenizer, n, length, "evaluation")


def _self_windows(tokenizer: Any, n: int | None, length: int, part: str) -> Windows:
    """The first n rows, cut to length, of the shipped integers of one part."""
    bundled = json.loads((DATA / "subject" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    if tokenizer.get_vocab() != bundled:
        raise ValueError("selfgenerated text is stored as token numbers of the bundled model; this tokenizer "
                         f"has another vocabulary ({len(tokenizer.get_vocab())} tokens, not {len(bundled)}): "
                         "use source='stdlib', a text file, or the bundled model")
    with safe_open(DATA / "text" / "selfgenerated.safetensors", "pt") as file:
        ids, made = file.get_tensor("ids")[SELF_ROWS[part]].long(), file.metadata()
    n = len(ids) if n is None else n
    if n > len(ids) or length > ids.shape[1]:
        raise ValueError(f"selfgenerated, {part}: {len(ids)} windows of {ids.shape[1]} tokens are shipped, "
                         f"{n} of {length} asked for; use n <= {len(ids)} and length <= {ids.shape[1]}")
    protocol = (f"selfgenerated, {part}: first {n} of {len(ids)} windows of {length} tokens, from model "
                f"{made['model_sha256'][:12]} at temperature {made['temperature']}, seed {made['seed']}")
    return Windows(ids[:n, :length].contiguous(), protocol, files=(f"selfgenerated {part}",))
