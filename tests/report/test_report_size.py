"""How large and how quick a page is, what it leaves out, and a browser's word on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from report_samples import Row, Seen, row, sweep

from actstore.report import render_report
from actstore.report.page import MAX_ROWS, MAX_TASKS


def render(rows: list[Row], **changes: object) -> str:
    arguments: dict[str, object] = {"title": "Probes", "context": {"command": "actstore probe"}}
    return render_report(rows, **(arguments | changes))  # type: ignore[arg-type]


def test_five_hundred_rows_are_small_and_quick() -> None:
    five = [("logistic", None), ("mean_difference", None), ("mlp", None)]
    five += [("attention", 1), ("attention", 8)]
    rows = sweep(tasks=[f"task {i}" for i in range(10)], layers=10, probes=five)
    assert len(rows) == 500
    start = time.perf_counter()
    page = render(rows)
    assert time.perf_counter() - start < 1
    assert len(page.encode()) < 1_000_000
    assert len(Seen(page).tables[-1]) == 501
    assert "left out" not in page


def test_more_rows_are_cut_fairly_and_the_file_is_named() -> None:
    rows = sweep(tasks=["easy", "hard"], layers=30, seed=0)
    rows += [one | {"seed": seed} for one in rows for seed in range(1, 10)]
    rows += [row(task="tiny", accuracy=0.1)]
    page = render(rows, results_file="out/results.parquet")
    seen = Seen(page)
    table = seen.tables[-1]
    assert len(table) == 1 + MAX_ROWS
    assert "701 of 1,201 rows are left out" in seen.text
    assert "out/results.parquet" in seen.text
    kept = [line[0] for line in table[1:]]
    assert kept.count("tiny") == 1
    assert abs(kept.count("easy") - kept.count("hard")) <= 1


def test_tasks_beyond_the_limit_are_counted() -> None:
    rows = [row(task=f"task {i}", accuracy=0.5 + i / 1000) for i in range(MAX_TASKS + 6)]
    seen = Seen(render(rows))
    assert seen.classes("figs") == MAX_TASKS
    assert f"shows {MAX_TASKS} of {MAX_TASKS + 6} tasks" in seen.text


def test_columns_with_one_value_move_out_of_the_table() -> None:
    rows = sweep(layers=3, n_classes=2)
    seen = Seen(render(rows))
    head = seen.tables[-1][0]
    assert {"task", "site", "probe", "accuracy", "status"} <= set(head)
    assert not {"mask", "kind", "entropy", "gap bound"} & set(head)
    assert "The same in all rows: kind binary, classes 2, mask content, pool mean" in seen.text


def test_reports_import_nothing_heavy() -> None:
    check = (
        "import sys, json, actstore.report; names = {n.split('.')[0] for n in sys.modules};"
        "print(json.dumps(sorted(names & {'numpy', 'torch', 'pyarrow', 'ray', 'zarr',"
        " 'transformers', 'pydantic', 'scipy'})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == []


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_accepts_the_hashes_and_the_script_runs(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = tmp_path / "report.html"
    page.write_text(render(sweep(tasks=("a", "b"))), encoding="utf-8")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", "--dump-dom"),
    ]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    try:
        done = subprocess.run(
            [CHROMIUM, *flags, profile, page.as_uri()], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        pytest.skip("chromium does not start here")
    if done.returncode or "<html" not in done.stdout:
        pytest.skip("chromium does not start here")
    assert '<th scope="col" class="n"><button' in done.stdout, "the script did not run"
    assert 'class="filter"><label>' in done.stdout
    assert "Refused to" not in done.stderr
    assert "CONSOLE" not in done.stderr
