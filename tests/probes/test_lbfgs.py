from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from actstore.probes.lbfgs import Options, Stop, minimise

DOUBLE = torch.float64
STRICT = Options(tolerance=1e-12, gap=1e-12, floor=1e-12, noise=1e-14)


class Quadratics:
    """f_m(x) = (x - c_m)' D_m (x - c_m) / 2 + offset, with diagonal D."""

    def __init__(self, curvatures: Tensor, centers: Tensor, offset: float = 1.0) -> None:
        self.curvatures, self.centers, self.offset = curvatures, centers, offset
        self.calls: list[list[int]] = []
        self.refusals = 0

    def evaluate(self, theta: Tensor, which: Tensor, *, curvature: bool) -> tuple[Tensor, Tensor]:
        self.calls.append(which.tolist())
        away = theta - self.centers[which]
        gradient = self.curvatures[which] * away
        return (away * gradient).sum(1) / 2 + self.offset, gradient

    def refresh(self, which: Tensor) -> None:
        pass

    def precondition(self, vectors: Tensor, which: Tensor) -> Tensor:
        return vectors.clone()

    def bound(self, gradient: Tensor, which: Tensor) -> Tensor:
        return gradient.square().sum(1) / (2 * self.curvatures[which].amin(1))

    def confirm(self, theta: Tensor, gradient: Tensor, which: Tensor) -> Tensor:
        if self.refusals > 0:
            self.refusals -= 1
            return torch.zeros(len(which), dtype=torch.bool)
        return torch.ones(len(which), dtype=torch.bool)


def _problems(m: int = 4, k: int = 12, condition: float = 1e3) -> Quadratics:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0, 1, k, dtype=DOUBLE)
    curvatures = torch.stack([condition ** (spread * (i + 1) / m) for i in range(m)])
    return Quadratics(curvatures, torch.randn(m, k, dtype=DOUBLE, generator=generator))


def test_finds_the_minimum_of_every_problem() -> None:
    batch = _problems()
    outcome = minimise(batch, torch.zeros(4, 12, dtype=DOUBLE), torch.arange(4), STRICT)
    assert outcome.stop == [Stop.CONVERGED] * 4
    torch.testing.assert_close(outcome.theta, batch.centers, rtol=0, atol=1e-5)


def test_needs_about_as_many_iterations_as_scipy() -> None:
    batch = _problems()
    outcome = minimise(batch, torch.zeros(4, 12, dtype=DOUBLE), torch.arange(4), STRICT)
    for m, iterations in enumerate(outcome.iterations):
        d, c = batch.curvatures[m].numpy(), batch.centers[m].numpy()
        reference = scipy.optimize.minimize(
            lambda x, c=c, d=d: (((x - c) ** 2 * d).sum() / 2 + 1, d * (x - c)),
            np.zeros(12),
            jac=True,
            method="L-BFGS-B",
            options={"maxcor": STRICT.history, "ftol": 0.0, "gtol": 1e-6},
        )
        assert iterations <= 1.5 * reference.nit


def test_a_problem_alone_takes_the_same_path_as_in_a_batch() -> None:
    batch = _problems()
    start = torch.zeros(4, 12, dtype=DOUBLE)
    together = minimise(batch, start, torch.arange(4), STRICT)
    for m in range(4):
        alone = minimise(_problems(), start[:1], torch.tensor([m]), STRICT)
        assert alone.iterations == [together.iterations[m]]
        torch.testing.assert_close(alone.theta[0], together.theta[m], rtol=1e-12, atol=1e-12)


def test_finished_problems_are_not_evaluated_again() -> None:
    batch = _problems()
    outcome = minimise(batch, torch.zeros(4, 12, dtype=DOUBLE), torch.arange(4), STRICT)
    for m in range(4):
        assert sum(m in call for call in batch.calls) == outcome.evaluations[m]
    assert len(set(outcome.evaluations)) > 1


