"""Scales and charts as geometry: places read back from the markup."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import Seen

from actstore.report.figures import (
    HEIGHT,
    Curve,
    Dot,
    Level,
    Scale,
    curve_chart,
    make_scale,
    range_mark,
    sample,
)
from actstore.report.series import Style

share = st.floats(0, 1)
CIRCLE = re.compile(r'<circle cx="([\d.]+)%" cy="([\d.]+)"')


def chart(*curves: Curve, scale: Scale | None = None, **changes: object) -> str:
    xs = sorted({dot.x for curve in curves for dot in curve.dots})
    values = [dot.y for curve in curves for dot in curve.dots if dot.y is not None]
    arguments: dict[str, object] = {
        "labels": {x: f"{x:g}" for x in xs},
        "tips": {x: [f"x {x:g}"] for x in xs},
        "title": "a chart",
    }
    return curve_chart(curves, scale or make_scale(values), **(arguments | changes))  # type: ignore[arg-type]


@given(st.lists(st.floats(-1, 1), max_size=20), st.sampled_from([None, 1.0]))
def test_a_scale_holds_its_values_on_round_even_ticks(
    values: list[float], most: float | None
) -> None:
    scale = make_scale(values, most=most)
    assert scale.low == scale.ticks[0] < scale.ticks[-1] == scale.high
    assert all(scale.low - 1e-9 <= value <= scale.high + 1e-9 for value in values)
    steps = [b - a for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert 2 <= len(scale.ticks) <= 9
    assert len({scale.label(tick) for tick in scale.ticks}) == len(scale.ticks)
    for tick in scale.ticks:
        assert float(scale.label(tick).replace("\u2212", "-")) == pytest.approx(tick)
    if most is not None:
        assert scale.high <= most + 1e-9
    if values and min(values) >= 0:
        assert scale.low >= 0


@given(st.lists(share, min_size=1), share, share)
def test_a_scale_is_monotone_and_stays_in_the_picture(
    values: list[float], one: float, other: float
) -> None:
    scale = make_scale(values, most=1.0)
    low, high = sorted((one, other))
    assert 0 < scale.pixel(high) <= scale.pixel(low) < HEIGHT
    inside = [value for value in (low, high) if scale.low <= value <= scale.high]
    if len(inside) == 2 and high - low > 1e-6:
        assert scale.pixel(high) < scale.pixel(low)


def test_noise_does_not_fill_the_chart() -> None:
    scale = make_scale([0.5001, 0.5002])
    assert scale.high - scale.low >= 0.05


@given(st.lists(st.tuples(st.integers(0, 80), share), min_size=2, unique_by=lambda p: p[0]))
def test_markers_stand_where_their_values_are(points: list[tuple[int, float]]) -> None:
    points.sort()
    scale = make_scale([y for _, y in points], most=1.0)
    text = chart(Curve(Style(0, 0, 0), tuple(Dot(x, y) for x, y in points)), scale=scale)
    places = [(float(x), float(y)) for x, y in CIRCLE.findall(text)]
    assert len(places) == len(points)
    tall = scale.pixel(scale.low) - scale.pixel(scale.high)
    for (_, y_pixel), (_, y) in zip(places, points, strict=True):
        back = scale.low + (scale.pixel(scale.low) - y_pixel) / tall * (scale.high - scale.low)
        assert back == pytest.approx(y, abs=0.001)
    span = points[-1][0] - points[0][0]
    for (x_percent, _), (x, _) in zip(places, points, strict=True):
        assert 0 <= x_percent <= 100
        assert (x_percent - places[0][0]) / (places[-1][0] - places[0][0]) == pytest.approx(
            (x - points[0][0]) / span, abs=0.001
        )


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60, unique=True))
def test_axis_labels_never_touch_and_name_both_ends(xs: list[int]) -> None:
    xs.sort()
    text = chart(Curve(Style(0, 0, 0), tuple(Dot(x, 0.5) for x in xs)))
    labels = re.findall(r'class="tick" x="([\d.]+)%" y="\d+">(\d+)<', text)
    assert int(labels[-1][1]) == xs[-1]
    assert int(labels[0][1]) == xs[0]
    places = [float(place) for place, _ in labels]
    assert all(b - a > 7.4 for a, b in itertools.pairwise(places)) or len(xs) <= 2
    assert [int(label) for _, label in labels] == sorted(int(label) for _, label in labels)
    assert text.count('class="col"') == len(xs)


def test_evenly_spaced_layers_get_evenly_spaced_labels() -> None:
    text = chart(Curve(Style(0, 0, 0), tuple(Dot(x, 0.5) for x in range(33))))
    labels = [int(x) for x in re.findall(r'class="tick"[^>]*>(\d+)<', text)]
    assert labels == list(range(0, 33, 4))


def test_pointer_columns_cover_the_chart_without_overlap() -> None:
    text = chart(Curve(Style(0, 0, 0), tuple(Dot(x, 0.5) for x in (0, 1, 5, 12))))
    rects = re.findall(r'<rect x="([\d.]+)%" width="([\d.]+)%"', text)
    edge = 0.0
    for start, width in rects:
        assert float(start) == pytest.approx(edge, abs=0.02)
        edge = float(start) + float(width)
    assert edge == pytest.approx(100, abs=0.05)


def test_a_missing_value_breaks_the_line_and_a_lone_point_keeps_its_interval() -> None:
    dots = [Dot(x, 0.8, 0.7, 0.9) for x in range(6)]
    dots[4] = Dot(4, None)
    text = chart(Curve(Style(1, 0, 0), tuple(dots)))
    assert len(re.findall('class="line"', text)) == 1
    assert len(re.findall('class="band"', text)) == 1
    assert len(re.findall('class="whisker"', text)) == 1
    assert text.count("M-3.6-3.6") == 5


def test_no_interval_means_no_band() -> None:
    text = chart(Curve(Style(0, 0, 0), tuple(Dot(x, 0.8) for x in range(3))))
    assert 'class="band"' not in text
    assert 'class="line"' in text


def test_levels_are_drawn_and_close_ones_share_a_label() -> None:
    curve = Curve(Style(0, 0, 0), (Dot(0, 0.5), Dot(1, 1.0)))
    near = chart(curve, levels=[Level("majority 0.530", 0.53), Level("chance 0.500", 0.5)])
    assert near.count('class="level"') == 2
    assert ">majority 0.530, chance 0.500<" in near
    far = chart(curve, levels=[Level("majority 0.900", 0.9), Level("chance 0.500", 0.5)])
    assert ">majority 0.900<" in far
    assert ">chance 0.500<" in far


def test_titles_tips_and_labels_are_escaped() -> None:
    bad = '"><script>x</script>'
    curve = Curve(Style(0, 0, 0), (Dot(0, 0.5), Dot(1, 0.6)))
    text = chart(
        curve,
        labels={0: bad, 1: bad},
        tips={0: [bad, bad]},
        title=bad,
        levels=[Level(bad, 0.5)],
    )
    seen = Seen(text)
    assert "script" not in {tag for tag, _ in seen.tags}
    assert ("g", "data-tip", f"{bad}\n{bad}") in seen.attributes
    assert ("svg", "aria-label", bad) in seen.attributes


@pytest.mark.parametrize("slot", range(6))
def test_every_slot_has_a_marker_in_charts_legends_and_ranges(slot: int) -> None:
    style = Style(slot, 0, 7)
    scale = make_scale([0.4, 1.0], most=1.0)
    assert "k7" in chart(Curve(style, (Dot(0, 0.5), Dot(1, 0.6))))
    for text in (sample(style), range_mark(style, Dot(0, 0.7, 0.6, 0.8), scale)):
        seen = Seen(text)
        assert f"c{slot}" in text
        assert {"path", "circle"} & {tag for tag, _ in seen.tags}


def test_range_mark_orders_low_value_high_and_survives_missing_values() -> None:
    scale = make_scale([0.4, 1.0], most=1.0)
    text = range_mark(Style(0, 0, 0), Dot(0, 0.7, 0.6, 0.8), scale, [Level("majority", 0.5)])
    (low, high) = re.findall(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', text)[0]
    ((middle, _),) = CIRCLE.findall(text)
    (level,) = re.findall(r'class="level" x1="([\d.]+)%"', text)
    assert float(level) < float(low) < float(middle) < float(high)
    empty = range_mark(Style(0, 0, 0), Dot(0, None), scale)
    assert "circle" not in empty
    assert "whisker" not in empty
