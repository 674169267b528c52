from __future__ import annotations

import os
from dataclasses import fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.errors import InputError, ResourceError
from actstore.evaluate.results import (
    SCHEMA,
    FitRecord,
    format_table,
    merge_records,
    merge_results,
    read_results,
    write_results,
)

COLUMNS = [
    *("task", "kind", "site", "layer", "mask", "pool", "probe", "heads", "alpha", "seed"),
    *("n_train", "n_test", "accuracy", "accuracy_low", "accuracy_high", "f1_macro", "roc_auc"),
    *("log_loss", "ece", "control_accuracy", "selectivity", "majority", "entropy"),
    *("entropy_uniform", "status", "grad_norm", "iterations", "seconds"),
]

LINEAR = FitRecord(
    task="category",
    kind="multiclass",
    site="resid_post.2",
    layer=3,
    mask="content",
    pool="mean",
    probe="logistic",
    heads=None,
    alpha=0.01,
    seed=0,
    n_train=800,
    n_test=200,
    accuracy=0.912,
    accuracy_low=0.901,
    accuracy_high=0.923,
    f1_macro=0.9,
    roc_auc=0.98,
    log_loss=0.3,
    ece=0.02,
    control_accuracy=0.2,
    selectivity=0.712,
    majority=0.15,
    entropy=None,
    entropy_uniform=None,
    status="converged",
    grad_norm=1e-8,
    iterations=40,
    seconds=0.5,
    n_classes=7,
    cv_accuracy=0.91,
    cv_unconverged=0,
    gap_bound=1e-9,
    separable=False,
    weights_file="weights/a.safetensors",
    dropped=0,
)
ATTENTION = replace(
    LINEAR,
    site="attn_out.1",
    layer=None,
    pool="none",
    probe="attention",
    heads=8,
    entropy=1.5,
    entropy_uniform=2.5,
    status="completed",
    grad_norm=None,
    iterations=500,
    gap_bound=None,
    separable=None,
)
FAILED = replace(
    LINEAR,
    seed=3,
    alpha=None,
    status="quarantined: out of memory",
    **dict.fromkeys(
        ("accuracy", "accuracy_low", "accuracy_high", "f1_macro", "roc_auc", "log_loss", "ece")
    ),
    control_accuracy=None,
    selectivity=None,
)


def test_columns_are_exactly_the_published_ones(tmp_path):
    file = write_results(tmp_path, [LINEAR, ATTENTION])
    assert file == tmp_path / "results.parquet"
    schema = pq.read_schema(file)
    assert schema.names[: len(COLUMNS)] == COLUMNS
    assert schema.names == [field.name for field in fields(FitRecord)]
    types = {field.name: str(field.type) for field in schema}
    assert {n for n, t in types.items() if t == "int64"} == {
        *("layer", "heads", "seed", "n_train", "n_test", "iterations"),
        *("n_classes", "cv_unconverged", "dropped"),
    }
    assert {n for n, t in types.items() if t == "string"} == {
        *("task", "kind", "site", "mask", "pool", "probe", "status", "weights_file")
    }
    assert {n for n, t in types.items() if t == "bool"} == {"separable"}
    assert set(types.values()) == {"int64", "string", "bool", "double"}
    required = {field.name for field in schema if not field.nullable}
    assert required == {
        *("task", "kind", "site", "mask", "pool", "probe", "seed", "n_train", "n_test"),
        *("status", "seconds"),
    }


def test_what_does_not_apply_is_null_in_the_file(tmp_path):
    table = pq.read_table(write_results(tmp_path, [LINEAR, ATTENTION]))
    by_probe = {row["probe"]: row for row in table.to_pylist()}
    assert by_probe["logistic"]["heads"] is None
    assert by_probe["logistic"]["entropy"] is None
    assert by_probe["attention"]["layer"] is None
    assert by_probe["logistic"]["layer"] == 3
    assert by_probe["attention"]["entropy_uniform"] == 2.5


def test_round_trip(tmp_path):
    records = [ATTENTION, LINEAR, FAILED]
    write_results(tmp_path, records)
    assert set(read_results(tmp_path)) == set(records)
    assert read_results(tmp_path / "results.parquet") == read_results(tmp_path)


def test_not_a_number_is_stored_as_null(tmp_path):
    write_results(tmp_path, [replace(LINEAR, roc_auc=float("nan"))])
    assert read_results(tmp_path) == (replace(LINEAR, roc_auc=None),)


def test_no_records_make_an_empty_file_with_columns(tmp_path):
    assert pq.read_table(write_results(tmp_path, [])).column_names[:28] == COLUMNS
    assert read_results(tmp_path) == ()


