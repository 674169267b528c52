from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from actstore.errors import InputError
from actstore.evaluate.split import Split, make_split
from actstore.task import Task


def task_of(y, *, level="example", example=None) -> Task:
    y = np.asarray(y, dtype=np.int64)
    n = len(y)
    classes = tuple(f"c{i}" for i in range(int(y.max()) + 1))
    kind = "binary" if len(classes) == 2 else "multiclass"
    rows = np.arange(n) if example is None else np.asarray(example)
    item = np.zeros(n, np.int32) if level == "word" else None
    return Task("label", "label", level, kind, classes, y, rows, item, np.arange(n))


def check_partition(split: Split, n: int) -> None:
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(n))
    assert (np.diff(split.train) > 0).all()
    assert (np.diff(split.test) > 0).all()
    assert (split.folds[split.test] == -1).all()
    assert set(split.folds[split.train].tolist()) <= set(range(split.n_folds + 1))
    for fold in range(split.n_folds):
        assert split.validation(fold).any()
        assert not (split.training(fold) & split.validation(fold)).any()
        assert (np.flatnonzero(split.training(fold) | split.validation(fold)) == split.train).all()


def check_classes(split: Split, y: np.ndarray) -> None:
    assert len(np.unique(y[split.test])) >= 2
    for fold in range(split.n_folds):
        assert set(y[split.training(fold)].tolist()) == set(y[split.train].tolist())
    assert set(y[split.train].tolist()) == set(y.tolist())


@st.composite
def labels(draw):
    counts = draw(st.lists(st.integers(4, 40), min_size=2, max_size=5))
    y = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(draw(st.integers(0, 9))).permutation(y)


@given(labels(), st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.5]), st.integers(2, 6))
@settings(deadline=None)
def test_without_groups_the_split_is_stratified_within_one(y, seed, fraction, folds):
    counts = np.bincount(y)
    split = make_split(task_of(y), test_fraction=fraction, folds=folds, seed=seed)
    check_partition(split, len(y))
    check_classes(split, y)
    in_test = np.bincount(y[split.test], minlength=len(counts))
    if in_test.sum() > 2:  # below that, two classes come before the exact share
        assert (np.abs(in_test - counts * fraction) <= 1).all()
    trained = counts - in_test
    assert split.n_folds == min(folds, len(split.train))
    sizes = []
    for fold in range(split.n_folds):
        in_fold = np.bincount(y[split.validation(fold)], minlength=len(counts))
        assert (np.abs(in_fold - trained / split.n_folds) < 1).all()
        sizes.append(in_fold.sum())
    assert max(sizes) - min(sizes) <= 1


@st.composite
def grouped_labels(draw):
    """Every class in at least five groups, and any other items."""
    n_classes = draw(st.integers(2, 4))
    needed = [(c, g + draw(st.integers(0, 8))) for c in range(n_classes) for g in range(0, 45, 9)]
    others = st.tuples(st.integers(0, n_classes - 1), st.integers(0, 44))
    rows = needed + draw(st.lists(others, min_size=20, max_size=120))
    return np.array([c for c, _ in rows]), np.array([f"g{g}" for _, g in rows])


@given(grouped_labels())
@settings(max_examples=60, deadline=None)
def test_groups_are_never_divided(drawn):
    y, groups = drawn
    split = make_split(task_of(y), groups=groups)
    check_partition(split, len(y))
    check_classes(split, y)
    for group in np.unique(groups):
        assert len(np.unique(split.folds[groups == group])) == 1
    assert 0 < len(split.test) < 0.6 * len(y)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_same_arguments_same_split(seed):
    y = np.arange(60) % 3
    groups = np.arange(60) // 4
    for extra in ({}, {"groups": groups}):
        first, again = (make_split(task_of(y), seed=seed, **extra) for _ in range(2))
        assert (first.folds == again.folds).all()
        assert first.n_folds == again.n_folds
        other = make_split(task_of(y), seed=seed + 1, **extra)
        assert (first.folds != other.folds).any()


def test_names_of_groups_do_not_matter_only_their_order():
    y = np.arange(60) % 3
    groups = np.arange(60) // 4
    named = make_split(task_of(y), groups=np.array([f"group {g:02d}" for g in groups]))
    assert (named.folds == make_split(task_of(y), groups=groups).folds).all()


def test_groups_of_one_item_are_no_groups():
    y = np.random.default_rng(0).integers(0, 3, 200)
    names = np.random.default_rng(1).permutation(200)
    split = make_split(task_of(y), groups=names)
    counts = np.bincount(y)
    assert (np.abs(np.bincount(y[split.test]) - counts * 0.2) <= 1).all()
    plain = make_split(task_of(y), groups=np.arange(200))
    assert (plain.folds == make_split(task_of(y)).folds).all()


def test_words_are_grouped_by_example_unless_told_otherwise():
    example = np.repeat(np.arange(50), 4)
    y = np.random.default_rng(0).integers(0, 2, 200)
    task = task_of(y, level="word", example=example)
    split = make_split(task)
    assert not set(example[split.train].tolist()) & set(example[split.test].tolist())
    by_type = make_split(task, groups=np.arange(200) % 40)
    assert set(example[by_type.train].tolist()) & set(example[by_type.test].tolist())


