"""Logistic probes: every problem that shares a matrix is fitted in one batched solve.

The objective of one problem, on features standardised over its own training rows, is

    sum_i s_i loss_i / sum_i s_i  +  alpha / 2 * |w|^2        (intercept free)

that is scikit-learn's `LogisticRegression` with C = 1 / (alpha * sum of weights). A fit counts as
`converged` only when its certificate proves that the objective is within 1e-6 (relative) of the
optimum. For an alpha below 1e-5, which stands for no penalty at all and where the certificate
overstates the distance about a hundredfold, 1e-2 has to be proved; `gap_bound` says what was.
Problems that float32 cannot take there are finished in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from actstore.errors import InputError
from actstore.probes.batch import GAP, OBJECTIVE_FLOOR
from actstore.probes.lbfgs import Options, Stop
from actstore.probes.solve import Solved, Solver

__all__ = [
    "ALPHA_FLOOR",
    "LinearFit",
    "LinearProblem",
    "check_matrix",
    "fit_logistic",
    "probabilities",
]

ALPHA_FLOOR = 1e-6
_CHUNK = 8192

FloatArray = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LinearProblem:
    """One fit on the shared matrix.

    y: class codes 0..n_classes-1, int64 [n] (ignored where weight is 0); alpha: L2 penalty on the
    mean loss, 0 is taken as `ALPHA_FLOOR`; weight: float64 or bool [n], 0 = held out.
    """

    y: npt.NDArray[np.int64]
    n_classes: int
    alpha: float
    weight: npt.NDArray[np.float64] | npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LinearFit:
    """A fitted logistic readout for features as they were given (the scaler is folded in).

    coef: float32 [C, d] and intercept: float32 [C], where C = 1 for two classes (log-odds of class
    1). status: `converged`, `iteration_limit` or `line_search`. separable: every training row is
    classified right, so without a penalty there is no finite optimum. gap_bound: proved upper
    bound on (objective - optimum) / max(objective, 1e-5). grad_norm: of the objective, in the
    variables that the penalty acts on. seconds: this problem's share of the solve.
    """

    coef: Float32
    intercept: Float32
    n_classes: int
    status: str
    separable: bool
    alpha_used: float
    grad_norm: float
    gap_bound: float
    objective: float
    iterations: int
    seconds: float

    def decision(self, x: npt.ArrayLike) -> FloatArray:
        """Logits [n, C] of rows x [n, d], computed in float64."""
        rows = np.asarray(x)
        if rows.ndim != 2 or rows.shape[1] != self.coef.shape[1]:
            raise InputError(
                f"this probe reads {self.coef.shape[1]} features per row, but the rows have shape "
                f"{rows.shape}: use the site and pool that it was trained on"
            )
        weights = self.coef.T.astype(np.float64)
        out = np.empty((len(rows), len(self.coef)))
        for start in range(0, len(rows), _CHUNK):
            out[start : start + _CHUNK] = rows[start : start + _CHUNK].astype(np.float64) @ weights
        return out + self.intercept

    def predict_proba(self, x: npt.ArrayLike) -> FloatArray:
        """Class probabilities [n, n_classes]."""
        return probabilities(self.decision(x))


def probabilities(logits: FloatArray) -> FloatArray:
    """Softmax of logits [n, C]; a single column is the log-odds of class 1."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    total: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return total


