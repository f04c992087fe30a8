"""Queries, keys and values on their way into attention: rounded in front of whatever attention a model already uses.

transformers looks its attention function up by name.  A module whose own copy of the configuration carries NAME gets
`rounding_attention`, which rounds and then calls the function that would have been called; masks are made elsewhere, from the
model's configuration, which keeps its name.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator

from torch import Tensor, nn

from lowbit_nb.activations.tokens import Activations

NAME = "lowbit_nb_rounding"


def attentions(module: nn.Module) -> Iterator[nn.Module]:
    """The attention modules: those that know a configuration and whether they are causal.

    Shapes:  a module in; modules out.
    Units:   none.
    Raises:  nothing.
    Source:  the attention interface of transformers.
    Differs: no difference.
    """
    yield from (m for m in module.modules() if hasattr(m, "is_causal") and hasattr(m, "config"))


def round_queries_keys_values(module: nn.Module, activations: Activations) -> None:
    """From now on this module's attentions see rounded queries, keys and values. The module is changed: give it a copy.

    Shapes:  per token and head: [batch, heads, length, head_dim], rounded along the last axis, behind the rotation.
    Units:   none.
    Raises:  ValueError if the module has no attention of the usual kind.
    Source:  OmniQuant code (QuantMatMul), which copies model classes.
    Differs: attention weights are not materialised, as they are not rounded.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface  # heavy: only once it is needed

    AttentionInterface.register(NAME, rounding_attention)
    found = list(attentions(module))
    if not found:
        raise ValueError(f"{type(module).__name__} has no attention that transformers dispatches by name, so queries, keys and "
                         "values cannot be rounded; use Activations(qkv=False)")
    for attention in found:
        eager = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
        own = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
        attention.rounding = (activations, own)
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation_internal = NAME


def rounding_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
                       **kwargs: object) -> tuple:
    """Round, then attend as the module would have.

    Shapes:  query [batch, heads, length, head_dim]; key, value [batch, key heads, length, head_dim].
    Units:   those of queries, keys and values.
    Raises:  as the attention function behind it.
    Source:  the attention interface of transformers.
    Differs: no difference.
    """
    activations, attend = module.rounding
    return attend(module, activations(query), activations(key), activations(value), mask, **kwargs)

