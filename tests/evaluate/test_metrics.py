from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from actstore.errors import InputError
from actstore.evaluate.metrics import (
    accuracy_interval,
    calibration_error,
    evaluate,
    log_loss,
    macro_f1,
    predicted_class,
    roc_auc,
)


def names(n: int) -> tuple[str, ...]:
    return tuple(f"c{i}" for i in range(n))


def scored(n: int, n_classes: int, seed: int, *, decimals: int | None = None):
    """Random items that lean to the truth; few decimals make ties."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[y]
    if decimals is not None:
        logits = np.round(logits, decimals)
    p = np.exp(logits)
    return y, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("n_classes", [2, 3, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_metric_equals_scikit_learn(n_classes, decimals, seed):
    y, p = scored(400, n_classes, seed, decimals=decimals)
    ours = evaluate(y, p, names(n_classes), seed=seed)
    predicted = p.argmax(axis=1)
    assert ours.accuracy == pytest.approx(oracle.accuracy_score(y, predicted), abs=1e-12)
    assert ours.f1_macro == pytest.approx(oracle.f1_score(y, predicted, average="macro"))
    assert ours.log_loss == pytest.approx(oracle.log_loss(y, p), rel=1e-12)
    score = p[:, 1] if n_classes == 2 else p
    expected = oracle.roc_auc_score(y, score, multi_class="ovr", average="macro")
    assert ours.roc_auc == pytest.approx(expected, abs=1e-12)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=40).filter(
        lambda rows: len({y for y, _ in rows}) == 2
    )
)
@settings(deadline=None)
def test_binary_area_counts_ties_half(rows):
    y = np.array([int(label) for label, _ in rows])
    score = np.array([s / 4 for _, s in rows])
    p = np.stack([1 - score, score], axis=1)
    own, rest = score[y == 1], score[y == 0]
    pairs = (own[:, None] > rest).mean() + 0.5 * (own[:, None] == rest).mean()
    assert roc_auc(y, p) == pytest.approx(pairs, abs=1e-12)
    assert roc_auc(y, p) == pytest.approx(oracle.roc_auc_score(y, score), abs=1e-12)


def test_area_of_equal_scores_is_a_half_and_not_zero_or_one():
    p = np.full((10, 2), 0.5)
    assert roc_auc(np.array([0] * 3 + [1] * 7), p) == 0.5


def test_classes_that_do_not_occur_do_not_count():
    y, p = scored(300, 5, 3)
    keep = (y != 2) & (y != 4)
    y, p = y[keep], p[keep]
    ours = evaluate(y, p, names(5))
    each = [oracle.roc_auc_score(y == c, p[:, c]) for c in (0, 1, 3)]
    assert ours.roc_auc == pytest.approx(np.mean(each))
    predicted = p.argmax(axis=1)
    assert 2 in predicted  # a class that is predicted wrongly does count for F1
    expected = oracle.f1_score(y, predicted, average="macro", zero_division=0)
    assert ours.f1_macro == pytest.approx(expected)
    assert ours.log_loss == pytest.approx(oracle.log_loss(y, p, labels=range(5)))


@pytest.mark.parametrize("n_classes", [2, 4])
def test_one_class_has_no_area(n_classes):
    p = np.full((6, n_classes), 1 / n_classes)
    result = evaluate(np.zeros(6, np.int64), p, names(n_classes))
    assert result.roc_auc is None
    assert result.accuracy == 1.0


def test_the_threshold_is_logit_zero():
    """Logits thresholded at 0.5 would call the second and third item wrong."""
    logits = np.array([-2.0, 0.2, 0.4, 3.0, 0.0])
    p1 = 1 / (1 + np.exp(-logits))
    p = np.stack([1 - p1, p1], axis=1)
    assert predicted_class(p).tolist() == [0, 1, 1, 1, 0]
    assert evaluate(np.array([0, 1, 1, 1, 0]), p, names(2)).accuracy == 1.0


def test_f1_by_hand():
    y, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 3])
    # class 0: 2/(2+0+1), class 1: 4/(4+1+1), class 3: 0; class 2 does not occur
    assert macro_f1(y, predicted) == pytest.approx((2 / 3 + 4 / 6 + 0) / 3)


def test_one_certain_mistake_has_a_finite_loss():
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert log_loss(np.array([1, 1]), p) == pytest.approx(-np.log(2.0**-52) / 2)
    assert log_loss(np.array([0, 1]), p) == 0.0
    assert log_loss(np.array([1, 1]), p) == pytest.approx(oracle.log_loss([1, 1], p, labels=[0, 1]))


def slow_calibration_error(correct, confidence):
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


@given(st.integers(0, 10_000), st.integers(1, 200))
@settings(deadline=None)
def test_calibration_error_equals_its_definition(seed, n):
    rng = np.random.default_rng(seed)
    confidence, correct = 1 - rng.random(n), rng.random(n) < 0.6
    expected = slow_calibration_error(correct, confidence)
    assert calibration_error(correct, confidence) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_known_cases():
    assert calibration_error(np.ones(5, bool), np.ones(5)) == 0.0
    assert calibration_error(np.zeros(5, bool), np.ones(5)) == 1.0
    rng = np.random.default_rng(0)
    confidence = 0.5 + rng.random(200_000) / 2
    assert calibration_error(rng.random(200_000) < confidence, confidence) < 0.01
    # opposite gaps in different bins do not cancel
    correct = np.array([True, True, False, False])
    assert calibration_error(correct, np.array([0.5, 0.5, 0.9, 0.9])) == pytest.approx(0.7)


def test_interval_covers_a_known_rate():
    """95 % of the 95 % intervals hold the true rate, here within sampling error of 400 trials."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        low, high = accuracy_interval(rng.random(200) < 0.7, n_bootstrap=400, seed=trial)
        held += low <= 0.7 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_interval_equals_the_direct_bootstrap():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 60, 500)
    correct = rng.random(500) < 0.3 + 0.6 * (groups % 2)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]

    def direct(cluster: bool) -> np.ndarray:
        drawn = []
        for _ in range(4000):
            if cluster:
                chosen = np.concatenate(
                    [members[g] for g in rng.integers(0, len(members), len(members))]
                )
            else:
                chosen = rng.integers(0, 500, 500)
            drawn.append(correct[chosen].mean())
        return np.quantile(drawn, [0.025, 0.975])

    for given_groups in (None, groups):
        ours = accuracy_interval(correct, groups=given_groups, n_bootstrap=20_000)
        assert ours == pytest.approx(direct(given_groups is not None), abs=0.008)


