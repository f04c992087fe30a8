"""lowbit-nb: ultra-low-bit post-training quantization of language models, to read, run and take apart.

    import lowbit_nb as lb
    lb.setup(seed=0)
    subject = lb.load()                                              # the bundled model, or lb.load("org/name")
    text = lb.text.calibration(subject.tokenizer)
    quantized = lb.quantize(subject, lb.GPTQ(lb.Grid(bits=2, group=64)), text)
    lb.evaluate.compare(subject, quantized.apply(subject), lb.text.evaluation(subject.tokenizer))
"""

import importlib
from types import ModuleType

from lowbit_nb import blocks, check, compose, evaluate, export, feedback, grid, hessian, methods, packed, packing, stored, text
from lowbit_nb.activations import Activations
from lowbit_nb.checkpoint import load_quantized, save_quantized
from lowbit_nb.codebooks.codebook import Codebook
from lowbit_nb.compose import Recipe
from lowbit_nb.grid import Grid
from lowbit_nb.methods import (
    ARBLLM,
    AWQ,
    CBQ,
    GPTQ,
    OAC,
    PBLLM,
    PTQ161,
    RTN,
    VPTQ,
    BiLLM,
    Joint,
    LRQuant,
    OmniQuant,
    SmoothQuant,
    SpQR,
    TesseraQ,
)
from lowbit_nb.packed import pack_model
from lowbit_nb.quantize import quantize
from lowbit_nb.record import Quantized
from lowbit_nb.session import setup
from lowbit_nb.subject import Subject, load

__version__ = "0.1.0"
__all__ = [
    "ARBLLM", "AWQ", "Activations", "BiLLM", "CBQ", "Codebook", "GPTQ", "Grid", "Joint", "LRQuant", "OAC", "OmniQuant", "PBLLM",
    "PTQ161", "Quantized", "RTN", "Recipe", "SmoothQuant", "SpQR", "Subject", "TesseraQ", "VPTQ", "blocks", "check", "compose",
    "evaluate", "export", "feedback", "grid", "hessian", "live", "load", "load_quantized", "methods", "pack_model", "packed",
    "packing", "quantize", "save_quantized", "setup", "show", "stored", "text",
]


def __getattr__(name: str) -> ModuleType:
    """`show` and `live` are loaded when first used: a GPU server needs neither matplotlib nor widgets."""
    if name in ("show", "live"):
        return importlib.import_module(f"lowbit_nb.{name}")
    raise AttributeError(f"lowbit_nb has no {name!r}")
