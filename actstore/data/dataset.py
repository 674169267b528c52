"""A dataset in memory: one Arrow table, which column is the text, and where its words stand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actstore.data.words import Spans

__all__ = ["Dataset", "canonical_columns"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """N examples, one row of `table` each.

    `source` is what the user asked for. `table` holds every column that was read; its
    `text_column` is a string column without nulls. `word_spans[e]` are the int32 starts and ends,
    in code points of the text, of example e's words; it is None if the dataset has no words.
    """

    source: str
    table: pa.Table
    text_column: str
    word_spans: list[Spans] | None

    @property
    def n_examples(self) -> int:
        return int(self.table.num_rows)

    def texts(self) -> list[str]:
        """The text of every example, in order."""
        texts: list[str] = self.table.column(self.text_column).to_pylist()
        return texts

    def fingerprint(self) -> str:
        """Hex blake2b (32 bytes) over the names, types and values of all columns, in order.

        It does not depend on the path or format of the file, on how Arrow chunked the values, or
        on the bytes that Arrow keeps under nulls.
        """
        digest = hashlib.blake2b(digest_size=32)
        for name in self.table.column_names:
            _update(digest, name.encode())
            column = canonical_columns(self.table.select([name])).column(0)
            if pa.types.is_string(column.type):
                column = column.cast(pa.large_string())  # chunks may exceed 2 GiB together
            _update_array(digest, pa.concat_arrays([pa.array([], column.type), *column.chunks]))
        return digest.hexdigest()


def canonical_columns(table: pa.Table) -> pa.Table:
    """The same values with one Arrow type each: dictionaries decoded, large and view strings and
    lists as plain ones; schema metadata removed."""
    schema = pa.schema([pa.field(f.name, _canonical_type(f.type)) for f in table.schema])
    return table.replace_schema_metadata(None).cast(schema)


def _canonical_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _canonical_type(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_canonical_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, _canonical_type(f.type)) for f in kind])
    return kind


def _update(digest: hashlib.blake2b, content: bytes | memoryview) -> None:
    # A length before every part, so that two sequences of parts never look the same.
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)


def _update_numpy(digest: hashlib.blake2b, values: npt.NDArray[Any]) -> None:
    _update(digest, np.ascontiguousarray(values).tobytes())


def _update_array(digest: hashlib.blake2b, array: pa.Array) -> None:
    """Type, which values are null, then only the values that are not."""
    kind = array.type
    _update(digest, str(kind).encode())
    _update_numpy(digest, array.is_valid().to_numpy(zero_copy_only=False))
    valid = array.drop_null()
    if pa.types.is_null(kind):
        return
    if pa.types.is_list(kind):
        _update_numpy(digest, pc.list_value_length(valid).to_numpy().astype(np.int64))
        _update_array(digest, pc.list_flatten(valid))
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _update(digest, kind.field(number).name.encode())
            _update_array(digest, pc.struct_field(valid, number))
    elif _is_bytes(kind):
        _update_numpy(digest, pc.binary_length(valid).to_numpy().astype(np.int64))
        _update(digest, b"".join(valid.cast(pa.large_binary()).to_pylist()))
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        _update_numpy(digest, valid.to_numpy(zero_copy_only=False))
    else:  # dates, times, decimals, maps: rare, so slow and plain
        _update(digest, repr(valid.to_pylist()).encode())


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind))
