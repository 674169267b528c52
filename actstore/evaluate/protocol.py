"""The experiment: split, cross-validate, refit, test once, and the control task beside it.

For each task and seed: a stratified (or grouped) split into training and test items; every
penalty fitted on every fold; the penalty with the best mean validation accuracy (the larger one
of equals) refitted on all training items; one evaluation on the test items. The control is the
same probe with the same penalty, trained and tested on labels that carry no information about
the text beyond its identity. All fits on one design matrix are solved together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from actstore.errors import DamagedStoreError, InputError
from actstore.evaluate.controls import control_labels, majority_accuracy
from actstore.evaluate.design import AttentionDesign, Design, Fitted, LinearDesign, Problem
from actstore.evaluate.metrics import evaluate
from actstore.evaluate.results import FitRecord
from actstore.evaluate.split import Split, make_split
from actstore.store.publish import json_bytes, publish
from actstore.store.reader import Store
from actstore.task import Task, make_groups, make_task

__all__ = ["FitUnit", "Protocol", "UnitFitted", "fit_unit", "load_fits", "load_groups", "load_task"]

Int64 = npt.NDArray[np.int64]
FITS = "fits"


@dataclass(frozen=True)
class Protocol:
    """How probes are selected and tested; the same for all of a run."""

    alphas: tuple[float, ...]
    folds: int
    test_fraction: float
    seeds: tuple[int, ...]
    group_by: str | None
    control: bool
    bootstrap: int
    steps: int
    learning_rate: float | None
    batch_examples: int


@dataclass(frozen=True)
class FitUnit:
    """All fits that share one design matrix: one site, mask and pool, of one level of task."""

    probe: str
    site: str
    mask: str
    pool: str
    tasks: tuple[str, ...]
    heads: tuple[int, ...]

    @property
    def key(self) -> str:
        """A file name that tells units of any runs apart."""
        digest = hashlib.blake2b(repr(self).encode(), digest_size=6).hexdigest()
        return f"{self.probe}.{self.site}.{self.mask}.{self.pool}-{digest}"


@dataclass(frozen=True)
class UnitFitted:
    """What a trainer reports of a finished unit."""

    key: str
    fits: int

    @property
    def counters(self) -> dict[str, float]:
        return {"fits": self.fits}


@dataclass(frozen=True)
class _Case:
    """One row of the results: a task, a number of heads and a seed."""

    task: Task
    split: Split
    groups: Int64 | None
    heads: int | None
    seed: int


def load_task(store: Store, spec: str) -> Task:
    """The task named by `spec` over a store's examples (or its words that have a row)."""
    word_rows = None
    if spec.startswith("words:"):
        words = store.mask("words")
        assert words.items is not None
        example = np.repeat(np.arange(store.n_examples, dtype=np.int64), words.lengths)
        word_rows = (example, words.items)
    data = store.manifest.dataset
    return make_task(
        spec,
        store.examples,
        text_column=data.text_column,
        words_column=data.words_column,
        word_rows=word_rows,
    )


def load_groups(store: Store, task: Task, protocol: Protocol) -> Int64 | None:
    """[n_items] groups that no split divides, or None where none were asked for."""
    if protocol.group_by is None:
        return None
    words = store.manifest.dataset.words_column
    return make_groups(task, protocol.group_by, store.examples, words_column=words)


def fit_unit(store: Store, unit: FitUnit, protocol: Protocol, out: Path) -> UnitFitted:
    """Fit, evaluate and save everything of one unit; commits its records last.

    Raises InputError for rows that cannot be fitted, DamagedStoreError for rows that cannot be
    read.
    """
    design, example_of_item = _design(store, unit, protocol)
    cases = []
    for spec in unit.tasks:
        task = load_task(store, spec)
        assert example_of_item is None or np.array_equal(task.example, example_of_item)
        groups = load_groups(store, task, protocol)
        for seed in protocol.seeds:
            split = make_split(
                task,
                test_fraction=protocol.test_fraction,
                folds=protocol.folds,
                seed=seed,
                groups=groups,
            )
            heads: Sequence[int | None] = unit.heads or (None,)
            cases += [_Case(task, split, groups, h, seed) for h in heads]
    chosen = _cross_validate(design, cases, protocol)
    records, n_fits = _refit(store, unit, design, cases, chosen, protocol, out)
    rows = {"unit": asdict(unit), "records": [asdict(record) for record in records]}
    publish(out / FITS / f"{unit.key}.json", [json_bytes(rows)], same=False)
    n_folds = sum(case.split.n_folds for case in cases)
    return UnitFitted(unit.key, n_fits + n_folds * len(protocol.alphas))


