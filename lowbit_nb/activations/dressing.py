"""Where activations are rounded: hooks on copies that share every parameter with the original.

`extended` gives a block's modules the parameters that a method wants to learn and the model lacks: biases, input clips.
`as_quantized` gives a block that rounds its activations whenever weights are exchanged, and is the original otherwise.
`apply_to` does the same to a whole model, for good.  None of them changes what it is given, except `apply_to`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from lowbit_nb.activations.attention import round_queries_keys_values
from lowbit_nb.activations.tokens import Activations
from lowbit_nb.blocks import Block

CLIP = "input_clip"  # the share of its ends that the ruler of a layer's inputs keeps


class ActiveBlock(Block):
    """A block that rounds its activations when weights are exchanged; with its own weights it is the original block.

    Source: the weight and activation switches of OmniQuant's code, without switches. Differs: no difference.
    """

    def __init__(self, block: Block, activations: Activations) -> None:
        super().__init__(block.module, block.index, block.name, block.args, block.kwargs, block.batch)
        self.last, self.activations = block.last, activations
        module = shared_copy(block.module)
        dress(module, block.linears, activations)
        self.rounded = Block(module, block.index, block.name, block.args, block.kwargs, block.batch)

    def forward(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The block's output for one batch; differentiable in the exchanged tensors.

        Shapes:  as `Block.forward`.
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return super().forward(x) if weights is None else self.rounded.forward(x, weights)


def as_quantized(block: Block, activations: Activations | None, params: Iterable[str] = ()) -> Block:
    """The block as it is once quantized: with the extra parameters that it needs, and rounding its activations.

    Shapes:  params: names of edited parameters inside the block.
    Units:   none.
    Raises:  ValueError if queries, keys and values cannot be rounded.
    Source:  this project.
    Differs: no difference.
    """
    block = extended(block, params)
    return ActiveBlock(block, activations) if activations and activations.touches(block.name) else block


def extended(block: Block, params: Iterable[str]) -> Block:
    """The same block with those of the named parameters that it lacks: biases of 0, input clips of 1. Its function stays.

    Shapes:  params: parameter names inside the block; known ones are ignored.
    Units:   none.
    Raises:  ValueError for a new parameter that is neither.
    Source:  LRQuant code: norms and linear layers gain biases that take up shifts.
    Differs: no difference.
    """
    own = dict(block.module.named_parameters())
    missing = [name for name in params if name not in own and name not in block.linears]
    if not missing:
        return block
    module = shared_copy(block.module)
    for name in missing:
        add_parameter(module, name)
    new = Block(module, block.index, block.name, block.args, block.kwargs, block.batch)
    new.last = block.last
    return new


def add_parameter(module: nn.Module, name: str) -> None:
    """Give a submodule a bias of 0 or an input clip of 1, in place.

    Shapes:  a bias as long as the weight has rows; a clip is a scalar.
    Units:   those of the output; a share.
    Raises:  ValueError for another parameter, or a submodule without a weight.
    Source:  this project.
    Differs: no difference.
    """
    path, _, kind = name.rpartition(".")
    owner = module.get_submodule(path)
    weight = getattr(owner, "weight", None)
    if kind not in ("bias", CLIP) or weight is None:
        raise ValueError(f"{name} is not in the model, and only a bias or an {CLIP} can be added")
    value = weight.new_ones(()) if kind == CLIP else weight.new_zeros(len(weight))
    owner.register_parameter(kind, nn.Parameter(value, requires_grad=False))
    if kind == "bias" and not isinstance(owner, nn.Linear):
        owner.register_forward_hook(_add_bias)


def apply_to(model: nn.Module, blocks: Iterable[str], linears: Iterable[str], activations: Activations) -> None:
    """Round the activations of a model from now on. The model is changed: give it a copy.

    Shapes:  full names of its blocks, and of all linear layers that are rounded.
    Units:   none.
    Raises:  ValueError if queries, keys and values cannot be rounded.
    Source:  this project.
    Differs: no difference.
    """
    linears = list(linears)
    for block in blocks:
        if activations.touches(block):
            inside = [name.removeprefix(f"{block}.") for name in linears if name.startswith(f"{block}.")]
            dress(model.get_submodule(block), inside, activations)


def dress(module: nn.Module, linears: Iterable[str], activations: Activations) -> None:
    """Hooks on the linear layers, and rounding in front of attention, in place.

    Shapes:  names of linear layers inside the module.
    Units:   none.
    Raises:  ValueError if queries, keys and values cannot be rounded.
    Source:  this project.
    Differs: no difference.
    """
    inputs = _Inputs(activations)
    for name in linears:
        module.get_submodule(name).register_forward_pre_hook(inputs)
    module.register_forward_hook(inputs.forget)
    if activations.qkv:
        round_queries_keys_values(module, activations)


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of the modules that shares every parameter.

    Shapes:  as the module.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return copy.deepcopy(module, memo={id(p): p for p in module.parameters()})


class _Inputs:
    """Rounds what layers are handed; layers that are handed the same tensor share the work."""

    def __init__(self, activations: Activations) -> None:
        self.activations, self.x, self.y = activations, None, None

    def __call__(self, linear: nn.Module, args: tuple) -> tuple:
        x, clip = args[0], getattr(linear, CLIP, None)
        if clip is not None:
            return (self.activations(x, clip), *args[1:])
        if x is not self.x:
            self.x, self.y = x, self.activations(x)
        return (self.y, *args[1:])

    def forget(self, *_: object) -> None:
        self.x = self.y = None


def _add_bias(norm: nn.Module, args: tuple, y: Tensor) -> Tensor:
    return y + norm.bias.to(y.dtype)
