"""The model under study: the bundled one, or any Hugging Face decoder, with its tokenizer."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit_nb.blocks import block_of, resident
from lowbit_nb.blocks.shelf import CheckpointShelf, check_finite
from lowbit_nb.experts import unfolded

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "subject"
# What a configuration says about how it was loaded rather than about what the model computes.
NOT_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache")


@dataclass(frozen=True)
class Subject:
    """A decoder in evaluation mode and its tokenizer; fused experts become linear layers.

    Units:   none.
    Source:  this project.
    Differs: no difference.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    source: str = ""  # "bundled", "folder" or "hub"

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", unfolded(self.model))

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a blockwise subject, where they come to."""
        return next(p.device for p in self.model.parameters() if not p.is_meta)

    @property
    def blockwise(self) -> bool:
        """Whether its blocks lie on disk and come to memory one by one."""
        return any(p.is_meta for p in self.model.parameters())

    @property
    def n_parameters(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    def check_fits(self, length: int) -> None:
        """Refuse windows that are longer than the model's context.

        Shapes:  length in tokens.
        Units:   tokens.
        Raises:  ValueError naming both lengths.
        Source:  this project.
        Differs: no difference.
        """
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest and length > longest:
            raise ValueError(f"windows of {length} tokens do not fit the model's context of {longest}; use length={longest}")

    def fingerprint(self) -> str:
        """A sha256 over the configuration and every stored tensor: what decides what the model computes."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in NOT_THE_MODEL}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in self.tensors():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every stored tensor with its name, in alphabetical order; of a blockwise subject, one block in memory at a time."""
        for block, names in groupby(sorted(self.model.state_dict()), block_of):
            module = self.model.get_submodule(block)
            with resident([module]):
                tensors = module.state_dict(prefix=f"{block}." if block else "")
                yield from ((name, tensors[name].detach()) for name in names)

    def __repr__(self) -> str:
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return f"Subject({self.name}: {self.n_parameters:,} parameters, {dtype} on {self.device})"


def load(name: str | Path | None = None, dtype: torch.dtype = torch.float32,
         device: torch.device | str = "cpu", blockwise: bool = False) -> Subject:
    """The bundled model, a checkpoint folder, or "org/name" from the cache or the hub.

    Everything that is done with a subject is done where it lies: device="cuda" puts a run on the GPU.

    blockwise  leave the blocks on disk: each comes to memory, or to the GPU, only while it is worked with, so that the model
               may be larger than either.  Quantizing and evaluating go block by block, other uses read all of it every time;
               methods that ask the end loss, packing and exports need the model whole

    Shapes:  none.
    Units:   none.
    Raises:  FileNotFoundError if nothing of that name is found (says where it was looked for);
             ValueError if the files are damaged, incomplete, edited, without a tokenizer, or hold non-finite weights.
    Source:  this project; files are read by transformers.
    Differs: generation is greedy and silent until a caller asks for sampling; the cache comes before the hub.
    """
    where, source = _find(name)
    model, tokenizer = _read(where, name or "the bundled model", dtype, torch.device(device) if blockwise else None)
    _quiet_generation(model, tokenizer)
    title = "bundled" if name is None else Path(name).name if source == "folder" else str(name)
    model = model if blockwise else model.to(device)
    return Subject(model.eval().requires_grad_(False), tokenizer, title, source)


def _find(name: str | Path | None) -> tuple[str, str]:
    """(folder, kind of source); a hub name becomes the folder of its snapshot in the cache."""
    if name is None:
        _check_bundled()
        return str(BUNDLED), "bundled"
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder), "folder"
    if folder.is_dir():
        raise FileNotFoundError(f"{folder} has no config.json, so it is no checkpoint folder; it holds "
                                f"{sorted(p.name for p in folder.iterdir())[:8]}")
    return _snapshot(str(name)), "hub"


