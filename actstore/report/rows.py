"""Result rows read, checked and gathered into what a report shows; no drawing here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from actstore.errors import InputError
from actstore.report.series import Series
from actstore.report.text import visible
from actstore.site import POINTS_PER_BLOCK

__all__ = ["COLUMNS", "Fit", "Point", "TaskResults", "block_of", "gather", "read_fits"]

_TEXT = ("task", "kind", "site", "mask", "pool", "probe", "status")
_WHOLE = (
    *("layer", "heads", "seed", "n_train", "n_test", "iterations"),
    *("n_classes", "cv_unconverged", "dropped"),
)
_SHARE = (
    *("accuracy", "accuracy_low", "accuracy_high", "f1_macro", "roc_auc", "ece"),
    *("control_accuracy", "majority", "cv_accuracy"),
)
_REAL = (
    *("alpha", "log_loss", "selectivity", "entropy", "entropy_uniform", "grad_norm"),
    *("seconds", "gap_bound", "separable"),
)

COLUMNS = _TEXT + _WHOLE + _SHARE + _REAL
"""Every column that a report reads; others are ignored."""

FINISHED = ("converged", "completed")


@dataclass(frozen=True)
class Fit:
    """One checked row. `cells` holds every known column: text, a finite number, or None."""

    task: str
    site: str
    layer: int | None
    series: Series
    cells: Mapping[str, str | float | None] = field(repr=False)

    def number(self, column: str) -> float | None:
        value = self.cells.get(column)
        return value if isinstance(value, float) else None

    @property
    def status(self) -> str:
        """`converged`, `completed`, another state in the row's own word, or `no status`."""
        return str(self.cells.get("status") or "no status")

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


@dataclass(frozen=True)
class Point:
    """What the figures show of one series at one site: one fit, or the mean over seeds.

    `low` and `high` enclose the intervals of all fits averaged. `unfinished` counts fits whose
    status is neither converged nor completed.
    """

    series: Series
    site: str
    layer: int | None
    accuracy: float | None
    low: float | None
    high: float | None
    control: float | None
    selectivity: float | None
    cv_accuracy: float | None
    fits: int
    unfinished: int


@dataclass(frozen=True)
class TaskResults:
    """One task: points by (series, site), with both in the order in which they are shown."""

    name: str
    fits: tuple[Fit, ...]
    points: Mapping[tuple[Series, str], Point]
    series: tuple[Series, ...]
    sites: tuple[str, ...]
    layers: Mapping[str, int | None]
    majority: float | None
    chance: float | None
    n_test: tuple[int, ...]

    @property
    def best(self) -> Point | None:
        """Highest cross-validated accuracy, or highest test accuracy where that is not known
        for all; the earlier site, then the simpler probe, in a tie."""
        scored = [point for point in self.points.values() if point.accuracy is not None]
        if not scored:
            return None
        key = _cv if self.chosen_by_cv else _accuracy
        top = max(key(point) for point in scored)
        order = {site: place for place, site in enumerate(self.sites)}
        rank = {series: place for place, series in enumerate(self.series)}
        tied = [point for point in scored if key(point) == top]
        return min(tied, key=lambda point: (order[point.site], rank[point.series]))

    @property
    def chosen_by_cv(self) -> bool:
        scored = [point for point in self.points.values() if point.accuracy is not None]
        return bool(scored) and all(point.cv_accuracy is not None for point in scored)

    @property
    def gaps(self) -> int:
        """Pairs of a site and a series, both seen in this task, that have no row."""
        return len(self.sites) * len(self.series) - len(self.points)


def _accuracy(point: Point) -> float:
    assert point.accuracy is not None
    return point.accuracy


def _cv(point: Point) -> float:
    assert point.cv_accuracy is not None
    return point.cv_accuracy


# --- reading -----------------------------------------------------------------------------------


def read_fits(records: Sequence[Mapping[str, Any]]) -> list[Fit]:
    """Check rows with the columns of results.parquet. InputError names the row and column.

    NaN and infinities count as missing. Rows are counted from 1.
    """
    if not records:
        raise InputError("report: there are no result rows to show; run `actstore probe` first")
    return [_read(record, row) for row, record in enumerate(records, 1)]


