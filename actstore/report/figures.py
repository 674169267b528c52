"""Figures as HTML and SVG fragments: pure functions from values to escaped text.

A chart stretches to the width it is given without scaling its text: horizontal positions are
percentages, vertical ones pixels, and the lines live in a nested SVG that is stretched with
strokes of constant width. Looks come from classes alone, so both themes share the markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from actstore.report.series import Style
from actstore.report.text import escape

__all__ = ["Curve", "Dot", "Level", "Scale", "curve_chart", "make_scale", "range_mark", "sample"]

HEIGHT = 236
_TOP, _BOTTOM = 12, 208
_LEFT, _RIGHT = 4.0, 96.0
_LABEL_GAP = 7.5
"""Least distance of two labels on the horizontal axis, in percent of the width."""

_MARKERS = (
    '<circle cx="{x}" cy="{y}" r="4"/>',
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.6 4.4 3.4h-8.8z",
    "M0-5 5 0 0 5-5 0z",
    "M0 4.6-4.4-3.4h8.8z",
    "M-3.4-3.4 3.4 3.4M-3.4 3.4 3.4-3.4",
)


@dataclass(frozen=True)
class Dot:
    """One value with its interval; `y` None leaves a gap in the line."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """One line; `dots` are sorted by `x`."""

    style: Style
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Level:
    """A horizontal reference line with its name."""

    name: str
    y: float


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high` with round `ticks`."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Place of `value` on the axis, 0 at `low` and 1 at `high`; clipped to the axis."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def pixel(self, value: float) -> float:
        """Distance from the top of a chart."""
        return _BOTTOM - (_BOTTOM - _TOP) * self.share(value)

    def label(self, tick: float) -> str:
        places = 1 if all(math.isclose(t * 10, round(t * 10)) for t in self.ticks) else 2
        return f"{tick:.{places}f}".replace("-", "\u2212")


def make_scale(values: Iterable[float], *, most: float | None = None) -> Scale:
    """A scale over `values` in -1..1 with two to eight round ticks; never above `most`.

    Values closer together than 0.05 get a scale of at least that height, so that noise does
    not look like a mountain.
    """
    known = list(values)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = max(0.06 * (high - low), (0.05 - (high - low)) / 2)
    low, high = low - room, high + room
    step = next((s for s in (0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 6), 0.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if min(known, default=0.0) >= 0:
        first = max(first, 0)
    if most is not None:
        last = min(last, math.ceil(most / step - 1e-9))
    last = max(last, first + 1)
    ticks = tuple(round(step * place, 10) for place in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


class _Horizontal:
    """Percent positions of the x values, spaced in proportion; one value sits in the middle."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values), max(values)

    def percent(self, value: float) -> float:
        if self.high == self.low:
            return 50.0
        return _LEFT + (_RIGHT - _LEFT) * ((value - self.low) / (self.high - self.low))


def _runs(dots: Sequence[Dot]) -> list[list[tuple[float, float, Dot]]]:
    """Unbroken stretches of (x, y, dot)."""
    runs: list[list[tuple[float, float, Dot]]] = [[]]
    for dot in dots:
        if dot.y is None:
            runs.append([])
        else:
            runs[-1].append((dot.x, dot.y, dot))
    return [run for run in runs if run]


def _marker(slot: int, x: str, y: float) -> str:
    shape = _MARKERS[slot]
    if slot == 0:
        return shape.format(x=x, y=_number(y))
    return f'<svg x="{x}" y="{_number(y)}" overflow="visible"><path d="{shape}"/></svg>'


def sample(style: Style) -> str:
    """A short stretch of the line, for a legend."""
    return (
        f'<svg class="sample c{style.slot}" width="40" height="14" aria-hidden="true">'
        f'<path class="line" d="M1 7H39"/><g class="dots">{_marker(style.slot, "20", 7)}</g></svg>'
    )


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + " ".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _draw_curve(curve: Curve, across: _Horizontal, scale: Scale) -> tuple[str, str]:
    """(bands and lines for the stretched layer, whiskers and markers for the fixed layer)."""
    slot, index = curve.style.slot, curve.style.index
    stretched, fixed = [], []
    for run in _runs(curve.dots):
        places = [(10 * across.percent(x), scale.pixel(y)) for x, y, _ in run]
        if len(run) > 1:
            upper = [
                (place[0], scale.pixel(y if dot.high is None else dot.high))
                for place, (_, y, dot) in zip(places, run, strict=True)
            ]
            lower = [
                (place[0], scale.pixel(y if dot.low is None else dot.low))
                for place, (_, y, dot) in zip(places, run, strict=True)
            ]
            if upper != lower:
                stretched.append(f'<path class="band" d="{_path(upper + lower[::-1])}z"/>')
            stretched.append(f'<path class="line" d="{_path(places)}"/>')
        for x, y, dot in run:
            left = f"{_number(across.percent(x))}%"
            if len(run) == 1 and dot.low is not None and dot.high is not None:
                fixed.append(
                    f'<line class="whisker" x1="{left}" x2="{left}" '
                    f'y1="{_number(scale.pixel(dot.low))}" y2="{_number(scale.pixel(dot.high))}"/>'
                )
            fixed.append(_marker(slot, left, scale.pixel(y)))
    around = f'<g class="series c{slot} k{index}'
    return (
        f'{around}">{"".join(stretched)}</g>' if stretched else "",
        f'{around} dots">{"".join(fixed)}</g>' if fixed else "",
    )


