"""The one style sheet and the one script of a page, and the policy that names them by hash."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from actstore.report.colours import DARK, LIGHT, STEPS, Theme, shades
from actstore.report.series import NEUTRAL

__all__ = ["content_policy", "script", "style_sheet"]

# A look keeps its dash as well as its colour: solid, long dash, dots, dash-dot, short dash-dot,
# fine dots.
_DASHES = ("none", "10 4", "2 4", "10 4 2 4", "5 3 1 3", "1 3")


def _read(name: str) -> str:
    """A file of this package without comment lines and indentation (the hash covers the rest)."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _variables(theme: Theme) -> str:
    pairs = {
        "bg": theme.background,
        "panel": theme.panel,
        "text": theme.text,
        "muted": theme.muted,
        "rule": theme.rule,
        "grid": theme.grid,
        "link": theme.link,
    }
    pairs |= {f"s{slot}": colour for slot, colour in enumerate(theme.series)}
    for step, (shade, text) in enumerate(shades(theme)):
        pairs |= {f"h{step}": shade, f"t{step}": text}
    return "".join(f"--{name}:{colour};" for name, colour in pairs.items())


@cache
def _fixed_rules() -> str:
    slots = "".join(
        f".c{slot}{{--c:var({'--muted' if slot == NEUTRAL else f'--s{slot}'});--d:{dash}}}"
        for slot, dash in enumerate(_DASHES)
    )
    heat = "".join(
        f".h{step}{{background:var(--h{step});color:var(--t{step})}}" for step in range(STEPS)
    )
    return (
        f":root{{{_variables(LIGHT)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
        f"@media print{{:root{{{_variables(LIGHT)}}}}}\n"
        f"{_read('report.css')}\n{slots}\n{heat}\n"
    )


def style_sheet(looks: int) -> str:
    """The style sheet of a page whose legend has `looks` switches, numbered from 0.

    Switching and dimming series needs no script: the rules look at the legend's own state.
    """
    switches = "".join(
        f".report:has(.x{i}:not(:checked)) .k{i}{{display:none}}"
        f".report:has(.l{i}:is(:hover,:focus-within)) .series:not(.k{i}){{opacity:.15}}"
        for i in range(looks)
    )
    return _fixed_rules() + switches


@cache
def script() -> str:
    """The script of every page: tips, sorting and filtering. It builds no markup from text."""
    return _read("report.js")


def content_policy(style: str, code: str) -> str:
    """Content-Security-Policy that lets only this style sheet and this script work."""

    def source(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; script-src {source(code)}; style-src {source(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