def test_the_iteration_limit_is_reported() -> None:
    batch = _problems(condition=1e6)
    limited = replace(STRICT, max_iterations=3)
    outcome = minimise(batch, torch.zeros(4, 12, dtype=DOUBLE), torch.arange(4), limited)
    assert outcome.stop[3] == Stop.ITERATION_LIMIT
    assert outcome.iterations[3] == 3
    assert batch.bound(outcome.gradient, torch.arange(4))[3] > 1e-12


def test_a_refused_proof_keeps_the_problem_going_and_comes_closer() -> None:
    easy, hard = _problems(m=1), _problems(m=1)
    loose = replace(STRICT, tolerance=1e-4, gap=1e-4)
    hard.refusals = 3
    start = torch.zeros(1, 12, dtype=DOUBLE)
    first = minimise(easy, start, torch.tensor([0]), loose)
    second = minimise(hard, start, torch.tensor([0]), loose)
    assert second.stop == [Stop.CONVERGED]
    assert second.iterations[0] > first.iterations[0]
    miss = (first.theta - easy.centers).norm(), (second.theta - hard.centers).norm()
    assert miss[1] < miss[0]


class _Rising(Quadratics):
    """Its gradient points the wrong way, so no step can decrease it."""

    def evaluate(self, theta: Tensor, which: Tensor, *, curvature: bool) -> tuple[Tensor, Tensor]:
        value, gradient = super().evaluate(theta, which, curvature=curvature)
        return value, -gradient


def test_a_hopeless_line_search_is_reported_as_stalled() -> None:
    base = _problems(m=1)
    batch = _Rising(base.curvatures, base.centers)
    outcome = minimise(batch, torch.zeros(1, 12, dtype=DOUBLE), torch.tensor([0]), STRICT)
    assert outcome.stop == [Stop.STALLED]
    torch.testing.assert_close(outcome.theta, torch.zeros(1, 12, dtype=DOUBLE))


class _Cliff(Quadratics):
    """Not a number beyond a radius, as an overflowing loss is."""

    def evaluate(self, theta: Tensor, which: Tensor, *, curvature: bool) -> tuple[Tensor, Tensor]:
        value, gradient = super().evaluate(theta, which, curvature=curvature)
        outside = theta.norm(dim=1) > 6
        return torch.where(outside, torch.nan, value), gradient


def test_values_that_are_not_numbers_are_stepped_back_from() -> None:
    base = _problems(m=2)
    batch = _Cliff(base.curvatures * 50, base.centers)  # the first full step goes over the cliff
    outcome = minimise(batch, torch.zeros(2, 12, dtype=DOUBLE), torch.arange(2), STRICT)
    assert outcome.stop == [Stop.CONVERGED] * 2
    torch.testing.assert_close(outcome.theta, base.centers, rtol=0, atol=1e-5)


def test_noise_in_the_value_does_not_stop_the_descent() -> None:
    """Float32 values on a large offset hide the decrease; the slope still shows the way."""
    base = _problems(m=1, condition=30)
    batch = Quadratics(base.curvatures.float(), base.centers.float(), offset=1e4)
    options = Options(tolerance=1e-10, gap=1e-10, noise=1e-7)
    outcome = minimise(batch, torch.zeros(1, 12), torch.tensor([0]), options)
    assert outcome.stop == [Stop.CONVERGED]
    torch.testing.assert_close(outcome.theta, batch.centers, rtol=0, atol=2e-3)


@pytest.mark.parametrize("start_at_optimum", [True, False])
def test_starting_at_the_optimum_takes_no_iteration(start_at_optimum: bool) -> None:
    batch = _problems(m=1)
    start = batch.centers.clone() if start_at_optimum else batch.centers + 1
    outcome = minimise(batch, start, torch.tensor([0]), STRICT)
    assert outcome.stop == [Stop.CONVERGED]
    assert (outcome.iterations == [0]) is start_at_optimum
