"""VPTQ's layout, which `codebooks` writes; here with the checks and files that every export has."""

from __future__ import annotations

from pathlib import Path

import torch

from lowbit_nb.codebooks.vptq_files import save_vptq
from lowbit_nb.export import folder as folders
from lowbit_nb.record import Quantized
from lowbit_nb.subject import Subject

LAYOUT = "VPTQ's layout"


def vptq(quantized: Quantized, subject: Subject, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a vector-quantized model as the `vptq` package and transformers expect it; `load_vptq` reads it back.

    Shapes:  as `codebooks.vptq_format.layer_tensors`.
    Units:   none.
    Raises:  ValueError as `save_vptq`, for rounded activations, and for parameters that the architecture lacks.
    Source:  VPTQ code; transformers' VptqConfig.
    Differs: no difference.
    """
    folders.check(quantized, subject, LAYOUT)
    folder = save_vptq(quantized, subject, folder, dtype)
    folders.around(folder, subject)
    folders.name_dtype(folder, dtype)
    return folder
