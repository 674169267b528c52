from __future__ import annotations

import numpy as np
import pytest
import torch

from actstore.probes.basis import Basis, Rows, Transform, build_basis, measure
from actstore.probes.linear import LinearProblem, fit_logistic


def _rows(n: int, d: int, dtype: type = np.float32) -> Rows:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 10 * rng.standard_normal(d)
    return Rows(x.astype(dtype), np.arange(n), torch.device("cpu"))


def _weights(n: int) -> np.ndarray:
    weights = np.random.default_rng(1).random((3, n))
    weights[0] = 1.0
    weights[1] *= np.arange(n) % 3 != 0
    return weights / weights.sum(axis=1, keepdims=True)


def _basis(n: int, d: int, *, standardize: bool = True, resident: bool = True) -> Basis:
    rows = _rows(n, d)
    return build_basis(rows, measure(rows, _weights(n), standardize=standardize), resident=resident)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_equal_numpy(dtype: type) -> None:
    rows, weights = _rows(50, 4, dtype), _weights(50)
    moments = measure(rows, weights, standardize=True)
    x = rows.x.astype(np.float64)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.scale, x.std(0), rtol=1e-6)
    for f, weight in enumerate(weights):
        mean = weight @ x
        sd = np.sqrt(weight @ (x - mean) ** 2)
        np.testing.assert_allclose(moments.ratio(f), x.std(0) / sd, rtol=1e-5)
        scaled = (x - moments.mean) / sd
        assert moments.trace(f) == pytest.approx(weight @ (scaled**2).sum(1), rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(60, 9), (9, 30)])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_basis_is_orthonormal_and_diagonal(n: int, d: int, standardize: bool) -> None:
    basis = _basis(n, d, standardize=standardize)
    assert basis.matrix is not None
    rotation, matrix = basis.rotation.double(), basis.matrix.double()
    rank = len(basis.sigma)
    torch.testing.assert_close(
        rotation.t() @ rotation, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-4
    )
    gram = matrix.t() @ matrix / n
    scale = float(basis.sigma.max())
    torch.testing.assert_close(gram, torch.diag(basis.sigma), rtol=0, atol=1e-4 * scale)
    shared = basis.rows.scaled(0, n, basis.moments, torch.float64)
    torch.testing.assert_close(
        matrix @ rotation.t(), shared, rtol=0, atol=1e-4 * float(shared.abs().max())
    )


@pytest.mark.parametrize(("n", "d"), [(60, 9), (9, 30)])
@pytest.mark.parametrize("fold", [1, 2])
def test_a_transform_keeps_logits_and_lengths(n: int, d: int, fold: int) -> None:
    """Weights u: logits through the shared matrix equal those of the raw coefficients, and |u| is
    the length of the weights on the fit's own standardised features."""
    basis = _basis(n, d)
    transform = Transform.build(basis, fold)
    assert basis.matrix is not None
    assert transform.matrix is not None
    u = torch.randn(2, len(basis.sigma), generator=torch.Generator().manual_seed(0))
    logits = basis.matrix @ transform.apply(u).t()
    coef = transform.raw(u).astype(np.float64)
    raw = basis.rows.x.astype(np.float64) @ coef.T
    difference = raw - logits.double().numpy()
    spread = np.abs(logits.numpy()).max()
    np.testing.assert_allclose(
        difference, difference.mean(0)[None].repeat(n, 0), atol=1e-4 * spread
    )
    weight = _weights(n)[fold]
    x = basis.rows.x.astype(np.float64)
    sd = np.sqrt(weight @ (x - weight @ x) ** 2)
    np.testing.assert_allclose(np.linalg.norm(coef * sd, axis=1), u.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(60, 9), (9, 30)])
def test_adjoint_is_the_transpose_of_apply(n: int, d: int) -> None:
    basis = _basis(n, d)
    transform = Transform.build(basis, 1)
    generator = torch.Generator().manual_seed(0)
    u, g = torch.randn(2, 1, len(basis.sigma), generator=generator)
    torch.testing.assert_close(
        (transform.apply(u) * g).sum(), (u * transform.adjoint(g)).sum(), rtol=1e-4, atol=1e-4
    )


def test_the_fold_of_all_rows_needs_no_transform() -> None:
    assert Transform.build(_basis(60, 9), 0).matrix is None
    assert Transform.build(_basis(60, 9, standardize=False), 1).matrix is None


@pytest.mark.parametrize("double", [False, True])
def test_streamed_rows_give_the_same_products(double: bool) -> None:
    stored, streamed = _basis(60, 9), _basis(60, 9, resident=False)
    assert streamed.matrix is None
    if double:
        stored, streamed = stored.in_float64(resident=True), streamed.in_float64(resident=False)
    weights = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).to(stored.dtype)
    for start, stop in ((0, 60), (7, 31)):
        a = stored.chunk(start, stop) @ stored.expand(weights).t()
        b = streamed.chunk(start, stop) @ streamed.expand(weights).t()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        back = stored.contract(a.t() @ stored.chunk(start, stop))
        torch.testing.assert_close(
            streamed.contract(b.t() @ streamed.chunk(start, stop)), back, rtol=1e-3, atol=1e-2
        )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_streamed_fit_equals_a_stored_one(n_classes: int) -> None:
    x = _rows(4000, 12).x
    y = np.digitize(x[:, 0] - x[:, 1], np.quantile(x[:, 0] - x[:, 1], [0.3, 0.6])[: n_classes - 1])
    y = np.where(np.random.default_rng(0).random(4000) < 0.2, 0, y).astype(np.int64)
    fold = np.arange(4000) % 2
    problems = [LinearProblem(y, n_classes, 1e-3, fold != k) for k in range(2)]
    stored = fit_logistic(x, problems)
    streamed = fit_logistic(x, problems, memory_limit_bytes=300_000)  # the matrix has 192,000
    for a, b in zip(stored, streamed, strict=True):
        assert b.status == "converged"
        assert abs(a.objective - b.objective) <= 2e-6 * a.objective
        np.testing.assert_allclose(a.predict_proba(x), b.predict_proba(x), atol=2e-3)