def _levels(levels: Sequence[Level], scale: Scale) -> tuple[str, str]:
    """Reference lines, and their names: levels closer than a line of text share one."""
    lines, labels = [], []
    together: list[tuple[float, list[str]]] = []
    for level in sorted(levels, key=lambda one: scale.pixel(one.y)):
        y = scale.pixel(level.y)
        lines.append(f'<line class="level" x1="0" x2="100%" y1="{_number(y)}" y2="{_number(y)}"/>')
        if together and y - together[-1][0] < 15:
            together[-1] = (y, [*together[-1][1], level.name])
        else:
            together.append((y, [level.name]))
    for y, names in together:
        # Below the line where there is room: the curves are mostly above their baselines.
        below = y + 14 if y + 14 < HEIGHT - 22 else y - 5
        labels.append(
            f'<text class="name" x="100%" y="{_number(below)}">{escape(", ".join(names))}</text>'
        )
    return "".join(lines), "".join(labels)


def _labelled(places: Sequence[float]) -> set[int]:
    """Which columns get a label: as many as fit, evenly and with the last if possible."""
    last = len(places) - 1
    for step in range(1, len(places) + 1):
        chosen = list(range(0, last + 1, step))
        gaps = [places[b] - places[a] for a, b in pairwise(chosen)]
        if chosen[-1] == last and min(gaps, default=100.0) >= _LABEL_GAP:
            if len(chosen) > 4 or last < 4:
                return set(chosen)
            break
    shown = [0]
    for i in range(1, last + 1):
        if places[i] - places[shown[-1]] >= _LABEL_GAP:
            shown.append(i)
    if shown[-1] != last:
        # The last layer is worth a label; the one before it gives way.
        shown[-1:] = [last] if len(shown) > 1 else [0, last]
    return set(shown)


def _columns(
    labels: Mapping[float, str], tips: Mapping[float, Sequence[str]], across: _Horizontal
) -> str:
    """Invisible columns that carry the pointer's target, the tip and the axis label."""
    xs = sorted(labels)
    places = [across.percent(x) for x in xs]
    last = len(xs) - 1
    shown = _labelled(places)
    out = []
    for i, (x, place) in enumerate(zip(xs, places, strict=True)):
        start = (places[i - 1] + place) / 2 if i else 0.0
        end = (place + places[i + 1]) / 2 if i < last else 100.0
        at = _number(place)
        label = (
            f'<text class="tick" x="{at}%" y="{HEIGHT - 10}">{escape(labels[x])}</text>'
            if i in shown
            else ""
        )
        tip = "&#10;".join(escape(line) for line in tips.get(x, ()))
        out.append(
            f'<g class="col" data-tip="{tip}">'
            f'<rect x="{_number(start)}%" width="{_number(end - start)}%" y="0" '
            f'height="{HEIGHT}"/>'
            f'<line x1="{at}%" x2="{at}%" y1="{_TOP}" y2="{_BOTTOM}"/>{label}</g>'
        )
    return "".join(out)


def curve_chart(
    curves: Sequence[Curve],
    scale: Scale,
    *,
    labels: Mapping[float, str],
    tips: Mapping[float, Sequence[str]],
    levels: Sequence[Level] = (),
    title: str,
) -> str:
    """One line chart.

    Args:
        curves: lines, drawn in this order.
        scale: the vertical axis; charts side by side share it.
        labels: x value -> its text below the axis, for every x of the curves.
        tips: x value -> the lines of text shown when it is pointed at.
        levels: reference lines, drawn over the whole width.
        title: what a screen reader says for the picture.

    Returns:
        An HTML fragment without ids, styles or scripts.
    """
    across = _Horizontal(list(labels))
    grid = "".join(
        f'<line x1="0" x2="100%" y1="{_number(y)}" y2="{_number(y)}"/>'
        f'<text x="-8" y="{_number(y + 4)}">{scale.label(tick)}</text>'
        for tick in scale.ticks
        for y in [scale.pixel(tick)]
    )
    drawn = [_draw_curve(curve, across, scale) for curve in curves]
    lines, names = _levels(levels, scale)
    dense = " dense" if len(labels) > 20 else ""
    return (
        f'<div class="plot{dense}"><svg role="img" aria-label="{escape(title)}" '
        f'width="100%" height="{HEIGHT}" overflow="visible">'
        f'<g class="grid">{grid}</g>{lines}'
        f'<svg width="100%" height="{HEIGHT}" viewBox="0 0 1000 {HEIGHT}" '
        f'preserveAspectRatio="none">{"".join(line for line, _ in drawn)}</svg>'
        f"{names}{_columns(labels, tips, across)}{''.join(dots for _, dots in drawn)}"
        "</svg></div>"
    )


def range_mark(style: Style, dot: Dot, scale: Scale, levels: Sequence[Level] = ()) -> str:
    """A value and its interval on a horizontal scale, for a table cell; `dot.x` is not used."""

    def percent(value: float) -> str:
        return f"{_number(_LEFT + (_RIGHT - _LEFT) * scale.share(value))}%"

    parts = [
        f'<line class="level" x1="{percent(level.y)}" x2="{percent(level.y)}" y1="0" y2="28"/>'
        for level in levels
    ]
    inner = ""
    if dot.low is not None and dot.high is not None:
        inner += (
            f'<line class="whisker" x1="{percent(dot.low)}" x2="{percent(dot.high)}" '
            'y1="14" y2="14"/>'
        )
    if dot.y is not None:
        inner += _marker(style.slot, percent(dot.y), 14)
    return (
        '<svg class="range" width="100%" height="28" aria-hidden="true">'
        f'<line class="track" x1="0" x2="100%" y1="14" y2="14"/>{"".join(parts)}'
        f'<g class="c{style.slot} dots">{inner}</g></svg>'
    )