@pytest.mark.parametrize(("power", "n_groups", "n"), [(1.1, 60, 3000), (1.2, 400, 6000)])
def test_groups_are_as_stratified_as_with_scikit_learn(power, n_groups, n):
    def distance(y: np.ndarray, test: np.ndarray) -> float:
        share, own = (np.bincount(c, minlength=3) / len(c) for c in (y, y[test]))
        return abs(len(test) / n - 0.2) + float(np.abs(own - share).max())

    ours, theirs = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        groups = np.sort(rng.zipf(power, n) % n_groups)
        y = (rng.random(n) + 0.4 * (groups % 3) > 0.9).astype(np.int64) + (groups % 7 == 0)
        ours.append(distance(y, make_split(task_of(y), groups=groups, seed=seed).test))
        oracle = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(y, y, groups)
        theirs += [distance(y, test) for _, test in oracle]
    assert np.mean(ours) < 1.1 * np.mean(theirs)
    assert np.mean(ours) < 0.025


def test_large_data_takes_less_than_a_second():
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 77, 25_000), rng.integers(0, 2000, 25_000)
    start = time.perf_counter()
    split = make_split(task_of(y), groups=groups)
    assert time.perf_counter() - start < 1
    assert abs(len(split.test) / 25_000 - 0.2) < 0.002
    assert np.abs(np.bincount(y[split.test]) / np.bincount(y) - 0.2).max() < 0.02
    sizes = np.bincount(split.folds[split.train])
    assert sizes.max() - sizes.min() < 30


def test_large_groups_reach_the_test_part_too():
    groups = np.repeat(np.arange(40), np.arange(40) + 1)
    y = np.arange(len(groups)) % 2
    largest = [groups[make_split(task_of(y), groups=groups, seed=s).test].max() for s in range(8)]
    assert np.mean(largest) > 30


def test_a_rare_class_stays_in_training_and_in_every_training_fold():
    y = np.array([0] * 50 + [1] * 50 + [2] * 2)
    split = make_split(task_of(y))
    assert (y[split.test] < 2).all()
    check_classes(split, y)
    groups = np.arange(102) // 2  # class 2 is in one group alone
    grouped = make_split(task_of(y), groups=groups)
    check_classes(grouped, y)
    assert (grouped.folds[100:] == grouped.n_folds).all()
    check_partition(grouped, len(y))


@pytest.mark.parametrize("seed", range(6))
def test_two_items_or_groups_of_each_class_stay_in_training(seed):
    y = np.array([0] * 30 + [1] * 30 + [2] * 3)
    split = make_split(task_of(y), test_fraction=0.6, seed=seed)
    assert np.bincount(y[split.train])[2] == 2
    assert split.folds.max() < split.n_folds  # nothing had to be pinned
    groups = np.array([*(np.arange(60) // 3), 20, 21, 22])
    grouped = make_split(task_of(y), test_fraction=0.9, seed=seed, groups=groups)
    trained = [len(np.unique(groups[grouped.train][y[grouped.train] == c])) for c in range(3)]
    assert min(trained) >= 2
    check_classes(grouped, y)


def test_small_classes_are_tested_where_half_an_item_is_due():
    y = np.repeat(np.arange(10), 3)
    split = make_split(task_of(y))
    assert np.bincount(y[split.test]).tolist() == [1] * 10


def test_the_test_part_has_the_size_asked_for():
    y = np.repeat(np.arange(4), 7)  # 1.4 of each class, 5.6 in all
    assert len(make_split(task_of(y)).test) == 6


@pytest.mark.parametrize("seed", range(6))
def test_a_fold_without_items_to_validate_is_left_out(seed):
    """Class 2 is a group of its own: whatever fold it comes to, it must train."""
    y = np.array([0, 0, 1, 1] * 5 + [2] * 4)
    split = make_split(task_of(y), groups=np.arange(24) // 4, seed=seed)
    assert split.n_folds == 4
    assert (split.folds[20:] == 4).all()
    check_partition(split, 24)
    check_classes(split, y)


def test_filling_up_the_test_part_leaves_two_groups_for_training():
    y = np.array([0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3])
    split = make_split(task_of(y), groups=groups, test_fraction=0.05)
    assert set(groups[split.test].tolist()) == {0, 3}


def test_fewer_groups_than_folds_give_fewer_folds():
    y = np.arange(40) % 2
    split = make_split(task_of(y), groups=np.arange(40) // 10)
    assert split.n_folds == 3
    check_partition(split, 40)
    check_classes(split, y)


def test_groups_of_one_class_each():
    """The test part must not end with one class, although one group is larger than its share."""
    y = np.repeat([0, 1], 30)
    split = make_split(task_of(y), groups=np.arange(60) // 10, test_fraction=0.1)
    assert set(y[split.test].tolist()) == {0, 1}
    assert len(split.test) == 20
    check_classes(split, y)
    check_partition(split, 60)


@pytest.mark.parametrize(
    ("y", "groups", "message"),
    [
        ([0, 0, 1, 1], None, "class 'c0' has 2 items, too few for training folds"),
        ([0] * 50 + [1], None, "class 'c1' has 1 items, too few for a test part"),
        ([0] * 30 + [1] * 30, [0] * 60, "class 'c0' has 30 items in 1 groups, too few for a test"),
        ([0] * 30 + [1] * 20, [0, 1, 2] * 10 + [3] * 20, "class 'c1' has 20 items in 1 groups"),
        ([0] * 30 + [1] * 20, [0, 1, 2] * 10 + [3, 4] * 10, "'c1' has 20 items in 2 groups"),
    ],
)
def test_what_cannot_be_split_names_the_class(y, groups, message):
    with pytest.raises(InputError, match=message):
        make_split(task_of(y), groups=None if groups is None else np.array(groups))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_fraction": 0.0}, "test fraction 0.0 is not between 0 and 1"),
        ({"test_fraction": 1.0}, "test fraction 1.0"),
        ({"folds": 1}, "1 folds cannot be cross-validated"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"groups": np.zeros(3)}, r"groups have shape \(3,\): expected one per item, \(40,\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        make_split(task_of(np.arange(40) % 2), **arguments)