def test_items_that_agree_within_groups_widen_the_interval():
    groups = np.repeat(np.arange(20), 50)
    correct = groups % 4 != 0
    low, high = accuracy_interval(correct)
    low_g, high_g = accuracy_interval(correct, groups=np.array([f"doc{g}" for g in groups]))
    assert high_g - low_g > 3 * (high - low)
    assert low_g < 0.75 < high_g


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.sampled_from([0.5, 0.9, 0.99]))
def test_interval_is_deterministic_and_nested(seed, level):
    correct = np.random.default_rng(seed).random(80) < 0.8
    narrow = accuracy_interval(correct, level=level, seed=seed)
    assert narrow == accuracy_interval(correct, level=level, seed=seed)
    wide = accuracy_interval(correct, level=0.999, seed=seed)
    assert 0 <= wide[0] <= narrow[0] <= narrow[1] <= wide[1] <= 1


def test_interval_reaches_the_result():
    y, p = scored(300, 2, 5)
    groups = np.arange(300) // 30
    result = evaluate(y, p, names(2), groups=groups, seed=4, level=0.8, n_bootstrap=500)
    correct = p.argmax(axis=1) == y
    expected = accuracy_interval(correct, groups=groups, seed=4, level=0.8, n_bootstrap=500)
    assert (result.accuracy_low, result.accuracy_high) == expected
    assert result.accuracy_low < result.accuracy < result.accuracy_high


def test_float32_probabilities_and_small_codes_are_fine():
    y, p = scored(200, 3, 0)
    exact = evaluate(y, p, names(3))
    single = evaluate(y.astype(np.int8), p.astype(np.float32), names(3))
    assert single.accuracy == exact.accuracy
    assert single.log_loss == pytest.approx(exact.log_loss, rel=1e-5)


def test_many_items_and_classes_are_fast():
    y, p = scored(25_000, 77, 0)
    groups = np.random.default_rng(0).integers(0, 2000, 25_000)
    start = time.perf_counter()
    evaluate(y, p, names(77), groups=groups)
    assert time.perf_counter() - start < 1


P = np.array([[0.5, 0.5], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([], np.empty((0, 2)), "no items to score"),
        ([0, 1, 1], P, r"shape \(2, 2\): expected \(3, 2\)"),
        ([0, 1], P[:, :1], r"shape \(2, 1\)"),
        ([0, 2], P, "codes reach from 0 to 2: expected 0 to 1"),
        ([-1, 1], P, "from -1 to 1"),
        ([0, 1], np.array([[0.5, 0.5], [np.nan, 0.5]]), r"item 1 has no valid .*\(1 of 2 items\)"),
        ([0, 1], np.array([[np.inf, 0.5], [0.5, 0.5]]), "item 0"),
        ([0, 1], np.array([[2.0, -1.0], [0.5, 0.5]]), "item 0"),
        ([0, 1], np.array([[3.1, 0.4], [0.5, 0.5]]), "item 0"),  # logits
    ],
)
def test_bad_inputs(y, p, message):
    with pytest.raises(InputError, match=message):
        evaluate(np.array(y, dtype=np.int64), p, names(2))


def test_groups_must_be_one_per_item():
    with pytest.raises(InputError, match="3 groups for 2 items"):
        evaluate(np.array([0, 1]), P, names(2), groups=np.zeros(3))