def _read(record: Mapping[str, Any], row: int) -> Fit:
    cells: dict[str, str | float | None] = {}
    for column in _TEXT:
        value = record.get(column)
        cells[column] = None if value is None or value != value else str(value)
    for column in ("task", "site", "probe"):
        if not cells[column]:
            raise InputError(f"results row {row}: column {column!r} is missing or empty")
    for column in _WHOLE + _SHARE + _REAL:
        cells[column] = _number(record.get(column), row, column)
    for column in _SHARE:
        value = cells[column]
        if isinstance(value, float) and not -1e-6 <= value <= 1 + 1e-6:
            raise InputError(f"results row {row}: {column} is {value:g}, not between 0 and 1")
    selectivity = cells["selectivity"]
    if isinstance(selectivity, float) and abs(selectivity) > 1 + 1e-6:
        raise InputError(f"results row {row}: selectivity is {selectivity:g}, not in -1 to 1")
    if selectivity is None:
        accuracy, control = cells["accuracy"], cells["control_accuracy"]
        if isinstance(accuracy, float) and isinstance(control, float):
            cells["selectivity"] = accuracy - control
    layer, heads = cells["layer"], cells["heads"]
    series = Series(
        probe=str(cells["probe"]),
        heads=int(heads) if isinstance(heads, float) and heads else None,
        mask=str(cells["mask"] or "") or None,
        pool=str(cells["pool"] or "") or None,
    )
    return Fit(
        task=str(cells["task"]),
        site=str(cells["site"]),
        layer=int(layer) if isinstance(layer, float) else None,
        series=series,
        cells=cells,
    )


def _number(value: Any, row: int, column: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        shown = visible(repr(value))[:60]
        raise InputError(f"results row {row}: {column} is {shown}, not a number") from None
    return number if math.isfinite(number) else None


# --- gathering ---------------------------------------------------------------------------------


def block_of(site: str) -> tuple[str, int | None]:
    """(`attn_out`, 3) of `attn_out.3`; (`embed`, None) of a site without a block."""
    match = re.fullmatch(r"(.+)\.([0-9]{1,6})", site, re.DOTALL)
    return (match[1], int(match[2])) if match else (site, None)


def _depth(site: str) -> tuple[int, int, int, str]:
    """Sort key: the way of a forward pass; names that are no known site come last."""
    point, block = block_of(site)
    if site == "embed":
        return (0, 0, 0, "")
    if site == "final_norm":
        return (2, 0, 0, "")
    if block is None or point not in POINTS_PER_BLOCK:
        return (3, 0 if block is None else block, 0, point)
    return (1, block, POINTS_PER_BLOCK.index(point), "")


def gather(fits: Sequence[Fit]) -> list[TaskResults]:
    """Group fits by task, in order of first appearance, and average over seeds."""
    tasks: dict[str, list[Fit]] = {}
    for fit in fits:
        tasks.setdefault(fit.task, []).append(fit)
    return [_gather_task(name, own) for name, own in tasks.items()]


def _gather_task(name: str, fits: list[Fit]) -> TaskResults:
    series = sorted({fit.series for fit in fits}, key=Series.order)
    cells: dict[tuple[Series, str], list[Fit]] = {}
    for fit in fits:
        cells.setdefault((fit.series, fit.site), []).append(fit)
    layers: dict[str, int | None] = {}
    for fit in fits:
        layers[fit.site] = fit.layer if fit.layer is not None else layers.get(fit.site)
    # Hidden states in the order of their layers, then all other sites.
    top = float("inf")
    sites = sorted(layers, key=lambda site: (_first(layers[site], top), _depth(site)))
    classes = [n for fit in fits if (n := fit.number("n_classes")) and n > 1]
    binary = any(fit.cells.get("kind") == "binary" for fit in fits)
    return TaskResults(
        name=name,
        fits=tuple(fits),
        points={key: _point(own) for key, own in cells.items()},
        series=tuple(series),
        sites=tuple(sites),
        layers=layers,
        majority=_mean(fit.number("majority") for fit in fits),
        chance=1 / max(classes) if classes else 0.5 if binary else None,
        n_test=tuple(sorted({int(n) for fit in fits if (n := fit.number("n_test"))})),
    )


def _point(fits: list[Fit]) -> Point:
    chosen = _best_per_seed(fits)
    return Point(
        series=fits[0].series,
        site=fits[0].site,
        layer=fits[0].layer,
        accuracy=_mean(fit.number("accuracy") for fit in chosen),
        low=_extreme(min, chosen, "accuracy_low"),
        high=_extreme(max, chosen, "accuracy_high"),
        control=_mean(fit.number("control_accuracy") for fit in chosen),
        selectivity=_mean(fit.number("selectivity") for fit in chosen),
        cv_accuracy=_mean(fit.number("cv_accuracy") for fit in chosen),
        fits=sum(fit.number("accuracy") is not None for fit in chosen),
        unfinished=sum(not fit.finished for fit in chosen),
    )


def _best_per_seed(fits: list[Fit]) -> list[Fit]:
    """Of several penalties per seed keep the best in cross-validation, never on the test."""
    if any(fit.number("cv_accuracy") is None for fit in fits):
        return fits
    best: dict[float | None, Fit] = {}
    for fit in fits:
        held = best.setdefault(fit.number("seed"), fit)
        if (fit.number("cv_accuracy") or 0) > (held.number("cv_accuracy") or 0):
            best[fit.number("seed")] = fit
    return list(best.values())


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _extreme(pick: Callable[[list[float]], float], fits: list[Fit], column: str) -> float | None:
    known = [value for fit in fits if (value := fit.number(column)) is not None]
    return pick(known) if known else None
