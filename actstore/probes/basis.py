"""The shared matrix of many linear fits: scaled, turned into its eigenbasis, and read in chunks.

In the eigenbasis of the Gram matrix the Hessian of a logistic loss is close to diagonal, which is
what makes the solver fast. The basis comes from all rows that any fit trains on, scaled together:
it only steers the path of the solver. What a fit optimises uses the statistics of its own training
rows alone: a `Transform` turns the fit's own standardised coordinates into the shared ones exactly,
without a second copy of the matrix.

With D = diag(shared sd / own sd) and the shared matrix X = U S V', a fit with weights w on its own
standardised features has logits X D w + const. Variables u with |u| = |w|:
rows >= features: w = V u, logits (X V) (V' D V) u;
rows < features: w = D V L'^-1 u with L L' = V' D^2 V, logits (U S) L u, exact because the optimum
lies in the span of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actstore.errors import InputError
from actstore.probes.gemm import matmul_nt

__all__ = ["Basis", "Moments", "Transform", "build_basis", "measure"]

FloatArray = npt.NDArray[np.float64]

_ROWS = 2048  # rows handled at a time while measuring and rotating
_FLOAT32_STEP = 4 * float(np.finfo(np.float32).eps)
_TINY = 1e-30  # a smaller spread cannot be undone in float32
_UNEVEN = 100.0
_SAME = 1e-6  # scales that differ by less are float32 rounding of the same scale
_CONSTANT = 1e-3  # shared sd / own sd for a feature that is constant on the fit's own rows


@dataclass(frozen=True)
class Moments:
    """Shared and own statistics of the features, all float64.

    mean, scale: [d] over the rows of the basis (scale 1 where constant, or everywhere when not
    standardising); constant: [d]; own_mean, own_var: [F, d] under each weight vector, in units of
    the shared scale; own_constant: [F, d].
    """

    mean: FloatArray
    scale: FloatArray
    constant: npt.NDArray[np.bool_]
    own_mean: FloatArray
    own_var: FloatArray
    own_constant: npt.NDArray[np.bool_]
    standardize: bool
    even: bool  # whether the scaled features are of like size, so that float32 can rotate them

    def ratio(self, which: int) -> FloatArray:
        """D of one weight vector [d]: shared scale / own scale."""
        if not self.standardize:
            return np.ones_like(self.mean)
        var = np.where(self.own_constant[which], 1.0, self.own_var[which])
        ratio = np.where(self.own_constant[which], _CONSTANT, 1 / np.sqrt(var))
        return np.where(self.constant, 1.0, ratio)

    def trace(self, which: int) -> float:
        """Weighted mean of the squared length of a fit's own rows, |D x|^2."""
        square = self.own_var[which] + self.own_mean[which] ** 2
        return float((square * self.ratio(which) ** 2)[~self.constant].sum())


@dataclass(frozen=True)
class Rows:
    """The rows `index` of `x`, read in chunks as (x - mean) / scale."""

    x: npt.NDArray[np.generic]
    index: npt.NDArray[np.int64]
    device: torch.device

    def __len__(self) -> int:
        return len(self.index)

    def raw(self, start: int, stop: int) -> Tensor:
        part = np.asarray(self.x[self.index[start:stop]])
        if part.dtype not in (np.float32, np.float64):
            part = part.astype(np.float32)
        return torch.from_numpy(part).to(self.device)

    def scaled(self, start: int, stop: int, moments: Moments, dtype: torch.dtype) -> Tensor:
        part = self.raw(start, stop)
        work = torch.promote_types(part.dtype, dtype)
        inverse = np.where(moments.constant, 0.0, 1 / moments.scale)
        mean = torch.from_numpy(moments.mean).to(self.device, work)
        part = part.to(work).sub_(mean) if part.dtype != work else part.sub_(mean)
        return part.mul_(torch.from_numpy(inverse).to(self.device, work)).to(dtype)

    def spans(self, step: int = _ROWS) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self), step):
            yield start, min(start + step, len(self))


