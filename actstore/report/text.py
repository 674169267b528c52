"""Text made safe and numbers made readable, for HTML pages and Markdown.

Everything that comes from a results file or a dataset is hostile until it went through
`escape` (HTML) or `code` (Markdown).
"""

from __future__ import annotations

import html
import re

__all__ = ["MISSING", "code", "count", "decimal", "escape", "interval", "visible", "words"]

MISSING = "–"

# Controls would vanish or end a line, surrogates cannot be written as UTF-8, and the
# bidirectional controls let a task name reorder the words around it.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def _mark(match: re.Match[str]) -> str:
    value = ord(match.group())
    if value < 0x20:
        return chr(0x2400 + value)
    return "\u2421" if value == 0x7F else f"⟨U+{value:04X}⟩"


def visible(value: object) -> str:
    """`str(value)` with every control character replaced by a visible mark; one line."""
    return _UNSEEN.sub(_mark, str(value))


def escape(value: object) -> str:
    """HTML text or double-quoted attribute value that shows `value` and does nothing."""
    return html.escape(visible(value), quote=True)


def code(value: object, *, cell: bool = False) -> str:
    """A Markdown code span that shows `value`; in a table `cell` pipes are escaped too."""
    text = visible(value)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    # One space at both ends is removed again by CommonMark; it keeps backticks apart.
    pad = " " if not text.strip() or text[0] in "` " or text[-1] in "` " else ""
    span = f"{fence}{pad}{text or ' '}{pad}{fence}"
    return span.replace("|", "\\|") if cell else span


def decimal(value: float | None, places: int = 3) -> str:
    """Fixed decimals with a true minus sign; a dash for a missing value."""
    if value is None:
        return MISSING
    text = f"{value:.{places}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\u2212")


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """`0.912 [0.901, 0.923]`, or what of it is known."""
    if value is None or low is None or high is None:
        return decimal(value)
    return f"{decimal(value)} [{decimal(low)}, {decimal(high)}]"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 fit`, `2 fits`, `1,200 fits`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def words(name: str) -> str:
    """A column, probe or status name as words: `mean_difference` is `mean difference`."""
    return {"mlp": "MLP"}.get(name, name.replace("_", " "))
