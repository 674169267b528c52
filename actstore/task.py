"""Tasks: one class label per example or per word, taken from a column of the dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actstore.errors import InputError, UnknownNameError

__all__ = ["Task", "make_groups", "make_task"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
WordRows = tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]]

_WORDS = "words:"
# Whole numbers with more distinct values than this, and more than one per two items, are a
# measured quantity, not classes.
_MOST_INTEGER_CLASSES = 100
_MOST_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Task:
    """n items with a class each.

    `spec` is what the user wrote (`category`, `words:upos`), `column` the column it names, `level`
    is "example" or "word", `kind` "binary" or "multiclass". `classes` are sorted (numbers by
    value, false before true) and every one has at least two items; `y` int64 [n] indexes them.
    `example` int64 [n] is the row of the dataset that an item belongs to, `item` int32 [n] the
    number of the word within it (None at example level). `types` int64 [n] is the identity that a
    control task labels: the lower-cased word, or the example's text.
    """

    spec: str
    column: str
    level: str
    kind: str
    classes: tuple[str, ...]
    y: Int64
    example: Int64
    item: Int32 | None
    types: Int64

    @property
    def n_items(self) -> int:
        return len(self.y)

    @property
    def n_classes(self) -> int:
        return len(self.classes)


def make_task(
    spec: str,
    table: pa.Table,
    *,
    text_column: str = "text",
    words_column: str = "words",
    word_rows: WordRows | None = None,
) -> Task:
    """Read the task `spec` from `table`, one row of which is one example.

    `COLUMN` holds one string, whole number or boolean per example. `words:COLUMN` holds a list of
    them per example, one for every entry of `words_column`; `word_rows` (example [n], word number
    [n]) then says which words are items and in which order, all of them by default. Where the
    table has no `text_column`, each example is a type of its own.

    Raises UnknownNameError for a column that does not exist, and InputError for missing labels,
    lists of the wrong length, fewer than two classes, a class with one item, and columns that
    hold something other than classes.
    """
    if spec.startswith(_WORDS):
        column, level = spec[len(_WORDS) :], "word"
        labels, words, example, item = _word_items(spec, column, table, words_column, word_rows)
        types = _encode(pc.utf8_lower(_strings(words)))[0]
    else:
        column, level, item = spec, "example", None
        labels = _column(f"task {spec!r}", column, table)
        example = np.arange(len(labels), dtype=np.int64)
        if text_column in table.column_names:
            types = _encode(_strings(table.column(text_column)))[0]
        else:
            types = example.copy()
        missing = _missing(labels)
        if len(missing):
            raise InputError(
                f"task {spec!r}: column {column!r} has no value in row {missing[0] + 1} (counting "
                f"from 1; {len(missing)} of {len(labels)} rows): fill in or drop those rows"
            )
    _check_kind(spec, column, level, labels)
    y, names = _encode(labels)
    _check_classes(spec, y, names)
    kind = "binary" if len(names) == 2 else "multiclass"
    return Task(spec, column, level, kind, names, y, example, item, types)


def make_groups(task: Task, column: str, table: pa.Table, *, words_column: str = "words") -> Int64:
    """Group numbers int64 [n_items] of a task's items: equal where `column` holds equal values.

    `words:COLUMN` groups the items of a word task by a value per word (`words:words` keeps each
    word form together, in whatever case). Errors as for `make_task`.
    """
    what = f"group {column!r}"
    if column.startswith(_WORDS):
        if task.item is None:
            raise InputError(
                f"{what} is per word, but task {task.spec!r} is per example: "
                "name a column with one value per example"
            )
        name = column[len(_WORDS) :]
        if name == words_column:
            return task.types
        rows = (task.example, task.item)
        values, _, _, _ = _word_items(column, name, table, words_column, rows, what=what)
        return _encode(_strings(values))[0]
    values = _column(what, column, table)
    if _is_list(values.type):
        raise InputError(
            f"{what}: the column holds a list per example; name a column with one value per "
            f"example, or {_WORDS}{column} for a word task"
        )
    missing = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
    if len(missing):
        raise InputError(
            f"{what} has no value in row {missing[0] + 1} (counting from 1; {len(missing)} of "
            f"{len(values)} rows): every example needs a group"
        )
    return _encode(_strings(values))[0][task.example]


def _word_items(
    spec: str,
    column: str,
    table: pa.Table,
    words_column: str,
    word_rows: WordRows | None,
    *,
    what: str | None = None,
) -> tuple[pa.Array, pa.Array, Int64, Int32]:
    """Labels and words of the items of a word task, with their example and word number."""
    what = what or f"task {spec!r}"
    words = _column(what, words_column, table, role="column of words")
    labels = _column(what, column, table, only_lists=True)
    for name, values in ((words_column, words), (column, labels)):
        if not _is_list(values.type):
            raise InputError(
                f"{what}: column {name!r} holds {values.type}, not a list with one entry per word"
                + ("" if name == words_column else f"; --task {name} takes one label per example")
            )
    n_words, n_labels = _lengths(words), _lengths(labels)
    wrong = np.flatnonzero((n_words != n_labels) | (n_words < 0))
    if len(wrong):
        row = int(wrong[0])
        said = [
            "no list" if n < 0 else f"{n} entries" for n in (int(n_labels[row]), int(n_words[row]))
        ]
        raise InputError(
            f"{what}: row {row + 1} (counting from 1) has {said[0]} in column {column!r} and "
            f"{said[1]} in {words_column!r} ({len(wrong)} such rows): every word needs one label"
        )
    starts = np.cumsum(n_words) - n_words
    if word_rows is None:
        example = np.repeat(np.arange(len(n_words), dtype=np.int64), n_words)
        item = np.arange(len(example), dtype=np.int64) - np.repeat(starts, n_words)
    else:
        example, item = word_rows[0].astype(np.int64), word_rows[1].astype(np.int64)
        inside = (example >= 0) & (example < len(n_words)) & (item >= 0)
        inside[inside] = item[inside] < n_words[example[inside]]
        if not inside.all():
            at = int(np.argmin(inside))
            raise InputError(
                f"{what}: the dataset has no word {item[at] + 1} in row {example[at] + 1} "
                "(counting from 1): it is not the dataset that the store was made from"
            )
    index = pa.array(starts[example] + item)
    labels, words = (_plain(lists.flatten()).take(index) for lists in (labels, words))
    missing = _missing(labels)
    if len(missing):
        at = int(missing[0])
        raise InputError(
            f"{what}: row {example[at] + 1}, word {item[at] + 1} {words[at].as_py()!r} (counting "
            f"from 1) has no value in column {column!r} ({len(missing)} of {len(labels)} words): "
            "fill in a label such as 'none'"
        )
    return labels, words, example, item.astype(np.int32)


def _column(
    what: str, column: str, table: pa.Table, *, role: str = "column", only_lists: bool = False
) -> pa.Array:
    """The column as one array, dictionaries decoded; or an error that lists what there is."""
    if column not in table.column_names:
        names = [f.name for f in table.schema if not only_lists or _is_list(f.type)]
        raise UnknownNameError(
            f"{what}: the dataset has no {role} {column!r}: it has {_nearest(column, names)}"
        )
    return _plain(table.column(column)).combine_chunks()


def _plain(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Dictionaries decoded, and every kind of text as the one that has all the kernels and no
    limit on size."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.large_string()) if _is_string(values.type) else values


def _nearest(name: str, names: Iterable[str]) -> str:
    ranked = sorted(names, key=lambda other: -SequenceMatcher(None, name, other).ratio())
    shown = ", ".join(ranked[:_MOST_NAMES_SHOWN])
    return (shown or "none") + (", ..." if len(ranked) > _MOST_NAMES_SHOWN else "")


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _lengths(lists: pa.Array) -> Int64:
    """int64 [n] entries per list, -1 where the list itself is missing."""
    lengths = pc.fill_null(pc.list_value_length(lists).cast(pa.int64()), -1)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def _strings(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    if pa.types.is_nested(values.type):
        raise InputError(f"values of type {values.type} cannot be compared: use text or numbers")
    values = values.cast(pa.large_string())
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _missing(labels: pa.Array) -> Int64:
    """Items without a label; blank text counts, because CSV cannot say missing in another way."""
    missing = labels.is_null(nan_is_null=True)
    if _is_string(labels.type):
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(labels)), 0)
        missing = pc.or_(missing, pc.fill_null(blank, False))
    found: Int64 = np.flatnonzero(missing.to_numpy(zero_copy_only=False))
    return found


def _encode(values: pa.Array) -> tuple[Int64, tuple[str, ...]]:
    """Codes int64 [n] by sorted distinct value, and the values' texts in that order."""
    encoded = values.dictionary_encode()
    names = encoded.dictionary
    # pyarrow has no order for booleans; the numbers 0 and 1 have the same
    keys = names.cast(pa.int8()) if pa.types.is_boolean(names.type) else names
    order = pc.array_sort_indices(keys).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    codes = rank[encoded.indices.to_numpy(zero_copy_only=False)]
    return codes, tuple(names.take(pa.array(order)).cast(pa.large_string()).to_pylist())


