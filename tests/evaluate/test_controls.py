from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.errors import InputError
from actstore.evaluate.controls import control_labels, majority_accuracy
from actstore.task import Task


def task_of(y, types, level="word") -> Task:
    y, types = np.asarray(y, dtype=np.int64), np.asarray(types, dtype=np.int64)
    n_classes = int(y.max()) + 1
    kind = "binary" if n_classes == 2 else "multiclass"
    rows = np.arange(len(y))
    item = rows.astype(np.int32) if level == "word" else None
    names = tuple(f"c{i}" for i in range(n_classes))
    return Task("words:t", "t", level, kind, names, y, rows, item, types)


items = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=80)


@given(items, st.integers(0, 100))
@settings(deadline=None)
def test_one_label_per_type_with_the_distribution_over_types(rows, seed):
    y = np.array([c for c, _ in rows])
    types = np.unique([t for _, t in rows], return_inverse=True)[1]
    n_types = int(types.max()) + 1
    task = task_of(y, types)
    if n_types < 2:
        with pytest.raises(InputError, match="1 distinct word forms"):
            control_labels(task, seed)
        return
    labels = control_labels(task, seed)
    assert labels.shape == y.shape
    assert labels.dtype == np.int64
    assert (labels == control_labels(task, seed)).all()
    per_type = np.full(n_types, -1)
    for kind, label in zip(types.tolist(), labels.tolist(), strict=True):
        assert per_type[kind] in (-1, label)
        per_type[kind] = label
    mass = np.zeros(task.n_classes)
    for kind in range(n_types):
        mass += np.bincount(y[types == kind], minlength=task.n_classes) / (types == kind).sum()
    dealt = np.bincount(per_type, minlength=task.n_classes)
    assert dealt.sum() == n_types
    assert dealt.sum() == pytest.approx(mass.sum())
    if n_types >= task.n_classes:
        assert dealt.min() >= 1
        assert (np.abs(dealt - mass) < 1 + (mass < 1).sum()).all()
    else:
        assert (np.abs(dealt - mass) < 1).all()


def test_distinct_texts_get_the_labels_shuffled():
    rng = np.random.default_rng(0)
    y = (rng.random(500) < 0.2).astype(np.int64)
    task = task_of(y, rng.permutation(500), level="example")
    labels = control_labels(task, 0)
    assert labels.sum() == y.sum()
    assert (labels != y).any()
    assert abs(np.corrcoef(labels, y)[0, 1]) < 0.15


def test_labels_depend_on_the_seed_and_not_on_the_true_label_of_the_type():
    task = task_of(np.arange(1000) % 4, np.arange(1000))
    drawn = [control_labels(task, seed) for seed in range(20)]
    assert len({labels.tobytes() for labels in drawn}) == 20
    agreement = np.mean([(labels == task.y).mean() for labels in drawn])
    assert abs(agreement - 0.25) < 0.02


def test_order_of_items_does_not_change_the_label_of_a_type():
    rng = np.random.default_rng(3)
    y, types = rng.integers(0, 3, 300), rng.integers(0, 40, 300)
    order = rng.permutation(300)
    straight = control_labels(task_of(y, types), 7)
    shuffled = control_labels(task_of(y[order], types[order]), 7)
    assert (straight[order] == shuffled).all()


def test_frequent_types_do_not_weigh_more():
    """99 items of one type with class 0, nine types with class 1: one type in ten gets class 0."""
    task = task_of([0] * 99 + [1] * 9, [0] * 99 + list(range(1, 10)))
    labels = control_labels(task, 0)
    assert len(np.unique(task.types[labels == 0])) == 1


def test_a_rare_class_is_never_lost():
    y = [0] * 99 + [1]
    types = list(range(20)) * 5
    for seed in range(10):
        assert set(control_labels(task_of(y, types), seed).tolist()) == {0, 1}


def test_texts_that_are_all_equal_have_no_control():
    with pytest.raises(InputError, match="1 distinct texts: a control task needs at least two"):
        control_labels(task_of([0, 1, 0], [0, 0, 0], level="example"), 0)


def test_majority_is_that_of_training():
    assert majority_accuracy(np.array([1, 1, 0]), np.array([0, 0, 0, 1])) == 0.25
    assert majority_accuracy(np.array([2, 1]), np.array([1, 2])) == 0.5  # the first of equals
    assert majority_accuracy(np.array([0, 1, 1]), np.array([0])) == 0.0


@pytest.mark.parametrize(("train", "test"), [([], [0]), ([0], [])])
def test_majority_needs_both_parts(train, test):
    with pytest.raises(InputError, match="majority baseline"):
        majority_accuracy(np.array(train, dtype=np.int64), np.array(test, dtype=np.int64))
