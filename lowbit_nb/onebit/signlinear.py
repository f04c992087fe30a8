"""A linear layer of scaled signs that never makes its weight: inputs meet scales, then signs, then scales again.

    y = W_high x_high + a o (B (v o x_low)) + mu sum(v o x_low)

The signs need no gradient, so backward has two products where a dense weight has three, and nothing of the weight's size is
made or kept: gradients of a, mu and v are sums over tokens.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_nb.blocks import Block
from lowbit_nb.onebit.signscale import ScaledSigns


class _Permute(torch.autograd.Function):
    """x[..., perm], whose gradient is taken back by the inverse permutation instead of being scattered."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, perm: Tensor, home: Tensor) -> Tensor:
        ctx.save_for_backward(home)
        return x.index_select(-1, perm)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.index_select(-1, ctx.saved_tensors[0]), None, None


def sign_product(x: Tensor, W_high: Tensor, B: Tensor, a: Tensor, mu: Tensor, v: Tensor) -> Tensor:
    """The product of inputs, salient channels first, with a weight of scaled signs that is not made.

    Shapes:  x [..., d_in]; W_high [d_out, n_high]; B [d_out, n_low] of +1 and -1; a, mu [d_out]; v [n_low]; returns
             [..., d_out].
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: the PTQ1.61 code builds the weight at every step and reduces its gradient.
    """
    x_low = x[..., W_high.shape[1] :] * v
    y = a * F.linear(x_low.to(B.dtype), B) + mu * x_low.sum(-1, keepdim=True)
    return y + F.linear(x[..., : W_high.shape[1]].to(W_high.dtype), W_high) if W_high.shape[1] else y


class SignLinear(nn.Linear):
    """A linear layer whose "weight" is the row and column scales of `ScaledSigns`, side by side.

    Source: this project. Differs: no difference.
    """

    def __init__(self, own: nn.Linear, learn: ScaledSigns) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = own.in_features, own.out_features
        dtype = torch.bfloat16 if own.weight.is_cuda else own.weight.dtype
        self.weight, self.bias = nn.Parameter(learn.weight().detach(), requires_grad=False), own.bias
        self.B, self.W_high = torch.where(learn.sign, 1.0, -1.0).to(dtype), learn.W_high.to(dtype)
        self.home, self.perm = learn.home, learn.home.argsort()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output.

        Shapes:  x [..., d_in]; returns [..., d_out].
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        a, mu, v = self.weight.split([self.out_features, self.out_features, self.B.shape[1]])
        y = sign_product(_Permute.apply(x, self.perm, self.home), self.W_high, self.B, a, mu, v).to(self.B.dtype)
        return y if self.bias is None else y + self.bias


class FactoredBlock(Block):
    """A block that takes scales where it is handed scales, and weights where it is handed weights.

    Source: this project. Differs: no difference.
    """

    def __init__(self, block: Block, learn: dict[str, ScaledSigns]) -> None:
        super().__init__(**{f.name: getattr(block, f.name) for f in dataclasses.fields(block)})
        module = copy.deepcopy(block.module, memo={id(p): p for p in block.module.parameters()})
        for name, own in block.linears.items():
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, SignLinear(own, learn[name]))
        self.factored = dataclasses.replace(block, module=module)

    def forward(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The block's output for one batch; differentiable in the exchanged tensors.

        Shapes:  as `Block.forward`; a linear layer's tensor may be the scales of `ScaledSigns`.
        Units:   those of the residual stream.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        scales = any(t.ndim == 1 and name in self.linears for name, t in (weights or {}).items())
        return self.factored.forward(x, weights) if scales else super().forward(x, weights)
