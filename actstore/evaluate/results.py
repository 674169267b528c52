"""The table of results: a row per fit, kept in one Parquet file."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import BinaryIO, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from actstore.errors import InputError, ResourceError
from actstore.site import Site

__all__ = [
    "FILE_NAME",
    "FIT_KEY",
    "SCHEMA",
    "FitRecord",
    "ResultTable",
    "format_table",
    "merge_records",
    "merge_results",
    "read_results",
    "write_results",
]

FILE_NAME = "results.parquet"
# What tells fits apart. `alpha` is not part of it: cross-validation chose it.
FIT_KEY = ("task", "site", "mask", "pool", "probe", "heads", "seed")
_FORMAT = {b"actstore.results": b"1"}
_N_REQUIRED = 28  # the columns up to `seconds`; later ones may be absent from a file
_LAST = 1 << 30  # deeper than any block


@dataclass(frozen=True)
class FitRecord:
    """One evaluated fit. The fields are the columns of the file, in this order.

    None (null in the file) where a column does not apply or is not known: `layer` of a site that
    is not a hidden state, `heads` and the entropies (nats) of a probe without attention, every
    metric of a fit that failed (`status` says why). NaN is stored as null.
    """

    task: str  # as the user wrote it: category, words:upos
    kind: str  # binary, multiclass
    site: str
    layer: int | None  # Hugging Face's index
    mask: str
    pool: str  # "none" where every row is an item or the probe pools by itself
    probe: str
    heads: int | None
    alpha: float | None  # the chosen penalty
    seed: int
    n_train: int
    n_test: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    f1_macro: float | None
    roc_auc: float | None
    log_loss: float | None  # nats
    ece: float | None
    control_accuracy: float | None
    selectivity: float | None  # accuracy - control_accuracy
    majority: float | None  # accuracy of always naming the most frequent class of training
    entropy: float | None  # of the attention weights, mean over heads and test examples
    entropy_uniform: float | None  # the same if all rows had equal weight
    status: str
    grad_norm: float | None
    iterations: int | None
    seconds: float
    n_classes: int | None = None
    cv_accuracy: float | None = None  # of the chosen alpha, over the validation folds
    cv_unconverged: int | None = None  # fits of the cross-validation that did not converge
    gap_bound: float | None = None  # relative to the objective
    separable: bool | None = None
    weights_file: str | None = None  # relative to the folder of the results
    dropped: int | None = None  # items that have no row in this mask

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in FIT_KEY)


def _make_schema() -> pa.Schema:
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    columns = []
    for name, hint in get_type_hints(FitRecord).items():
        args = get_args(hint) or (hint,)
        (kind,) = (kinds[a] for a in args if a is not NoneType)
        columns.append(pa.field(name, kind, nullable=NoneType in args))
    return pa.schema(columns, metadata=_FORMAT)


SCHEMA = _make_schema()


def merge_records(
    earlier: Iterable[FitRecord], later: Iterable[FitRecord]
) -> tuple[FitRecord, ...]:
    """All records in the order of the file; a later one replaces an earlier one of the same key."""
    by_key = {record.key: record for record in (*earlier, *later)}
    return tuple(sorted(by_key.values(), key=_order))


def write_results(path: str | Path, records: Iterable[FitRecord]) -> Path:
    """Write `records` sorted to `path` (or to results.parquet in the folder `path`), replacing
    the file at once: a reader sees the old file or the new one. Returns the file's path.

    Raises InputError for two records of one fit, ResourceError where the file cannot be written.
    """
    merged = sorted(records, key=_order)
    key, times = Counter(record.key for record in merged).most_common(1)[0] if merged else ((), 1)
    if times > 1:
        named = ", ".join(f"{n} {v}" for n, v in zip(FIT_KEY, key, strict=True))
        raise InputError(f"results: {times} rows for the same fit ({named}): merge them first")
    columns = [
        pa.array([getattr(r, field.name) for r in merged], field.type, from_pandas=True)
        for field in SCHEMA
    ]
    file = _file(path)
    _publish(file, lambda sink: pq.write_table(pa.table(columns, schema=SCHEMA), sink))
    return file


def merge_results(path: str | Path, records: Iterable[FitRecord]) -> tuple[FitRecord, ...]:
    """Add `records` to the file at `path`, which need not exist yet, and return all of them."""
    file = _file(path)
    merged = merge_records(read_results(file) if file.exists() else (), records)
    write_results(file, merged)
    return merged


def read_results(path: str | Path) -> tuple[FitRecord, ...]:
    """The records of the file `path`, or of results.parquet in the folder `path`.

    Columns that FitRecord does not know are left out. Raises InputError where there is no such
    file or its columns are others.
    """
    file = _file(path)
    if not file.exists():
        raise InputError(f"{file}: no such file; `actstore probe --out DIR` writes it")
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable Parquet file ({_line(error)})") from error
    absent = [f.name for f in list(SCHEMA)[:_N_REQUIRED] if f.name not in table.column_names]
    if absent:
        raise InputError(
            f"{file}: not a results file of `actstore probe`: it has no column {', '.join(absent)}"
        )
    columns: dict[str, list[object]] = {}
    for field in SCHEMA:
        if field.name not in table.column_names:
            columns[field.name] = [None] * table.num_rows
            continue
        try:
            values = table.column(field.name).cast(field.type)
        except pa.ArrowException as error:
            raise InputError(f"{file}: column {field.name!r}: {_line(error)}") from error
        if values.null_count and not field.nullable:
            raise InputError(f"{file}: column {field.name!r} has empty cells")
        columns[field.name] = values.to_pylist()
    rows = zip(*columns.values(), strict=True)
    return tuple(FitRecord(*row) for row in rows)


def _file(path: str | Path) -> Path:
    path = Path(path)
    is_file = path.is_file() or (path.suffix == ".parquet" and not path.is_dir())
    return path if is_file else path / FILE_NAME


def _line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _publish(file: Path, write: Callable[[BinaryIO], None]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as sink:
                write(sink)
                sink.flush()
                os.fsync(sink.fileno())
            temporary.replace(file)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ResourceError(f"{file}: cannot be written ({error.strerror or error})") from error


def _order(record: FitRecord) -> tuple[str | int, ...]:
    """Tasks, then probes, then sites in the order of the forward pass, then seeds."""
    try:
        site = Site.parse(record.site).depth(_LAST)
    except InputError:
        site = (_LAST, 1)
    heads = -1 if record.heads is None else record.heads
    return (
        *(record.task, record.mask, record.pool, record.probe, heads),
        *(*site, record.site, record.seed),
    )


# --- the table for people ----------------------------------------------------------------------


@dataclass(frozen=True)
class ResultTable:
    """Cells as text; `caption` says what all rows have in common, "" if nothing."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_Cell = Callable[[FitRecord], str]
