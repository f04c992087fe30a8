"""What the data says about a layer: the input Hessian, its conditioning and its one factor.

Rounding a row w to w_hat changes the layer's output on the calibration tokens by X @ (w - w_hat).  Its mean square is
(w - w_hat) H (w - w_hat).T with H = X.T @ X / n: the only thing about the data that the layer's error depends on.
Nothing below changes if H is multiplied by a positive number, so the papers' other conventions (2/n, or the plain sum)
give the same integers.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Hessian:
    """H = X.T @ X / n, summed up batch by batch; layers that share an input share one Hessian.

    Source: GPTQ, Sec. 3 (there 2 X X^T, columns are tokens). Differs: divided by the number of tokens, scaled after the
    product, never damped in place.

    >>> h = Hessian(2)
    >>> h.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]])); h.H.tolist(), h.n
    ([[5.0, 1.0], [1.0, 2.0]], 2)
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.sum = torch.zeros(d_in, d_in, dtype=dtype, device=device)
        self.peak = torch.zeros(d_in, dtype=dtype, device=device)  # largest |x| of each channel so far
        self.n = 0

    def add(self, X: Tensor) -> None:
        """Add a batch of layer inputs.

        Shapes:  X [..., d_in]; all leading axes are tokens.
        Units:   those of the activations, squared in H.
        Raises:  ValueError if X holds a non-finite value.
        Source:  GPTQ code (gptq.py: add_batch).
        Differs: counts tokens, not sequences; half-precision inputs on a GPU are multiplied as they are (their products are
                 exact in float32) and summed in float32.
        """
        X = X.reshape(-1, X.shape[-1])
        update = _outer(X, self.sum.dtype)
        if not torch.isfinite(update).all():
            raise ValueError(f"{int((~torch.isfinite(X)).sum())} of {X.numel()} layer inputs are not finite (or overflow when "
                             "squared); run the model in float32 or bfloat16, or check the calibration text")
        self.sum += update
        self.peak = torch.maximum(self.peak, X.abs().amax(0))
        self.n += len(X)

    def top_up(self, typical: Hessian, enough: int) -> None:
        """Count the tokens that are missing to `enough` as average ones of another Hessian.

        H = (n H_own + (enough - n) H_typical) / enough        if n < enough, else as it was

        Shapes:  the same d_in.
        Units:   tokens.
        Raises:  ValueError if the other has no tokens.
        Source:  this project (experts that few tokens reach).
        Differs: no difference.
        """
        if self.n < enough:
            self.sum += (enough - self.n) * typical.H
            self.peak = torch.maximum(self.peak, typical.peak)
            self.n = enough

    @property
    def H(self) -> Tensor:
        """The mean over all tokens so far.

        Shapes:  returns [d_in, d_in].
        Units:   activations squared.
        Raises:  ValueError if no tokens were added.
        Source:  GPTQ, Sec. 3.
        Differs: no factor 2.
        """
        if self.n == 0:
            raise ValueError("no tokens were added to this Hessian; run the model on calibration text first")
        return self.sum / self.n


def _outer(X: Tensor, dtype: torch.dtype) -> Tensor:
    """X.T @ X in dtype."""
    if X.is_cuda and X.dtype in (torch.float16, torch.bfloat16) and dtype == torch.float32:
        return torch.mm(X.T, X, out_dtype=dtype)
    X = X.to(dtype)
    return X.T @ X


def condition(H: Tensor, damp: float = 0.01, shrink: float = 0.0) -> tuple[Tensor, Tensor]:
    """Make H safe to factor: dead columns first, then shrinkage and damping measured on the live ones.

    mu = mean of diag(H) over live columns;  H -> (1 - shrink) H + shrink diag(H) + damp * mu * I.  A dead column (its
    input is always zero) gets mu on the diagonal and nothing else: it neither moves nor is moved.

    Shapes:  H [d_in, d_in]; returns the conditioned copy and a mask of dead columns [d_in].
    Units:   damp is a share of mu; shrink is a share of the off-diagonal.
    Raises:  ValueError if H is not finite or has no live column, or damp or shrink is out of range.
    Source:  GPTQ, Sec. 3.3 (percdamp 0.01); shrinkage towards the diagonal, this project.
    Differs: the reference takes the mean over dead columns too, after setting them to 1, which swamps a small H.

    >>> Hc, dead = condition(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), damp=0.5)
    >>> Hc.tolist(), dead.tolist()
    ([[6.0, 0.0], [0.0, 6.0]], [False, True])
    """
    if not torch.isfinite(H).all():
        raise ValueError(f"H has {int((~torch.isfinite(H)).sum())} non-finite values; check the layer's inputs")
    check_damping(damp, shrink)
    diag = H.diagonal()
    dead = diag <= 0
    if dead.all():
        raise ValueError("every column of H is zero: this layer saw no non-zero input in the calibration text")
    mu = diag[~dead].mean()
    out = H * (1 - shrink)
    out[dead, :] = 0
    out[:, dead] = 0
    out.diagonal().copy_(torch.where(dead, mu, diag) + damp * mu)
    return out, dead