def measure(rows: Rows, weights: FloatArray, *, standardize: bool) -> Moments:
    """Statistics over all of `rows` and under each of `weights` [F, n], which sum to one."""
    n, d = len(rows), rows.x.shape[1]
    total = torch.zeros(d, dtype=torch.float64, device=rows.device)
    for start, stop in rows.spans():
        total += rows.raw(start, stop).sum(0, dtype=torch.float64)
    # rounded to float32 so that float32 and float64 chunks are shifted by the same amount
    mean = (total / n).float().double()
    square = torch.zeros_like(total)
    for start, stop in rows.spans():
        part = rows.raw(start, stop)
        part = part.sub_(mean.to(part.dtype))
        square += part.square_().sum(0, dtype=torch.float64)
    shift = mean.cpu().numpy()
    spread = np.sqrt(square.cpu().numpy() / n)
    constant = (spread <= _FLOAT32_STEP * np.abs(shift)) | (spread < _TINY)
    scale = np.where(constant, 1.0, spread) if standardize else np.ones(d)
    even = standardize or bool(spread.max() <= _UNEVEN * np.median(spread))
    empty = np.empty((0, d))
    moments = Moments(shift, scale, constant, empty, empty, empty.astype(bool), standardize, even)
    own = torch.zeros(2, len(weights), d, dtype=torch.float64, device=rows.device)
    weight = torch.from_numpy(weights).to(rows.device)
    for start, stop in rows.spans():
        part = rows.scaled(start, stop, moments, torch.float64)
        own[0] += weight[:, start:stop] @ part
        own[1] += weight[:, start:stop] @ part.square_()
    own_mean = own[0].cpu().numpy()
    own_var = np.maximum(own[1].cpu().numpy() - own_mean**2, 0.0)
    offset = np.abs(shift / scale + own_mean)
    own_constant = constant | (np.sqrt(own_var) <= np.maximum(_FLOAT32_STEP * offset, 1e-6))
    if not standardize:
        own_constant = np.broadcast_to(constant, own_var.shape)
    return replace(moments, own_mean=own_mean, own_var=own_var, own_constant=own_constant)


@dataclass(frozen=True)
class Basis:
    """`matrix` [n, r] holds the rotated rows, or None when they are read and scaled chunk by chunk;
    rotation: [d, r]; sigma: [r] eigenvalues of the Gram matrix / n, float64."""

    rows: Rows
    moments: Moments
    rotation: Tensor
    sigma: Tensor
    matrix: Tensor | None
    row_space: bool
    dtype: torch.dtype

    def chunk(self, start: int, stop: int) -> Tensor:
        """Rows [stop - start, r], or [.., d] when not resident."""
        if self.matrix is not None:
            return self.matrix[start:stop]
        return self.rows.scaled(start, stop, self.moments, self.dtype)

    def expand(self, weights: Tensor) -> Tensor:
        """Weights [k, r] as they multiply `chunk`."""
        return weights if self.matrix is not None else matmul_nt(weights, self.rotation)

    def contract(self, gradient: Tensor) -> Tensor:
        """The transpose of `expand`."""
        return gradient if self.matrix is not None else matmul_nt(gradient, self.rotation.t())

    def in_float64(self, *, resident: bool) -> Basis:
        """The same basis with float64 rows, for problems that float32 cannot finish."""
        double = torch.float64
        rotation = self.rotation.double()
        if not resident:
            return Basis(*self._common(rotation), None, self.row_space, double)
        shape = len(self.rows), len(self.sigma)
        matrix = torch.empty(shape, dtype=double, device=rotation.device)
        for start, stop in self.rows.spans():
            matrix[start:stop] = self.rows.scaled(start, stop, self.moments, double) @ rotation
        return Basis(*self._common(rotation), matrix, self.row_space, double)

    def _common(self, rotation: Tensor) -> tuple[Rows, Moments, Tensor, Tensor]:
        return self.rows, self.moments, rotation, self.sigma


