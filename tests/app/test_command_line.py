"""The commands as a user types them, in processes of their own, on a Ray of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from app_helpers import ROOT, SHARED, actstore, environment, labelled
from tiny_models import make_tiny_model

import actstore as package
from actstore.evaluate.results import read_results

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_from_text_to_page(tmp_path: Path) -> None:
    """Extract, look, verify, probe, report, predict: in a folder with a space and an accent."""
    folder = tmp_path / "mes données"
    model = make_tiny_model("llama", folder / "model")
    dataset = labelled(folder / "texts.jsonl", 120)
    store, out = folder / "acts", folder / "results"
    said = actstore(
        *("extract", "--model", model, "--dataset", dataset, "--store", store),
        *("--pool", "mean", "--workers", 2, "--shard-mb", 0.05),
    )
    assert "120 examples" in said.stdout
    assert "extracting" in said.stderr
    facts = json.loads(actstore("info", store, "--json").stdout)
    assert facts["complete"]
    assert facts["units"] > 2
    assert sorted(facts["layers"]) == ["0", "1", "2", "3"]
    assert "good" in actstore("verify", store, "--against-model", 5).stdout
    probe = ("probe", "--store", store, "--task", "label", "--out", out)
    dry = actstore(*probe, "--dry-run")
    assert "fits" in dry.stdout
    assert not out.exists()
    # one run file in place of options, and one command for both kinds of probe
    printed = actstore(
        *probe, "--probes", "logistic,attention", "--heads", 2, "--attention-layers", -1,
        "--steps", 60, "--workers", 2, "--print-config",
    )  # fmt: skip
    (folder / "run.yaml").write_text(printed.stdout)
    said = actstore("probe", "--config", folder / "run.yaml")
    assert "Best by validation accuracy" in said.stdout
    records = read_results(out)
    assert [(r.probe, r.layer) for r in records if r.probe == "attention"] == [("attention", 3)]
    assert sorted(r.layer for r in records if r.probe == "logistic") == [0, 1, 2, 3]
    assert {r.status for r in records} <= {"converged", "completed"}
    page = Path(actstore("report", out).stdout.strip())
    assert page == out / "report.html"
    assert "label" in page.read_text()
    weights = out / str(records[0].weights_file)
    told = actstore("predict", "--probe", weights, "--text", "brown brown fox", "--json").stdout
    assert json.loads(told)[0]["label"] in ("fox", "dog")
    # damage, found with its name and exit code
    shard = next((store / "acts").rglob("c/1/0"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    told = actstore("verify", store, code=1).stdout
    assert "unit 1, site" in told
    assert str(shard.relative_to(store)) in told


def test_bad_input_is_one_line_on_stderr(tmp_path: Path) -> None:
    model = make_tiny_model("gpt2", tmp_path / "model")
    dataset = labelled(tmp_path / "d.jsonl", 5)
    base = ("extract", "--model", model, "--dataset", dataset, "--store", tmp_path / "s")
    for more, word in (
        (("--layers", "9"), "layer 9"),
        (("--sites", "resid_post.77"), "resid_post.77"),
        (("--text-column", "body"), "body"),
        (("--dtype", "float8"), "float8"),
    ):
        told = actstore(*base, *more, code=2)
        (line,) = told.stderr.strip().splitlines()[-1:]
        assert line.startswith("error: ")
        assert word in line
        assert "Traceback" not in told.stderr
        assert not (tmp_path / "s").exists()
    told = actstore("info", tmp_path, code=2)
    assert "is not an activation store" in told.stderr


def test_job_entry_point(tmp_path: Path) -> None:
    """`jobs/extract.py` is the same command."""
    model = make_tiny_model("gpt2", tmp_path / "model")
    dataset = labelled(tmp_path / "d.jsonl", 10)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "jobs" / "extract.py"), "--model", str(model)),
            *("--dataset", str(dataset), "--store", str(tmp_path / "s"), "--workers", "1"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert package.open(str(tmp_path / "s")).complete


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the data folder is not beside the checkout")
def test_part_of_speech_of_every_word(tmp_path: Path) -> None:
    """Real CoNLL-U, real MiniLM: one label per word, by layer."""
    from actstore.app.demo import demo_model

    store, out = tmp_path / "acts", tmp_path / "results"
    actstore(
        *("extract", "--model", demo_model(), "--store", store, "--layers", "0,3"),
        *("--dataset", SHARED / "ud_english_ewt" / "dev.conllu", "--limit", 300),
    )
    opened = package.open(str(store))
    n_words = sum(map(len, opened.examples["words"].to_pylist()))
    assert opened.n_rows("words") == n_words
    actstore("probe", "--store", store, "--task", "words:upos", "--out", out, "--alphas", "0.001")
    records = read_results(out)
    assert sorted(record.layer for record in records) == [0, 3]
    assert all(record.mask == "words" for record in records)
    # Most words of the test are known from training, so a probe can learn much of the control by
    # heart; in the middle of the model it knows the part of speech better than that.
    middle = max(records, key=lambda record: record.layer)
    assert middle.accuracy > 0.75
    assert middle.selectivity > 0.15
