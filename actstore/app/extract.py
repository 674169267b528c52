"""`actstore extract`: from a model and a dataset to a committed store."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

import actstore
from actstore.app.console import print_facts, print_json
from actstore.config import ExtractRun
from actstore.data.dataset import Dataset
from actstore.data.readers import read_dataset
from actstore.errors import IncompleteRunError, InterruptedRunError, StoreMismatchError
from actstore.extract import ExtractWorker
from actstore.manifest import DatasetRecord, Manifest, ModelRecord, Request, Software
from actstore.model.architecture import ModelInfo, resolve_sites
from actstore.model.loading import describe_model, weights_digest
from actstore.model.tokenize import Tokenizer
from actstore.plan import Plan, make_plan
from actstore.runtime.events import Advanced, Event, Stage, bytes_text, count_text
from actstore.runtime.execute import Executor, WorkItem
from actstore.runtime.progress import make_display
from actstore.runtime.ray import RayExecutor
from actstore.store.layout import DENSE_MASKS, DTYPES, ArraySpec
from actstore.store.reader import Store
from actstore.store.writer import (
    array_specs,
    check_space,
    create_store,
    finish_store,
    reject_occupied,
    write_lock,
)
from actstore.tokens import TokenMask, TokenTable, make_mask

__all__ = ["Prepared", "extract_all", "prepare", "run"]


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before the model runs."""

    info: ModelInfo
    manifest: Manifest
    plan: Plan
    tokens: TokenTable
    masks: Mapping[str, TokenMask]
    dataset: Dataset

    def arrays(self) -> list[ArraySpec]:
        return list(array_specs(self.manifest, self.plan, self.masks))

    def n_bytes(self) -> int:
        """Bytes of all rows that will be stored."""
        request, width = self.manifest.request, self.info.d_model
        rows = sum(self.masks[mask].n_rows for mask in request.masks)
        ragged = sum(mask not in DENSE_MASKS for mask in request.masks)
        rows += ragged * len(request.pools) * self.tokens.n_examples
        return rows * width * DTYPES[request.dtype].itemsize * len(request.sites)


def run(run: ExtractRun) -> int:
    """Carry out the command; the exit code."""
    made = extract_all(run)
    if made is not None:
        _report(run, *made)
    return 0


def extract_all(run: ExtractRun) -> tuple[Store, int] | None:
    """Plan, extract what is missing, and commit; the store and how many of its units were there
    before (None after a dry run, which prints its findings)."""
    path = Path(run.store).resolve()
    reject_occupied(path)
    with make_display(run.progress) as display:
        prepared = prepare(run, display)
        if run.dry_run:
            _report_dry_run(run, prepared)
            return None
        if not (path / "zarr.json").exists():
            check_space(path, int(prepared.n_bytes() * 1.02))
            display(Stage("writing the token table"))
            create_store(
                path,
                prepared.manifest,
                prepared.plan,
                prepared.tokens,
                prepared.masks,
                prepared.dataset.table,
            )
        with write_lock(path):
            store = Store.open(path)
            _insist_on_same(store, prepared.manifest)
            done_before = store.n_units_done
            if not store.complete:
                _extract(run, store, prepared.info, display)
            display(Stage("committing"))
            finish_store(Store.open(path), _advance(display))
    return Store.open(path), done_before


def prepare(run: ExtractRun, on_event: Callable[[Event], None]) -> Prepared:
    """Read model facts and dataset, tokenise, and plan; nothing is written.

    Raises InputError (and what derives from it) for anything wrong with the request.
    """
    on_event(Stage("reading model and dataset"))
    info = describe_model(run.model, revision=run.revision, trust_remote_code=run.trust_remote_code)
    sites = tuple(str(s) for s in resolve_sites(info, layers=run.layers, sites=run.sites))
    dataset = read_dataset(
        run.dataset,
        text_column=run.text_column,
        words_column=run.words_column,
        split=run.split,
        limit=run.limit,
    )
    tokenizer = Tokenizer.load(
        run.model, revision=info.revision, trust_remote_code=run.trust_remote_code
    )
    limits = [n for n in (run.max_length, info.max_length) if n is not None]
    max_length = min(limits, default=None)
    texts = dataset.texts()
    on_event(Stage("tokenising", len(texts), "texts"))
    tokens = tokenizer.tokenize(texts, max_length=max_length, progress=_follow(on_event))
    names: set[str] = {"content", "first", "last", *run.masks}
    if dataset.word_spans is not None:
        names.add("words")
    masks: dict[str, TokenMask] = {
        name: make_mask(name, tokens, dataset.word_spans) for name in sorted(names - {"all"})
    }
    if "all" in run.masks:
        masks["all"] = make_mask("all", tokens)
    dtype = info.native_dtype if run.dtype == "auto" else run.dtype
    shard_bytes = int(run.shard_mb * 2**20)
    plan = make_plan(
        np.diff(tokens.offsets),
        [masks[name] for name in run.masks if name not in DENSE_MASKS],
        row_bytes=info.d_model * DTYPES[dtype].itemsize,
        shard_bytes=shard_bytes,
    )
    manifest = Manifest(
        ModelRecord(
            str(Path(run.model).resolve()) if Path(run.model).is_dir() else run.model,
            info.revision,
            info.model_type,
            info.architecture,
            info.n_blocks,
            info.d_model,
            info.has_final_norm,
            info.config_digest,
            weights_digest(run.model, revision=info.revision),
            tokenizer.digest,
        ),
        DatasetRecord(
            run.dataset,
            dataset.fingerprint(),
            dataset.text_column,
            run.words_column,
            tokens.n_examples,
            tokens.n_tokens,
            tokens.n_truncated,
            max_length,
        ),
        Request(
            sites,
            tuple(dict.fromkeys(run.masks)),
            tuple(dict.fromkeys(run.pool)),
            dtype,
            shard_bytes,
            run.pack_tokens,
        ),
        Software(
            actstore.__version__,
            version("torch"),
            version("transformers"),
            _device(run.device).split(":")[0],
        ),
    )
    return Prepared(info, manifest, plan, tokens, masks, dataset)