_NONE = "-"


def format_table(records: Sequence[FitRecord]) -> ResultTable:
    """Records, in the given order, as text cells. Columns that are equal in all rows move to the
    caption, except site, probe, accuracy, control and selectivity; columns without any value are
    left out. Sites appear as layers where every one is a hidden state."""
    columns: list[tuple[str, _Cell, bool]] = [  # header, cell, always a column
        ("task", lambda r: r.task, False),
        _site_column(records),
        ("mask", lambda r: r.mask, False),
        ("pool", lambda r: r.pool, False),
        ("probe", lambda r: r.probe, True),
        ("heads", lambda r: _NONE if r.heads is None else str(r.heads), False),
        ("seed", lambda r: str(r.seed), False),
        ("accuracy", _accuracy, True),
        ("control", lambda r: _number(r.control_accuracy), True),
        ("selectivity", lambda r: _number(r.selectivity), True),
        ("majority", lambda r: _number(r.majority), False),
        ("status", lambda r: r.status, False),
    ]
    common: list[str] = []
    headers: list[str] = []
    cells: list[list[str]] = []
    for header, cell, stays in columns:
        texts = [cell(record) for record in records]
        if texts and all(text == _NONE for text in texts) and header != "accuracy":
            continue
        if texts and not stays and len(set(texts)) == 1:
            common.append(f"{header} {texts[0]}")
            continue
        headers.append(header)
        cells.append(texts)
    return ResultTable(", ".join(common), tuple(headers), tuple(zip(*cells, strict=True)))


def _site_column(records: Sequence[FitRecord]) -> tuple[str, _Cell, bool]:
    if all(record.layer is not None for record in records):
        return ("layer", lambda r: str(r.layer), True)
    return ("site", lambda r: r.site, True)


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _accuracy(record: FitRecord) -> str:
    if record.accuracy_low is None or record.accuracy_high is None:
        return _number(record.accuracy)
    return f"{_number(record.accuracy)} [{record.accuracy_low:.3f}, {record.accuracy_high:.3f}]"
