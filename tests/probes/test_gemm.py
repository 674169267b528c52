from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from actstore.probes import gemm


@pytest.fixture(autouse=True)
def _fresh_kernel() -> Iterator[None]:
    gemm._fast_kernel.cache_clear()
    yield
    gemm._fast_kernel.cache_clear()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (130, 17, 33), (4, 0, 3), (0, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_times_b_transposed(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, k, n = shape
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    expected = (a.double() @ b.double().t()).to(dtype)
    torch.testing.assert_close(gemm.matmul_nt(a, b), expected, rtol=1e-5, atol=1e-5)
    strided = gemm.matmul_nt(a.t().contiguous().t(), b.t().contiguous().t())
    torch.testing.assert_close(strided, expected, rtol=1e-5, atol=1e-5)


def test_slices_with_gaps_between_rows() -> None:
    a, b = torch.randn(9, 20)[:, 3:10], torch.randn(20, 7)[::2]
    torch.testing.assert_close(gemm.matmul_nt(a, b), a @ b.t(), rtol=1e-5, atol=1e-5)


class _Namespace:
    def __init__(self, operator: object) -> None:
        self._linear_pointwise = operator


def _wrong(a: torch.Tensor, b: torch.Tensor, *_: object) -> torch.Tensor:
    return a @ b.t() + 1


def _raises(*_: object) -> torch.Tensor:
    raise RuntimeError("this build has no such kernel")


@pytest.mark.parametrize("operator", [_wrong, _raises])
def test_a_kernel_that_fails_its_trial_is_not_used(
    monkeypatch: pytest.MonkeyPatch, operator: object
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", _Namespace(operator), raising=False)
    assert not gemm.has_fast_kernel()
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    torch.testing.assert_close(gemm.matmul_nt(a, b), a @ b.t())


def test_an_absent_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object(), raising=False)
    assert not gemm.has_fast_kernel()
