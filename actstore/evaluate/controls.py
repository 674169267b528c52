"""Controls: what accuracy is worth without the information that a probe claims to find."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actstore.errors import InputError
from actstore.task import Task

__all__ = ["control_labels", "majority_accuracy"]

Int64 = npt.NDArray[np.int64]

_STREAM = 2  # random numbers apart from those of splits


def control_labels(task: Task, seed: int) -> Int64:
    """Labels int64 [n_items] of a control task (Hewitt and Liang 2019): one random label per
    type (word form, or distinct text), so that only memory of the type can predict it.

    Labels follow the empirical distribution of labels over types, where a type with several
    labels counts as a fraction of a type for each. They are dealt without replacement: class
    counts over types equal that distribution up to rounding, and every class is dealt at least
    once where there are as many types as classes. Deterministic in the task's types and `seed`.

    Raises InputError for a task with one type only, which has no control.
    """
    codes = np.unique(task.types, return_inverse=True)[1]
    n_types = int(codes.max(initial=-1)) + 1
    if n_types < 2:
        what = "word forms" if task.level == "word" else "texts"
        raise InputError(
            f"task {task.spec!r} has {n_types} distinct {what}: a control task needs at least two"
        )
    weight = 1.0 / np.bincount(codes)[codes]
    mass = np.bincount(task.y, weights=weight, minlength=task.n_classes)
    dealt = np.repeat(np.arange(task.n_classes), _quota(mass, n_types))
    np.random.default_rng([seed, _STREAM]).shuffle(dealt)
    return dealt[codes]


def _quota(mass: npt.NDArray[Any], total: int) -> Int64:
    """Whole numbers near `mass` (which sums to `total`) that sum to `total`: largest remainders,
    then at least one for each where `total` allows."""
    rounded = np.round(mass, 9)  # sums of fractions such as three thirds are whole again
    quota: Int64 = np.floor(rounded).astype(np.int64)
    quota[np.argsort(quota - rounded, kind="stable")[: total - int(quota.sum())]] += 1
    if total >= len(mass):
        for c in np.flatnonzero(quota == 0):
            quota[np.argmax(quota)] -= 1
            quota[c] = 1
    return quota


def majority_accuracy(y_train: npt.NDArray[np.int64], y_test: npt.NDArray[np.int64]) -> float:
    """Share of `y_test` [n] that has the most frequent class of `y_train`, the first of equals."""
    if len(y_train) == 0 or len(y_test) == 0:
        raise InputError("majority baseline: the training or the test part is empty")
    return float(np.mean(y_test == np.argmax(np.bincount(y_train))))
