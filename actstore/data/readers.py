"""Reading whatever the user names as a dataset into one checked `Dataset`."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from actstore.data.conllu import read_conllu
from actstore.data.dataset import Dataset
from actstore.data.huggingface import is_hub_id, is_saved_folder, read_hub, read_saved_folder
from actstore.data.joined import JoinedRows
from actstore.data.part import DEFAULT_TEXT_COLUMN, DEFAULT_WORDS_COLUMN, Part, quoted
from actstore.data.tabular import read_csv, read_json, read_jsonl, read_parquet, read_tsv
from actstore.data.words import Spans, WordNotFoundError, joined_spans, locate_words
from actstore.errors import DatasetError

__all__ = ["read_dataset"]

_READERS: dict[str, Callable[[Path, int | None], Part]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".conllu": read_conllu,
}
_ENDINGS = ", ".join(_READERS)


def read_dataset(
    source: str | Path,
    *,
    text_column: str = DEFAULT_TEXT_COLUMN,
    words_column: str = DEFAULT_WORDS_COLUMN,
    split: str | None = None,
    limit: int | None = None,
    revision: str | None = None,
) -> Dataset:
    """Read a dataset.

    `source` is a file (.jsonl .ndjson .json .csv .tsv .parquet .conllu), several of one format
    joined by commas, a glob pattern or a folder of such files, a folder saved by Hugging Face
    `datasets`, or a hub id. What exists on disk comes first. `limit` keeps the first rows;
    `split` and `revision` are for Hugging Face datasets.

    A column `words_column` of lists of strings gives the words of each example; they are located
    in the text. Where there is no column "text", the text is the words joined by spaces. Another
    name than "words" must exist. Raises DatasetError with one line that names file, row and
    column.
    """
    source = str(source)
    if limit is not None and limit < 1:
        raise DatasetError(f"limit {limit} leaves no examples of {source}: use 1 or more")
    parts = _read_parts(source, split=split, limit=limit, revision=revision)
    rows = JoinedRows(parts, text_column)
    if rows.table.num_rows == 0:
        raise DatasetError(f"{source}: has no examples")
    words = _words(source, rows.table, words_column)
    if text_column in rows.table.column_names:
        _check_text(rows, text_column)
        spans = rows.word_spans(text_column, words_column)
        if words is not None and spans is None:
            spans = _locate(rows, text_column, words_column, words)
    elif words is not None and text_column == DEFAULT_TEXT_COLUMN:
        lists = _checked_words(rows, words_column, words)
        rows.table = rows.table.append_column(
            text_column, pa.array([" ".join(one) for one in lists], pa.string())
        )
        spans = [joined_spans(one) for one in lists]
    else:
        raise _unknown_column(source, rows.table, text_column, "text")
    return Dataset(source, rows.table, text_column, spans)


# --- which files -----------------------------------------------------------------------------


def _read_parts(
    source: str, *, split: str | None, limit: int | None, revision: str | None
) -> list[Part]:
    # os.path and not Path: a long list joined by commas is no legal path, and that is no error.
    path = Path(os.path.expanduser(source))
    exists = source != "" and os.path.exists(path)
    if exists and is_saved_folder(path):
        return [read_saved_folder(path, split=split, limit=limit)]
    if exists or "," in source or glob.has_magic(source):
        pieces = [source] if exists else [piece.strip() for piece in source.split(",")]
        files = [file for piece in pieces for file in _files(piece)]
    elif path.suffix in _READERS or not is_hub_id(source):
        raise _no_file(source)
    else:
        return [read_hub(source, split=split, revision=revision, limit=limit)]
    if split is not None:
        raise DatasetError(
            f"{source}: split {split!r} is for Hugging Face datasets; of files, name those you want"
        )
    reader = _READERS[_format(files[0])]
    for file in files[1:]:
        if _READERS[_format(file)] is not reader:
            raise DatasetError(
                f"{source}: {files[0]} and {file} are of different formats: join files of one"
            )
    parts: list[Part] = []
    n_rows = 0
    for file in files:
        if limit is not None and n_rows >= limit:
            break
        try:
            parts.append(reader(file, None if limit is None else limit - n_rows))
        except OSError as error:
            raise DatasetError(f"{file}: cannot be read ({error.strerror or error})") from error
        n_rows += parts[-1].table.num_rows
    return parts


def _files(piece: str) -> list[Path]:
    path = Path(os.path.expanduser(piece))
    if not piece:
        raise DatasetError("an empty file name: remove the comma before or after it")
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
        if not found:
            raise DatasetError(f"{path}: holds no dataset: no saved dataset and no file {_ENDINGS}")
        return found
    if os.path.exists(path):
        return [path]
    if glob.has_magic(piece):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if found:
            return found
    raise _no_file(piece)


def _no_file(name: str) -> DatasetError:
    if "://" in name:
        return DatasetError(f"{name}: datasets are read from local files or by hub id, not by URL")
    return DatasetError(f"{name}: no such file: give a file {_ENDINGS}, a folder or a hub id")


def _format(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in _READERS:
        raise DatasetError(f"{path}: its format is unknown: use a file ending in {_ENDINGS}")
    return ending


# --- text and words --------------------------------------------------------------------------


def _unknown_column(source: str, table: pa.Table, name: str, role: str) -> DatasetError:
    columns = quoted(table.column_names, nearest=name)
    return DatasetError(
        f"{source}: has no {role} column {name!r}: name one of its columns with "
        f"--{role}-column ({columns})"
    )


def _check_text(rows: JoinedRows, name: str) -> None:
    column = rows.table.column(name)
    if column.null_count:
        row = next(row for row, value in enumerate(column) if not value.is_valid)
        raise DatasetError(
            f"{rows.where(row)}: column {name!r} is null ({column.null_count} of {len(column)} "
            'rows): give each row a text ("" is allowed) or remove it'
        )
    if not pa.types.is_string(column.type):
        raise DatasetError(
            f"{rows.parts[0].name}: column {name!r} is of type {column.type}, not text: name "
            f"another with --text-column ({quoted(_string_columns(rows.table))})"
        )


def _string_columns(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if pa.types.is_string(field.type)]


def _words(source: str, table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """The words column, or None without one. A column that merely happens to be called "words"
    (a count, say) is an ordinary column."""
    if name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_list(kind) and (
            pa.types.is_string(kind.value_type) or pa.types.is_null(kind.value_type)
        ):
            return table.column(name)
        if name != DEFAULT_WORDS_COLUMN:
            raise DatasetError(
                f"{source}: column {name!r} is of type {kind}: words are a list of strings per row"
            )
    elif name != DEFAULT_WORDS_COLUMN:
        raise _unknown_column(source, table, name, "words")
    return None


def _checked_words(rows: JoinedRows, name: str, column: pa.ChunkedArray) -> list[list[str]]:
    lists: list[list[str]] = column.to_pylist()
    for row, words in enumerate(lists):
        if words is None or None in words:
            place = ""
            if words is not None:
                place = f"word {[word is None for word in words].index(True) + 1} of "
            raise DatasetError(
                f"{rows.where(row)}: {place}column {name!r} is null: write a list of strings "
                "([] where there are none)"
            )
    return lists


def _locate(
    rows: JoinedRows, text_column: str, words_column: str, column: pa.ChunkedArray
) -> list[Spans]:
    texts = rows.table.column(text_column).to_pylist()
    lists = _checked_words(rows, words_column, column)
    spans: list[Spans] = []
    for row, (text, words) in enumerate(zip(texts, lists, strict=True)):
        try:
            spans.append(locate_words(text, words))
        except WordNotFoundError as error:
            raise DatasetError(
                f"{rows.where(row)}: word {error.index + 1} {error.word!r} of column "
                f"{words_column!r} is not in {text_column!r} after the words before it: correct "
                f"the row, or remove column {text_column!r} to join the words by spaces"
            ) from error
    return spans
