"""One short file a method: its settings with the paper's defaults, and how it is put together from the kit's parts."""

from lowbit_nb.methods.arbllm import ARBLLM
from lowbit_nb.methods.awq import AWQ
from lowbit_nb.methods.billm import BiLLM
from lowbit_nb.methods.cbq import CBQ
from lowbit_nb.methods.gptq import GPTQ
from lowbit_nb.methods.joint import Joint
from lowbit_nb.methods.lrquant import LRQuant
from lowbit_nb.methods.oac import OAC
from lowbit_nb.methods.omniquant import OmniQuant
from lowbit_nb.methods.pbllm import PBLLM
from lowbit_nb.methods.ptq161 import PTQ161
from lowbit_nb.methods.rtn import RTN
from lowbit_nb.methods.smoothquant import SmoothQuant
from lowbit_nb.methods.spqr import SpQR
from lowbit_nb.methods.tesseraq import TesseraQ
from lowbit_nb.methods.vptq import VPTQ
from lowbit_nb.quantize import Method

METHODS = {"rtn": RTN, "gptq": GPTQ, "smoothquant": SmoothQuant, "awq": AWQ, "omniquant": OmniQuant, "tesseraq": TesseraQ,
           "spqr": SpQR, "oac": OAC, "vptq": VPTQ, "billm": BiLLM, "pbllm": PBLLM, "arbllm": ARBLLM, "ptq161": PTQ161,
           "lrquant": LRQuant, "cbq": CBQ, "joint": Joint}


def named(name: str, **settings: object) -> Method:
    """A method by its name, for menus and command lines.

    Shapes:  a name and the method's own settings.
    Units:   none.
    Raises:  ValueError for an unknown name (message lists the known ones).
    Source:  this project.
    Differs: no difference.
    """
    if name.lower() not in METHODS:
        raise ValueError(f"method={name!r} is unknown; use one of {', '.join(METHODS)}")
    return METHODS[name.lower()](**settings)


__all__ = ["ARBLLM", "AWQ", "BiLLM", "CBQ", "GPTQ", "Joint", "LRQuant", "METHODS", "OAC", "OmniQuant", "PBLLM", "PTQ161", "RTN",
           "SmoothQuant", "SpQR", "TesseraQ", "VPTQ", "named"]
