"""Weighted logistic losses and their residuals, written so that no digits cancel.

`softplus(z) - y * z` and `sigmoid(z) - y` lose most of their digits for rows that are classified
well, which are nearly all rows once a fit is good. Here the binary loss is `softplus(-s * z)` with
s = +1 or -1, and the multinomial loss is `log1p(sum over other classes of exp(z_c - z_y))`; the
residual of the true class is minus the sum of the others. Losses are summed in float64.

`weight` always sums to one over the rows that count, so a loss is a weighted mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = [
    "binary_curvature",
    "binary_loss",
    "class_curvature",
    "multinomial_loss",
]

# How far the true class may lie behind before the exponent is shifted: e^60 times any number of
# classes is still finite in float32.
_SHIFT = 60.0


def binary_loss(z: Tensor, flip: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, residual and curvature of binary problems.

    z, flip, weight: [A, n]; `flip` is 1 - 2 y, so -1 marks the positive class. z is overwritten.
    Returns the summed loss [A] in float64, the residual weight * (p - y) [A, n], and the summed
    curvature weight * p (1 - p) [A] in float64.
    """
    u = z.mul_(flip)
    loss = softplus(u, threshold=50.0).mul_(weight).sum(-1, dtype=torch.float64)
    miss = torch.sigmoid(u, out=u)  # the probability given to the wrong class
    residual = miss * weight
    curvature = binary_curvature(miss, residual)
    return loss, residual.mul_(flip), curvature


def binary_curvature(miss: Tensor, weighted_miss: Tensor) -> Tensor:
    """sum of weight * p (1 - p), [A] float64, from miss [A, n] and weight * miss [A, n]."""
    total = weighted_miss.sum(-1, dtype=torch.float64)
    square: Tensor = torch.linalg.vecdot(miss, weighted_miss)
    return total - square.double()


def multinomial_loss(z: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and residual of multinomial problems.

    z: [n, A, C], overwritten by the residual weight * (softmax(z) - onehot), which is returned;
    label: int64 [n, A]; weight: [n, A]. The summed loss is [A] in float64.
    """
    at = label.unsqueeze(-1)
    true = z.gather(-1, at)
    shift = torch.maximum(true, z.amax(-1, keepdim=True) - _SHIFT)
    z.sub_(shift).exp_()
    own = z.gather(-1, at)  # exactly 1 unless the true class lies far behind
    z.scatter_(-1, at, 0.0)
    others = z.sum(-1, keepdim=True)
    loss = (shift - true).add_(torch.log1p(others + (own - 1.0))).squeeze(-1)
    scale = weight.unsqueeze(-1) / (others + own)
    z.mul_(scale).scatter_(-1, at, others.mul_(scale).neg_())
    return loss.mul_(weight).sum(0, dtype=torch.float64), z


def class_curvature(residual: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of sum of weight * (diag(p) - p p') for one problem.

    residual: [n, C] as `multinomial_loss` leaves it; label, weight: [n]. Returns the weighted sum
    of p [C] in float64 and q [n, C] with q' q = the weighted sum of p p'.
    """
    at = label.unsqueeze(-1)
    mass = residual.scatter_add(-1, at, weight.unsqueeze(-1))  # weight * p
    root = weight.clamp(min=torch.finfo(weight.dtype).tiny).rsqrt()
    return mass.sum(0, dtype=torch.float64), mass * root.unsqueeze(-1)
