from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from actstore.errors import InputError, ResourceError
from actstore.probes import linear
from actstore.probes.linear import ALPHA_FLOOR, LinearFit, LinearProblem, fit_logistic

Array = npt.NDArray[np.float64]


def _data(
    n: int, d: int, n_classes: int, *, seed: int = 0, rare: bool = False, noise: float = 3.0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Correlated features of unlike size with an offset, and labels from a noisy linear teacher."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) / np.sqrt(d) + np.eye(d)
    x = rng.standard_normal((n, d)) @ mixing * np.exp(rng.standard_normal(d))
    x = (x + 4 * rng.standard_normal(d)).astype(np.float32)
    scores = (x - x.mean(0)) / x.std(0) @ rng.standard_normal((d, n_classes))
    scores += noise * rng.gumbel(size=scores.shape)
    if rare:
        scores[:, 0] += 2.5 * scores.std()
    return x, scores.argmax(1).astype(np.int64)


def _objective(x: Array, problem: LinearProblem, coef: Array, intercept: Array) -> float:
    """In float64 and from the definition; x standardised."""
    weight = np.asarray(problem.weight, np.float64)
    z = x @ coef.T + intercept
    if len(coef) == 1:
        loss = np.logaddexp(0, -(2 * problem.y - 1) * z[:, 0])
    else:
        loss = logsumexp(z, axis=1) - np.take_along_axis(z, problem.y[:, None], 1)[:, 0]
    mean = (weight * loss)[weight > 0].sum() / weight.sum()
    return float(mean + problem.alpha / 2 * (coef**2).sum())


def _true_gap(x: npt.NDArray[np.float32], problem: LinearProblem, fit: LinearFit) -> float:
    """Relative distance to the optimum, which scikit-learn finds in float64."""
    weight = np.asarray(problem.weight, np.float64)
    used = weight > 0
    scaler = StandardScaler().fit(x[used].astype(np.float64), sample_weight=weight[used])
    scaled = scaler.transform(x.astype(np.float64))
    wide = x.shape[1] > used.sum()
    reference = LogisticRegression(
        C=1 / (problem.alpha * weight.sum()),
        solver="lbfgs" if wide else "newton-cholesky",
        tol=1e-10,
        max_iter=20_000,
    ).fit(scaled[used], problem.y[used], sample_weight=weight[used])
    best = _objective(scaled, problem, reference.coef_, reference.intercept_)
    coef = fit.coef.astype(np.float64)
    own = _objective(scaled, problem, coef * scaler.scale_, fit.intercept + coef @ scaler.mean_)
    return (own - best) / best


GRID = [
    (400, 30, 2, False),
    (400, 30, 5, False),
    (120, 200, 2, False),
    (120, 200, 5, False),
    (800, 20, 2, True),
    (800, 20, 5, True),
]


@pytest.mark.parametrize(("n", "d", "n_classes", "rare"), GRID)
def test_reaches_the_optimum_and_never_overstates_it(
    n: int, d: int, n_classes: int, rare: bool
) -> None:
    x, y = _data(n, d, n_classes, rare=rare)
    fold = np.random.default_rng(1).permutation(n) % 3
    problems = [
        LinearProblem(y, n_classes, alpha, fold != k)
        for alpha in (1e-4, 1e-2, 1.0)
        for k in range(2)
    ]
    problems.append(LinearProblem(y, n_classes, 1e-2, np.random.default_rng(2).random(n)))
    for problem, fit in zip(problems, fit_logistic(x, problems), strict=True):
        gap = _true_gap(x, problem, fit)
        assert fit.status == "converged"
        assert gap <= 1e-6
        assert fit.gap_bound <= 1e-6
        assert gap <= fit.gap_bound * 1.01 + 1e-9  # scikit-learn's own optimum has a gap too
        assert fit.coef.shape == (1 if n_classes == 2 else n_classes, d)
        assert fit.coef.dtype == np.float32
        assert fit.intercept.dtype == np.float32
        assert fit.alpha_used == problem.alpha
        assert fit.seconds > 0


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_scaler_sees_the_training_fold_only(n_classes: int) -> None:
    x, y = _data(300, 25, n_classes)
    fold = np.random.default_rng(1).permutation(300) % 3
    problems = [LinearProblem(y, n_classes, 1e-3, fold != k) for k in range(3)]
    fits = fit_logistic(x, problems)
    for k, fit in enumerate(fits):
        train = fold != k
        model = make_pipeline(
            StandardScaler(),
            LogisticRegression(
                C=1 / (1e-3 * train.sum()), solver="newton-cholesky", tol=1e-10, max_iter=1000
            ),
        ).fit(x[train].astype(np.float64), y[train])
        expected = model.predict_proba(x[~train].astype(np.float64))
        np.testing.assert_allclose(fit.predict_proba(x[~train]), expected, atol=1e-3)
        scale = model[0].scale_
        np.testing.assert_allclose(fit.coef * scale, model[1].coef_, atol=2e-3)


@pytest.mark.parametrize("shape", [(200, 30), (60, 90)])
def test_held_out_rows_change_nothing(shape: tuple[int, int]) -> None:
    x, y = _data(*shape, 2)
    train = np.arange(len(x)) % 4 != 0
    problems = [LinearProblem(y, 2, 1e-2, train), LinearProblem(1 - y, 2, 1e-2, ~train)]
    other_x, other_y = x.copy(), y.copy()
    other_x[~train] += 3 * np.random.default_rng(3).standard_normal((int((~train).sum()), shape[1]))
    other_y[~train] = 1 - other_y[~train]
    first = fit_logistic(x, problems)[0]
    second = fit_logistic(other_x, [LinearProblem(other_y, 2, 1e-2, train), problems[1]])[0]
    assert abs(first.objective - second.objective) <= 2e-6 * first.objective
    np.testing.assert_allclose(second.decision(x), first.decision(x), atol=2e-2)
    alone = fit_logistic(x, problems[:1])[0]
    poisoned = x.copy()
    poisoned[~train] = 1e6
    unseen = fit_logistic(poisoned, [LinearProblem(other_y, 2, 1e-2, train)])[0]
    np.testing.assert_array_equal(unseen.coef, alone.coef)


def _mixed(n: int = 240) -> tuple[npt.NDArray[np.float32], list[LinearProblem]]:
    x, y = _data(n, 16, 3)
    fold = np.random.default_rng(1).permutation(n) % 4
    problems = [LinearProblem(y, 3, a, fold != k) for a in (1e-4, 1e-1) for k in range(2)]
    problems += [LinearProblem((y == 1).astype(np.int64), 2, 1e-3, fold != k) for k in range(2)]
    return x, problems


def test_a_problem_alone_equals_itself_in_a_batch_in_any_order() -> None:
    x, problems = _mixed()
    together = fit_logistic(x, problems)
    order = np.random.default_rng(0).permutation(len(problems))
    shuffled = fit_logistic(x, [problems[i] for i in order])
    for at, i in enumerate(order):
        alone = fit_logistic(x, [problems[i]])[0]
        for other in (shuffled[at], together[i]):
            assert abs(other.objective - alone.objective) <= 2e-6 * alone.objective
            np.testing.assert_allclose(other.predict_proba(x), alone.predict_proba(x), atol=2e-3)


def test_the_same_call_gives_the_same_bits() -> None:
    x, problems = _mixed()
    for a, b in zip(fit_logistic(x, problems), fit_logistic(x, problems), strict=True):
        np.testing.assert_array_equal(a.coef, b.coef)
        np.testing.assert_array_equal(a.intercept, b.intercept)


def test_a_small_memory_limit_changes_groups_but_not_results() -> None:
    x, problems = _mixed()
    together = fit_logistic(x, problems)
    bounded = fit_logistic(x, problems, memory_limit_bytes=45_000)
    for a, b in zip(together, bounded, strict=True):
        assert b.status == "converged"
        assert abs(a.objective - b.objective) <= 2e-6 * a.objective
    with pytest.raises(ResourceError, match="raise memory_limit_bytes"):
        fit_logistic(x, problems, memory_limit_bytes=8_000)


def test_reads_a_memory_map_and_other_dtypes(tmp_path: object) -> None:
    x, problems = _mixed()
    path = f"{tmp_path}/x.npy"
    np.save(path, x)
    expected = fit_logistic(x, problems[:1])[0]
    mapped = fit_logistic(np.load(path, mmap_mode="r"), problems[:1])[0]
    np.testing.assert_array_equal(mapped.coef, expected.coef)
    wide = fit_logistic(x.astype(np.float64), problems[:1])[0]
    np.testing.assert_allclose(wide.predict_proba(x), expected.predict_proba(x), atol=1e-3)
    half = x.astype(np.float16)
    short = fit_logistic(half, problems[:1])[0]
    same = fit_logistic(half.astype(np.float32), problems[:1])[0]
    np.testing.assert_array_equal(short.coef, same.coef)


# --- closed forms and hard cases ----------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("why", ["zero matrix", "huge penalty"])
def test_only_the_prior_is_left(n_classes: int, why: str) -> None:
    x, y = _data(200, 6, n_classes, rare=True)
    alpha = 1e-2
    if why == "zero matrix":
        x = np.zeros_like(x)
    else:
        alpha = 1e9
    fit = fit_logistic(x, [LinearProblem(y, n_classes, alpha, np.ones(200))])[0]
    assert fit.status == "converged"
    np.testing.assert_allclose(fit.coef, 0, atol=1e-8)
    share = np.bincount(y, minlength=n_classes) / 200
    np.testing.assert_allclose(fit.predict_proba(x[:1])[0], share, rtol=1e-5)


def test_two_points_on_a_line() -> None:
    """x = -1, 1 with labels 0, 1: by symmetry b = 0 and alpha w = 1 / (1 + e^w)."""
    x = np.array([[-1.0], [1.0]], np.float32)
    for alpha in (1e-3, 0.1, 2.0):
        fit = fit_logistic(x, [LinearProblem(np.array([0, 1]), 2, alpha, np.ones(2))])[0]
        low, high = 0.0, 50.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if alpha * middle < 1 / (1 + np.exp(middle)) else (low, middle)
            )
        assert float(fit.coef[0, 0]) == pytest.approx(low, rel=1e-3)
        assert float(fit.intercept[0]) == pytest.approx(0, abs=1e-5)


