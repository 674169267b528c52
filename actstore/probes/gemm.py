"""One matrix product, `a @ b.T`, by the fastest single-precision kernel this machine has.

On many processors oneDNN multiplies float32 matrices about twice as fast as the library behind
`torch.mm`. Its operator is not part of torch's public interface, so it is tried once on a small
product and used only if it exists, takes these arguments and gives the right answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

__all__ = ["has_fast_kernel", "matmul_nt"]

_TRIAL = (5, 7, 3)  # odd sizes, so that a kernel that ignores strides or edges fails the trial


def matmul_nt(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` for a [m, k] and b [n, k] of one dtype and device; either may be a view."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and a.shape[1] and len(a) and len(b):
        kernel = _fast_kernel()
        if kernel is not None:
            return kernel(_dense(a), _dense(b))
    return a @ b.t()


def _dense(x: Tensor) -> Tensor:
    # With gaps between its rows or columns, the kernel falls back to a loop 1000 times slower.
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def has_fast_kernel() -> bool:
    """Whether float32 products on the CPU go through the oneDNN kernel here."""
    return _fast_kernel() is not None


@cache
def _fast_kernel() -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        operator = torch.ops.mkldnn._linear_pointwise

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            product: Tensor = operator(a, b, None, "none", [], "")
            return product

        m, k, n = _TRIAL
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(m, k, generator=generator)
        b = torch.randn(n, k, generator=generator)
        expected = (a.double() @ b.double().t()).float()
        for left, right in ((a, b), (a.t().contiguous().t(), b.t().contiguous().t())):
            if not torch.allclose(kernel(left, right), expected, rtol=1e-5, atol=1e-5):
                return None
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None  # the private operator is absent or has changed: torch.mm is always right
    return kernel
