"""The figures of one task: curves over layers, single sites, heat map, and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from actstore.report.figures import Curve, Dot, Level, Scale, curve_chart, make_scale
from actstore.report.rows import Point, TaskResults, block_of
from actstore.report.series import Looks, Series
from actstore.report.tables import heat_map, numbers_table, range_table
from actstore.report.text import decimal, escape, interval

__all__ = ["task_section"]


def _families(task: TaskResults) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Sites that share a horizontal axis, as {axis name: {site: x}}, and the single ones.

    Sites with a layer number lie on the layer axis; of two with one number the first in depth
    does. Others lie on an axis of their own kind, by block.
    """
    families: dict[str, dict[str, float]] = {}
    for site in task.sites:
        layer = task.layers[site]
        on_layers = families.setdefault("layer", {})
        if layer is not None and layer not in on_layers.values():
            on_layers[site] = float(layer)
            continue
        point, block = block_of(site)
        families.setdefault(f"{point}, by block", {})[site] = float(block or 0)
    curves = {name: places for name, places in families.items() if len(places) > 1}
    single = [site for site in task.sites if not any(site in p for p in curves.values())]
    return curves, single


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def task_section(task: TaskResults, at: int, looks: Looks, level: str) -> str:
    families, single = _families(task)
    points = list(task.points.values())
    levels = []
    if task.majority is not None:
        levels.append(Level(f"majority {decimal(task.majority)}", task.majority))
    if task.chance is not None:
        levels.append(Level(f"chance {decimal(task.chance)}", task.chance))
    values = [v for p in points for v in (p.accuracy, p.low, p.high)]
    accuracy = make_scale(_known(values) + [one.y for one in levels], most=1.0)
    chosen = [p.selectivity for p in points]
    selectivity = make_scale([*_known(chosen), 0.0], most=1.0)
    figures = []
    for axis, places in families.items():
        figures += _charts(task, axis, places, looks, level, accuracy, selectivity, levels)
    # Charts come in pairs; beside one pair there is room for a narrow heat map.
    paired = len(figures) > 2 or len(task.series) > 3
    if single:
        own = [
            task.points[series, site]
            for site in single
            for series in task.series
            if (series, site) in task.points
        ]
        wide = ' class="wide"' if paired or not families else ""
        head = "Accuracy and selectivity" if not families else "Sites outside the charts"
        table = range_table(task, own, looks.names, looks.styles, accuracy, levels)
        note = f"Lines are {level} bootstrap intervals; dotted: {_names(levels)}."
        figures.append(f"<figure{wide}>{_caption(head, note)}{table}</figure>")
    if len(task.sites) > 1:
        wide = ' class="wide"' if paired else ""
        note = (
            f"Stronger colour means higher accuracy, from {accuracy.label(accuracy.low)} (page) "
            f"to {accuracy.label(accuracy.high)}. Underlined: the one named above."
        )
        figures.append(
            f"<figure{wide}>{_caption('Accuracy by site and probe', note)}"
            f"{heat_map(task, looks.names, accuracy)}</figure>"
        )
    return (
        f'<section id="task-{at}"><h2><bdi>{escape(task.name)}</bdi></h2>'
        f'<div class="figs{" pairs" if paired else ""}">{"".join(figures)}</div>'
        f"<details><summary>Numbers behind these charts</summary>"
        f"{numbers_table(task, looks.names)}</details></section>"
    )


def _names(levels: Sequence[Level]) -> str:
    return ", ".join(level.name for level in levels) or "no baseline known"


def _caption(head: str, note: str) -> str:
    return f"<figcaption><h3>{escape(head)}</h3><p>{escape(note)}</p></figcaption>"


def _charts(
    task: TaskResults,
    axis: str,
    places: Mapping[str, float],
    looks: Looks,
    level: str,
    accuracy: Scale,
    selectivity: Scale,
    levels: Sequence[Level],
) -> list[str]:
    """Accuracy and selectivity figures of one axis: a pair for each group of series."""
    panels: dict[tuple[int, str], list[Series]] = {}
    for series in task.series:
        if any((series, site) in task.points for site in places):
            panels.setdefault(looks.panels[series], []).append(series)
    x_name = "layer" if axis == "layer" else "block"
    labels = {x: f"{x:.0f}" for x in places.values()}
    fits = max(point.fits for point in task.points.values())
    mean = f", mean of up to {fits} fits" if fits > 1 else ""
    around = f"enclose the {level} bootstrap intervals of up to {fits} fits, lines are their mean"
    bands = around if fits > 1 else f"are {level} bootstrap intervals"
    figures = []
    for (_, rows), group in panels.items():
        where = f" ({rows})" if rows else ""
        by = "by layer" if axis == "layer" else f"of {axis}"
        for quantity, scale in (("accuracy", accuracy), ("selectivity", selectivity)):
            bounds = quantity == "accuracy"
            curves, tips = [], {x: [f"{x_name} {labels[x]} · {s}"] for s, x in places.items()}
            for series in group:
                dots = []
                for site, x in sorted(places.items(), key=lambda pair: pair[1]):
                    point = task.points.get((series, site))
                    dot, text = _dot(x, point, bounds)
                    dots.append(dot)
                    if text:
                        tips[x].append(f"{looks.names[series]} {text}")
                curves.append(Curve(looks.styles[series], tuple(dots)))
            if not any(dot.y is not None for curve in curves for dot in curve.dots):
                continue
            head = f"{quantity.capitalize()} {by}{where}"
            axis_from = f"{scale.label(scale.low)} to {scale.label(scale.high)}"
            if bounds:
                tests = "/".join(f"{n:,}" for n in task.n_test[:3])
                items = f"{tests} test items; bands" if tests else "Bands"
                note = f"{items} {bands}. Axis from {axis_from}."
            else:
                note = f"Accuracy minus accuracy on the control task{mean}. Axis from {axis_from}."
            chart = curve_chart(
                curves,
                scale,
                labels=labels,
                tips=tips,
                levels=levels if bounds else [Level("control level", 0.0)],
                title=f"{head}, {task.name}. {_aloud(curves, group, looks)}",
            )
            foot = "layer (0 = embeddings)" if axis == "layer" else "block"
            figures.append(
                f'<figure>{_caption(head, note)}{chart}<p class="axis">{foot}</p></figure>'
            )
    return figures


def _dot(x: float, point: Point | None, bounds: bool) -> tuple[Dot, str]:
    if point is None:
        return Dot(x, None), ""
    if bounds:
        dot = Dot(x, point.accuracy, point.low, point.high)
        text = interval(point.accuracy, point.low, point.high)
    else:
        dot, text = Dot(x, point.selectivity), decimal(point.selectivity)
    return dot, text + (", not converged" if point.unfinished else "")


def _aloud(curves: Sequence[Curve], group: Sequence[Series], looks: Looks) -> str:
    """Each line's highest value, for those who do not see the chart."""
    parts = []
    for curve, series in zip(curves, group, strict=True):
        known = [(dot.y, -dot.x) for dot in curve.dots if dot.y is not None]
        if known:
            y, x = max(known)
            parts.append(f"{looks.names[series]}: highest {decimal(y)} at {-x:.0f}.")
    return " ".join(parts)