def load_fits(out: Path) -> dict[str, list[FitRecord]]:
    """Records of every finished unit of a results folder, by unit key."""
    found = {}
    for path in sorted((out / FITS).glob("*.json")):
        try:
            records = json.loads(path.read_bytes())["records"]
            found[path.stem] = [FitRecord(**record) for record in records]
        except (ValueError, KeyError, TypeError):
            raise DamagedStoreError(f"{path} is damaged: delete it and run again") from None
    return found


# --- steps -----------------------------------------------------------------------------------


def _design(store: Store, unit: FitUnit, protocol: Protocol) -> tuple[Design, Int64 | None]:
    """The design matrix; for word tasks also the example of each of its items."""
    label = f"site {unit.site}, mask {unit.mask}"
    if unit.probe == "attention":
        rows, offsets = store.view(site=unit.site, mask=unit.mask).read()
        return AttentionDesign(
            rows,
            offsets,
            label,
            steps=protocol.steps,
            learning_rate=protocol.learning_rate,
            batch_examples=protocol.batch_examples,
        ), None
    pool = None if unit.pool == "none" else unit.pool
    view = store.view(site=unit.site, mask=unit.mask, pool=pool)
    x, offsets = view.read()
    if pool is None:
        example = np.repeat(np.arange(store.n_examples, dtype=np.int64), np.diff(offsets))
        return LinearDesign(x, np.ones(len(x), bool), label), example
    return LinearDesign(x, view.lengths > 0, label), None


def _cross_validate(
    design: Design, cases: Sequence[_Case], protocol: Protocol
) -> list[tuple[float, float, int]]:
    """For each case the chosen alpha, its mean validation accuracy, and how many of the case's
    fits did not converge."""
    problems = [
        Problem(
            case.task.y,
            case.task.n_classes,
            alpha,
            case.split.training(fold) & design.usable,
            case.heads,
            case.seed,
        )
        for case in cases
        for alpha in protocol.alphas
        for fold in range(case.split.n_folds)
    ]
    fits = iter(design.fit(problems))
    chosen = []
    for case in cases:
        scores, unconverged = [], 0
        for _ in protocol.alphas:
            right = []
            for fold in range(case.split.n_folds):
                fit = next(fits)
                unconverged += fit.status not in ("converged", "completed")
                held = np.flatnonzero(case.split.validation(fold) & design.usable)
                predicted = fit.predict()[held].argmax(axis=1)
                right.append(np.mean(predicted == case.task.y[held]) if len(held) else np.nan)
            scores.append(float(np.nanmean(right)))
        # of equal scores the strongest penalty: the simpler probe
        best = max(range(len(scores)), key=lambda i: (scores[i], protocol.alphas[i]))
        chosen.append((protocol.alphas[best], scores[best], unconverged))
    return chosen


def _refit(
    store: Store,
    unit: FitUnit,
    design: Design,
    cases: Sequence[_Case],
    chosen: Sequence[tuple[float, float, int]],
    protocol: Protocol,
    out: Path,
) -> tuple[list[FitRecord], int]:
    """Refit with the chosen alphas, and the controls, in one solve; test and save."""
    problems = []
    controls: list[Int64 | None] = []
    for case, (alpha, _, _) in zip(cases, chosen, strict=True):
        train = np.zeros(case.task.n_items, bool)
        train[case.split.train] = True
        train &= design.usable
        k, heads, seed = case.task.n_classes, case.heads, case.seed
        problems.append(Problem(case.task.y, k, alpha, train, heads, seed))
        labels = control_labels(case.task, seed) if protocol.control else None
        controls.append(labels)
        if labels is not None:
            problems.append(Problem(labels, k, alpha, train, heads, seed))
    fits = iter(design.fit(problems))
    records = []
    for case, labels, choice in zip(cases, controls, chosen, strict=True):
        fit = next(fits)
        control = next(fits) if labels is not None else None
        train = case.split.train[design.usable[case.split.train]]
        test = case.split.test[design.usable[case.split.test]]
        if not len(test):
            raise InputError(f"task {case.task.spec}: no test item has a row under {unit.mask}")
        control_accuracy = None
        if control is not None and labels is not None:
            guessed = control.predict()[test].argmax(axis=1)
            control_accuracy = float(np.mean(guessed == labels[test]))
        records.append(
            _record(store, unit, case, choice, fit, control_accuracy, (train, test), protocol, out)
        )
    return records, len(problems)


