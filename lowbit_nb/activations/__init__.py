"""Activations in few bits: how a token is rounded, where in a model it happens, and what a file says about it."""

from lowbit_nb.activations.dressing import CLIP, ActiveBlock, add_parameter, apply_to, as_quantized, extended
from lowbit_nb.activations.tokens import Activations, round_tokens

__all__ = ["CLIP", "ActiveBlock", "Activations", "add_parameter", "apply_to", "as_quantized", "extended", "round_tokens"]
