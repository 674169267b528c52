"""How the problems that share a matrix are grouped, solved and brought back to raw features.

Problems go together when they share a basis and a number of classes, as many at once as memory
allows. A problem whose training rows scale the features very differently from the others gets a
basis of its own, because no shared scaling would be accurate for both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actstore.errors import ResourceError
from actstore.probes.basis import Basis, Moments, Rows, build_basis, measure
from actstore.probes.batch import Block, Certificate, LogisticBatch, Setup
from actstore.probes.lbfgs import Options, Stop, minimise

__all__ = ["ABSENT_LOGIT", "Solved", "Solver"]

ABSENT_LOGIT = -50.0  # reported intercept, below the largest one, of a class without training rows
_RATIO_LIMIT = 8.0  # own sd against shared sd, beyond which a fit gets a basis of its own
_MAX_BLOCKS = 64
_SHORTEST_BLOCK = 128

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Solved:
    """coef float32 [outputs, d] and intercept float64 [outputs] for features as given; proof is
    None for a problem with a single class, whose answer needs no solver."""

    coef: npt.NDArray[np.float32]
    intercept: FloatArray
    proof: Certificate | None
    proved: bool
    stop: Stop
    iterations: int
    seconds: float


@dataclass(frozen=True)
class Solver:
    """codes [T, n] and weights [F, n] are the distinct labels and weights of the M problems;
    task, fold [M] number them; n_classes, alpha [M]."""

    x: npt.NDArray[np.generic]
    codes: IntArray
    weights: FloatArray
    task: Sequence[int]
    fold: Sequence[int]
    n_classes: Sequence[int]
    alpha: Sequence[float]
    standardize: bool
    options: Options
    memory: int
    device: torch.device

    def run(self) -> list[Solved]:
        """One result per problem, in order."""
        done: dict[int, Solved] = {}
        folds = list(range(len(self.weights)))
        rows, weights, moments = self._shared(folds)
        apart = [f for f in folds if _differs(moments, f)]
        together = [f for f in folds if f not in apart]
        if apart and together:
            rows, weights, moments = self._shared(together)
        if together:
            self._solve_on(rows, weights, moments, together, done)
        for f in apart:
            self._solve_on(*self._shared([f]), [f], done)
        return [done[m] for m in range(len(self.task))]

    def _shared(self, folds: list[int]) -> tuple[Rows, FloatArray, Moments]:
        """The rows that any of these weight vectors uses, ordered by which of them do; the weight
        vectors on those rows, each summing to one; statistics."""
        used = self.weights[folds] > 0
        index = np.flatnonzero(used.any(axis=0))
        index = index[np.lexsort(used[::-1][:, index])]
        weights = self.weights[folds][:, index]
        weights /= weights.sum(axis=1, keepdims=True)
        rows = Rows(self.x, index, self.device)
        return rows, weights, measure(rows, weights, standardize=self.standardize)

    def _solve_on(
        self,
        rows: Rows,
        weights: FloatArray,
        moments: Moments,
        folds: list[int],
        done: dict[int, Solved],
    ) -> None:
        size = 4 * len(rows) * self.x.shape[1]
        began = time.perf_counter()
        basis = build_basis(rows, moments, resident=size <= self.memory // 2)
        mine = [m for m in range(len(self.task)) if self.fold[m] in folds]
        share = (time.perf_counter() - began) / len(mine)
        mine.sort(key=lambda m: (self.n_classes[m], self.fold[m], m))
        blocks = _blocks(weights)
        free = self.memory - (size if basis.matrix is not None else 0)
        for group in self._groups(mine, len(basis.sigma), free):
            began = time.perf_counter()
            setup = self._setup(basis, weights, folds, group, blocks)
            state = _solve_group(basis, setup, self.options, resident=2 * size <= free)
            results = _to_raw(setup, state, self.x.shape[1])
            spent = time.perf_counter() - began
            for row, m in enumerate(group):
                part = spent * state.evaluations[row] / sum(state.evaluations)
                done[m] = replace(results[row], seconds=share + part)

    def _groups(self, mine: list[int], rank: int, free: int) -> list[list[int]]:
        """Problems of one number of classes, as many together as fit in `free` bytes."""
        vectors = 2 * self.options.history + 10
        groups: list[list[int]] = []
        used = 0
        for m in mine:
            outputs = 1 if self.n_classes[m] == 2 else self.n_classes[m]
            need = 4 * vectors * outputs * (rank + 1) + 16 * outputs**2
            turn = 4 * rank * rank if self.standardize else 0
            if need + turn > free:
                raise ResourceError(
                    f"one fit with {self.n_classes[m]} classes on {rank} dimensions needs "
                    f"{(need + turn) / 1e9:.2f} GB beside the matrix, {max(free, 0) / 1e9:.2f} GB "
                    "are left: raise memory_limit_bytes"
                )
            last = groups[-1][-1] if groups else m
            cost = need + (turn if last == m or self.fold[last] != self.fold[m] else 0)
            if groups and self.n_classes[last] == self.n_classes[m] and used + cost <= free:
                groups[-1].append(m)
                used += cost
            else:
                groups.append([m])
                used = need + turn
        return groups

    def _setup(
        self,
        basis: Basis,
        weights: FloatArray,
        folds: list[int],
        group: list[int],
        blocks: list[Block],
    ) -> Setup:
        tasks = sorted({self.task[m] for m in group})
        n_classes = self.n_classes[group[0]]
        labels = self.codes[tasks][:, basis.rows.index]
        task = [tasks.index(self.task[m]) for m in group]
        fold = [folds.index(self.fold[m]) for m in group]
        present = np.zeros((len(group), n_classes), dtype=bool)
        for row, (t, f) in enumerate(zip(task, fold, strict=True)):
            present[row, labels[t][weights[f] > 0]] = True
        return Setup(
            outputs=1 if n_classes == 2 else n_classes,
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights),
            task=torch.tensor(task),
            fold=torch.tensor(fold),
            alpha=torch.tensor([self.alpha[m] for m in group], dtype=torch.float64),
            present=torch.from_numpy(present),
            blocks=blocks,
        )


class _State:
    """Where each of a group's problems stands; rows are positions in the group."""

    def __init__(self, size: int) -> None:
        self.theta = torch.empty(0)
        self.batches: list[LogisticBatch | None] = [None] * size
        self.stop = [Stop.CONVERGED] * size
        self.iterations = [0] * size
        self.evaluations = [1] * size

    def advance(self, batch: LogisticBatch, which: Tensor, options: Options) -> None:
        """Minimise problems `which` from where they stand, and prove how far they got."""
        outcome = minimise(batch, self.theta[which].to(batch.basis.dtype), which, options)
        rest = [at for at, stop in enumerate(outcome.stop) if stop != Stop.CONVERGED]
        if rest:
            batch.confirm(outcome.theta[rest], outcome.gradient[rest], which[rest])
        self.theta[which] = outcome.theta.double()
        for at, row in enumerate(which.tolist()):
            self.batches[row] = batch
            self.stop[row] = outcome.stop[at]
            self.iterations[row] += outcome.iterations[at]
            self.evaluations[row] += outcome.evaluations[at]


