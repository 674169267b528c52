"""What every reader hands over: a table, and where in its file each row stands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from actstore.data.words import Spans
from actstore.errors import DatasetError

__all__ = [
    "DEFAULT_TEXT_COLUMN",
    "DEFAULT_WORDS_COLUMN",
    "Part",
    "first_repeated",
    "not_utf8",
    "quoted",
]

DEFAULT_TEXT_COLUMN = "text"
DEFAULT_WORDS_COLUMN = "words"


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one file (or of one saved or hub split).

    `numbers[row]` is the 1-based line on which a row starts; None means that rows are counted as
    records instead. `text_cells` marks a format that knows only text (CSV), whose columns are yet
    to be typed. `word_spans` is set by formats that know where words stand.
    """

    name: str
    table: pa.Table
    numbers: Sequence[int] | None = None
    text_cells: bool = False
    word_spans: list[Spans] | None = None

    def where(self, row: int) -> str:
        """The place of row `row` (from 0), as errors name it."""
        if self.numbers is None:
            return f"{self.name}: record {row + 1}"
        return f"{self.name}: line {self.numbers[row]}"


def first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def quoted(names: Iterable[str], nearest: str | None = None) -> str:
    """Names for an error message, those that resemble `nearest` first."""
    known = list(names)
    close = difflib.get_close_matches(nearest, known) if nearest is not None else []
    ordered = close + [name for name in known if name not in close]
    return ", ".join(repr(name) for name in ordered) or "none"


def not_utf8(path: Path) -> DatasetError:
    """The error for a file that failed to decode; looks for the line (slow, so only then)."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DatasetError(
                    f"{path}: line {number} is not UTF-8 ({error.reason}): convert the file, "
                    "for example with iconv -f latin1 -t utf-8"
                )
    return DatasetError(f"{path}: is not UTF-8: convert the file, for example with iconv")