def fit_logistic(
    x: npt.NDArray[np.generic],
    problems: Sequence[LinearProblem],
    *,
    standardize: bool = True,
    tolerance: float = 3e-8,
    max_iterations: int = 5000,
    memory_limit_bytes: int = 1_500_000_000,
    device: str = "cpu",
) -> list[LinearFit]:
    """Fit all `problems` on x [n, d]; the results come in the order of the problems.

    x is never copied per problem and may be a memory map; working memory stays below about
    `memory_limit_bytes` beside it. Raises InputError for shapes or labels that do not fit, NaN or
    infinite values, and ResourceError when a single problem needs more memory than the limit.
    """
    x = np.asanyarray(x)
    check_matrix(x)
    for number, problem in enumerate(problems):
        _check_problem(number, problem, len(x))
    if not problems:
        return []
    weights, fold = _distinct([np.asarray(p.weight, np.float64) for p in problems])
    codes, task = _distinct(
        [np.where(np.asarray(p.weight, np.float64) > 0, p.y, 0).astype(np.int64) for p in problems]
    )
    alpha = [max(float(problem.alpha), ALPHA_FLOOR) for problem in problems]
    solver = Solver(
        x=x,
        codes=codes,
        weights=weights,
        task=task,
        fold=fold,
        n_classes=[problem.n_classes for problem in problems],
        alpha=alpha,
        standardize=standardize,
        options=Options(
            tolerance=tolerance,
            gap=0.7 * GAP,  # a margin, so that the proof seldom has to be tried twice
            floor=OBJECTIVE_FLOOR,
            max_iterations=max_iterations,
        ),
        memory=memory_limit_bytes,
        device=torch.device(device),
    )
    return [
        _fit(solved, problem.n_classes, a)
        for solved, problem, a in zip(solver.run(), problems, alpha, strict=True)
    ]


def _fit(solved: Solved, n_classes: int, alpha: float) -> LinearFit:
    proof = solved.proof
    status = "iteration_limit" if solved.stop == Stop.ITERATION_LIMIT else "line_search"
    return LinearFit(
        coef=solved.coef,
        intercept=solved.intercept.astype(np.float32),
        n_classes=n_classes,
        status="converged" if solved.proved else status,
        separable=proof.separable if proof else True,
        alpha_used=alpha,
        grad_norm=proof.grad_norm if proof else 0.0,
        gap_bound=proof.gap if proof else 0.0,
        objective=proof.objective if proof else 0.0,
        iterations=solved.iterations,
        seconds=solved.seconds,
    )


def _distinct(arrays: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], list[int]]:
    """The distinct arrays, stacked, and the number of each array among them."""
    seen: dict[bytes, int] = {}
    numbers = [seen.setdefault(array.tobytes(), len(seen)) for array in arrays]
    firsts = [numbers.index(number) for number in range(len(seen))]
    return np.stack([arrays[first] for first in firsts]), numbers


def check_matrix(x: npt.NDArray[np.generic]) -> None:
    """InputError naming the first row and feature that is NaN or infinite."""
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"the matrix must be [rows, features] and not empty: it is {x.shape}")
    for start in range(0, len(x), _CHUNK):
        part = np.asarray(x[start : start + _CHUNK]).astype(np.float64, copy=False)
        if np.isfinite(part.sum()):
            continue
        bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
        if len(bad):
            row = int(bad[0])
            column = int(np.flatnonzero(~np.isfinite(part[row]))[0])
            raise InputError(
                f"row {start + row} of the matrix holds {part[row, column]} in feature {column}: "
                "drop that row or re-extract it in float32"
            )


def _check_problem(number: int, problem: LinearProblem, n: int) -> None:
    y, weight = np.asarray(problem.y), np.asarray(problem.weight, dtype=np.float64)
    if y.shape != (n,) or weight.shape != (n,):
        raise InputError(
            f"problem {number}: y has shape {y.shape} and weight {weight.shape}, but the matrix "
            f"has {n} rows: give one label and one weight per row"
        )
    if y.dtype.kind not in "iu":
        raise InputError(f"problem {number}: y must hold integer class codes, not {y.dtype}")
    if problem.n_classes < 2:
        raise InputError(f"problem {number}: n_classes is {problem.n_classes}, must be at least 2")
    if not (np.isfinite(problem.alpha) and problem.alpha >= 0):
        raise InputError(f"problem {number}: alpha is {problem.alpha}, must be 0 or more")
    good = np.isfinite(weight) & (weight >= 0)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise InputError(f"problem {number}: weight of row {row} is {weight[row]}, must be >= 0")
    counted = weight > 0
    if not counted.any():
        raise InputError(f"problem {number}: every weight is 0, so there is nothing to train on")
    wrong = np.flatnonzero(counted & ((y < 0) | (y >= problem.n_classes)))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"problem {number}: y of row {row} is {y[row]}, but the class codes are "
            f"0 to {problem.n_classes - 1}"
        )
