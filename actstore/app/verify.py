"""`actstore verify`: is the store what it says it is?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from actstore.app.console import print_json
from actstore.config import VerifyRun
from actstore.errors import DamagedStoreError, InputError, NotAStoreError
from actstore.runtime.events import Advanced, Event, Stage, bytes_text
from actstore.runtime.progress import make_display
from actstore.site import Site
from actstore.store.reader import Store
from actstore.store.verify import Finding, VerifyReport, verify_store

__all__ = ["TOLERANCE", "compare_with_model", "run"]

#: Largest relative L2 distance of a stored row from the plain forward pass, by stored dtype.
#: float32 is the rounding of reordered sums; the half precisions compute in that precision.
TOLERANCE = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 8e-2}


def run(run: VerifyRun) -> int:
    """Carry out the command; the exit code: 0 good, 1 damaged or unfinished."""
    if run.repair:
        raise InputError(
            "--repair is not available yet: remove the damaged store, or restore the files named "
            "by `actstore verify` from a copy"
        )
    store = _open(run.store)
    with make_display("auto") as display:
        report = _check(store, run, display)
        distances: dict[str, float] = {}
        if run.against_model and report.good:
            display(Stage("comparing with the model"))
            distances = compare_with_model(store, run.against_model)
    limit = TOLERANCE[store.manifest.request.dtype]
    wrong = {site: d for site, d in distances.items() if not d <= limit}
    findings = [
        *report.findings,
        *(
            Finding(f"acts/{site}", f"site {site}", f"differs from the model by {d:.2g}")
            for site, d in wrong.items()
        ),
    ]
    good = report.good and not wrong
    if run.json:
        print_json(
            {
                "good": good,
                "files": report.files,
                "bytes": report.n_bytes,
                "units_done": report.units_done,
                "units": report.units,
                "committed": report.committed,
                "findings": [dataclasses.asdict(finding) for finding in findings],
                "nonfinite": report.nonfinite,
                "distances": distances,
            }
        )
        return 0 if good else 1
    for finding in findings:
        print(f"{finding.key}: {finding.problem} ({finding.belongs_to})")
    for key, count in report.nonfinite.items():
        print(f"note: {key} holds {count} values that are not finite")
    for site, distance in distances.items():
        print(f"{site}: largest relative distance from the plain forward pass {distance:.2g}")
    checked = f"{report.files} files, {bytes_text(report.n_bytes)}"
    if not report.committed:
        print(
            f"{run.store}: unfinished, {report.units_done} of {report.units} units are there and "
            "none is committed; run the same `actstore extract` command again"
        )
    if good:
        print(f"{run.store}: good ({checked} checked)")
    elif findings:
        print(f"{run.store}: damaged, {len(findings)} faults ({checked} checked)")
    return 0 if good else 1


def _open(path: str) -> Store:
    try:
        return Store.open(path)
    except NotAStoreError as error:
        if (Path(path) / "plan.json").exists():
            raise DamagedStoreError(f"{path} was a store, but: {error}") from None
        raise


def _check(store: Store, run: VerifyRun, on_event: Callable[[Event], None]) -> VerifyReport:
    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            on_event(Stage("verifying", total, "files"))
            begun = True
        on_event(Advanced(1))

    return verify_store(store, deep=run.deep, progress=progress)


def compare_with_model(store: Store, n: int, seed: int = 0) -> dict[str, float]:
    """For each site the largest relative L2 distance of a stored row from the plain forward
    pass, over `n` random examples, each run alone and unpadded."""
    from actstore.model.forward import Extractor, plain_forward
    from actstore.model.loading import describe_model, weights_digest

    model, request = store.manifest.model, store.manifest.request
    info = describe_model(model.id, revision=model.revision)
    if weights_digest(model.id, revision=model.revision) != model.weights_digest:
        raise InputError(
            f"the model at {model.id!r} is not the one the store was made with "
            "(its weights differ): give the store's own model under that name"
        )
    sites = tuple(Site.parse(site) for site in store.sites)
    extractor = Extractor.load(info, sites, dtype=request.dtype, self_test=False)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(store.n_examples, min(n, store.n_examples), replace=False))
    tokens = store.tokens
    mask = max(store.masks, key=store.n_rows)
    selection = store.mask(mask)
    ids = [tokens.ids[tokens.offsets[e] : tokens.offsets[e + 1]] for e in chosen]
    wanted = plain_forward(extractor, ids)
    starts = np.concatenate([[0], np.cumsum([len(text) for text in ids])])
    worst = {}
    for site in store.sites:
        stored, offsets = store.view(site=site, mask=mask).read(chosen)
        plain = wanted[Site.parse(site)]
        distance = 0.0
        for k, (begin, stop) in enumerate(pairwise(offsets)):
            e = chosen[k]
            inside = selection.rows[selection.offsets[e] : selection.offsets[e + 1]]
            rows = plain[starts[k] + inside - tokens.offsets[e]]
            norm = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
            gap = np.linalg.norm(stored[begin:stop] - rows, axis=1) / norm
            distance = max(distance, float(gap.max(initial=0.0)))
        worst[site] = distance
    return worst