def test_constant_and_duplicate_columns() -> None:
    x, y = _data(200, 8, 2)
    train = np.arange(200) % 5 != 0
    padded = np.concatenate([x, x[:, :1], np.full((200, 1), 7.3), np.zeros((200, 1))], axis=1)
    padded = np.concatenate([padded, np.full((200, 1), 1e-33)], axis=1).astype(np.float32)
    padded[~train, 10] = 5.0  # constant on the training rows only
    problem = LinearProblem(y, 2, 1e-2, train)
    fit = fit_logistic(padded, [problem, LinearProblem(y, 2, 1e-2, np.ones(200))])[0]
    assert fit.status == "converged"
    np.testing.assert_array_equal(fit.coef[0, 9:], 0)
    assert fit.coef[0, 0] == pytest.approx(fit.coef[0, 8], rel=1e-4)
    scaled = StandardScaler().fit_transform(padded[:, :9].astype(np.float64)[train])
    model = LogisticRegression(C=1 / (1e-2 * train.sum()), tol=1e-10, max_iter=5000)
    model.fit(scaled, y[train])
    np.testing.assert_allclose(
        fit.predict_proba(padded[train]), model.predict_proba(scaled), atol=1e-3
    )


def test_a_feature_scaled_very_differently_in_a_fold_gets_its_own_basis() -> None:
    x, y = _data(300, 10, 2)
    fold = np.arange(300) % 3
    x[0, 4] += 1e5  # one outlier, in fold 0: its scale differs a thousandfold between folds
    problems = [LinearProblem(y, 2, 1e-2, fold != k) for k in range(3)]
    for problem, fit in zip(problems, fit_logistic(x, problems), strict=True):
        assert fit.status == "converged"
        assert _true_gap(x, problem, fit) <= 1e-6


