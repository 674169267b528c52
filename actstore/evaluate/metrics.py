"""Metrics of classifiers from predicted probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore.errors import InputError

__all__ = [
    "Metrics",
    "accuracy_interval",
    "calibration_error",
    "evaluate",
    "log_loss",
    "macro_f1",
    "predicted_class",
    "roc_auc",
]

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

_STREAM = 3  # random numbers apart from those of splits and controls
_SMALLEST = float(np.finfo(np.float64).eps)
_N_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """What one fitted probe scores on one set of items.

    `accuracy_low` and `accuracy_high` bound the bootstrap interval of `accuracy`. `roc_auc` is
    None where fewer than two classes occur. `log_loss` is in nats.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    f1_macro: float
    roc_auc: float | None
    log_loss: float
    ece: float


def evaluate(
    y: npt.NDArray[np.integer[Any]],
    proba: npt.NDArray[np.floating[Any]],
    classes: Sequence[str],
    *,
    groups: npt.NDArray[Any] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Metrics:
    """Score probabilities `proba` [n, n_classes] against class codes `y` [n].

    A binary probe gives both columns. The predicted class is the one with the largest
    probability, the first of equals: for two classes that is a threshold at logit 0. `groups`
    [n]: items of one group are drawn together by the bootstrap. Raises InputError for no items,
    wrong shapes, codes out of range and rows that are not probabilities.
    """
    p = np.asarray(proba, dtype=np.float64)
    truth: Int64 = np.asarray(y, dtype=np.int64)
    _check(truth, p, classes)
    predicted = predicted_class(p)
    correct = predicted == truth
    low, high = accuracy_interval(
        correct, groups=groups, n_bootstrap=n_bootstrap, seed=seed, level=level
    )
    return Metrics(
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        f1_macro=macro_f1(truth, predicted),
        roc_auc=roc_auc(truth, p),
        log_loss=log_loss(truth, p),
        ece=calibration_error(correct, p.max(axis=1)),
    )


def predicted_class(proba: npt.NDArray[np.floating[Any]]) -> Int64:
    """int64 [n]: column of the largest probability, the first of equals."""
    columns: Int64 = np.argmax(proba, axis=1)
    return columns


def accuracy_interval(
    correct: Bool,
    *,
    groups: npt.NDArray[Any] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `correct` [n], over items or whole groups.

    The same distribution as drawing n items (or G groups) with replacement `n_bootstrap` times:
    groups with equal (items, correct items) are exchangeable, so that only how often each such
    kind is drawn matters, which is multinomial. Where all items are right, or all wrong, the
    interval has no width: a bootstrap cannot know better.
    """
    if groups is None:
        codes: Int64 = np.arange(len(correct))
    else:
        if len(groups) != len(correct):
            raise InputError(f"{len(groups)} groups for {len(correct)} items: expected one each")
        codes = np.unique(groups, return_inverse=True)[1]
    size, right = np.bincount(codes), np.bincount(codes, weights=correct)
    kinds, times = np.unique(np.stack([size, right], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng([seed, _STREAM])
    drawn = rng.multinomial(len(size), times / len(size), size=n_bootstrap) @ kinds
    outside = (1 - level) / 2
    low, high = np.quantile(drawn[:, 1] / drawn[:, 0], [outside, 1 - outside])
    return float(low), float(high)


def macro_f1(y: Int64, predicted: Int64) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN).

    Classes that are neither true nor predicted for any item do not count.
    """
    n_classes = int(max(y.max(), predicted.max())) + 1
    hits = np.bincount(y[y == predicted], minlength=n_classes)
    found = np.bincount(y, minlength=n_classes) + np.bincount(predicted, minlength=n_classes)
    occurs = found > 0
    return float(np.mean(2 * hits[occurs] / found[occurs]))


def roc_auc(y: Int64, proba: Float64) -> float | None:
    """Area under the ROC curve: the chance that an item of the class gets a larger probability
    than one of another class, ties counting half (Mann-Whitney U from midranks).

    Two columns: of class 1. More: the mean over the classes that occur, one against the rest.
    None where fewer than two classes occur.
    """
    counts = np.bincount(y, minlength=proba.shape[1])
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return None
    if proba.shape[1] == 2:
        present = present[1:]
    areas = []
    for c in present:
        ranked = np.sort(proba[:, c])
        own = proba[y == c, c]
        # a value's midrank, counted from 1, is the mean of the first and last place of its equals
        ranks = np.searchsorted(ranked, own, "left") + np.searchsorted(ranked, own, "right") + 1
        n_own, n_rest = int(counts[c]), len(y) - int(counts[c])
        areas.append((ranks.sum() / 2 - n_own * (n_own + 1) / 2) / (n_own * n_rest))
    return float(np.mean(areas))


def log_loss(y: Int64, proba: Float64) -> float:
    """Mean of -ln(probability of the true class), in nats.

    Probabilities below 2.2e-16 (the float64 epsilon) count as that, so that one certain mistake
    costs 36 nats and not infinity.
    """
    of_true = proba[np.arange(len(y)), y]
    return float(-np.log(np.clip(of_true, _SMALLEST, 1.0)).mean())


def calibration_error(correct: Bool, confidence: Float64) -> float:
    """Expected calibration error of the top label (Guo et al. 2017, equation 3).

    Items are put into 15 bins of equal width, each open on the left and closed on the right; the
    result is the mean over items of |accuracy - mean confidence| of the item's bin.
    """
    at = np.clip(np.ceil(confidence * _N_BINS).astype(np.int64) - 1, 0, _N_BINS - 1)
    gap = np.bincount(at, weights=correct - confidence, minlength=_N_BINS)
    return float(np.abs(gap).sum() / len(correct))


def _check(y: Int64, p: Float64, classes: Sequence[str]) -> None:
    if len(y) == 0:
        raise InputError("no items to score: the test part is empty")
    if y.ndim != 1 or p.shape != (len(y), len(classes)):
        raise InputError(
            f"probabilities have shape {p.shape}: expected ({len(y)}, {len(classes)}), "
            "one row per item and one column per class"
        )
    if y.min() < 0 or y.max() >= len(classes):
        raise InputError(
            f"class codes reach from {y.min()} to {y.max()}: expected 0 to {len(classes) - 1}"
        )
    wrong = ~(np.abs(p.sum(axis=1) - 1) < 1e-3) | (p.min(axis=1) < 0)
    if wrong.any():
        raise InputError(
            f"item {np.argmax(wrong)} has no valid probabilities ({np.count_nonzero(wrong)} of "
            f"{len(y)} items): each row must be finite, not negative, and sum to 1"
        )
