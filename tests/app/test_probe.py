"""Probing end to end: protocol, controls, resuming, refusals, the page, and predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from app_helpers import labelled, serial, write_jsonl  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_models import make_tiny_model

import actstore
from actstore.app import extract, predict, probe, report
from actstore.config import ExtractRun, PredictRun, ProbeRun, ReportRun
from actstore.errors import DamagedStoreError, InputError, StoreMismatchError, UnknownNameError
from actstore.evaluate.protocol import _file_name, load_task
from actstore.evaluate.split import make_split

pytestmark = pytest.mark.usefixtures("serial")

N = 160


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 texts whose label is in the text, with a group, and words with tags; BERT rows."""
    from actstore.runtime.execute import SerialExecutor

    folder = tmp_path_factory.mktemp("probe")
    model = make_tiny_model("bert", folder / "model")
    labelled(folder / "plain.jsonl", N)
    rows = [json.loads(line) for line in (folder / "plain.jsonl").read_text().splitlines()]
    for row in rows:
        row["words"] = row["text"].split()
        row["tags"] = ["short" if len(word) < 4 else "long" for word in row["words"]]
        row["one"] = "same"
    write_jsonl(folder / "texts.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "RayExecutor", lambda **_: SerialExecutor())
        extract.run(
            ExtractRun(
                model=str(model),
                dataset=str(folder / "texts.jsonl"),
                store=str(folder / "acts"),
                layers=(0, 2),
                pool=("mean",),
                progress="none",
            )
        )
    return folder / "acts"


def run_probe(store: Path, out: Path, **options: object) -> list[dict[str, object]]:
    defaults: dict[str, object] = {"task": ("label",), "bootstrap": 100, "progress": "none"}
    probe.run(ProbeRun(store=str(store), out=str(out), **{**defaults, **options}))
    return pq.read_table(out / "results.parquet").to_pylist()


def test_a_run_of_everything(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_probe(
        store,
        tmp_path / "out",
        task=("label", "words:tags"),
        probes=("logistic", "attention"),
        heads=(1, 2),
        attention_layers=(2,),
        pool=("mean", "max"),
        alphas=(0.001, 0.1),
        steps=150,
        seeds=(0, 1),
    )
    said = capsys.readouterr().out
    # label: 2 layers x 2 pools + 2 heads, words: 2 layers; all twice for the seeds
    assert len(rows) == 2 * (2 * 2 + 2 + 2)
    assert {(r["task"], r["kind"]) for r in rows} == {
        ("label", "binary"),
        ("words:tags", "binary"),
    }
    for row in rows:
        assert row["status"] in ("converged", "completed")
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["selectivity"] == pytest.approx(row["accuracy"] - row["control_accuracy"])
        assert (tmp_path / "out" / row["weights_file"]).is_file()
        attention = row["probe"] == "attention"
        assert (row["entropy"] is not None) == attention
        if attention:
            assert 0 <= row["entropy"] <= row["entropy_uniform"] + 1e-6
    best = max(r["accuracy"] for r in rows if r["task"] == "label" and r["layer"] == 2)
    assert best >= 0.9, "the label can be read off the text"
    control = np.mean([r["control_accuracy"] for r in rows if r["task"] == "label"])
    assert control < 0.75, "labels that say nothing about the text are not predicted"
    assert "Best by validation accuracy" in said
    assert "words:tags" in said
    path = tmp_path / "out" / "page.html"
    assert report.run(ReportRun(results=str(tmp_path / "out"), out=str(path))) == 0
    page = path.read_text()
    assert "words:tags" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_chosen_fit_equals_scikit_learn(store: Path, tmp_path: Path) -> None:
    """Same split, one penalty: scikit-learn's own pipeline gives the same test predictions."""
    alpha = 0.01
    (row,) = run_probe(store, tmp_path / "out", layers=(2,), alphas=(alpha,))
    opened = actstore.open(str(store))
    task = load_task(opened, "label")
    split = make_split(task, seed=0)
    x, _ = opened.view(layer=2, pool="mean").read()
    reference = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1 / (alpha * len(split.train)), tol=1e-10, max_iter=10_000),
    ).fit(x[split.train].astype(np.float64), task.y[split.train])
    assert row["accuracy"] == reference.score(x[split.test], task.y[split.test])
    proba = reference.predict_proba(x[split.test])[np.arange(len(split.test)), task.y[split.test]]
    assert row["log_loss"] == pytest.approx(-np.log(proba).mean(), rel=1e-4)
    assert row["n_train"] == len(split.train)
    assert row["status"] == "converged"