@given(st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_order_of_records_does_not_change_a_byte(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("order")
    names = ("embed", "resid_pre.1", "resid_post.2", "resid_post.10", "final_norm", "other")
    records = [replace(LINEAR, site=s, seed=seed) for s in names for seed in (0, 1)]
    first = write_results(folder / "a.parquet", records)
    second = write_results(folder / "b.parquet", [records[i] for i in order])
    assert first.read_bytes() == second.read_bytes()
    assert [r.site for r in read_results(first)][::2] == list(names)


def test_tasks_and_probes_come_before_sites(tmp_path):
    records = [
        replace(LINEAR, task=t, probe=p, site=s)
        for s in ("resid_post.3", "resid_post.1")
        for p in ("b", "a")
        for t in ("y", "x")
    ]
    merged = merge_records(records, ())
    assert [(r.task, r.probe, r.site[-1]) for r in merged] == sorted(
        (r.task, r.probe, r.site[-1]) for r in records
    )


def test_a_later_record_of_the_same_fit_replaces(tmp_path):
    write_results(tmp_path, [LINEAR, ATTENTION])
    better = replace(LINEAR, accuracy=0.95, alpha=0.1, status="iteration_limit")
    other_seed = replace(LINEAR, seed=1)
    merged = merge_results(tmp_path, [better, other_seed])
    assert set(merged) == {better, other_seed, ATTENTION}
    assert read_results(tmp_path) == merged


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"},
        {"site": "embed"},
        {"mask": "all"},
        {"pool": "last"},
        {"probe": "ridge"},
        {"heads": 2},
        {"seed": 9},
    ],
)
def test_fits_differ_by_their_key(change):
    assert len(merge_records([LINEAR], [replace(LINEAR, **change)])) == 2


def test_merge_starts_a_file(tmp_path):
    assert merge_results(tmp_path / "new" / "run.1", [LINEAR]) == (LINEAR,)
    assert read_results(tmp_path / "new" / "run.1") == (LINEAR,)


def test_two_rows_of_one_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"2 rows for the same fit \(task category, site resid_po"):
        write_results(tmp_path, [LINEAR, ATTENTION, replace(LINEAR, alpha=1.0)])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_results(tmp_path, [LINEAR])
    before = (tmp_path / "results.parquet").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"results\.parquet: cannot be written \(No space left"):
        write_results(tmp_path, [ATTENTION])
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["results.parquet"]
    assert (tmp_path / "results.parquet").read_bytes() == before


def test_no_temporary_file_stays(tmp_path):
    write_results(tmp_path, [LINEAR])
    write_results(tmp_path, [ATTENTION])
    assert [p.name for p in tmp_path.iterdir()] == ["results.parquet"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_results(tmp_path / "plain" / "deeper", [LINEAR])


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"results\.parquet: no such file; `actstore probe"):
        read_results(tmp_path)
    (tmp_path / "results.parquet").write_text("not parquet")
    with pytest.raises(InputError, match=r"results\.parquet: not a readable Parquet") as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_of_someone_else(tmp_path):
    pq.write_table(pa.table({"task": ["x"], "accuracy": [0.5]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"not a results file .* it has no column kind, site, lay"):
        read_results(tmp_path / "x.parquet")


def test_wrong_types_and_empty_cells(tmp_path):
    good = pq.read_table(write_results(tmp_path, [LINEAR]))
    file = tmp_path / "results.parquet"
    at = good.column_names.index("seed")
    pq.write_table(good.set_column(at, "seed", pa.array(["first"])), file)
    with pytest.raises(InputError, match="column 'seed'"):
        read_results(file)
    pq.write_table(good.set_column(at, "seed", pa.array([None], pa.int64())), file)
    with pytest.raises(InputError, match="column 'seed' has empty cells"):
        read_results(file)


def test_files_with_fewer_or_more_extra_columns_are_read(tmp_path):
    table = pq.read_table(write_results(tmp_path, [LINEAR]))
    table = table.drop_columns(["gap_bound", "dropped"]).append_column("mine", pa.array([1]))
    # as pandas would rewrite it: other widths, no metadata
    at = table.column_names.index("layer")
    table = table.set_column(at, "layer", table.column("layer").cast(pa.float64()))
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "results.parquet")
    assert read_results(tmp_path) == (replace(LINEAR, gap_bound=None, dropped=None),)


def test_schema_names_the_format():
    assert SCHEMA.metadata == {b"actstore.results": b"1"}


def test_table_moves_what_is_constant_to_the_caption():
    table = format_table([replace(LINEAR, layer=i, site=f"resid_post.{i - 1}") for i in (1, 2)])
    assert table.caption == (
        "task category, mask content, pool mean, seed 0, majority 0.150, status converged"
    )
    assert table.headers == ("layer", "probe", "accuracy", "control", "selectivity")
    assert table.rows == (
        ("1", "logistic", "0.912 [0.901, 0.923]", "0.200", "0.712"),
        ("2", "logistic", "0.912 [0.901, 0.923]", "0.200", "0.712"),
    )


def test_table_of_mixed_rows_has_every_column_that_varies():
    other = replace(FAILED, task="words:upos", mask="words", majority=0.4)
    table = format_table([LINEAR, ATTENTION, other])
    assert table.caption == ""
    assert table.headers == (
        *("task", "site", "mask", "pool", "probe", "heads", "seed", "accuracy"),
        *("control", "selectivity", "majority", "status"),
    )
    assert table.rows[1][1:6] == ("attn_out.1", "content", "none", "attention", "8")
    assert table.rows[2][5:] == (*("-", "3", "-", "-", "-", "0.400", "quarantined: out of memory"),)
    assert {len(row) for row in table.rows} == {len(table.headers)}


def test_table_leaves_out_columns_without_values():
    table = format_table([replace(LINEAR, control_accuracy=None, selectivity=None)])
    assert table.headers == ("layer", "probe", "accuracy")
    assert "heads" not in table.caption


def test_table_without_interval_and_without_rows():
    assert format_table([replace(LINEAR, accuracy_low=None)]).rows[0][2] == "0.912"
    empty = format_table([])
    assert empty.rows == ()
    assert empty.caption == ""
    assert "accuracy" in empty.headers
