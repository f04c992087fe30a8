"""Leaving the kit: a quantized model as a Hugging Face folder in a layout that other engines load.

    export.compressed_tensors(quantized, subject, folder)    codes on affine grids; transformers, vLLM
    export.gptq(quantized, subject, folder)                  the same in GPTQ's words; GPTQModel, vLLM and others
    export.vptq(quantized, subject, folder)                  vector codebooks; the vptq package

A layout that cannot hold a record refuses it: nothing is rounded a second time on the way out.
"""

from lowbit_nb.export.to_compressed_tensors import compressed_tensors
from lowbit_nb.export.to_gptq import gptq
from lowbit_nb.export.to_vptq import vptq

__all__ = ["compressed_tensors", "gptq", "vptq"]