def test_massive_features() -> None:
    x, y = _data(400, 40, 2)
    x[:, :2] = x[:, :2] * 1000 + 5e4
    problem = LinearProblem(y, 2, 1e-3, np.ones(400))
    fit = fit_logistic(x, [problem])[0]
    assert fit.status == "converged"
    assert _true_gap(x, problem, fit) <= 1e-6
    raw = fit_logistic(x, [problem], standardize=False)[0]
    assert raw.status == "converged"


@pytest.mark.parametrize("n_classes", [2, 3])
def test_separable_data_at_alpha_zero(n_classes: int) -> None:
    x, y = _data(60, 120, n_classes, noise=0.1)
    fit = fit_logistic(x, [LinearProblem(y, n_classes, 0.0, np.ones(60))])[0]
    assert fit.status == "converged"
    assert fit.separable
    assert fit.alpha_used == ALPHA_FLOOR
    assert (fit.predict_proba(x).argmax(1) == y).all()
    overlapping = np.random.default_rng(0).integers(0, n_classes, 60)
    noisy = fit_logistic(x[:, :2], [LinearProblem(overlapping, n_classes, 0.1, np.ones(60))])[0]
    assert not noisy.separable


def test_a_class_without_training_rows_gets_no_probability() -> None:
    x, y = _data(200, 6, 3)
    train = y != 1
    fits = fit_logistic(
        x,
        [
            LinearProblem(y, 3, 1e-2, train),
            # two weight vectors w / 2 and -w / 2 have half the squared length of one w
            LinearProblem((y == 2).astype(np.int64), 2, 5e-3, train),
        ],
    )
    assert [fit.status for fit in fits] == ["converged", "converged"]
    proba = fits[0].predict_proba(x)
    assert proba[:, 1].max() < 1e-15
    assert np.isfinite(fits[0].intercept).all()
    np.testing.assert_allclose(proba[:, [0, 2]], fits[1].predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_fold_with_one_class_predicts_it(n_classes: int) -> None:
    x, y = _data(90, 6, n_classes)
    fit = fit_logistic(x, [LinearProblem(y, n_classes, 1e-2, y == 1)])[0]
    assert fit.status == "converged"
    assert fit.predict_proba(x)[:, 1].min() > 1 - 1e-12


def test_labels_of_held_out_rows_may_be_anything() -> None:
    x, y = _data(100, 6, 2)
    train = np.arange(100) < 80
    unknown = np.where(train, y, -1)
    a, b = (fit_logistic(x, [LinearProblem(v, 2, 0.1, train)])[0] for v in (y, unknown))
    np.testing.assert_array_equal(a.coef, b.coef)


def test_weights_count_as_repeated_rows() -> None:
    x, y = _data(120, 8, 3)
    times = np.random.default_rng(0).integers(0, 4, 120)
    weighted = fit_logistic(x, [LinearProblem(y, 3, 1e-2, 2.5 * times)])[0]
    repeated = np.repeat(np.arange(120), times)
    plain = fit_logistic(x[repeated], [LinearProblem(y[repeated], 3, 1e-2, np.ones(times.sum()))])[
        0
    ]
    assert abs(weighted.objective - plain.objective) <= 2e-6 * plain.objective
    np.testing.assert_allclose(weighted.predict_proba(x), plain.predict_proba(x), atol=2e-3)


def test_the_iteration_limit_is_a_reported_state() -> None:
    x, y = _data(300, 40, 5)
    fit = fit_logistic(x, [LinearProblem(y, 5, 1e-6, np.ones(300))], max_iterations=2)[0]
    assert fit.status == "iteration_limit"
    assert fit.iterations == 2
    assert fit.gap_bound > 1e-5


def test_float64_finishes_what_float32_stalls_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from actstore.probes import solve
    from actstore.probes.lbfgs import Options, Outcome, Stop, minimise

    x, y = _data(200, 20, 3)
    dtypes: list[str] = []

    def stall_at_first(batch, theta, which, options: Options) -> Outcome:  # type: ignore[no-untyped-def]
        dtypes.append(str(theta.dtype))
        if len(dtypes) > 1:
            return minimise(batch, theta, which, options)
        outcome = minimise(batch, theta, which, Options(max_iterations=3))
        return Outcome(
            outcome.theta, outcome.gradient, [Stop.STALLED], outcome.iterations, outcome.evaluations
        )

    monkeypatch.setattr(solve, "minimise", stall_at_first)
    problem = LinearProblem(y, 3, 1e-3, np.arange(200) % 4 != 0)
    fit = fit_logistic(x, [problem])[0]
    assert dtypes == ["torch.float32", "torch.float64"]
    assert fit.status == "converged"
    assert _true_gap(x, problem, fit) <= 1e-6


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(8, 60),
    d=st.integers(1, 40),
    n_classes=st.integers(2, 4),
    alpha=st.sampled_from([0.0, 1e-4, 1e-2, 10.0]),
    seed=st.integers(0, 10_000),
)
def test_any_problem_converges_with_finite_weights(
    n: int, d: int, n_classes: int, alpha: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, d)) * 10 ** rng.uniform(-3, 3, d)).astype(np.float32)
    x[:, rng.random(d) < 0.1] = 1.0
    y = rng.integers(0, n_classes, n)
    weight = rng.random(n) * (rng.random(n) < 0.8)
    weight[0] = 1.0
    fit = fit_logistic(x, [LinearProblem(y, n_classes, alpha, weight)])[0]
    assert fit.status == "converged"
    assert np.isfinite(fit.coef).all()
    assert np.isfinite(fit.intercept).all()
    np.testing.assert_allclose(fit.predict_proba(x).sum(1), 1, rtol=1e-9)