def test_resuming_fits_only_what_is_missing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run_probe(store, tmp_path / "whole")
    fits = tmp_path / "out" / "fits"
    run_probe(store, tmp_path / "out")
    files = sorted(fits.glob("*.json"))
    assert len(files) == 2
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    calls = []
    real = probe.fit_unit
    monkeypatch.setattr(probe, "fit_unit", lambda *a: (calls.append(a[1]), real(*a))[1])
    again = run_probe(store, tmp_path / "out")
    assert len(calls) == 1
    assert files[0].stat().st_mtime_ns == kept
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in again] == [
        {k: v for k, v in r.items() if k not in drop} for r in wanted
    ]


def test_adding_a_task_later_keeps_the_rest(store: Path, tmp_path: Path) -> None:
    run_probe(store, tmp_path / "out", layers=(2,))
    rows = run_probe(store, tmp_path / "out", layers=(2,), task=("words:tags",))
    assert {row["task"] for row in rows} == {"label", "words:tags"}


def test_more_heads_later(store: Path, tmp_path: Path) -> None:
    """The fits of both runs are in the results, each once."""
    options = {"layers": (2,), "probes": ("attention",), "steps": 20, "alphas": (0.1,)}
    run_probe(store, tmp_path / "out", heads=(1,), **options)
    rows = run_probe(store, tmp_path / "out", heads=(1, 2), **options)
    assert [row["heads"] for row in rows] == [1, 2]


def test_names_of_tasks_never_share_a_file() -> None:
    specs = [
        "a_b",
        "a:b",
        "a/b",
        "words:a_b",
        "words_a_b",
        "words.a_b",
        "é",
        "ü",
        "",
        "..",
        "words:",
    ]
    assert len({_file_name(spec) for spec in specs}) == len(specs)
    assert all("/" not in _file_name(spec) and _file_name(spec) != ".." for spec in specs)


def test_another_protocol_or_store_is_refused(store: Path, tmp_path: Path) -> None:
    run_probe(store, tmp_path / "out", layers=(2,))
    with pytest.raises(StoreMismatchError, match="protocol differ"):
        run_probe(store, tmp_path / "out", layers=(2,), folds=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="choose another --out"):
        run_probe(store, tmp_path / "mine")


def test_groups_are_never_divided(store: Path, tmp_path: Path) -> None:
    (row,) = run_probe(store, tmp_path / "out", layers=(2,), group_by="group")
    opened = actstore.open(str(store))
    task = load_task(opened, "label")
    groups = np.array(opened.examples["group"].to_pylist())
    split = make_split(task, seed=0, groups=groups)
    assert not set(groups[split.train]) & set(groups[split.test])
    assert row["n_test"] == len(split.test)


def test_dry_run(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"probes": ("logistic", "attention"), "heads": (1, 8), "seeds": (0, 1)}
    probe.run(
        ProbeRun(
            store=str(store), task=("label",), out=str(tmp_path / "o"), dry_run=True, json=True,
            progress="none", **options,
        )
    )  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    # per layer one linear and two attention cases, two seeds, 4 x 5 + refit + control each
    assert said["fits"] == 2 * (1 + 2) * 2 * 22
    assert not (tmp_path / "o").exists()


