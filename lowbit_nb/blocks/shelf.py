"""A checkpoint read block by block: transformers' own rules of names and layouts, applied to one block's tensors at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit_nb.blocks.catching import block_of, layers
from lowbit_nb.blocks.ondisk import put, put_on_disk
from lowbit_nb.experts import unfolded

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class CheckpointShelf:
    """The safetensors of a folder, and a model without numbers that they are read into.

    `read` fills one block of that model, takes the tensors out and puts placeholders back.

    Source: this project; names and layouts by transformers (its conversion mapping), files by safetensors.
    Differs: `from_pretrained` reads everything; its disk offloading writes mixtures of experts once more.
    """

    def __init__(self, model: nn.Module, files: dict[str, str], name: str, dtype: torch.dtype, device: torch.device) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model, self.files, self.name, self.dtype, self.device = model, files, name, dtype, device
        self.prefix, blocks = layers(model)
        self.blocks = [f"{self.prefix}.{i}" for i in range(len(blocks))]
        self.rules = get_model_conversion_mapping(model)
        self.keys = self._sorted_keys()
        self.checked: set[str] = set()

    @classmethod
    def open(cls, folder: str, name: str, dtype: torch.dtype, device: torch.device) -> CheckpointShelf:
        """A folder's files and its model's modules; no weight is read yet.

        Shapes:  none.
        Units:   none.
        Raises:  ValueError if the folder holds no safetensors.
        Source:  accelerate's `init_empty_weights`.
        Differs: no difference.
        """
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        files = _files(Path(folder))
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True), dtype=dtype)
        if (Path(folder) / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return cls(model.eval(), files, name, dtype, device)

    def lending(self) -> nn.Module:
        """The model whose blocks lie on this shelf; embeddings, norms, head and buffers are read and stay in memory.

        Shapes:  none.
        Units:   none.
        Raises:  ValueError if a tensor is missing, of another shape than the configuration says, or not finite.
        Source:  this project.
        Differs: a block of experts is read once, to unfold it.
        """
        self._read_rest()
        unfold = {}
        for block in self.blocks:
            module = self.model.get_submodule(block)
            if any(p.ndim > 2 for p in module.parameters()):
                with self._filled(block):
                    new = unfolded(module)
                if new is not module:
                    unfold[id(module)] = new
                    put_on_disk(new, self, block)
        model = self.model
        if unfold:
            model = copy.deepcopy(model, memo=unfold | {id(p): p for p in model.parameters()})
        for block in self.blocks if not unfold else []:
            put_on_disk(model.get_submodule(block), self, block)
        return model

    def read(self, block: str) -> dict[str, Tensor]:
        """The parameters of one block, fused experts as linear layers.

        Shapes:  {name inside the block: tensor}.
        Units:   none.
        Raises:  ValueError if a tensor is missing, of another shape than the configuration says, or not finite.
        Source:  this project.
        Differs: no difference.
        """
        with self._filled(block) as module:
            found = {name: p.detach() for name, p in unfolded(module).named_parameters()}
        if block not in self.checked:
            check_finite(((f"{block}.{name}", t) for name, t in found.items()), self.name)
            self.checked.add(block)
        return found

    @contextmanager
    def _filled(self, block: str) -> Iterator[nn.Module]:
        """Within this, the block of the model that is read into has its numbers."""
        module = self.model.get_submodule(block)
        before = dict(module.named_parameters())
        try:
            self._fill(self.keys[block])
            self._complete([f"{block}.{name}" for name, p in module.named_parameters() if p.is_meta])
            yield module
        finally:
            for name, p in before.items():
                put(module, name, p)

    def _read_rest(self) -> None:
        self._fill(self.keys.get("", []))
        self.model.tie_weights()
        rest = {name: p for name, p in self.model.named_parameters() if not name.startswith(f"{self.prefix}.")}
        self._complete([name for name, p in rest.items() if p.is_meta] + [b for b in self.blocks if b not in self.keys])
        check_finite(rest.items(), self.name)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def _complete(self, missing: list[str]) -> None:
        if missing:
            raise ValueError(f"{self.name}: {len(missing)} tensors are missing from the checkpoint or have another shape than "
                             f"its config.json says, the first {missing[0]}; copy or download it anew")

    def _sorted_keys(self) -> dict[str, list[str]]:
        """The names in the files, by the block that they are for; "" has the others, and buffers."""
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        renamings = [rule for rule in self.rules if isinstance(rule, WeightRenaming)]
        others = [rule for rule in self.rules if not isinstance(rule, WeightRenaming)]
        state, buffers = self.model.state_dict(), {name for name, _ in self.model.named_buffers()}
        found: dict[str, list[str]] = {}
        for key in self.files:
            name, _ = rename_source_key(key, renamings, others, self.model.base_model_prefix, state)
            block = block_of(name) if block_of(name) in self.blocks and name not in buffers else ""
            found.setdefault(block, []).append(key)
        return found

    def _fill(self, keys: list[str]) -> None:
        from safetensors import SafetensorError, safe_open
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        how = LoadStateDictConfig(dtype=self.dtype, dtype_plan=self.model._get_dtype_plan(self.dtype),
                                  weight_mapping=self.rules, device_map={"": self.device})
        try:
            with ExitStack() as stack, _silent():
                files = {f: stack.enter_context(safe_open(f, framework="pt")) for f in {self.files[k] for k in keys}}
                state = {key: files[self.files[key]].get_slice(key) for key in keys}
                convert_and_load_state_dict_in_model(self.model, state, how)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.name}: its files cannot be read ({error}); copy or download them anew") from None
        self.model.requires_grad_(False)


def check_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse numbers that are not finite.

    Shapes:  (name, tensor), and a name for all of them.
    Units:   none.
    Raises:  ValueError naming the tensor.
    Source:  this project.
    Differs: no difference.
    """
    for key, t in tensors:
        bad = t.numel() - int(torch.isfinite(t).sum())
        if bad:
            raise ValueError(f"{name}: tensor {key} holds {bad} of {t.numel()} values that are not finite in {t.dtype}; the "
                             "file is damaged, or the type too narrow (try torch.float32)")


def _files(folder: Path) -> dict[str, str]:
    """{tensor name: file} of a folder."""
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        return {name: str(folder / f) for name, f in json.loads((folder / INDEX).read_text())["weight_map"].items()}
    if not (folder / SINGLE).is_file():
        raise FileNotFoundError("only safetensors can be read block by block, and there are none: load it without "
                                "blockwise=True and save it anew with save_pretrained")
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), str(folder / SINGLE))


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' progress bar, which would come once a block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
