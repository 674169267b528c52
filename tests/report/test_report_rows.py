"""Reading rows, averaging over seeds, choosing the best; looks of series."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import row, sweep

from actstore.errors import InputError
from actstore.report.rows import block_of, gather, read_fits
from actstore.report.series import NEUTRAL, Series, make_looks


def only(rows: list[dict[str, Any]]) -> Any:
    (task,) = gather(read_fits(rows))
    return task


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no result rows"),
        ([row(), row(task=None)], "row 2: column 'task' is missing"),
        ([{"task": "a", "site": "embed"}], "row 1: column 'probe' is missing"),
        ([row() | {"accuracy": "high"}], "row 1: accuracy is 'high'"),
        ([row(), row(), row(accuracy=1.2)], "row 3: accuracy is 1.2, not between 0 and 1"),
        ([row(selectivity=-2)], "selectivity is -2, not in -1 to 1"),
        ([row(heads=[1, 2])], r"heads is \[1, 2\], not a number"),
        ([row(n_test="\n\x00")], "row 1: n_test is"),
    ],
)
def test_bad_rows_are_one_line_naming_row_and_column(rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_fits(rows)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_values_in_every_spelling() -> None:
    (fit,) = read_fits([row(accuracy=float("nan"), layer=float("nan"), pool=None, alpha="")])
    assert fit.number("accuracy") is None
    assert fit.layer is None
    assert fit.series.pool is None
    assert fit.number("alpha") is None


def test_selectivity_is_worked_out_when_absent() -> None:
    (fit,) = read_fits([row(accuracy=0.9, control_accuracy=0.6, selectivity=None)])
    assert fit.number("selectivity") == pytest.approx(0.3)


def test_seeds_are_averaged_and_intervals_enclosed() -> None:
    rows = [row(seed=seed, accuracy=value) for seed, value in enumerate((0.8, 0.9))]
    (point,) = only(rows).points.values()
    assert point.accuracy == pytest.approx(0.85)
    assert point.low == pytest.approx(0.779)
    assert point.high == pytest.approx(0.919)
    assert point.fits == 2


def test_penalties_are_chosen_by_cross_validation_not_by_the_test() -> None:
    rows = [
        row(alpha=0.1, accuracy=0.8, cv_accuracy=0.83),
        row(alpha=0.0, accuracy=0.9, cv_accuracy=0.79),
    ]
    (point,) = only(rows).points.values()
    assert point.accuracy == 0.8


def test_best_point_follows_cross_validation_and_says_so() -> None:
    rows = [
        row(site="embed", layer=0, accuracy=0.95, cv_accuracy=0.80),
        row(site="resid_post.0", layer=1, accuracy=0.85, cv_accuracy=0.90),
    ]
    assert only(rows).chosen_by_cv
    assert only(rows).best.site == "resid_post.0"
    for one in rows:
        one["cv_accuracy"] = None
    assert not only(rows).chosen_by_cv
    assert only(rows).best.site == "embed"


def test_a_tie_goes_to_the_earlier_site_and_the_simpler_probe() -> None:
    rows = [
        row(site=site, layer=layer, probe=probe, accuracy=0.9)
        for layer, site in ((4, "resid_post.3"), (2, "resid_post.1"))
        for probe in ("mlp", "logistic")
    ]
    best = only(rows).best
    assert (best.site, best.series.probe) == ("resid_post.1", "logistic")


def test_no_result_at_all_has_no_best() -> None:
    task = only([row(accuracy=None, status="line_search")])
    assert task.best is None
    assert not task.chosen_by_cv


def test_sites_come_in_the_order_of_the_forward_pass_layers_first() -> None:
    sites = {
        "final_norm": 12,
        "attn_out.10": None,
        "attn_out.2": None,
        "mlp_out.2": None,
        "resid_post.9": 10,
        "resid_post.0": 1,
        "embed": 0,
        "own.3": None,
    }
    task = only([row(site=site, layer=layer) for site, layer in reversed(sites.items())])
    assert task.sites == (
        *("embed", "resid_post.0", "resid_post.9", "final_norm"),
        *("attn_out.2", "mlp_out.2", "attn_out.10", "own.3"),
    )


def test_gaps_baselines_and_test_sizes() -> None:
    rows = sweep(layers=3)
    rows.pop()
    task = only([one | {"n_classes": 4, "n_test": 200 + i % 2} for i, one in enumerate(rows)])
    assert task.gaps == 1
    assert task.chance == 0.25
    assert task.majority == pytest.approx(0.53)
    assert task.n_test == (200, 201)
    assert only([row(kind="binary")]).chance == 0.5
    assert only([row(kind="multiclass")]).chance is None


@given(st.text(), st.integers(0, 99))
def test_block_of_any_name(point: str, block: int) -> None:
    name = f"{point}.{block}"
    assert block_of(name) == ((point, block) if point else (name, None))


# --- looks -------------------------------------------------------------------------------------

a_series = st.builds(
    Series,
    probe=st.sampled_from(["logistic", "ridge", "mean_difference", "mlp", "attention", "own", "x"]),
    heads=st.sampled_from([None, 1, 2, 8]),
    mask=st.sampled_from([None, "content", "last"]),
    pool=st.sampled_from([None, "none", "mean", "last"]),
)


@given(st.lists(a_series, min_size=1, max_size=40))
def test_no_two_series_of_a_chart_look_the_same(series: list[Series]) -> None:
    looks = make_looks(series)
    assert set(looks.styles) == set(looks.names) == set(looks.panels) == set(series)
    drawn = [(looks.panels[one], looks.styles[one].slot) for one in set(series)]
    same_name = len({looks.names[one] for one in set(series)})
    # Two series may share everything that is shown (None and "none" both mean all rows).
    assert len(set(drawn)) >= same_name
    assert all(0 <= style.slot <= NEUTRAL for style in looks.styles.values())
    indices = [style.index for _, style in looks.legend]
    assert indices == list(range(len(indices)))
    assert {style.index for style in looks.styles.values()} == set(indices)


def test_probes_keep_their_usual_colours() -> None:
    names = ["logistic", "ridge", "mean_difference", "mlp"]
    series = [Series(name, None, "content", "mean") for name in names]
    series += [Series("attention", heads, "content", "none") for heads in (1, 8)]
    styles = make_looks(series).styles
    assert [styles[one].slot for one in series] == [0, NEUTRAL, 3, 4, 1, 2]
    assert len({styles[one].lane for one in series}) == 1


def test_names_say_only_what_tells_series_apart() -> None:
    mean, last = (Series("logistic", None, "content", pool) for pool in ("mean", "last"))
    attention = Series("attention", 8, "content", "none")
    names = make_looks([mean, last, attention]).names
    assert names == {
        mean: "logistic, mean pool",
        last: "logistic, last pool",
        attention: "attention, 8 heads",
    }
    assert make_looks([mean]).names == {mean: "logistic"}
    other = Series("logistic", None, "last", "none")
    assert make_looks([mean, other]).names[other] == "logistic, last, all rows"


def test_many_series_share_colours_across_charts_of_their_own() -> None:
    series = [
        Series(probe, None, "content", pool)
        for probe in ("logistic", "mlp", "mean_difference")
        for pool in ("mean", "last")
    ]
    looks = make_looks(series)
    assert len(looks.legend) == 3
    assert set(looks.panels.values()) == {(0, "mean pool"), (0, "last pool")}
