"""JSON Lines, JSON, CSV, TSV and Parquet files as tables, with errors that name the line."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actstore.data.part import Part, first_repeated, not_utf8
from actstore.errors import DatasetError

__all__ = ["read_csv", "read_json", "read_jsonl", "read_parquet", "read_tsv", "type_text_cells"]

# No leading zeros: "007" is a name, not a number.
_INTEGER = r"^-?(0|[1-9][0-9]*)$"
_REAL = r"^[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INT64_DIGITS = 18  # always fit in 64 bits


# --- JSON ------------------------------------------------------------------------------------


def read_jsonl(path: Path, limit: int | None) -> Part:
    """One JSON object per line; blank lines are skipped. Columns are the keys of all objects in
    the order in which they first appear; a key that an object lacks is null."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if limit is not None and len(rows) == limit:
                break
            try:
                line = raw.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path) from error
            if line.strip():
                rows.append(_object(_parse(line, f"{path}: line {number}"), path, number, "line"))
                numbers.append(number)
    return _from_rows(str(path), rows, numbers)


def read_json(path: Path, limit: int | None) -> Part:
    """A list of JSON objects."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    value = _parse(text, str(path))
    if not isinstance(value, list):
        raise DatasetError(
            f"{path}: holds {_json_name(value)}, not a list of objects: write [{{...}}, ...], or "
            "one object per line in a file named .jsonl"
        )
    rows = [
        _object(row, path, number, "record")
        for number, row in enumerate(itertools.islice(value, limit), start=1)
    ]
    return _from_rows(str(path), rows, None)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}"
        if error.lineno > 1:
            place = f"line {error.lineno}, {place}"
        hint = (
            ": one object per line belongs in a file named .jsonl"
            if error.msg == "Extra data" and text.lstrip().startswith("{")
            else ": correct or remove it"
        )
        raise DatasetError(f"{where}: not valid JSON ({error.msg}, {place}){hint}") from error
    except _RepeatedKeyError as error:
        raise DatasetError(f"{where}: key {error.key!r} appears twice in one object") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: JSON that cannot be read ({error}): remove it") from error


class _RepeatedKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError(first_repeated(key for key, _ in pairs) or "")
    return found


def _object(value: Any, path: Path, number: int, unit: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DatasetError(
            f"{path}: {unit} {number} is {_json_name(value)}, not an object: "
            'write {"text": "...", ...}'
        )
    return value


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _from_rows(name: str, rows: list[dict[str, Any]], numbers: list[int] | None) -> Part:
    # pa.Table.from_pylist would take the columns of the first row alone.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        array = _to_array(values)
        if array is None:
            row = _first_misfit(values)
            where = f"record {row + 1}" if numbers is None else f"line {numbers[row]}"
            alone = _to_array([values[row]]) is None
            raise DatasetError(
                f"{name}: {where}: column {column!r} holds {_shorten(values[row])}, which "
                + ("cannot be stored" if alone else "does not fit the type of the rows before it")
                + ": give the column values of one type"
            )
        arrays.append(array)
    try:
        return Part(name, pa.table(arrays, names=columns), numbers)
    except UnicodeEncodeError as error:
        raise DatasetError(f"{name}: key {error.object!a} is not valid Unicode") from error


def _to_array(values: Sequence[Any]) -> pa.Array | None:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None


def _first_misfit(values: list[Any]) -> int:
    """The first row with which the column no longer has one type: bisection over prefixes."""
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        if _to_array(values[:middle]) is None:
            bad = middle
        else:
            good = middle
    return bad - 1


def _shorten(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- CSV and TSV -----------------------------------------------------------------------------


def read_csv(path: Path, limit: int | None) -> Part:
    """Comma-separated, with a header; cells may be quoted and then hold line breaks."""
    return _read_delimited(path, limit, ",")


def read_tsv(path: Path, limit: int | None) -> Part:
    """Tab-separated, otherwise as CSV."""
    return _read_delimited(path, limit, "\t")


def _read_delimited(path: Path, limit: int | None, delimiter: str) -> Part:
    # The standard limit of 128 Ki characters per cell would refuse long documents.
    standard_limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _from_records(path, file, limit, delimiter)
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    finally:
        csv.field_size_limit(standard_limit)


def _from_records(path: Path, file: TextIO, limit: int | None, delimiter: str) -> Part:
    records = _records(path, file, delimiter)
    _, header = next(records, (1, []))
    if not header:
        raise DatasetError(f"{path}: is empty: the first line must name the columns")
    repeated = first_repeated(header)
    if repeated is not None:
        raise DatasetError(f"{path}: column {repeated!r} appears twice in the header: rename one")
    cells: list[list[str]] = [[] for _ in header]
    numbers: list[int] = []
    for number, record in itertools.islice(records, limit):
        if len(record) != len(header):
            raise DatasetError(
                f"{path}: line {number} has {len(record)} cells, the header has {len(header)}: "
                f"quote cells that hold {'a tab' if delimiter == chr(9) else 'a comma'}, a quote "
                "or a line break"
            )
        numbers.append(number)
        for column, cell in zip(cells, record, strict=True):
            column.append(cell)
    arrays = [pa.array(column, pa.string()) for column in cells]
    return Part(str(path), pa.table(arrays, names=header), numbers, text_cells=True)


def _records(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, with the line on which each starts."""
    # strict: otherwise a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DatasetError(
                f"{path}: line {number}: {error}: check its quotes; inside a quoted cell a quote "
                'is written ""'
            ) from error
        if record:
            yield number, record


def type_text_cells(table: pa.Table, keep: str) -> pa.Table:
    """Columns of numbers become int64 or float64, empty cells null; column `keep` is left alone."""
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name != keep:
            column = _typed(pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column))
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    def all_match(pattern: str) -> bool:
        return bool(pc.all(pc.match_substring_regex(column, pattern)).as_py())

    if column.null_count == len(column):
        return column
    if all_match(_INTEGER):
        longest = pc.max(pc.utf8_length(column)).as_py()
        return column.cast(pa.int64()) if longest <= _INT64_DIGITS else column
    return column.cast(pa.float64()) if all_match(_REAL) else column


# --- Parquet ---------------------------------------------------------------------------------


def read_parquet(path: Path, limit: int | None) -> Part:
    """One Parquet file; with a limit, only the row groups that are needed."""
    try:
        # Not pq.read_table: it adds columns for folders named like "key=value".
        with pq.ParquetFile(path) as file:
            repeated = first_repeated(file.schema_arrow.names)
            if repeated is not None:
                raise DatasetError(f"{path}: column {repeated!r} appears twice: rename one")
            groups, rows = 0, 0
            while groups < file.num_row_groups and (limit is None or rows < limit):
                rows += file.metadata.row_group(groups).num_rows
                groups += 1
            table = file.read_row_groups(list(range(groups)))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: is not a readable Parquet file ({reason})") from error
    return Part(str(path), table if limit is None else table.slice(0, limit))