def _solve_group(basis: Basis, setup: Setup, options: Options, *, resident: bool) -> _State:
    state = _State(len(setup.alpha))
    which = torch.nonzero(setup.present.sum(1) > 1).flatten()
    if not len(which):
        return state
    batch = LogisticBatch(basis, setup)
    state.theta = batch.start().double()
    state.advance(batch, which, options)
    hard = [row for row in which.tolist() if state.stop[row] == Stop.STALLED]
    if hard:  # float32 rounding hides the last of the descent: go on from there in float64
        batch = LogisticBatch(basis.in_float64(resident=resident), setup)
        left = options.max_iterations - max(state.iterations[row] for row in hard)
        strict = replace(options, noise=1e-14, max_iterations=max(left, 1))
        state.advance(batch, torch.tensor(hard), strict)
    return state


def _to_raw(setup: Setup, state: _State, d: int) -> list[Solved]:
    """Results of a group for features as given; `seconds` is filled in by the caller."""
    results: dict[int, Solved] = {}
    batches = {id(batch): batch for batch in state.batches if batch is not None}
    for batch in batches.values():
        for number, transform in batch.transforms.items():
            rows = [
                row
                for row, own in enumerate(state.batches)
                if own is batch and int(setup.fold[row]) == number
            ]
            if not rows:
                continue
            weights = batch.split(state.theta[rows])[0]
            coefs = transform.raw(weights.flatten(0, 1)).reshape(len(rows), setup.outputs, d)
            for row, coef in zip(rows, coefs, strict=True):
                proof = batch.proofs[row]
                # from the rounded coefficients: their rounding is not multiplied by the mean
                mean = batch.basis.moments.mean
                intercept = proof.intercept.cpu().numpy() - coef.astype(np.float64) @ mean
                results[row] = Solved(
                    coef=coef,
                    intercept=_presentable(intercept, setup.present[row].numpy()),
                    proof=proof,
                    proved=proof.gap <= float(batch.target[row]),
                    stop=state.stop[row],
                    iterations=state.iterations[row],
                    seconds=0.0,
                )
    for row in range(len(state.batches)):
        if row not in results:  # a single class
            lone = np.where(setup.present[row].numpy(), 0.0, ABSENT_LOGIT)
            bias = lone[1:] - lone[:1] if setup.outputs == 1 else lone
            coef = np.zeros((setup.outputs, d), np.float32)
            results[row] = Solved(coef, bias, None, True, Stop.CONVERGED, 0, 0.0)
    return [results[row] for row in range(len(state.batches))]


def _presentable(intercept: FloatArray, present: npt.NDArray[np.bool_]) -> FloatArray:
    """Multinomial intercepts centred, since softmax ignores a shift, and finite when absent."""
    if len(intercept) == 1:
        return intercept
    centred = intercept - intercept[present].mean()
    shown: FloatArray = np.where(present, centred, centred[present].max() + ABSENT_LOGIT)
    return shown


def _differs(moments: Moments, fold: int) -> bool:
    ratio = moments.ratio(fold)[~moments.own_constant[fold]]
    return bool(len(ratio) and (ratio.max() > _RATIO_LIMIT or ratio.min() < 1 / _RATIO_LIMIT))


def _blocks(weights: FloatArray) -> list[Block]:
    """Runs of rows that the same weight vectors use; one run for all when they are too short."""
    used = weights > 0
    n = used.shape[1]
    edges = (np.flatnonzero((used[:, 1:] != used[:, :-1]).any(axis=0)) + 1).tolist()
    if len(edges) >= _MAX_BLOCKS or n < _SHORTEST_BLOCK * (len(edges) + 1):
        return [Block(0, n, torch.ones(len(weights), dtype=torch.bool))]
    return [
        Block(start, stop, torch.from_numpy(used[:, start].copy()))
        for start, stop in zip([0, *edges], [*edges, n], strict=True)
    ]
