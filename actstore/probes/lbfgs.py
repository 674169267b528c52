"""Limited-memory BFGS for many smooth convex problems at once.

Each row of `theta` [A, K] is one problem. All problems share the cost of an evaluation (one pass
over the data for all of them); direction, step length and stopping are each problem's own, and a
finished problem leaves the batch at once. The two-loop recursion is Nocedal and Wright, *Numerical
Optimization*, algorithm 7.4, around a preconditioner supplied by the caller and scaled by the
newest pair; where rounding hides the decrease, a step is accepted on its slope instead
(the approximate Wolfe condition of Hager and Zhang, SIAM J. Optim. 16, 2005).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "Options", "Outcome", "Stop", "minimise"]

_ARMIJO = 1e-4
_SLOPE = 0.9  # a step accepted on its slope must at least have begun to flatten
_MAX_TRIALS = 14
_STRICTER = 1.5  # a problem that failed its proof must come this much closer before the next
_PATIENCE = 60  # iterations without progress before a problem counts as stalled


class Stop(IntEnum):
    """Why a problem left the batch."""

    CONVERGED = 0
    ITERATION_LIMIT = 1
    STALLED = 2


class Batch(Protocol):
    """Problems 0..M-1; `which` [A] names those that the rows of the other arguments belong to."""

    def evaluate(self, theta: Tensor, which: Tensor, *, curvature: bool) -> tuple[Tensor, Tensor]:
        """Objective [A] in float64 and gradient [A, K] at theta [A, K]; with `curvature`, also
        take what `refresh` needs at this point."""

    def refresh(self, which: Tensor) -> None:
        """Rebuild the preconditioner from the curvature taken last."""

    def precondition(self, vectors: Tensor, which: Tensor) -> Tensor:
        """Approximate inverse Hessian times each row of vectors [A, K]."""

    def bound(self, gradient: Tensor, which: Tensor) -> Tensor:
        """About how far [A] float64 the optimum can be, from the gradient [A, K]; `confirm` has
        the last word."""

    def confirm(self, theta: Tensor, gradient: Tensor, which: Tensor) -> Tensor:
        """Whether each problem at theta [A, K], which seems done, is proved to be; bool [A]."""


@dataclass(frozen=True)
class Options:
    """tolerance: estimated decrease still to be had, relative to the objective; gap: certified
    distance to the optimum, likewise; both must hold. floor: objectives below it count as it.
    noise: relative rounding error of an objective value."""

    tolerance: float = 3e-8
    gap: float = 1e-6
    floor: float = 1e-5
    noise: float = 1e-7
    history: int = 12
    max_iterations: int = 5000


@dataclass(frozen=True)
class Outcome:
    """One row per problem: theta and its gradient [A, K], stop, iterations, evaluations [A]."""

    theta: Tensor
    gradient: Tensor
    stop: list[Stop]
    iterations: list[int]
    evaluations: list[int]


def minimise(batch: Batch, theta: Tensor, which: Tensor, options: Options) -> Outcome:
    """Minimise problems `which` [A] from theta [A, K]; every problem gets a `Stop`."""
    run = _Run(batch, theta.clone(), which, options)
    while len(run.active):
        run.step()
    return Outcome(run.result, run.gradient, run.stop, run.iterations, run.evaluations)


def _due(iteration: int) -> bool:
    """Whether the preconditioner is rebuilt after this iteration: often at first, then rarely."""
    return iteration in (1, 2, 3, 5, 8) or iteration % 12 == 0


class _Run:
    """The state of one call; rows of every tensor are the problems still active."""

    def __init__(self, batch: Batch, theta: Tensor, which: Tensor, options: Options) -> None:
        self.batch, self.options = batch, options
        self.result, self.gradient = theta, torch.zeros_like(theta)
        self.stop = [Stop.ITERATION_LIMIT] * len(which)
        self.iterations = [0] * len(which)
        self.evaluations = [1] * len(which)
        self.active = torch.arange(len(which), device=theta.device)
        self.which = which
        self.iteration = 0
        self.theta = theta.clone()
        self.f, self.g = batch.evaluate(self.theta, which, curvature=True)
        batch.refresh(which)
        self.steps: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.inverse: list[Tensor] = []  # 1 / (s . y), or 0 for a pair to be ignored
        self.scale = torch.ones_like(self.f)
        self.strict = torch.ones_like(self.f)
        self.best = torch.full_like(self.f, torch.inf)
        self.best_f = self.f.clone()
        self.since = torch.zeros_like(self.which)
        self.stuck = torch.zeros_like(self.which)

    def step(self) -> None:
        direction, slope, estimate = self._direction()
        stay = self._retire(estimate)
        if len(self.active):
            self._search(direction[stay], slope[stay])

    def _direction(self) -> tuple[Tensor, Tensor, Tensor]:
        """Descent direction [A, K], its slope [A] and the estimated decrease still to be had."""
        plain = self.batch.precondition(self.g, self.which)
        q = self.g.clone()
        weights: list[Tensor] = []
        for s, y, rho in zip(
            reversed(self.steps), reversed(self.changes), reversed(self.inverse), strict=True
        ):
            a = rho * _dot(s, q)
            weights.append(a)
            q.addcmul_(_column(a, q), y, value=-1.0)
        q = self.batch.precondition(q, self.which) if self.steps else plain.clone()
        q.mul_(_column(self.scale, q))
        for s, y, rho, a in zip(
            self.steps, self.changes, self.inverse, reversed(weights), strict=True
        ):
            q.addcmul_(_column(a - rho * _dot(y, q), q), s)
        slope = -_dot(q, self.g)
        plain_slope = self.scale * _dot(plain, self.g)
        uphill = ~(slope < 0)
        if bool(uphill.any()):  # rounding has spoilt the pairs of these problems: forget them
            self._forget(uphill)
            q = torch.where(uphill[:, None], plain * _column(self.scale, plain), q)
            slope = torch.where(uphill, -plain_slope, slope)
        return q.neg_(), slope, torch.maximum(-slope, plain_slope) / 2

    def _retire(self, estimate: Tensor) -> Tensor:
        """Drop the problems that are done; returns the rows that stay."""
        options = self.options
        size = self.f.abs().clamp(min=options.floor) * self.strict
        bound = self.batch.bound(self.g, self.which)
        done = (estimate <= options.tolerance * size) & (bound <= options.gap * size)
        asking = torch.nonzero(done).flatten()
        if len(asking):
            done[asking] = self.batch.confirm(
                self.theta[asking], self.g[asking], self.which[asking]
            )
            self.strict[asking] /= _STRICTER
        better = (bound < 0.9 * self.best) | (self.best_f - self.f > options.noise * self.f.abs())
        self.best = torch.where(better, torch.minimum(bound, self.best), self.best)
        self.best_f = torch.where(better, self.f, self.best_f)
        self.since = torch.where(better, torch.zeros_like(self.since), self.since + 1)
        stalled = ((self.since > _PATIENCE) | (self.stuck > 1)) & ~done
        limit = torch.full_like(done, self.iteration >= options.max_iterations)
        leaving = done | stalled | limit
        stay = torch.nonzero(~leaving).flatten()
        if len(stay) == len(leaving):
            return stay
        for row in torch.nonzero(leaving).flatten().tolist():
            at = int(self.active[row])
            self.result[at], self.gradient[at] = self.theta[row], self.g[row]
            self.iterations[at] = self.iteration
            if bool(done[row]):
                self.stop[at] = Stop.CONVERGED
            elif bool(stalled[row]):
                self.stop[at] = Stop.STALLED
        self._keep(stay)
        return stay

    def _search(self, direction: Tensor, slope: Tensor) -> None:
        """Backtrack each problem to an acceptable step, evaluate, and store the new pair."""
        self.iteration += 1
        curvature = _due(self.iteration)
        theta, f, g = self.theta.clone(), self.f.clone(), self.g.clone()
        t = torch.ones_like(slope)
        open_rows = torch.arange(len(t), device=t.device)
        for _ in range(_MAX_TRIALS):
            d, base = direction[open_rows], self.f[open_rows]
            trial = self.theta[open_rows] + _column(t[open_rows], d) * d
            value, gradient = self.batch.evaluate(trial, self.which[open_rows], curvature=curvature)
            for row in open_rows.tolist():
                self.evaluations[int(self.active[row])] += 1
            start, length = slope[open_rows], t[open_rows]
            rise = value - base
            flat = rise <= self.options.noise * base.abs()
            good = (rise <= _ARMIJO * length * start) | (
                flat & (_dot(gradient, d).abs() <= _SLOPE * start.abs())
            )
            accepted = open_rows[good]
            theta[accepted], f[accepted], g[accepted] = trial[good], value[good], gradient[good]
            # the minimum of the parabola through both values and the first slope
            guess = -start * length / (2 * (rise - start * length))
            guess = torch.nan_to_num(guess, nan=0.1).clamp(0.1, 0.5)
            t[open_rows] = length * guess
            open_rows = open_rows[~good]
            if not len(open_rows):
                break
        failed = torch.zeros_like(self.stuck, dtype=torch.bool)
        failed[open_rows] = True
        self.stuck = torch.where(failed, self.stuck + 1, torch.zeros_like(self.stuck))
        self._remember(theta - self.theta, g - self.g)
        if bool(failed.any()):
            self._forget(failed)
        self.theta, self.f, self.g = theta, f, g
        if curvature:
            self.batch.refresh(self.which[~failed])
        self._rescale()

    def _remember(self, step: Tensor, change: Tensor) -> None:
        product = _dot(step, change)
        size = torch.linalg.vecdot(step, step).double() * torch.linalg.vecdot(change, change)
        good = product > 1e-9 * size.sqrt()
        self.steps.append(step)
        self.changes.append(change)
        self.inverse.append(torch.where(good, 1 / product, torch.zeros_like(product)))
        if len(self.steps) > self.options.history:
            del self.steps[0], self.changes[0], self.inverse[0]

    def _rescale(self) -> None:
        """Scale the preconditioner so that it is exact along the newest pair, as seen by y."""
        y, rho = self.changes[-1], self.inverse[-1]
        spread = _dot(y, self.batch.precondition(y, self.which))
        good = (rho > 0) & (spread > 0)
        self.scale = torch.where(good, 1 / (rho * spread), self.scale)

    def _forget(self, rows: Tensor) -> None:
        self.inverse = [torch.where(rows, torch.zeros_like(rho), rho) for rho in self.inverse]

    def _keep(self, rows: Tensor) -> None:
        self.active, self.which = self.active[rows], self.which[rows]
        self.theta, self.f, self.g = self.theta[rows], self.f[rows], self.g[rows]
        for pairs in (self.steps, self.changes, self.inverse):
            pairs[:] = [item[rows] for item in pairs]
        self.scale, self.strict = self.scale[rows], self.strict[rows]
        self.best, self.best_f = self.best[rows], self.best_f[rows]
        self.since, self.stuck = self.since[rows], self.stuck[rows]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner product [A], in float64 from here on."""
    product: Tensor = torch.linalg.vecdot(a, b)
    return product.double()


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).unsqueeze(1)
