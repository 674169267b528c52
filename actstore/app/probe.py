"""`actstore probe`: fit and evaluate probes on a store, with controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actstore.app.console import print_facts, print_json, print_table
from actstore.config import ProbeRun
from actstore.errors import (
    DamagedStoreError,
    IncompleteRunError,
    InputError,
    InterruptedRunError,
    StoreMismatchError,
)
from actstore.evaluate.protocol import (
    FitUnit,
    Protocol,
    UnitFitted,
    fit_unit,
    load_fits,
    load_groups,
    load_task,
)
from actstore.evaluate.results import (
    FitRecord,
    ResultTable,
    format_table,
    merge_records,
    write_results,
)
from actstore.evaluate.split import make_split
from actstore.runtime.events import Event, Stage
from actstore.runtime.execute import WorkItem
from actstore.runtime.progress import make_display
from actstore.runtime.ray import RayExecutor
from actstore.store.metadata import load_json
from actstore.store.publish import file_record, json_bytes, publish
from actstore.store.reader import Store
from actstore.task import Task

__all__ = ["FitWorker", "best_records", "fit_all", "plan_fits", "run"]

RUN_FILE = "run.json"


@dataclass(frozen=True)
class FitWorker:
    """Made in the driver, called once in each trainer process: opens the store, returns the
    function that fits one unit."""

    store: str
    out: str
    protocol: Protocol

    def __call__(self) -> Callable[[FitUnit], UnitFitted]:
        import torch

        torch.set_num_threads(1)
        store = Store.open(self.store)

        def work(unit: FitUnit) -> UnitFitted:
            return fit_unit(store, unit, self.protocol, Path(self.out))

        return work


def run(run: ProbeRun) -> int:
    """Carry out the command; the exit code."""
    records = fit_all(run)
    if records:
        _report(run, records)
    return 0


def fit_all(run: ProbeRun) -> list[FitRecord]:
    """Plan, fit what is not fitted yet, and write the results; the records of this run's units
    (none after a dry run, which prints its findings)."""
    store = Store.open(run.store)
    if not store.complete:
        raise DamagedStoreError(
            f"{run.store} is unfinished ({store.n_units_done} of {len(store.plan.units)} units): "
            "run the same `actstore extract` command again first"
        )
    protocol = _protocol(run)
    with make_display(run.progress) as display:
        display(Stage("reading tasks"))
        tasks = {spec: load_task(store, spec) for spec in dict.fromkeys(run.task)}
        units = plan_fits(run, store, tasks)
        _check_splits(store, tasks, protocol)
        if run.dry_run:
            _report_dry_run(run, store, tasks, units, protocol)
            return []
        out = Path(run.out)
        _claim(out, run, store, protocol)
        _fit(run, store, tasks, units, protocol, out, display)
    fits = load_fits(out)
    # A fit may be in two units, when a later run asked for more heads or tasks: either will do.
    write_results(out, merge_records((), (r for records in fits.values() for r in records)))
    return [record for unit in units for record in fits[unit.key]]


def plan_fits(run: ProbeRun, store: Store, tasks: dict[str, Task]) -> list[FitUnit]:
    """The units of work: fits that share a design matrix are in one unit."""
    sites = _sites(store, run.layers, run.sites)
    by_level: dict[str, list[str]] = {"example": [], "word": []}
    for spec, task in tasks.items():
        by_level[task.level].append(spec)
    units = []
    if "logistic" in run.probes:
        if by_level["example"] and "none" in run.pool:
            raise InputError(
                f"--pool none gives one row per token, but task {by_level['example'][0]!r} has one "
                "label per example: use --pool mean, last, first or max"
            )
        for site in sites:
            if by_level["example"]:
                specs = tuple(by_level["example"])
                units += [FitUnit("logistic", site, run.mask, p, specs, ()) for p in run.pool]
            if by_level["word"]:
                specs = tuple(by_level["word"])
                units.append(FitUnit("logistic", site, "words", "none", specs, ()))
    if "attention" in run.probes:
        if not by_level["example"]:
            raise InputError(
                "an attention probe reads a whole example, but every task has one label per word: "
                "use --probes logistic"
            )
        chosen = _sites(store, run.attention_layers, None) if run.attention_layers else sites
        for site in chosen:
            specs = tuple(by_level["example"])
            units.append(FitUnit("attention", site, run.mask, "none", specs, tuple(run.heads)))
    for unit in units:
        store.view(site=unit.site, mask=unit.mask)  # refuses masks that cannot be read
    return units


def _sites(
    store: Store, layers: Sequence[int] | None, sites: Sequence[str] | None
) -> tuple[str, ...]:
    if layers is not None:
        return tuple(dict.fromkeys(str(store.site(layer=layer)) for layer in layers))
    if sites is not None:
        return tuple(dict.fromkeys(str(store.site(site=site)) for site in sites))
    return store.sites


def _protocol(run: ProbeRun) -> Protocol:
    return Protocol(
        alphas=tuple(dict.fromkeys(run.alphas)),
        folds=run.folds,
        test_fraction=run.test_fraction,
        seeds=tuple(dict.fromkeys(run.seeds)),
        group_by=run.group_by,
        control="control_task" in run.controls,
        bootstrap=run.bootstrap,
        steps=run.steps,
        learning_rate=run.learning_rate,
        batch_examples=run.batch_examples,
    )


def _check_splits(store: Store, tasks: dict[str, Task], protocol: Protocol) -> None:
    """Fail on tasks that cannot be split now, rather than in a worker."""
    for task in tasks.values():
        groups = load_groups(store, task, protocol)
        for seed in protocol.seeds:
            make_split(
                task,
                test_fraction=protocol.test_fraction,
                folds=protocol.folds,
                seed=seed,
                groups=groups,
            )


def _claim(out: Path, run: ProbeRun, store: Store, protocol: Protocol) -> None:
    """Say in the results folder what it is for; refuse another run's folder."""
    commit = file_record(store.commits[-1])
    mine = {
        "store": run.store,
        "store_digest": f"{commit.size:x}-{commit.crc32c}",
        "model": store.manifest.model.id,
        "protocol": dataclasses.asdict(protocol),
    }
    path = out / RUN_FILE
    if path.exists():
        theirs = load_json(path)
        differing = [
            key
            for key in ("store_digest", "protocol")
            if json_bytes(theirs.get(key)) != json_bytes(mine[key])
        ]
        if differing:
            raise StoreMismatchError(
                f"{out} holds results of another run (its {' and '.join(differing)} differ): "
                "choose another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and holds no results of ours: choose another --out")
    publish(path, [json_bytes(mine)], same=False)