def _check_bundled() -> None:
    """Refuse a bundled checkpoint that is not the one its card describes: numbers would silently differ."""
    card = BUNDLED / "card.json"
    if not card.is_file():
        raise FileNotFoundError(f"the bundled model is looked for in {BUNDLED}, where there is no card.json: "
                                "install a clone with `pip install -e .`, or name a model: load('org/name')")
    for file, expected in json.loads(card.read_text(encoding="utf-8"))["sha256"].items():
        path = BUNDLED / file
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != expected:
            raise ValueError(f"{path} does not match its card: sha256 {found[:12]}, not {expected[:12]}; "
                             "bring it back with `git checkout -- data/subject`, or load a folder by path")


def _snapshot(name: str) -> str:
    """The cached snapshot of a hub model, downloaded first if it is not there."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return snapshot_download(name, local_files_only=True, allow_patterns=wanted)
    except HFValidationError:
        raise FileNotFoundError(f"no model {name!r}: there is no such folder, and it cannot be a hub name "
                                "('org/name'); load() without a name gives the bundled model") from None
    except OSError:
        pass  # not in the cache
    try:
        HfApi().model_info(name, timeout=10)  # fails at once; a download would try again for half a minute
        return snapshot_download(name, allow_patterns=wanted)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:160]}"
        raise FileNotFoundError(
            f"no model {name!r}: there is no such folder, it is not in the cache ({constants.HF_HUB_CACHE}), "
            f"and the hub did not give it ({reason}); check the name, connect once to fill the cache, or "
            "use load() for the bundled model") from error


def _read(folder: str, name: str | Path, dtype: torch.dtype, lent_to: torch.device | None) -> tuple[nn.Module, Any]:
    """The model, whole on the CPU, or with blocks on disk that are lent to a device; and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters about a checkpoint is raised below
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if lent_to is not None:
                shelf = CheckpointShelf.open(folder, str(name), dtype, lent_to)
            else:
                model, report = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=dtype, output_loading_info=True, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{name}: the files in {folder} cannot be read ({type(error).__name__}: "
                         f"{str(error).strip()[:300]}); copy or download them anew") from error
    _check_tokenizer(tokenizer, Path(folder), name)
    if lent_to is not None:
        return shelf.lending(), tokenizer
    _check_complete(report, name)
    check_finite(model.named_parameters(), str(name))
    return model, tokenizer


def _check_tokenizer(tokenizer: Any, folder: Path, name: str | Path) -> None:
    """transformers makes an empty tokenizer of some kinds if none was saved; here that is an error."""
    files = sorted(set(getattr(tokenizer, "vocab_files_names", {}).values()))
    if files and not any((folder / file).is_file() for file in files):
        raise ValueError(f"{name}: there is no tokenizer in {folder}: none of {', '.join(files)}; copy the tokenizer's files "
                         "beside the weights")


def _check_complete(report: Mapping[str, Any], name: str | Path) -> None:
    """transformers fills missing tensors with random numbers; here that is an error."""
    kinds = ("missing_keys", "mismatched_keys")
    missing = sorted(str(key) for kind in kinds for key in report.get(kind) or ())
    if missing:
        raise ValueError(f"{name}: {len(missing)} tensors are missing from the checkpoint or have another "
                         f"shape than its config.json says, the first {missing[0]}; copy or download it anew")


def _quiet_generation(model: nn.Module, tokenizer: Any) -> None:
    """Greedy generation with a known padding token; else calls warn about settings that nobody chose here."""
    from transformers import GenerationConfig

    old = model.generation_config
    end = old.eos_token_id if old.eos_token_id is not None else tokenizer.eos_token_id
    pad = old.pad_token_id if old.pad_token_id is not None else tokenizer.pad_token_id
    pad = pad if pad is not None else end[0] if isinstance(end, list) else end
    begin = old.bos_token_id
    model.generation_config = GenerationConfig(bos_token_id=begin, eos_token_id=end, pad_token_id=pad)