# --- bad input ----------------------------------------------------------------------------------


def _nan(x: Array, p: dict[str, object]) -> None:
    x[7, 2] = np.nan


def _y_range(x: Array, p: dict[str, object]) -> None:
    p["y"] = np.where(np.arange(20) == 5, 9, 0)


def _y_length(x: Array, p: dict[str, object]) -> None:
    p["y"] = np.zeros(19, np.int64)


def _y_float(x: Array, p: dict[str, object]) -> None:
    p["y"] = np.zeros(20)


def _weight_negative(x: Array, p: dict[str, object]) -> None:
    p["weight"] = np.where(np.arange(20) == 3, -1.0, 1.0)


def _weight_zero(x: Array, p: dict[str, object]) -> None:
    p["weight"] = np.zeros(20)


def _alpha(x: Array, p: dict[str, object]) -> None:
    p["alpha"] = -0.5


def _classes(x: Array, p: dict[str, object]) -> None:
    p["n_classes"] = 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_nan, "row 7 of the matrix holds nan in feature 2"),
        (_y_range, "y of row 5 is 9, but the class codes are 0 to 1"),
        (_y_length, "matrix has 20 rows"),
        (_y_float, "integer class codes"),
        (_weight_negative, "weight of row 3 is -1.0"),
        (_weight_zero, "every weight is 0"),
        (_alpha, "alpha is -0.5"),
        (_classes, "n_classes is 1"),
    ],
)
def test_bad_input_is_named(
    spoil: Callable[[Array, dict[str, object]], None], message: str
) -> None:
    x = np.random.default_rng(0).standard_normal((20, 4))
    fields: dict[str, object] = {
        "y": np.arange(20) % 2,
        "n_classes": 2,
        "alpha": 0.1,
        "weight": np.ones(20),
    }
    spoil(x, fields)
    good = LinearProblem(np.arange(20) % 2, 2, 0.1, np.ones(20))
    with pytest.raises(InputError, match=message) as caught:
        fit_logistic(x.astype(np.float32), [good, LinearProblem(**fields)])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_empty_matrix_and_no_problems() -> None:
    with pytest.raises(InputError, match="not empty"):
        fit_logistic(np.zeros((0, 3), np.float32), [])
    assert fit_logistic(np.zeros((2, 3), np.float32), []) == []


def test_rows_of_another_width_are_refused() -> None:
    x, y = _data(50, 6, 2)
    fit = fit_logistic(x, [LinearProblem(y, 2, 0.1, np.ones(50))])[0]
    with pytest.raises(InputError, match="reads 6 features"):
        fit.decision(x[:, :5])


def test_probabilities_do_not_overflow() -> None:
    proba = linear.probabilities(np.array([[900.0], [-900.0]]))
    np.testing.assert_array_equal(proba, [[0, 1], [1, 0]])
