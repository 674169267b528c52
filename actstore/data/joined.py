"""Several files of one format as one table whose rows can be traced back."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate

import pyarrow as pa

from actstore.data.dataset import canonical_columns
from actstore.data.part import DEFAULT_TEXT_COLUMN, DEFAULT_WORDS_COLUMN, Part
from actstore.data.tabular import type_text_cells
from actstore.data.words import Spans
from actstore.errors import DatasetError

__all__ = ["JoinedRows"]


class JoinedRows:
    """The rows of all parts in one table, each still traceable to its file and line."""

    def __init__(self, parts: Sequence[Part], text_column: str) -> None:
        self.parts = parts
        self.ends = list(accumulate(part.table.num_rows for part in parts))
        self.table = _concatenate(parts)
        if parts[0].text_cells:
            self.table = type_text_cells(self.table, keep=text_column)

    def where(self, row: int) -> str:
        number = bisect.bisect_right(self.ends, row)
        part = self.parts[number]
        return part.where(row - self.ends[number] + part.table.num_rows)

    def word_spans(self, text_column: str, words_column: str) -> list[Spans] | None:
        """The spans that the format itself knows; they hold for its own columns only."""
        if (text_column, words_column) != (DEFAULT_TEXT_COLUMN, DEFAULT_WORDS_COLUMN):
            return None
        if any(part.word_spans is None for part in self.parts):
            return None
        return [spans for part in self.parts for spans in part.word_spans or []]


def _concatenate(parts: Sequence[Part]) -> pa.Table:
    first = parts[0]
    names = first.table.column_names
    tables = []
    for part in parts:
        for mine, other in ((first, part), (part, first)):
            missing = [n for n in mine.table.column_names if n not in other.table.column_names]
            if missing:
                raise DatasetError(
                    f"{other.name}: lacks column {missing[0]!r}, which {mine.name} has: joined "
                    "files need the same columns"
                )
        try:
            tables.append(canonical_columns(part.table.select(names)))
        except pa.ArrowException as error:
            raise DatasetError(
                f"{part.name}: has a column of an unsupported type ({_first_line(error)})"
            ) from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(_type_conflict(parts, tables) or _first_line(error)) from error


def _type_conflict(parts: Sequence[Part], tables: Sequence[pa.Table]) -> str | None:
    for name in tables[0].column_names:
        schemas = [pa.schema([(name, table.schema.field(name).type)]) for table in tables]
        for number in range(1, len(schemas)):
            try:
                pa.unify_schemas(schemas[: number + 1], promote_options="permissive")
            except pa.ArrowException:
                return (
                    f"{parts[number].name}: column {name!r} is of type {schemas[number][0].type}, "
                    f"in {parts[0].name} of type {schemas[0][0].type}: give it one type"
                )
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
