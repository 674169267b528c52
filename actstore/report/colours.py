"""The palette of both themes, and the arithmetic that keeps it readable.

The five series colours were chosen by computation: they stay apart under simulated red-, green-
and blue-blindness (a test repeats the computation). OKLab: B. Ottosson, "A perceptual color space
for image processing" (2020). Contrast: WCAG 2.2, relative luminance.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DARK", "LIGHT", "STEPS", "Theme", "contrast", "linear_rgb", "mix", "oklab", "shades"]

STEPS = 21

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Theme:
    """Colours as `#rrggbb`; `series` in the order of the slots of `series.Style`."""

    background: str
    panel: str
    text: str
    muted: str
    rule: str
    grid: str
    link: str
    series: tuple[str, str, str, str, str]
    sequential: str


LIGHT = Theme(
    background="#ffffff",
    panel="#f6f7f9",
    text="#1b1f24",
    muted="#57606a",
    rule="#d5dae0",
    grid="#e8ebef",
    link="#0a5ca8",
    series=("#1e4eb0", "#c2410c", "#00887c", "#8a1a6b", "#b58628"),
    sequential="#0b4a8f",
)
DARK = Theme(
    background="#14171c",
    panel="#1b2026",
    text="#e6e9ee",
    muted="#9da7b3",
    rule="#343b45",
    grid="#262c34",
    link="#7fb8f5",
    series=("#3193f7", "#e3a66c", "#97f9f4", "#cb5a8d", "#faef00"),
    sequential="#8cc4ff",
)


def linear_rgb(colour: str) -> Triple:
    """Linear-light sRGB in 0..1 of `#rrggbb` (IEC 61966-2-1)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))

    def expand(c: float) -> float:
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    return expand(red), expand(green), expand(blue)


def _hex(rgb: Triple) -> str:
    def compress(c: float) -> int:
        c = min(1.0, max(0.0, c))
        return round(255 * (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055))

    return "#" + "".join(f"{compress(c):02x}" for c in rgb)


def oklab(rgb: Triple) -> Triple:
    """OKLab (lightness, green-red, blue-yellow) of linear-light sRGB."""
    r, g, b = rgb
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    medium = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def _from_oklab(lab: Triple) -> Triple:
    lightness, a, b = lab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def mix(colour: str, background: str, share: float) -> str:
    """`share` of `colour` in `background`, mixed in OKLab; 0 is the background itself."""
    front, back = oklab(linear_rgb(colour)), oklab(linear_rgb(background))
    lightness, a, b = (share * f + (1 - share) * k for f, k in zip(front, back, strict=True))
    return _hex(_from_oklab((lightness, a, b)))


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two colours, 1 to 21."""

    def luminance(colour: str) -> float:
        r, g, b = linear_rgb(colour)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def shades(theme: Theme) -> list[tuple[str, str]]:
    """`STEPS` pairs (shade, black or white text on it), from the page to the full colour."""
    steps = [mix(theme.sequential, theme.background, step / (STEPS - 1)) for step in range(STEPS)]
    return [(shade, max("#000000", "#ffffff", key=lambda t: contrast(t, shade))) for shade in steps]