BAD = {
    "unknown task": ({"task": ("lable",)}, UnknownNameError, "label"),
    "one class": ({"task": ("one",)}, InputError, "one"),
    "unknown layer": ({"layers": (9,)}, UnknownNameError, "layer 9"),
    "layer not stored": ({"layers": (1,)}, UnknownNameError, "layer 1"),
    "mask not stored": ({"mask": "all"}, UnknownNameError, "extract again"),
    "pool none": ({"pool": ("none",)}, InputError, "--pool mean"),
    "attention on words": (
        {"task": ("words:tags",), "probes": ("attention",)},
        InputError,
        "logistic",
    ),
    "no such group": ({"group_by": "grp"}, UnknownNameError, "grp"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(store: Path, tmp_path: Path, case: str) -> None:
    options, error, match = BAD[case]
    with pytest.raises(error, match=match) as caught:
        run_probe(store, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_missing_labels_name_the_row(tmp_path: Path) -> None:
    rows = [{"text": f"fox {i}", "label": "ab"[i % 2] if i != 7 else None} for i in range(20)]
    model = make_tiny_model("gpt2", tmp_path / "model")
    dataset = write_jsonl(tmp_path / "d.jsonl", rows)
    extract.run(
        ExtractRun(
            model=str(model), dataset=str(dataset), store=str(tmp_path / "s"), progress="none"
        )
    )
    with pytest.raises(InputError, match="row 8"):
        run_probe(tmp_path / "s", tmp_path / "out")


def test_an_unfinished_store_is_not_probed(tmp_path: Path) -> None:
    from fake_store import begin_store, make_manifest, make_tokens

    tokens = make_tokens([5] * 10)
    begin_store(tmp_path / "s", tokens, make_manifest(tokens), label=["a", "b"] * 5)
    with pytest.raises(DamagedStoreError, match="unfinished"):
        run_probe(tmp_path / "s", tmp_path / "out")


def test_examples_without_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"text": f"{'fox' if i % 2 else 'dog'} {i}", "label": "ab"[i % 2]} for i in range(60)
    ] + [{"text": "", "label": "a"}, {"text": "", "label": "b"}]
    model = make_tiny_model("gpt2", tmp_path / "model")
    dataset = write_jsonl(tmp_path / "d.jsonl", rows)
    extract.run(
        ExtractRun(
            model=str(model), dataset=str(dataset), store=str(tmp_path / "s"), progress="none"
        )
    )
    found = run_probe(
        tmp_path / "s", tmp_path / "o", layers=(2,), probes=("logistic", "attention"), steps=30
    )
    assert [row["dropped"] for row in found] == [2, 2]
    assert all(row["n_train"] + row["n_test"] == 60 for row in found)


def test_predict_agrees_with_the_store(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_probe(
        store, tmp_path / "out", layers=(2,), task=("label", "words:tags"),
        probes=("logistic", "attention"), heads=(2,), steps=100,
    )  # fmt: skip
    opened = actstore.open(str(store))
    texts = opened.examples["text"].to_pylist()[:12]
    capsys.readouterr()
    for row in rows:
        file = tmp_path / "out" / str(row["weights_file"])
        predictions = predict.predict(file, texts)
        if row["task"] == "label":
            truth = opened.examples["label"].to_pylist()[:12]
            right = np.mean([p.best[0] == t for p, t in zip(predictions, truth, strict=True)])
            assert right >= 0.75
            for prediction in predictions:
                assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        else:
            assert [p.word for p in predictions[:3]] == texts[0].split()[:3]
    predict.run(PredictRun(probe=str(file), text=(texts[0],), json=True))
    assert json.loads(capsys.readouterr().out)[0]["text"] == texts[0]
    with pytest.raises(InputError):
        predict.run(PredictRun(probe=str(tmp_path / "none.safetensors"), text=("x",)))
    for row in rows:
        with pytest.raises(InputError, match="text 2"):
            predict.predict(tmp_path / "out" / str(row["weights_file"]), ["fox", ""])


def test_report_without_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"results\.parquet"):
        report.run(ReportRun(results=str(tmp_path)))
