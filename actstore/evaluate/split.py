"""Train, test and fold assignment: stratified by class, and never through a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore.errors import InputError
from actstore.task import Task

__all__ = ["Split", "make_split"]

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

_STREAM = 1  # keeps the random numbers of the split apart from those of the controls


@dataclass(frozen=True)
class Split:
    """Which items train, test and validate.

    `train` and `test` int64 are sorted item numbers; together they are all items. `folds` int64
    [n_items] is -1 for test items, the fold 0 to `n_folds` - 1 that validates the item, or
    `n_folds` for the few items that train in every fold because their class would otherwise be
    missing from one. `n_folds` is smaller than asked for where there are not enough items.
    """

    train: Int64
    test: Int64
    folds: Int64
    n_folds: int

    def training(self, fold: int) -> Bool:
        """bool [n_items]: what a probe of this fold is fitted on."""
        chosen: Bool = (self.folds >= 0) & (self.folds != fold)
        return chosen

    def validation(self, fold: int) -> Bool:
        """bool [n_items]: what it is scored on; never empty."""
        chosen: Bool = self.folds == fold
        return chosen


@dataclass(frozen=True)
class _Cells:
    """Items per group and class as a sparse table of groups times (classes + 1).

    The entries of group g are `start[g]:start[g + 1]`; the last of each group has column
    n_classes and counts all of its items.
    """

    group: Int64
    column: Int64
    count: Float64
    start: Int64
    n_classes: int

    @property
    def size(self) -> Float64:
        return self.count[self.start[1:] - 1]

    def groups_per_class(self) -> Int64:
        return np.bincount(self.column, minlength=self.n_classes + 1)[:-1]


def make_split(
    task: Task,
    *,
    test_fraction: float = 0.2,
    folds: int = 5,
    seed: int = 0,
    groups: npt.NDArray[Any] | None = None,
) -> Split:
    """Split a task's items into train and test, and the training part into folds.

    `groups` [n_items] of numbers or text: items with equal values stay together. A word task is
    grouped by example unless told otherwise. Without groups each class's share of the test part
    is within one item of `test_fraction`, and each class's share of a fold within one item of an
    equal share. With groups a greedy assignment, large groups first, keeps Pearson's chi-square
    distance from those shares small. At least two items (or groups) of each class stay in
    training, so that each fold can train on every class.

    Deterministic in its arguments. Raises InputError where no part with two classes can be held
    out, naming the class that is too rare.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test fraction {test_fraction} is not between 0 and 1")
    if folds < 2:
        raise InputError(f"{folds} folds cannot be cross-validated: use at least 2")
    if seed < 0:
        raise InputError(f"seed {seed} is negative: use 0 or more")
    y = task.y
    if groups is None and task.level == "word":
        groups = task.example
    codes = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if codes.shape != y.shape:
        raise InputError(f"groups have shape {codes.shape}: expected one per item, {y.shape}")
    cells = _make_cells(codes, y, task.n_classes)
    alone = len(cells.size) == len(y)
    rng = np.random.default_rng([seed, _STREAM])
    held = np.zeros(0, np.bool_)
    for keep in (2, 1):
        held = _hold_out(cells, y, codes, test_fraction, keep, rng, alone=alone)
        if len(np.unique(y[held[codes]])) >= 2:
            break
    else:
        raise _too_rare(task, cells, "a test part with two classes", alone=alone)
    fold, n_folds = _deal(cells, y, codes, held, folds, rng, alone=alone)
    folds_of_items = fold[codes]
    if n_folds < 2 or len(np.unique(y[(folds_of_items >= 0) & (folds_of_items < n_folds)])) < 2:
        raise _too_rare(task, cells, "training folds with two classes", alone=alone)
    test = folds_of_items < 0
    return Split(np.flatnonzero(~test), np.flatnonzero(test), folds_of_items, n_folds)


def _make_cells(codes: Int64, y: Int64, n_classes: int) -> _Cells:
    width = n_classes + 1
    key, count = np.unique(
        np.concatenate([codes * width + y, codes * width + n_classes]), return_counts=True
    )
    group = key // width
    n_groups = int(group[-1]) + 1
    start = np.searchsorted(group, np.arange(n_groups + 1))
    return _Cells(group, key % width, count.astype(np.float64), start, n_classes)


def _hold_out(
    cells: _Cells,
    y: Int64,
    codes: Int64,
    fraction: float,
    keep: int,
    rng: np.random.Generator,
    *,
    alone: bool,
) -> Bool:
    """bool [n_groups]: the test part; `keep` groups of each class are left for training."""
    spare = np.maximum(cells.groups_per_class() - keep, 0)
    if alone:
        quota = _test_quota(cells.groups_per_class(), fraction, spare)
        order, place = _shuffle_within_class(y, rng)
        held = np.zeros(len(y), np.bool_)
        held[codes[order[place < quota[y[order]]]]] = True
        return _top_up(cells, held, spare - quota)
    share = np.array([[1 - fraction], [fraction]])
    bin_of_group = _assign_greedily(cells, np.arange(len(cells.size)), share, rng, spare)
    return _top_up(cells, bin_of_group == 1, spare)


