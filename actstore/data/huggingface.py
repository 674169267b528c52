"""Hugging Face datasets, saved in a folder or on the hub; the only user of `datasets`.

`datasets` is imported inside the functions: it takes a second that no other format should pay.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from actstore.data.part import Part, quoted
from actstore.errors import DatasetError

__all__ = ["is_hub_id", "is_saved_folder", "read_hub", "read_saved_folder"]

_HUB_ID = re.compile(r"[\w-]+|[\w-]+/[\w.-]+")
_REPOSITORY_AND_CONFIG = re.compile(rf"({_HUB_ID.pattern})(?::([^\s:]+))?")


def is_saved_folder(path: Path) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote this folder."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def is_hub_id(source: str) -> bool:
    """Whether `source` looks like `name`, `owner/name` or `owner/name:configuration`."""
    return _REPOSITORY_AND_CONFIG.fullmatch(source) is not None


def read_saved_folder(path: Path, *, split: str | None, limit: int | None) -> Part:
    """A folder written by `save_to_disk`; a DatasetDict needs `split` unless it has only one."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # third-party edge: whatever it raises becomes one clear line
        raise DatasetError(f"{path}: cannot be loaded ({_first_line(error)})") from error
    if split is not None and not isinstance(loaded, dict):
        raise DatasetError(f"{path}: holds one dataset without splits: leave out split {split!r}")
    return _to_part(str(path), _choose_split(str(path), loaded, split), limit)


def read_hub(source: str, *, split: str | None, revision: str | None, limit: int | None) -> Part:
    """A dataset of the hub; the configuration, where it has several, follows a colon."""
    import datasets

    match = _REPOSITORY_AND_CONFIG.fullmatch(source)
    assert match is not None
    name, config = match.groups()
    try:
        loaded = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # third-party edge: whatever it raises becomes one clear line
        raise DatasetError(
            f"{source}: no such file, and loading it as a dataset of the Hugging Face hub failed "
            f"({_first_line(error)}): check the name (owner/name or owner/name:configuration), "
            "the split and revision, the network, and HF_TOKEN if it is private"
        ) from error
    return _to_part(source, _choose_split(source, loaded, None), limit)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _choose_split(source: str, loaded: Any, split: str | None) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split is None:
        raise DatasetError(f"{source}: has several splits, name one of {quoted(loaded)}")
    if split not in loaded:
        raise DatasetError(
            f"{source}: has no split {split!r}: use one of {quoted(loaded, nearest=split)}"
        )
    return loaded[split]


def _to_part(name: str, dataset: Any, limit: int | None) -> Part:
    features = dataset.features
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    table = dataset.with_format("arrow")[:]
    for number, column in enumerate(table.column_names):
        names = _class_names(features[column])
        if names is not None:
            values = [_named(value, names) for value in table.column(column).to_pylist()]
            kind = table.schema.field(column).type
            text = pa.string() if pa.types.is_integer(kind) else pa.list_(pa.string())
            table = table.set_column(number, column, pa.array(values, text))
    return Part(name, table)


def _class_names(feature: Any) -> list[str] | None:
    """The names behind a column of class numbers, or of lists of them."""
    import datasets

    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def _named(value: Any, names: list[str]) -> Any:
    """Class numbers as names; -1 is the mark of a missing label."""
    if value is None or value == -1:
        return None
    return [_named(v, names) for v in value] if isinstance(value, list) else names[value]