def _fit(
    run: ProbeRun,
    store: Store,
    tasks: dict[str, Task],
    units: Sequence[FitUnit],
    protocol: Protocol,
    out: Path,
    on_event: Callable[[Event], None],
) -> None:
    finished = load_fits(out)
    todo = [unit for unit in units if unit.key not in finished]
    if not todo:
        return
    items = [WorkItem(unit.key, _cost(store, unit, tasks, protocol), unit) for unit in todo]
    worker = FitWorker(str(store.path.resolve()), str(out.resolve()), protocol)
    on_event(Stage("starting trainers"))
    workers = None if run.workers is None else min(run.workers, len(items))
    with RayExecutor(workers=workers, address=run.address, num_cpus=1.0) as executor:
        on_event(Stage("fitting"))
        outcome = executor.execute(items, worker, on_event=on_event)
    if outcome.interrupted:
        raise InterruptedRunError(
            f"interrupted with {len(load_fits(out))} of {len(units)} units fitted: "
            "run the same command to go on"
        )
    if outcome.quarantined:
        key, reason = next(iter(outcome.quarantined.items()))
        raise IncompleteRunError(
            f"{len(outcome.quarantined)} of {len(units)} units failed three times; {key}: "
            f"{reason}. The others are kept: run the same command to try these again"
        )


