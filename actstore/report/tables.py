"""Tables of a report: heat map, numbers behind the charts, all results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actstore.report.colours import STEPS
from actstore.report.figures import Dot, Level, Scale, range_mark
from actstore.report.rows import Fit, Point, TaskResults
from actstore.report.series import Series, Style
from actstore.report.text import MISSING, decimal, escape, interval, words

__all__ = ["heat_map", "notes", "numbers_table", "range_table", "results_table", "site_label"]

Names = Mapping[Series, str]
"""Series -> the name shown for it, plain text."""


def scroll(label: str, table: str, *, tall: bool = False) -> str:
    """A region of its own for a table that may be wider or longer than its place."""
    kind = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{kind}" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'
    )


def site_label(site: str, layer: int | None) -> str:
    """HTML: the layer number with the site's name behind it, or the name alone."""
    if layer is None:
        return escape(site)
    return f'<span class="lay">{layer}</span> <small>{escape(site)}</small>'


def notes(point: Point, majority: float | None) -> list[str]:
    """What a reader must know about a value, in words."""
    found = []
    if point.accuracy is None:
        found.append("no result")
    if point.unfinished:
        found.append("not converged")
    if point.low is not None and majority is not None and point.low <= majority:
        found.append("no clear gain over majority")
    if point.low is not None and point.control is not None and point.low <= point.control:
        found.append("no clear gain over control")
    return found


def heat_map(task: TaskResults, names: Names, scale: Scale) -> str:
    """Accuracy of each site (row) and series (column), shaded in `STEPS` steps of `scale`."""
    best = task.best
    head = "".join(f'<th scope="col">{escape(names[series])}</th>' for series in task.series)
    body = []
    for site in task.sites:
        cells = []
        for series in task.series:
            point = task.points.get((series, site))
            if point is None or point.accuracy is None:
                word = "not fitted" if point is None else "no result"
                cells.append(f'<td class="gap">{word}</td>')
                continue
            step = round((STEPS - 1) * scale.share(point.accuracy))
            top = " top" if point is best else ""
            flag = "<small>not converged</small>" if point.unfinished else ""
            cells.append(f'<td class="h{step}{top}">{decimal(point.accuracy)}{flag}</td>')
        label = site_label(site, task.layers[site])
        body.append(f'<tr><th scope="row">{label}</th>{"".join(cells)}</tr>')
    corner = "layer" if any(layer is not None for layer in task.layers.values()) else "site"
    return scroll(
        f"Accuracy by site and probe, {task.name}",
        f'<table class="heat"><thead><tr><th scope="col">{corner}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
    )


def range_table(
    task: TaskResults,
    points: Sequence[Point],
    names: Names,
    styles: Mapping[Series, Style],
    scale: Scale,
    levels: Sequence[Level],
) -> str:
    """Sites that form no curve: a row per point with its interval drawn and written."""
    body = []
    for point in points:
        style = styles[point.series]
        mark = range_mark(style, Dot(0, point.accuracy, point.low, point.high), scale, levels)
        label = site_label(point.site, point.layer)
        body.append(
            f'<tr class="series k{style.index}"><th scope="row">{label}</th>'
            f"<td>{escape(names[point.series])}</td>"
            f'<td class="n">{decimal(point.accuracy)}'
            f"<small>{_bounds(point)}</small></td><td>{mark}</td>"
            f'<td class="n">{decimal(point.selectivity)}</td></tr>'
        )
    return scroll(
        f"Accuracy with intervals, {task.name}",
        '<table class="ranges"><thead><tr><th scope="col">site</th><th scope="col">probe</th>'
        '<th scope="col" class="n">accuracy</th><th scope="col" class="rangecol">'
        f"{scale.label(scale.low)} to {scale.label(scale.high)}</th>"
        '<th scope="col" class="n">selectivity</th>'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table>",
    )


def _bounds(point: Point) -> str:
    if point.low is None or point.high is None:
        return ""
    return f"[{decimal(point.low)}, {decimal(point.high)}]"