def check_damping(damp: float, shrink: float) -> None:
    """Refuse a damping or shrinkage that means nothing.

    Shapes:  two numbers.
    Units:   shares.
    Raises:  ValueError naming both.
    Source:  this project.
    Differs: no difference.
    """
    if not (0 <= damp < float("inf") and 0 <= shrink <= 1):
        raise ValueError(f"damp={damp} must be at least 0 and shrink={shrink} between 0 and 1")


def factor(H: Tensor) -> tuple[Tensor, Tensor]:
    """H = V diag(D) V.T with V unit upper triangular: all that error feedback needs, from one Cholesky.

    With J the reversal of the columns: L = cholesky(J H J), R = J L J is upper triangular and H = R R.T;
    V = R / diag(R), D = diag(R)**2.  D_j is what one squared unit of rounding error at column j costs once the later
    columns have made up for it as well as they can.

    Shapes:  H [d_in, d_in]; returns V [d_in, d_in], D [d_in].
    Units:   D in units of H; V has none.
    Raises:  ValueError if H is not positive definite (message gives rank, size and the way out).
    Source:  GPTQ, Sec. 3.3 step 3, uses the Cholesky factor U of the inverse; U_jj = 1 / sqrt(D_j).
    Differs: one factorisation instead of two and an inverse: a quarter of the work, and it survives worse conditioning.

    >>> V, D = factor(torch.tensor([[5.0, 1.0], [1.0, 1.0]]))
    >>> V.tolist(), D.tolist()
    ([[1.0, 1.0], [0.0, 1.0]], [4.0, 1.0])
    """
    R, info = torch.linalg.cholesky_ex(H.flip(0, 1))
    if int(info):
        rank = int(torch.linalg.matrix_rank(H, hermitian=True))
        raise ValueError(f"H is not positive definite: rank {rank} of {H.shape[0]}; "
                         "use more calibration tokens, a larger damp (0.01 is usual, 0.1 is safe), or shrink=0.1")
    R = R.flip(0, 1)
    root = R.diagonal().clone()
    return R.div_(root), root.square()


def error_share(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """How much of a layer's output is error: tr(E H E.T) / tr(W H W.T) with E = W - W_hat.

    Shapes:  W, W_hat [d_out, d_in]; H [d_in, d_in].
    Units:   a share: 0 is exact, 1 is as bad as writing zeros.
    Raises:  nothing.
    Source:  the layer objective of GPTQ, Eq. 1, made relative.
    Differs: no difference.
    """
    E = W - W_hat
    return float(((E @ H) * E).sum() / ((W @ H) * W).sum())


def gram(H: Tensor, g: int) -> Tensor:
    """The diagonal blocks of H, one a group: what a group's own output error depends on.

    Shapes:  H [d_in, d_in]; returns [d_in // g, g, g].
    Units:   those of H.
    Raises:  ValueError if g does not divide d_in.
    Source:  the clip search of AWQ (auto_clip), which sums over sampled tokens instead.
    Differs: exact over all tokens, at a cost that does not depend on their number.

    >>> gram(torch.arange(16.0).reshape(4, 4), 2).tolist()
    [[[0.0, 1.0], [4.0, 5.0]], [[10.0, 11.0], [14.0, 15.0]]]
    """
    if len(H) % g:
        raise ValueError(f"d_in={len(H)} is not a multiple of g={g}")
    blocks = H.reshape(len(H) // g, g, len(H) // g, g)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
