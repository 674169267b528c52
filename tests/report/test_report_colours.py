"""The palette, computed: distances under simulated colour vision, contrasts, shades."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from actstore.report.colours import (
    DARK,
    LIGHT,
    STEPS,
    Theme,
    contrast,
    linear_rgb,
    mix,
    oklab,
    shades,
)

Matrix = tuple[tuple[float, float, float], ...]

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION: dict[str, Matrix] = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "red-blind": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "green-blind": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "blue-blind": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
THEMES = [pytest.param(LIGHT, id="light"), pytest.param(DARK, id="dark")]


def seen(colour: str, matrix: Matrix) -> tuple[float, float, float]:
    rgb = linear_rgb(colour)
    out = [sum(a * b for a, b in zip(line, rgb, strict=True)) for line in matrix]
    r, g, b = (min(1.0, max(0.0, value)) for value in out)
    return oklab((r, g, b))


def nearest(colours: tuple[str, ...], matrix: Matrix) -> float:
    pairs = combinations([seen(colour, matrix) for colour in colours], 2)
    return min(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 for a, b in pairs)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES)
def test_series_stay_apart_for_every_eye(theme: Theme, vision: str) -> None:
    assert nearest(theme.series, VISION[vision]) > 0.09


def test_the_measure_rejects_a_palette_known_to_fail() -> None:
    usual = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd")
    assert nearest(usual, VISION["red-blind"]) < 0.02


@pytest.mark.parametrize("theme", THEMES)
def test_contrasts(theme: Theme) -> None:
    for surface in (theme.background, theme.panel):
        assert contrast(theme.text, surface) > 12
        assert contrast(theme.muted, surface) > 4.5
        assert contrast(theme.link, surface) > 4.5
    assert min(contrast(colour, theme.background) for colour in theme.series) > 3


@pytest.mark.parametrize("theme", THEMES)
def test_shades_start_at_the_page_and_grow_evenly(theme: Theme) -> None:
    steps = shades(theme)
    assert len(steps) == STEPS
    assert steps[0][0] == theme.background
    assert steps[-1][0] == theme.sequential
    lightness = [oklab(linear_rgb(shade))[0] for shade, _ in steps]
    moves = [b - a for a, b in pairwise(lightness)]
    assert all(move * moves[0] > 0 for move in moves), "not monotone"
    assert max(map(abs, moves)) < 1.3 * min(map(abs, moves)), "not even"
    assert min(contrast(text, shade) for shade, text in steps) > 4.5


def test_colour_arithmetic_against_known_values() -> None:
    assert oklab((1, 1, 1)) == pytest.approx((1, 0, 0), abs=1e-6)
    assert oklab(linear_rgb("#ff0000")) == pytest.approx((0.62796, 0.22486, 0.12585), abs=1e-4)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert mix("#123456", "#fedcba", 1) == "#123456"
    assert mix("#123456", "#fedcba", 0) == "#fedcba"