def numbers_table(task: TaskResults, names: Names) -> str:
    """Every number that the figures of a task draw."""
    head = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in [("site", ""), ("probe", "")]
        + [(n, ' class="n"') for n in ("accuracy", "low", "high", "control", "selectivity")]
        + [("fits", ' class="n"'), ("notes", "")]
    )
    body = []
    for site in task.sites:
        for series in task.series:
            point = task.points.get((series, site))
            if point is None:
                continue
            numbers = (point.accuracy, point.low, point.high, point.control, point.selectivity)
            cells = "".join(f'<td class="n">{decimal(value)}</td>' for value in numbers)
            remarks = ", ".join(notes(point, task.majority))
            body.append(
                f'<tr><th scope="row">{site_label(site, task.layers[site])}</th>'
                f'<td>{escape(names[series])}</td>{cells}<td class="n">{point.fits}</td>'
                f"<td>{remarks}</td></tr>"
            )
    return scroll(
        f"Numbers behind the charts, {task.name}",
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>",
    )


# --- all results -------------------------------------------------------------------------------

_HEADS = {
    "n_train": "train",
    "n_test": "test",
    "f1_macro": "F1",
    "roc_auc": "ROC AUC",
    "ece": "ECE",
    "control_accuracy": "control",
    "n_classes": "classes",
    "entropy": "entropy, nats",
    "entropy_uniform": "uniform entropy",
    "cv_accuracy": "CV accuracy",
    "cv_unconverged": "CV unconverged",
}
_TABLE = (
    *("task", "kind", "n_classes", "site", "layer", "mask", "pool", "probe", "heads", "alpha"),
    *("seed", "n_train", "n_test", "accuracy", "cv_accuracy", "control_accuracy", "selectivity"),
    *("majority", "f1_macro", "roc_auc", "log_loss", "ece", "entropy", "entropy_uniform"),
    *("status", "iterations", "grad_norm", "gap_bound", "separable", "dropped"),
    *("cv_unconverged", "seconds"),
)
_FRACTIONS = {
    *("cv_accuracy", "control_accuracy", "selectivity", "majority", "f1_macro", "roc_auc"),
    *("log_loss", "ece", "entropy", "entropy_uniform"),
}
_ALWAYS = {"task", "site", "probe", "accuracy", "status"}
_SMALL = ("grad_norm", "gap_bound")
_TEXT = {"task", "kind", "site", "mask", "pool", "probe", "status"}


def _cell(fit: Fit, column: str) -> str:
    """The text of one cell, not yet escaped."""
    value = fit.cells.get(column)
    if column == "accuracy":
        low, high = fit.number("accuracy_low"), fit.number("accuracy_high")
        return interval(fit.number("accuracy"), low, high)
    if value is None or value == "":
        return MISSING
    if isinstance(value, str):
        return words(value) if column in ("status", "probe", "kind") else value
    if column in _SMALL:
        return f"{value:.1e}"
    if column == "alpha":
        return f"{value:g}"
    if column == "seconds":
        return decimal(value, 2)
    if column == "separable":
        return "yes" if value else "no"
    if value.is_integer() and abs(value) < 1e15 and column not in _FRACTIONS:
        return f"{int(value):,}"
    return decimal(value)


def results_table(fits: Sequence[Fit]) -> tuple[list[tuple[str, str]], str]:
    """(columns with one value for all rows as (name, value), the table of the others).

    Columns without any value are left out. Both names and values are plain text.
    """
    texts = {column: [_cell(fit, column) for fit in fits] for column in _TABLE}
    constant, columns = [], []
    for column in _TABLE:
        values = set(texts[column])
        if values == {MISSING} and column not in _ALWAYS:
            continue
        if len(fits) > 1 and len(values) == 1 and column not in _ALWAYS:
            constant.append((_head(column), texts[column][0]))
        else:
            columns.append(column)
    kinds = {column: f' class="{_kind(column, texts[column])}"' for column in columns}
    head = "".join(f'<th scope="col"{kinds[c]}>{_head(c)}</th>' for c in columns)
    body = []
    for row, fit in enumerate(fits):
        strong = "status" if not fit.finished else None
        cells = "".join(
            f"<td{kinds[c]}><strong>{escape(texts[c][row])}</strong></td>"
            if c == strong
            else f"<td{kinds[c]}>{escape(texts[c][row])}</td>"
            for c in columns
        )
        body.append(f"<tr>{cells}</tr>")
    table = (
        f'<table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )
    return constant, scroll("All results", table, tall=True)


def _kind(column: str, texts: Sequence[str]) -> str:
    """Class of a column: numbers to the right, short text in one line, long text wraps."""
    if column not in _TEXT:
        return "n"
    return "s" if max(map(len, texts)) <= 24 else "t"


def _head(column: str) -> str:
    return _HEADS.get(column, words(column))