def build_basis(rows: Rows, moments: Moments, *, resident: bool) -> Basis:
    """Eigenbasis of the scaled rows. With fewer rows than features it is taken from the n x n
    products in float64, because that route squares the condition number."""
    n, d = len(rows), rows.x.shape[1]
    work = torch.float32 if moments.even else torch.float64
    if n < d:
        full = rows.scaled(0, n, moments, torch.float64)
        values, vectors = torch.linalg.eigh(full @ full.t())
        keep = values > 1e-12 * values[-1].clamp(min=_TINY)
        values, vectors = values[keep], vectors[:, keep]
        root = values.sqrt()
        rotation = (full.t() @ vectors) / root
        matrix = (vectors * root).float().contiguous()
        return Basis(rows, moments, rotation.float(), values / n, matrix, True, torch.float32)
    gram = torch.zeros(d, d, dtype=work, device=rows.device)
    for start, stop in rows.spans():
        part = rows.scaled(start, stop, moments, work).t()
        gram += matmul_nt(part, part)
    values, vectors = torch.linalg.eigh(gram / n)
    sigma, rotation = values.double().clamp_(min=0.0), vectors.float().contiguous()
    if not resident:
        return Basis(rows, moments, rotation, sigma, None, False, torch.float32)
    matrix = torch.empty(n, d, dtype=torch.float32, device=rows.device)
    turn = vectors.t().contiguous()
    for start, stop in rows.spans():
        matrix[start:stop] = matmul_nt(rows.scaled(start, stop, moments, work), turn)
    return Basis(rows, moments, rotation, sigma, matrix, False, torch.float32)


@dataclass(frozen=True)
class Transform:
    """From a fit's own coordinates u to the shared basis: `matrix` [r, r], None for identity."""

    basis: Basis
    which: int
    ratio: FloatArray
    matrix: Tensor | None
    factor: Tensor | None  # L of the row-space form

    @classmethod
    def build(cls, basis: Basis, which: int) -> Transform:
        ratio = basis.moments.ratio(which)
        if np.all(np.abs(ratio - 1) < _SAME):
            return cls(basis, which, np.ones_like(ratio), None, None)
        rotation = basis.rotation
        d = torch.from_numpy(ratio).to(rotation.device, rotation.dtype).unsqueeze(1)
        if not basis.row_space:
            return cls(basis, which, ratio, matmul_nt(rotation.t(), (rotation * d).t()), None)
        product = matmul_nt((rotation * d).t(), (rotation * d).t()).double()
        factor = torch.linalg.cholesky((product + product.t()) / 2)
        return cls(basis, which, ratio, factor.to(rotation.dtype), factor)

    def apply(self, u: Tensor) -> Tensor:
        """Rows of weights [k, r] in the shared basis."""
        return u if self.matrix is None else matmul_nt(u, self.matrix)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """The transpose of `apply`."""
        return gradient if self.matrix is None else matmul_nt(gradient, self.matrix.t())

    def raw(self, u: Tensor) -> npt.NDArray[np.float32]:
        """Coefficients [k, d], for features as they were given, of weights u [k, r]."""
        moments = self.basis.moments
        if self.factor is None:
            own = u.double() @ self.basis.rotation.double().t()
            shared = own.cpu().numpy() * self.ratio
        else:
            inner = torch.linalg.solve_triangular(self.factor.t(), u.double().t(), upper=True)
            own = inner.t() @ self.basis.rotation.double().t()
            shared = own.cpu().numpy() * self.ratio**2
        shared[:, moments.own_constant[self.which]] = 0.0
        with np.errstate(over="ignore"):
            coef: npt.NDArray[np.float32] = (shared / moments.scale).astype(np.float32)
        if not np.all(np.isfinite(coef)):
            column = int(np.flatnonzero(~np.isfinite(coef).all(axis=0))[0])
            raise InputError(
                f"the weight of feature {column} does not fit in float32: its values vary too "
                "little; scale the features up before fitting"
            )
        return coef
