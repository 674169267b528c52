"""The token table: all examples tokenised and packed along one axis, never padded; and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actstore.errors import UnknownNameError

__all__ = ["MASK_NAMES", "TokenMask", "TokenTable", "make_mask"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MASK_NAMES = ("content", "all", "first", "last", "words")


@dataclass(frozen=True)
class TokenTable:
    """Ragged tokens of N examples.

    `ids`, `special`, `char_start`, `char_end` are [n_tokens]; `offsets` is [N + 1], so example e
    owns tokens `offsets[e]:offsets[e + 1]`. Character positions count code points of the
    example's text and are 0, 0 for special tokens. `n_cut[e]` counts tokens of example e that
    were cut off by the length limit.
    """

    ids: Int32
    offsets: Int64
    special: Bool
    char_start: Int32
    char_end: Int32
    n_cut: Int32

    @property
    def n_examples(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def n_truncated(self) -> int:
        return int(np.count_nonzero(self.n_cut))


@dataclass(frozen=True)
class TokenMask:
    """A named selection of rows of the token table.

    `rows` [n_rows] are token indices, never decreasing within an example; `offsets` [N + 1] give
    each example's part of `rows`. `items` is None except for `words`, where it is the number of
    the word within its example (words cut off by the length limit have no row, and two words may
    share a row when they share a sub-token).
    """

    name: str
    rows: Int64
    offsets: Int64
    items: Int32 | None = None

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Int64:
        return np.diff(self.offsets)


def make_mask(
    name: str, table: TokenTable, word_spans: list[tuple[Int32, Int32]] | None = None
) -> TokenMask:
    """Build one of the named masks; `word_spans` (start and end characters of each example's
    words) is needed for `words` alone."""
    if name == "all":
        return TokenMask(name, np.arange(table.n_tokens, dtype=np.int64), table.offsets)
    content = _select("content", table, np.flatnonzero(~table.special).astype(np.int64))
    if name == "content":
        return content
    if name in ("first", "last"):
        has_rows = content.lengths > 0
        at = content.offsets[:-1] if name == "first" else content.offsets[1:] - 1
        return TokenMask(name, content.rows[at[has_rows]], _offsets(has_rows))
    if name == "words":
        if word_spans is None:
            raise UnknownNameError(
                "mask 'words' needs a dataset with a list of words per example: none was given; "
                "use CoNLL-U, or name the column with --words-column"
            )
        return _words(table, word_spans)
    raise UnknownNameError(f"mask {name!r} is unknown: use one of {', '.join(MASK_NAMES)}")


def _offsets(lengths: npt.NDArray[np.generic]) -> Int64:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _select(name: str, table: TokenTable, rows: Int64) -> TokenMask:
    return TokenMask(name, rows, np.searchsorted(rows, table.offsets).astype(np.int64))


def _words(table: TokenTable, word_spans: list[tuple[Int32, Int32]]) -> TokenMask:
    """The last token that overlaps each word; a word that reaches past the cut keeps no row,
    because its last token was not seen by the model."""
    rows: list[Int64] = []
    items: list[Int32] = []
    for example, (starts, ends) in enumerate(word_spans):
        begin, stop = int(table.offsets[example]), int(table.offsets[example + 1])
        keep = np.flatnonzero(
            ~table.special[begin:stop] & (table.char_end[begin:stop] > table.char_start[begin:stop])
        )
        token_start = table.char_start[begin:stop][keep]
        token_end = table.char_end[begin:stop][keep]
        if len(keep) == 0 or len(starts) == 0:
            rows.append(np.empty(0, np.int64))
            items.append(np.empty(0, np.int32))
            continue
        last = np.searchsorted(token_start, ends, side="left") - 1
        found = (last >= 0) & (token_end[np.maximum(last, 0)] > starts) & (ends > starts)
        if table.n_cut[example]:
            found &= ends <= token_end[-1]
        rows.append((begin + keep[last[found]]).astype(np.int64))
        items.append(np.flatnonzero(found).astype(np.int32))
    lengths = np.array([len(part) for part in rows], dtype=np.int64)
    return TokenMask(
        "words",
        np.concatenate(rows) if rows else np.empty(0, np.int64),
        _offsets(lengths),
        np.concatenate(items) if items else np.empty(0, np.int32),
    )