def _cost(store: Store, unit: FitUnit, tasks: dict[str, Task], protocol: Protocol) -> float:
    """Rough work of a unit in products of the rows, so that the long ones start first and the
    time left can be told."""
    fits = len(protocol.alphas) * protocol.folds * len(protocol.seeds)
    classes = sum(tasks[spec].n_classes for spec in unit.tasks)
    if unit.probe == "attention":
        rows_each = store.n_rows(unit.mask) / max(1, store.n_examples)
        seen = min(store.n_examples, protocol.batch_examples) * protocol.steps
        return seen * sum(unit.heads) * (3 * classes + 4 * rows_each * len(unit.tasks)) * fits
    items = sum(tasks[spec].n_items for spec in unit.tasks) / len(unit.tasks)
    return items * classes * 160.0 * fits


# --- what people see --------------------------------------------------------------------------


def _n_fits(units: Sequence[FitUnit], protocol: Protocol) -> int:
    cases = sum(len(unit.tasks) * max(1, len(unit.heads)) for unit in units) * len(protocol.seeds)
    return cases * (len(protocol.alphas) * protocol.folds + 1 + protocol.control)


def _report_dry_run(
    run: ProbeRun,
    store: Store,
    tasks: dict[str, Task],
    units: Sequence[FitUnit],
    protocol: Protocol,
) -> None:
    largest = max(store.n_rows(u.mask) if u.pool == "none" else store.n_examples for u in units) * (
        store.d_model * 4
    )
    facts: dict[str, object] = {
        "tasks": {name: f"{t.n_items} items, {t.n_classes} classes" for name, t in tasks.items()},
        "sites": sorted({unit.site for unit in units}),
        "units": len(units),
        "fits": _n_fits(units, protocol),
        "largest_matrix_bytes": largest,
    }
    if run.json:
        print_json(facts)
        return
    shown = [(name, f"{t.n_items} items, {t.n_classes} classes") for name, t in tasks.items()]
    print_facts(
        [
            *shown,
            ("sites", len({unit.site for unit in units})),
            ("design matrices", len(units)),
            ("fits", _n_fits(units, protocol)),
            ("memory per trainer", f"about {2.5 * largest / 1e6:.0f} MB"),
        ]
    )
    print("Nothing was written (--dry-run).")


def best_records(records: Sequence[FitRecord]) -> list[FitRecord]:
    """The record with the best validation accuracy of each task and probe (never the best test
    accuracy: choosing a layer by its test score would flatter it)."""
    best: dict[tuple[str, str, int | None], FitRecord] = {}
    for record in records:
        key = (record.task, record.probe, record.heads)
        if key not in best or (record.cv_accuracy or 0) > (best[key].cv_accuracy or 0):
            best[key] = record
    return list(best.values())


def _report(run: ProbeRun, records: Sequence[FitRecord]) -> None:
    out = Path(run.out)
    if run.json:
        print_json(
            {
                "results": str(out / "results.parquet"),
                "fits": [dataclasses.asdict(record) for record in records],
            }
        )
        return
    for task in dict.fromkeys(record.task for record in records):
        table: ResultTable = format_table([r for r in records if r.task == task])
        print()
        print(table.caption)
        print_table(table.headers, table.rows)
    unsettled = [r for r in records if r.status not in ("converged", "completed")]
    loose = sum(record.cv_unconverged or 0 for record in records)
    if unsettled or loose:
        print(f"\n{len(unsettled)} final and {loose} validation fits did not converge.")
    print("\nBest by validation accuracy:")
    for record in best_records(records):
        heads = "" if record.heads is None else f" ({record.heads} heads)"
        print(
            f"  {record.task}: {record.probe}{heads} at {record.site}, "
            f"test accuracy {record.accuracy:.3f}"
        )
    print(f"\nResults: {out / 'results.parquet'}    Page: actstore report {out}")