def _check_kind(spec: str, column: str, level: str, labels: pa.Array) -> None:
    kind = labels.type
    where = f"task {spec!r}: column {column!r}"
    if _is_string(kind) or pa.types.is_boolean(kind):
        return
    if pa.types.is_integer(kind):
        distinct = pc.count_distinct(labels).as_py()
        if distinct > _MOST_INTEGER_CLASSES and 2 * distinct > len(labels):
            raise InputError(
                f"{where} has {distinct} distinct whole numbers in {len(labels)} items: that is a "
                "quantity, and regression is not supported yet; bin it, or write classes as text"
            )
        return
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        raise InputError(
            f"{where} holds real numbers ({kind}): regression is not supported yet; bin it, or "
            "write classes as whole numbers or text"
        )
    if _is_list(kind):
        hint = (
            f"for one label per word use --task {_WORDS}{column}"
            if level == "example"
            else "give one label per word"
        )
        raise InputError(
            f"{where} holds lists ({kind}): several labels at once are not supported yet; {hint}"
        )
    raise InputError(f"{where} holds {kind}: use text, whole numbers or booleans")


def _check_classes(spec: str, y: Int64, names: tuple[str, ...]) -> None:
    if len(y) == 0:
        raise InputError(f"task {spec!r} has no items: no example or word has a row here")
    if len(names) < 2:
        raise InputError(
            f"task {spec!r} has one class only, {_short(names[0])} ({len(y)} items): "
            "a probe needs at least two"
        )
    single = np.flatnonzero(np.bincount(y) < 2)
    if len(single):
        raise InputError(
            f"task {spec!r}: class {_short(names[single[0]])} has one item ({len(single)} of "
            f"{len(names)} classes do): every class needs at least two; drop or merge such classes"
        )


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:37] + "...")
