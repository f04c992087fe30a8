"""The first cell of every notebook: one seed, a known number of threads, no noise."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch
import transformers


@dataclass(frozen=True)
class Session:
    """What `setup` chose. Source: this project. Differs: no difference."""

    device: torch.device  # the GPU, if there is one
    generator: torch.Generator
    threads: int

    def __repr__(self) -> str:
        name = f"CPU, {self.threads} thread(s)"
        if self.device.type == "cuda":
            name += f'; lb.load(device="cuda") uses the {torch.cuda.get_device_name()}'
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
        return f"{name} | {versions}"


def setup(seed: int = 0, threads: int | None = None) -> Session:
    """Look for a GPU, pin the threads and silence the libraries' progress bars.

    Results of the kit depend on `generator`s that are passed explicitly; torch's global seed is set only so that a
    reader's own `torch.randn` is repeatable.  LOWBIT_NB_THREADS overrides the number of threads.
    """
    threads = int(os.environ.get("LOWBIT_NB_THREADS", threads or min(2, os.cpu_count() or 1)))
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # `datasets` is loaded only if a source needs it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Session(device, torch.Generator().manual_seed(seed), threads)
