"""Many logistic problems on one shared matrix, as the batched solver sees them.

Each evaluation reads the matrix once, in chunks that stay in cache: logits of all problems that
train on these rows, loss, residual, and their products with the rows again. Rows are ordered so
that those with the same training problems lie together; a problem is not computed on rows that it
does not train on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actstore.probes.basis import Basis, Transform
from actstore.probes.gemm import matmul_nt
from actstore.probes.objective import binary_loss, class_curvature, multinomial_loss

__all__ = ["ABSENT", "GAP", "OBJECTIVE_FLOOR", "Block", "Certificate", "LogisticBatch", "Setup"]

_CELLS = 1 << 20  # logits per chunk
_ROW_LIMITS = (256, 8192)
ABSENT = -1e4  # intercept of a class without training rows: its probability is exactly 0
GAP = 1e-6  # relative distance to the optimum that counts as proved
# For a very small alpha |g|^2 / (2 alpha) overstates that distance about a hundredfold (25,000 rows
# of a language model, 17 classes: 1.0e-2 proved where 1.2e-4 was true), and each further factor of
# ten costs as much time again as everything before it.
SMALL_ALPHA, SMALL_ALPHA_GAP = 1e-5, 1e-2
OBJECTIVE_FLOOR = 1e-5  # smaller objectives count as this when a gap is made relative
_EXACT_PASSES = 8


@dataclass(frozen=True)
class Block:
    """Rows start:stop of the matrix, on which the weight vectors `active` [F] (bool) train."""

    start: int
    stop: int
    active: Tensor


@dataclass(frozen=True)
class Setup:
    """What M problems train on. outputs: 1 for binary, else the number of classes.

    labels [T, n] int64, weights [F, n] float64 summing to one, both in the order of the basis
    rows; task, fold [M] name a problem's row of each; alpha [M] float64; present [M, outputs]
    marks the classes that have training rows; transforms: one per weight vector used, by number.
    """

    outputs: int
    labels: Tensor
    weights: Tensor
    task: Tensor
    fold: Tensor
    alpha: Tensor
    present: Tensor
    blocks: list[Block]


@dataclass(frozen=True)
class Certificate:
    """What is proved of one problem, with the intercept [outputs] (float64) solved exactly for
    its weights. gap: relative to the larger of the objective and `OBJECTIVE_FLOOR`; grad_norm: of
    the weights; separable: every training row is classified right."""

    objective: float
    gap: float
    grad_norm: float
    intercept: Tensor
    separable: bool


@dataclass
class _Sums:
    loss: Tensor  # [A] float64
    weights: Tensor  # gradient [A, outputs, r]
    intercept: Tensor  # gradient [A, outputs] float64
    separable: Tensor  # [A]


class LogisticBatch:
    """Implements `lbfgs.Batch`; theta [A, outputs * r + outputs] = weights, then intercepts."""

    def __init__(self, basis: Basis, setup: Setup) -> None:
        self.basis, self.setup = basis, setup
        self.rank = len(basis.sigma)
        dtype, device = basis.dtype, basis.rotation.device
        self.alpha = setup.alpha.to(device)
        self.target = torch.where(self.alpha < SMALL_ALPHA, SMALL_ALPHA_GAP, GAP)
        self.sigma = basis.sigma.to(dtype)
        self.weights = setup.weights.to(device, dtype)
        self.transforms = {int(f): Transform.build(basis, int(f)) for f in torch.unique(setup.fold)}
        outputs, m = setup.outputs, len(setup.alpha)
        self.flips = (1 - 2 * setup.labels).to(device, dtype) if outputs == 1 else None
        self.labels = setup.labels.to(device)
        self.present = setup.present.to(device)
        self.proofs: dict[int, Certificate] = {}
        # curvature of the loss in the logits, [outputs, outputs] per problem, and its eigenbasis
        self.curvature = torch.zeros(m, outputs, outputs, dtype=torch.float64, device=device)
        self.modes = torch.eye(outputs, dtype=dtype, device=device).repeat(m, 1, 1)
        self.values = torch.ones(m, outputs, dtype=dtype, device=device)

    # --- what the solver calls ----------------------------------------------------------------

    def start(self) -> Tensor:
        """Weights 0 and intercepts at the logarithm of the class shares, [M, K]."""
        setup, m, k = self.setup, len(self.alpha), self.setup.outputs
        theta = torch.zeros(m, k * (self.rank + 1), dtype=self.basis.dtype)
        for row in range(m):
            label, weight = setup.labels[setup.task[row]], setup.weights[setup.fold[row]]
            share = torch.zeros(max(k, 2), dtype=torch.float64).index_add_(0, label, weight)
            if k == 1:
                theta[row, -1] = torch.log(share[1] / share[0])
            else:
                theta[row, -k:] = torch.where(setup.present[row], share.log(), ABSENT)
        return theta.to(self.basis.rotation.device)

    def evaluate(self, theta: Tensor, which: Tensor, *, curvature: bool) -> tuple[Tensor, Tensor]:
        weights, intercept = self.split(theta)
        sums = self._sums(weights, intercept, which, curvature=curvature, exact=False)
        square = torch.linalg.vecdot(weights.flatten(1), weights.flatten(1)).double()
        alpha = self.alpha[which]
        gradient = sums.weights.add_(weights * alpha.to(weights.dtype)[:, None, None])
        value = sums.loss + alpha / 2 * square
        return value, torch.cat([gradient.flatten(1), sums.intercept.to(theta.dtype)], 1)

    def refresh(self, which: Tensor) -> None:
        if self.setup.outputs == 1:
            self.values[which] = self.curvature[which, 0].to(self.values.dtype)
            return
        values, modes = torch.linalg.eigh(self.curvature[which])
        self.values[which] = values.clamp(min=0.0).to(self.values.dtype)
        self.modes[which] = modes.to(self.modes.dtype)

    def precondition(self, vectors: Tensor, which: Tensor) -> Tensor:
        weights, intercept = self.split(vectors)
        values, alpha = self.values[which], self.alpha[which].to(vectors.dtype)
        scale = torch.addcmul(alpha[:, None, None], values[:, :, None], self.sigma)
        floor = values.amax(1, keepdim=True).clamp(min=1e-12) * 1e-7
        inverse = 1 / torch.maximum(values, floor)
        if self.setup.outputs == 1:
            return torch.cat([(weights / scale).flatten(1), intercept * inverse], 1)
        modes, present = self.modes[which], self.present[which]
        turned = torch.bmm(modes.transpose(1, 2), weights).div_(scale)
        offset = torch.bmm(modes.transpose(1, 2), intercept.unsqueeze(2)).mul_(inverse[:, :, None])
        offset = _centred(torch.bmm(modes, offset)[..., 0], present)
        return torch.cat([torch.bmm(modes, turned).flatten(1), offset], 1)

    def bound(self, gradient: Tensor, which: Tensor) -> Tensor:
        weights = self.split(gradient)[0].flatten(1)
        square = weights.square().sum(1, dtype=torch.float64)
        return square / (2 * self.alpha[which]) * (GAP / self.target[which])

    def confirm(self, theta: Tensor, gradient: Tensor, which: Tensor) -> Tensor:
        """How far each problem can be from its optimum, proved from its gradient and kept in
        `proofs`; returns whether that is near enough, bool [A].

        With the intercept optimal for the weights, the objective is alpha-strongly convex in the
        weights, so gap <= |g|^2 / (2 alpha). The intercept is solved by Newton's method on exact
        float64 residuals; what is left of its gradient enters through e = g_b' A^+ g_b: it costs
        at most e itself and moves g by at most sqrt(|X|^2 e), since the Hessian is positive.
        """
        weights, start = self.split(theta)
        alpha, target = self.alpha[which], self.target[which]
        traces = [self.basis.moments.trace(int(f)) for f in self.setup.fold[which.cpu()]]
        trace = torch.tensor(traces, dtype=torch.float64, device=theta.device)
        square = weights.double().flatten(1).square().sum(1)
        inverse = self._pinv(which)
        slope = self.split(gradient)[1].double()
        intercept = start.double()
        for turn in range(_EXACT_PASSES):
            intercept = intercept - torch.bmm(inverse, slope.unsqueeze(2))[..., 0].clamp(-1.0, 1.0)
            sums = self._sums(weights, intercept, which, curvature=turn < 2, exact=True)
            slope = sums.intercept
            if turn < 2:
                inverse = self._pinv(which)
            left = (torch.bmm(inverse, slope.unsqueeze(2))[..., 0] * slope).sum(1).clamp(min=0.0)
            own = sums.weights.double() + weights.double() * alpha[:, None, None]
            norm = torch.linalg.vector_norm(own.flatten(1), dim=1)
            shift = (trace * left).sqrt()
            objective = sums.loss + alpha / 2 * square
            gap = left + (norm + shift) ** 2 / (2 * alpha)
            gap /= objective.clamp(min=OBJECTIVE_FLOOR)
            if bool(((gap <= target) | (shift <= 0.03 * norm + 1e-15)).all()):
                break
        for at, problem in enumerate(which.tolist()):
            self.proofs[problem] = Certificate(
                float(objective[at]),
                float(gap[at]),
                float(norm[at]),
                intercept[at],
                bool(sums.separable[at]),
            )
        near: Tensor = gap <= target
        return near

    def _pinv(self, which: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.curvature[which], rtol=1e-10, hermitian=True)
        return inverse

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Views of theta [A, K]: weights [A, outputs, r] and intercepts [A, outputs]."""
        k = self.setup.outputs
        return theta[:, : k * self.rank].reshape(-1, k, self.rank), theta[:, k * self.rank :]

    # --- one pass over the rows ---------------------------------------------------------------

    def _sums(
        self, weights: Tensor, intercept: Tensor, which: Tensor, *, curvature: bool, exact: bool
    ) -> _Sums:
        """Loss and gradient sums of problems `which` [A] over all blocks; `exact` takes logits to
        loss and residual in float64 and finds out separability."""
        setup, count = self.setup, len(which)
        task, fold = setup.task[which.cpu()], setup.fold[which.cpu()]
        shared = self.basis.expand(self._apply(weights, fold, adjoint=False).flatten(0, 1))
        shared = shared.view(count, setup.outputs, -1)
        device = weights.device
        sums = _Sums(
            torch.zeros(count, dtype=torch.float64, device=device),
            torch.zeros_like(shared),
            torch.zeros(count, setup.outputs, dtype=torch.float64, device=device),
            torch.ones(count, dtype=torch.bool, device=device),
        )
        if curvature or setup.outputs == 1:
            self.curvature[which] = 0.0
        for block in setup.blocks:
            rows = torch.nonzero(block.active[fold]).flatten()
            if not len(rows):
                continue
            whole = len(rows) == count
            part = shared if whole else shared[rows]
            low, high = _ROW_LIMITS
            step = max(low, min(high, _CELLS // (len(rows) * setup.outputs)))
            at = _Place(rows, which[rows], task[rows].to(device), fold[rows].to(device))
            for start in range(block.start, block.stop, step):
                stop = min(start + step, block.stop)
                pass_over = self._binary if setup.outputs == 1 else self._multinomial
                pass_over(part, intercept[rows], at, (start, stop), sums, curvature, exact)
        flat = self.basis.contract(sums.weights.flatten(0, 1)).view(count, setup.outputs, -1)
        sums.weights = self._apply(flat, fold, adjoint=True)
        return sums

    def _apply(self, weights: Tensor, fold: Tensor, *, adjoint: bool) -> Tensor:
        """Between own and shared coordinates, problem by problem of the same weight vector."""
        if all(item.matrix is None for item in self.transforms.values()):
            return weights
        out = torch.empty_like(weights)
        for number in torch.unique(fold).tolist():
            rows = torch.nonzero(fold == number).flatten()
            move = self.transforms[number].adjoint if adjoint else self.transforms[number].apply
            out[rows] = move(weights[rows].flatten(0, 1)).view(len(rows), *weights.shape[1:])
        return out

    def _binary(
        self,
        shared: Tensor,
        intercept: Tensor,
        at: _Place,
        span: tuple[int, int],
        sums: _Sums,
        curvature: bool,
        exact: bool,
    ) -> None:
        assert self.flips is not None
        x = self.basis.chunk(*span)
        work = torch.float64 if exact else x.dtype
        z = matmul_nt(shared[:, 0], x).to(work).add_(intercept.to(work))
        flip = self.flips[at.task, span[0] : span[1]].to(work)
        weight = self.weights[at.fold, span[0] : span[1]].to(work)
        loss, residual, bend = binary_loss(z, flip, weight)
        if exact:  # z is now the probability of the wrong class
            sums.separable[at.rows] &= ((z < 0.5) | (weight == 0)).all(1)
        sums.loss[at.rows] += loss
        sums.intercept[at.rows, 0] += residual.sum(1, dtype=torch.float64)
        self.curvature[at.which, 0, 0] += bend
        sums.weights[at.rows, 0] += matmul_nt(residual.to(x.dtype), x.t())

    def _multinomial(
        self,
        shared: Tensor,
        intercept: Tensor,
        at: _Place,
        span: tuple[int, int],
        sums: _Sums,
        curvature: bool,
        exact: bool,
    ) -> None:
        x = self.basis.chunk(*span)
        work = torch.float64 if exact else x.dtype
        z = matmul_nt(x, shared.flatten(0, 1)).to(work)
        z = z.view(len(x), *shared.shape[:2]).add_(intercept.to(work))
        label = self.labels[at.task, span[0] : span[1]].t()
        weight = self.weights[at.fold, span[0] : span[1]].t().to(work)
        loss, residual = multinomial_loss(z, label, weight)
        if exact:
            sums.separable[at.rows] &= _all_right(residual, label, weight)
        sums.loss[at.rows] += loss
        sums.intercept[at.rows] += residual.sum(0, dtype=torch.float64)
        residual = residual.to(x.dtype)
        if curvature:
            for row, problem in enumerate(at.which.tolist()):
                mass, half = class_curvature(
                    residual[:, row], label[:, row], weight[:, row].to(x.dtype)
                )
                product = matmul_nt(half.t(), half.t()).double()
                self.curvature[problem] += torch.diag(mass) - product
        gradient = matmul_nt(residual.flatten(1).t(), x.t())
        sums.weights[at.rows] += gradient.view(*shared.shape[:2], -1)


@dataclass(frozen=True)
class _Place:
    """Rows of the call's tensors, problem numbers, label rows and weight rows of a block."""

    rows: Tensor
    which: Tensor
    task: Tensor
    fold: Tensor


def _centred(intercept: Tensor, present: Tensor) -> Tensor:
    """Without the shift [A, 1] that changes no probability, so that rounding cannot pile up."""
    mean = intercept.sum(1, keepdim=True) / present.sum(1, keepdim=True)
    return torch.where(present, intercept - mean, 0.0)


def _all_right(residual: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """[A]: whether every row that counts gives its own class the largest probability."""
    at = label.unsqueeze(-1)
    mass = residual.scatter_add(-1, at, weight.unsqueeze(-1))
    own = mass.gather(-1, at).squeeze(-1)
    mass.scatter_(-1, at, -1.0)
    return ((own > mass.amax(-1)) | (weight == 0)).all(0)