def _record(
    store: Store,
    unit: FitUnit,
    case: _Case,
    choice: tuple[float, float, int],
    fit: Fitted,
    control_accuracy: float | None,
    items: tuple[Int64, Int64],
    protocol: Protocol,
    out: Path,
) -> FitRecord:
    alpha, cv_accuracy, cv_unconverged = choice
    task, (train, test) = case.task, items
    clusters = task.example if case.groups is None and task.level == "word" else case.groups
    score = evaluate(
        task.y[test],
        fit.predict()[test],
        task.classes,
        groups=None if clusters is None else clusters[test],
        n_bootstrap=protocol.bootstrap,
        seed=case.seed,
    )
    entropy, uniform = fit.entropy(test) if fit.entropy is not None else (None, None)
    file = _weights_file(unit, case)
    metadata = {
        "task": task.spec,
        "classes": list(task.classes),
        "site": unit.site,
        "layer": store.layer_of(unit.site),
        "mask": unit.mask,
        "pool": unit.pool,
        "model": store.manifest.model.id,
        "revision": store.manifest.model.revision,
        "weights_digest": store.manifest.model.weights_digest,
        "max_length": store.manifest.dataset.max_length,
        "dtype": store.manifest.request.dtype,
        "alpha": alpha,
        "seed": case.seed,
        "accuracy": score.accuracy,
    }
    path = out / file
    path.parent.mkdir(parents=True, exist_ok=True)
    fit.save(path, metadata)
    return FitRecord(
        task=task.spec,
        kind=task.kind,
        site=unit.site,
        layer=store.layer_of(unit.site),
        mask=unit.mask,
        pool=unit.pool,
        probe=unit.probe,
        heads=case.heads,
        alpha=alpha,
        seed=case.seed,
        n_train=len(train),
        n_test=len(test),
        accuracy=score.accuracy,
        accuracy_low=score.accuracy_low,
        accuracy_high=score.accuracy_high,
        f1_macro=score.f1_macro,
        roc_auc=score.roc_auc,
        log_loss=score.log_loss,
        ece=score.ece,
        control_accuracy=control_accuracy,
        selectivity=None if control_accuracy is None else score.accuracy - control_accuracy,
        majority=majority_accuracy(task.y[train], task.y[test]),
        entropy=entropy,
        entropy_uniform=uniform,
        status=fit.status,
        grad_norm=fit.grad_norm,
        iterations=fit.iterations,
        seconds=fit.seconds,
        n_classes=task.n_classes,
        cv_accuracy=cv_accuracy,
        cv_unconverged=cv_unconverged,
        gap_bound=fit.gap_bound,
        separable=fit.separable,
        weights_file=file,
        dropped=task.n_items - len(train) - len(test),
    )


def _weights_file(unit: FitUnit, case: _Case) -> str:
    heads = "" if case.heads is None else f".h{case.heads}"
    name = f"{unit.mask}.{unit.pool}.{unit.probe}{heads}.seed{case.seed}.safetensors"
    return f"probes/{_file_name(case.task.spec)}/{unit.site}/{name}"


def _file_name(text: str) -> str:
    """A task as a folder's name, different for different tasks: anything unusual becomes `_`, and
    then a digest keeps it apart."""
    kind, column = ("words.", text[6:]) if text.startswith("words:") else ("", text)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", column)
    if plain == column and plain:
        return kind + plain
    return f"{kind}{plain[:60]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