def _top_up(cells: _Cells, held: Bool, spare: Int64) -> Bool:
    """Small data: a test part with one class or none gets the smallest groups that training can
    spare until it has two."""
    in_class = cells.column < cells.n_classes
    group, column = cells.group[in_class], cells.column[in_class]
    while True:
        tested = np.unique(column[held[group]])
        if len(tested) >= 2:
            return held
        useful = np.setdiff1d(group[~np.isin(column, tested)], group[spare[column] <= 0])
        if len(useful) == 0:
            return held
        chosen = useful[np.argmin(cells.size[useful])]
        held[chosen] = True
        spare[column[group == chosen]] -= 1


def _test_quota(counts: Int64, fraction: float, spare: Int64) -> Int64:
    """Test items per class, at most `spare`: one at least where half an item or more is due,
    then by largest remainder."""
    due = counts * fraction
    quota: Int64 = np.maximum(np.floor(due), due >= 0.5).astype(np.int64)
    quota = np.minimum(quota, spare)
    rest = np.where(quota < spare, due - quota, 0.0)
    left = round(float(due.sum())) - int(quota.sum())
    for c in np.argsort(-rest, kind="stable")[: max(left, 0)]:
        quota[c] += rest[c] > 0
    return quota


def _shuffle_within_class(y: Int64, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Items in random order, class after class, and each one's place within its class."""
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    return order, np.arange(len(y)) - (np.cumsum(counts) - counts)[y[order]]


def _assign_greedily(
    cells: _Cells,
    members: Int64,
    share: Float64,
    rng: np.random.Generator,
    spare: Int64 | None = None,
) -> Int64:
    """Bin per group, int64 [n_groups] (-1 outside `members`).

    Each group goes where it lowers sum (have - target)^2 / target over bins and columns most.
    `share` [n_bins, 1] is each bin's part of every column. Groups are placed from large to small,
    in random order among sizes within a factor of 1.4, so that seeds differ. `spare` [n_classes],
    changed in place, counts how many groups of each class may still enter bin 1.
    """
    bins = np.full(len(cells.size), -1, dtype=np.int64)
    inside = np.zeros(len(cells.size), np.bool_)
    inside[members] = True
    used = inside[cells.group]
    total = np.bincount(
        cells.column[used], weights=cells.count[used], minlength=cells.n_classes + 1
    )
    target = share * np.maximum(total, 1)
    excess = -target  # have - target
    scale = np.floor(2 * np.log2(cells.size[members]))
    for group in members[np.lexsort((rng.permutation(len(members)), -scale))].tolist():
        at = slice(cells.start[group], cells.start[group + 1])
        column, count = cells.column[at], cells.count[at]
        if spare is not None and spare[column[:-1]].min() <= 0:
            chosen = 0
        else:
            cost = ((2 * excess[:, column] + count) * count / target[:, column]).sum(axis=1)
            chosen = int(np.argmin(cost))
        excess[chosen, column] += count
        bins[group] = chosen
        if spare is not None and chosen == 1:
            spare[column[:-1]] -= 1
    return bins


def _deal(
    cells: _Cells,
    y: Int64,
    codes: Int64,
    held: Bool,
    folds: int,
    rng: np.random.Generator,
    *,
    alone: bool,
) -> tuple[Int64, int]:
    """Fold per group, int64 [n_groups] (-1 test, 0 to K - 1, K = trains always), and K."""
    members = np.flatnonzero(~held)
    folds = min(folds, max(len(members), 1))
    if alone:
        fold = np.full(len(y), -1, dtype=np.int64)
        order, _ = _shuffle_within_class(y, rng)
        order = order[~held[codes[order]]]
        # dealt on from class to class, so that fold sizes too differ by one at most
        fold[codes[order]] = np.arange(len(order)) % folds
    else:
        fold = _assign_greedily(cells, members, np.full((folds, 1), 1 / folds), rng)
    classes = (cells.column < cells.n_classes) & ~held[cells.group]
    group, column = cells.group[classes], cells.column[classes]
    seen = np.zeros((folds, cells.n_classes), np.bool_)
    seen[fold[group], column] = True
    for c in np.flatnonzero(seen.sum(axis=0) == 1):
        of_class = group[column == c]
        fold[of_class[np.argmin(cells.size[of_class])]] = folds
    # number the folds that still validate something 0, 1, ...
    filled = np.unique(fold[(fold >= 0) & (fold < folds)])
    number = np.full(folds + 2, -1, dtype=np.int64)  # the last entry serves fold -1
    number[filled] = np.arange(len(filled))
    number[folds] = len(filled)
    return number[fold], len(filled)


def _too_rare(task: Task, cells: _Cells, wanted: str, *, alone: bool) -> InputError:
    groups = cells.groups_per_class()
    items = np.bincount(task.y, minlength=task.n_classes)
    rarest = int(np.lexsort((items, groups))[0])
    held_in = "" if alone else f" in {groups[rarest]} groups"
    remedy = "add examples or drop the class" + ("" if alone else ", or group by another column")
    return InputError(
        f"task {task.spec!r}: class {task.classes[rarest]!r} has {items[rarest]} items{held_in}, "
        f"too few for {wanted}: {remedy}"
    )