def _advance(on_event: Callable[[Event], None]) -> Callable[[int], None]:
    return lambda amount: on_event(Advanced(amount))


def _follow(on_event: Callable[[Event], None]) -> Callable[[int], None]:
    """Like `_advance`, for callers that report how many are done so far."""
    last = 0

    def progress(done: int) -> None:
        nonlocal last
        on_event(Advanced(done - last))
        last = done

    return progress


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _insist_on_same(store: Store, wanted: Manifest) -> None:
    """Refuse to continue a store that another configuration made."""
    found = store.manifest.differences(wanted, software=not store.complete)
    if found:
        raise StoreMismatchError(
            f"{store.path} was made with another configuration: {'; '.join(found)}. "
            "Use another --store, or the options it was made with"
        )


def _extract(
    run: ExtractRun, store: Store, info: ModelInfo, on_event: Callable[[Event], None]
) -> None:
    items = [
        WorkItem(f"unit {unit.index}", float(unit.n_tokens), unit.index)
        for unit in store.plan.units
        if unit.index not in store.pending
    ]
    device = _device(run.device)
    worker = ExtractWorker(
        str(store.path.resolve()), run.model, info.revision, run.trust_remote_code, device
    )
    if items:
        on_event(Stage("starting workers"))
        with _executor(run, len(items), device) as executor:
            on_event(Stage("extracting"))
            outcome = executor.execute(items, worker, on_event=on_event)
        if outcome.interrupted:
            raise InterruptedRunError(
                f"interrupted with {len(Store.open(store.path).pending)} of "
                f"{len(store.plan.units)} units done: run the same command to go on"
            )
        if outcome.quarantined:
            key, reason = next(iter(outcome.quarantined.items()))
            raise IncompleteRunError(
                f"{len(outcome.quarantined)} of {len(store.plan.units)} units failed three times "
                f"({', '.join(sorted(outcome.quarantined))}); {key}: {reason}. "
                "The others are stored: run the same command to try these again"
            )


def _executor(run: ExtractRun, n_items: int, device: str) -> Executor:
    workers = run.workers
    if workers is not None:
        workers = min(workers, n_items)
    gpus = 1.0 if device.startswith("cuda") else 0.0
    return RayExecutor(workers=workers, address=run.address, num_cpus=1.0, num_gpus=gpus)


# --- what people see --------------------------------------------------------------------------


def _report_dry_run(run: ExtractRun, prepared: Prepared) -> None:
    facts = {
        "model": run.model,
        "sites": list(prepared.manifest.request.sites),
        "examples": prepared.tokens.n_examples,
        "tokens": prepared.tokens.n_tokens,
        "truncated": prepared.tokens.n_truncated,
        "dtype": prepared.manifest.request.dtype,
        "units": len(prepared.plan.units),
        "arrays": len(prepared.arrays()),
        "files": sum(spec.n_shards for spec in prepared.arrays()),
        "bytes": prepared.n_bytes(),
    }
    if run.json:
        print_json(facts)
        return
    shown = {
        **facts,
        "sites": ", ".join(prepared.manifest.request.sites),
        "truncated": _truncated(prepared.manifest.dataset),
        "bytes": bytes_text(prepared.n_bytes()),
    }
    print_facts(list(shown.items()))
    print("Nothing was written (--dry-run).")


def _truncated(record: DatasetRecord) -> str:
    if not record.n_truncated:
        return "none"
    return (
        f"{record.n_truncated} of {record.n_examples} examples, cut after "
        f"{record.max_length} tokens"
    )


def _report(run: ExtractRun, store: Store, done_before: int) -> None:
    data, n_bytes = store.manifest.dataset, sum(r.size for r in store.shards.values())
    units = len(store.plan.units)
    if run.json:
        print_json(
            {
                "store": run.store,
                "sites": list(store.sites),
                "masks": list(store.masks),
                "examples": data.n_examples,
                "tokens": data.n_tokens,
                "truncated": data.n_truncated,
                "units": units,
                "units_resumed": done_before,
                "bytes": n_bytes,
            }
        )
        return
    resumed = f" ({done_before} of {units} units were there already)" if done_before else ""
    print(
        f"{run.store}: {count_text(data.n_examples)} examples, {count_text(data.n_tokens)} tokens, "
        f"{len(store.sites)} sites, {bytes_text(n_bytes)}{resumed}"
    )
    if data.n_truncated:
        print(f"Truncated: {_truncated(data)}.")
    print(f"Next: actstore probe --store {shlex.quote(run.store)} --task COLUMN --out results")
